"""Which pods a list shows: filters, order, the latest, and what a thousand of them cost."""

import fcntl
import json
import os
import time

import pytest

from secrun.cli.main import main
from secrun.errors import UsageError
from secrun.pod import exits, select
from secrun.pod.exits import AppExit, PodExit
from secrun.pod.glance import Glance
from secrun.pod.states import Folder, State, folder_path, new_uuid
from secrun.record import replace
from support import manifests

DAY = 86_400 * 1_000_000_000
NOW = 1_800_000_000_000_000_000
WEB = Glance(
    uuid="aaaa0000-1111-4111-8111-111111111111",
    state=State.RUNNING,
    problem="",
    created_ns=NOW - DAY,
    started_ns=NOW - DAY,
    apps=(
        ("web", "docker://r.example/team/web:1", "sha256:abcd"),
        ("log", "oci:/images:log", "sha256:1234"),
    ),
    networks=(("default", "eth0", "10.0.0.2/24"),),
    labels=("tier=front", "debug="),
)
JOB = replace(
    WEB,
    uuid="bbbb0000-1111-4111-8111-111111111111",
    state=State.EXITED,
    created_ns=NOW - 2 * DAY,
    apps=(("job", "docker://r.example/team/job@sha256:77", "sha256:7777"),),
    networks=(),
    labels=("tier=back", "team=a=b"),
    exit_code=3,
)
OLD = replace(JOB, uuid="cccc0000-1111-4111-8111-111111111111", state=State.EXITED_GARBAGE, exit_code=0)
READY = replace(JOB, uuid="dddd0000-1111-4111-8111-111111111111", state=State.PREPARED, exit_code=None)
ALL = (WEB, JOB, OLD, READY)


def chosen(*filters: str) -> set[str]:
    """Return the first letters of the pods that filters leave."""
    created = {pod.uuid[0]: pod.created_ns for pod in ALL}
    wanted = select.parse(filters, NOW, created.__getitem__)
    return {pod.uuid[0] for pod in ALL if wanted.holds(pod)}


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ((), "abcd"),
        (("id=AAAA",), "a"),
        (("name=^jo",), "bcd"),
        (("name=o",), "abcd"),
        (("app=jo",), ""),
        (("app=log",), "a"),
        (("label=tier",), "abcd"),
        (("label=tier=back",), "bcd"),
        (("label=team=a=b",), "bcd"),
        (("label=tier=back", "label=debug"), ""),
        (("label!=tier=back",), "a"),
        (("label!=debug", "label!=team"), ""),
        (("status=running",), "a"),
        (("state=exited",), "bc"),
        (("status=exited-garbage",), "c"),
        (("status=exited garbage",), "c"),
        (("status=created",), "d"),
        (("status=running", "state=prepared"), "ad"),
        (("status=running", "app=job"), ""),
        (("image=docker://r.example/team/web:1",), "a"),
        (("ancestor=r.example/team/web",), "a"),
        (("ancestor=web",), "a"),
        (("ancestor=eb",), ""),
        (("ancestor=team/job",), "bcd"),
        (("image=7777",), "bcd"),
        (("image=sha256:ab",), "a"),
        (("network=default",), "a"),
        (("exited=3",), "b"),
        (("exited=0", "exited=3"), "bc"),
        (("before=a",), "bcd"),
        (("since=b",), "a"),
        (("since=b", "since=a"), ""),
        (("until=36h",), "bcd"),
        (("until=2027-01-14T08:00:00Z",), "bcd"),
    ],
)
def test_a_filter_leaves_the_pods_of_which_it_holds(filters, left):
    assert chosen(*filters) == set(left)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("volume=x", "with a key that pods have"),
        ("label", "is not KEY=VALUE"),
        ("name=[", "expected a regular expression"),
        ("status=paused", "expected one of aborted-prepare, created,"),
        ("exited=256", "expected an exit code, 0 to 255"),
        ("exited=-1", "expected an exit code"),
        ("image=", "expected the name or the ID of an image"),
        ("until=soon", "is neither a duration nor a time"),
    ],
)
def test_a_filter_without_meaning_is_refused(text, said):
    with pytest.raises(UsageError) as caught:
        chosen(text)
    assert said in caught.value.message


def test_only_a_filter_of_exit_codes_reads_how_pods_ended():
    assert not select.parse(("label=x", "status=exited"), NOW, lambda _: 0).needs_ends
    assert select.parse(("status=exited", "exited=1"), NOW, lambda _: 0).needs_ends


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("created", "bcda"),
        ("started", "dabc"),
        ("uuid", "abcd"),
        ("app", "bcda"),
        ("image", "bcda"),
        ("state", "bcda"),
    ],
)
def test_pods_are_sorted_by_what_was_asked_and_then_by_when_they_were_created(key, order):
    pods = (WEB, JOB, OLD, replace(READY, started_ns=None))
    begun = tuple(replace(pod, started_ns=pod.started_ns and NOW + place) for place, pod in enumerate(pods))
    found = select.arrange(begun, key=key)
    assert "".join(pod.uuid[0] for pod in found) == order
    backwards = select.arrange(begun, key=key, backwards=True)
    assert backwards[0].uuid[0] == {"bcda": "a", "dabc": "c", "abcd": "d"}[order]
    assert [pod.uuid[0] for pod in select.arrange(begun, key=key, last=1)] == ["a"]


def exited(layout, count):
    """Write `count` exited pods, each created a second after the one before; return their UUIDs."""
    folder = folder_path(layout, Folder.RUN)
    folder.mkdir(parents=True)
    image = replace(manifests.app().image, reference="oci:/x:web")
    uuids = []
    for index in range(count):
        uuid = new_uuid()
        app = replace(manifests.app("web", labels=(f"number={index}",)), image=image)
        pod = replace(manifests.pod(app), uuid=uuid, created_ns=NOW + index * 1_000_000_000)
        path = folder / uuid
        path.mkdir()
        (path / "manifest").write_bytes(pod.to_bytes())
        (path / "started").write_text(f"{NOW} 1\n")
        end = PodExit(code=index % 3, finished_ns=NOW, error="", apps=(AppExit(name="web", code=index % 3),))
        (path / "exit.json").write_bytes(end.to_bytes())
        uuids.append(uuid)
    return uuids


def listed(layout, *words):
    return main(["--root", str(layout.root), "--run-root", str(layout.run_root), "list", *words])


def test_a_thousand_exited_pods_cost_a_few_small_reads_each(layout, capsys, monkeypatch):
    uuids = exited(layout, 1000)
    opened, whole = [], []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: opened.append(args[0]) or real(*args, **kwargs))
    monkeypatch.setattr(exits, "read", whole.append)
    assert listed(layout, "--full") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == uuids
    assert {line.split()[4] for line in lines[1:]} == {"exited"}
    # The folder, its manifest, when it started, its addresses.
    assert len(opened) <= 4 * len(uuids) + 10
    assert whole == []


def test_a_list_in_json_holds_the_chosen_pods_in_the_order_asked_for(layout, capsys):
    uuids = exited(layout, 7)
    words = ("--filter", "exited=1", "--reverse")
    assert listed(layout, "--format=json", *words) == 0
    assert [pod["uuid"] for pod in json.loads(capsys.readouterr().out)["pods"]] == [uuids[4], uuids[1]]
    assert listed(layout, "-q", *words) == 0
    assert capsys.readouterr().out.split() == [uuids[4], uuids[1]]
    assert listed(layout, "-q", "--latest") == 0
    assert capsys.readouterr().out.split() == [uuids[6]]
    assert listed(layout, "-q", "--last=2", f"--filter=before={uuids[3]}") == 0
    assert capsys.readouterr().out.split() == uuids[1:3]
    for words, said in (
        (("--last=0",), "--last 0 is no number of pods"),
        (("--last=1", "--latest"), "exclude each other"),
    ):
        assert listed(layout, *words) == 2
        assert said in capsys.readouterr().err


def test_a_clock_that_was_set_back_shows_a_pod_as_new(layout, capsys, monkeypatch):
    exited(layout, 1)
    monkeypatch.setattr(time, "time", lambda: NOW / 1e9 - 3600)
    assert listed(layout) == 0
    assert "  now  " in capsys.readouterr().out


def test_a_pod_that_some_process_works_on_is_running(layout, capsys):
    (uuid,) = exited(layout, 1)
    fd = os.open(folder_path(layout, Folder.RUN, uuid), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert listed(layout, "-q", "--filter=state=running") == 0
    assert capsys.readouterr().out.split() == [uuid]
    os.close(fd)
