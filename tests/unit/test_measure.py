"""What events say of pods, and what is kept until the log can be told."""

import json
import os

import pytest

from secrun.digest import Digest
from secrun.errors import HostError, StateError
from secrun.measure import accounts, actor, events, journal, marker
from secrun.measure.identity import HostIdentity, load, required, store
from secrun.measure.marker import Marker
from secrun.paths import Layout
from secrun.record import replace
from secrun.stage1.machine import Accelerator
from secrun.stage1.machine import Machine as VirtualMachine
from secrun.stage1.manifest import AppManifest, ImageIdentity, Limits, Network, PodManifest
from secrun.stage1.podfiles import PodFiles
from secrun.trust.admission import BYPASS
from secrun_attest.fields import Fields
from secrun_attest.record import Epoch, Event, Operation, event_data, parse_event_data
from secrun_attest.tpm import TpmKind
from secrun_attest.verify.machine import Machine, virtual_machine
from support import attest_bench

DIGEST = Digest.of(b"x")
UUID = "11111111-2222-4333-8444-555555555555"


def image(name: str = "a") -> ImageIdentity:
    return ImageIdentity(
        reference=f"docker://r.example/{name}:1",
        manifest=Digest.of(name.encode()),
        config=DIGEST,
        rootfs=DIGEST,
        tree=DIGEST,
        verity_root="00" * 32,
        admission=BYPASS,
    )


def pod(*names: str, relaxations: tuple[str, ...] = ()) -> PodManifest:
    apps = tuple(
        AppManifest(
            name=name,
            image=image(name),
            args=("serve", "--password=hunter2"),
            env_names=("TOKEN",),
            search_path="/bin",
            cwd="/",
            uid=0,
            gid=0,
            groups=(),
            read_only=False,
            terminal=False,
            stdin=False,
            stop_signal=15,
            stop_timeout_seconds=10,
            volumes=(),
            limits=Limits(),
            capabilities=(),
            relaxations=relaxations,
            bundle=DIGEST,
        )
        for name in names
    )
    return PodManifest(
        uuid=UUID,
        hostname="h",
        network=Network.NONE,
        flavour="nspawn",
        stage1=DIGEST,
        stage1_tree=DIGEST,
        created_ns=1,
        relaxations=("insecure-options:image",),
        outer_arguments=(),
        outer_filter=None,
        apps=apps,
    )


MACHINE = VirtualMachine(
    accelerator=Accelerator.TCG,
    model="q35",
    vcpus=2,
    memory_bytes=1 << 29,
    storage_bytes=0,
    vtpm=True,
    kernel=DIGEST,
    initrd=DIGEST,
    command_line="quiet",
    pod_root="11" * 32,
    pod_blocks=7,
)


def measured(operation: Operation, fields: dict, seq: int) -> Event:
    """The event as a verifier reads it back."""
    epoch = Epoch(reset=1, restart=0, boot_id="0a1b2c3d-0000-4000-8000-000000000001")
    return parse_event_data(event_data(Event(operation=operation, seq=seq, epoch=epoch, t=0, fields=fields)))


def test_a_verifier_understands_what_a_pods_events_say():
    machine = Machine()
    opening = {
        "baseline": {"sha256": "00" * 32},
        "runtime": {"digest": str(DIGEST), "version": "1"},
        "ak": "00",
        "tpm": {"kind": "software"},
    }
    manifest = pod("web", "db", relaxations=("capability:NET_ADMIN",))
    told = [
        (Operation.LOG_OPEN, opening),
        (Operation.IMAGE_ADMIT, events.image_admit(image("web"))),
        (Operation.IMAGE_ADMIT, events.image_admit(image("db"))),
        (Operation.POD_PREPARE, events.pod_prepare(manifest, Digest.of(manifest.to_bytes()))),
        (Operation.POD_START, events.pod_start(UUID, "u:r:secrun_pod_t:s0:c1,c2", by={"uid": 0})),
    ]
    for seq, (operation, fields) in enumerate(told):
        machine.apply(measured(operation, fields, seq))
    found = machine.pods[UUID]
    assert [app.name for app in found.apps] == ["web", "db"]
    assert found.relaxations == ("insecure-options:image",)
    assert {app.relaxations for app in found.apps} == {("capability:NET_ADMIN",)}
    assert found.manifest.hex() == Digest.of(manifest.to_bytes()).hex


def test_a_verifier_understands_what_is_said_of_a_pods_machine():
    manifest = replace(pod("web", "db"), machine=MACHINE)
    fields = events.pod_prepare(manifest, DIGEST)
    found = virtual_machine(Fields(fields["machine"], "machine"))
    assert (found.accelerator, found.kernel.hex(), found.command_line) == ("tcg", DIGEST.hex, "quiet")
    assert (found.pod_root.hex(), found.memory, found.vtpm) == (MACHINE.pod_root, 1 << 29, True)
    # What its kernel enforces of each app is said, and is not for pods on the host's own kernel.
    assert [app["verity_root"] for app in fields["apps"]] == ["00" * 32] * 2
    assert "verity_root" not in str(events.pod_prepare(pod("web"), DIGEST))
    # The quick reader knows these members in this form.
    assert fields["machine"].keys() == attest_bench.MACHINE.keys()
    measured(Operation.POD_PREPARE, fields, 3)


def test_neither_words_nor_variables_of_an_app_are_in_its_events():
    text = json.dumps(events.pod_prepare(pod("web"), DIGEST))
    assert "hunter2" not in text
    assert "TOKEN" not in text


def test_a_pod_of_sixty_four_apps_fits_into_one_event():
    fields = events.pod_prepare(pod(*(f"app-{number}" for number in range(64))), DIGEST)
    measured(Operation.POD_PREPARE, fields, 3)


def test_a_pod_that_does_not_fit_into_one_event_is_refused_with_both_sizes():
    names = [f"application-{number}" for number in range(64)]
    events.check_size(pod(*names[:40]))
    events.check_size(replace(pod(*names[:40]), machine=MACHINE))
    with pytest.raises(HostError, match=r"its 64 apps has \d{5} bytes, one event holds 16128"):
        events.check_size(replace(pod(*names), machine=MACHINE))
    # Whatever is let through can be measured.
    for count in range(40, 65):
        manifest = replace(pod(*names[:count]), machine=MACHINE)
        try:
            events.check_size(manifest)
        except HostError:
            break
        measured(Operation.POD_PREPARE, events.pod_prepare(manifest, DIGEST), 999_999)
    assert count > 45


def test_a_commands_digest_depends_on_every_word_and_on_its_salt():
    one = events.command_digest(("a", "b"), b"s")
    assert one != events.command_digest(("a b",), b"s")
    assert one != events.command_digest(("a", "b"), b"t")
    assert one == events.command_digest(("a", "b"), b"s")


@pytest.fixture
def layout(tmp_path) -> Layout:
    return Layout(root=tmp_path / "root", run_root=tmp_path / "run")


def note(layout: Layout, subject: str) -> None:
    journal.note(layout, option="attest=off", what="PodStart", subject=subject, detail={"code": 1})


def told(layout: Layout) -> list[dict]:
    with journal.told(layout) as (found, _):
        return [dict(item) for item in found]


def test_a_bypass_is_told_once_and_in_order(layout):
    note(layout, "one")
    note(layout, "two")
    assert told(layout) == [
        {"option": "attest=off", "what": "PodStart", "subject": name, "code": 1} for name in ("one", "two")
    ]
    assert told(layout) == []


def test_a_bypass_stays_when_it_could_not_be_told(layout):
    note(layout, "one")
    with pytest.raises(StateError), journal.told(layout):
        raise StateError("the log cannot be written")
    assert [item["subject"] for item in told(layout)] == ["one"]


def test_many_bypasses_are_told_as_one_with_their_number(layout):
    for number in range(journal.MAX_TOLD + 1):
        note(layout, str(number))
    (only,) = told(layout)
    assert (only["subject"], only["count"]) == ("0", journal.MAX_TOLD + 1)


def test_a_damaged_line_of_the_journal_is_a_bypass_too(layout):
    note(layout, "one")
    with journal.path(layout).open("ab") as stream:
        stream.write(b"\xff\xfe not JSON\n" + b'{"option":"torn')
    assert [item["option"] for item in told(layout)] == ["attest=off", "unknown"]


def test_a_bypass_that_does_not_fit_on_the_disk_is_an_error_and_leaves_the_others_whole(layout, monkeypatch):
    note(layout, "one")
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
        with pytest.raises(OSError, match="No space left"):
            note(layout, "two")
    note(layout, "three")
    assert [item["subject"] for item in told(layout)] == ["one", "three"]


def test_the_journal_is_for_root_alone(layout):
    note(layout, "one")
    assert journal.path(layout).stat().st_mode & 0o077 == 0


def test_a_marker_tells_what_was_begun_and_what_is_done(tmp_path):
    files = PodFiles(tmp_path)
    assert marker.read(files) is None
    begun = marker.write(files, Marker(epoch="1-0-b").begun("PodStart"))
    assert marker.read(files) == begun == Marker(epoch="1-0-b", pending="PodStart")
    marker.write(files, begun.done())
    assert marker.read(files) == Marker(epoch="1-0-b", last="PodStart")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"epoch":"1","last":"","manifest":"","pending":"","x":1}', b"[1]", b"{" * 5000]
)
def test_a_damaged_marker_leaves_it_to_the_log_how_far_the_pod_came(tmp_path, data):
    (tmp_path / marker.FILE_NAME).write_bytes(data)
    known = marker.read(PodFiles(tmp_path))
    assert known == marker.LOST
    assert (known.epoch, known.last, bool(known.pending)) == ("", "", True)


def test_only_pods_without_an_exit_run(layout):
    folders = {name: layout.pods / "run" / name for name in ("ended", "running", "unmeasured")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        if name != "unmeasured":
            marker.write(PodFiles(folder), Marker(epoch="1-0-b", last="PodStart"))
    PodFiles(folders["ended"]).exit.write_text("{}")
    assert list(marker.of_running(layout)) == [("running", Marker(epoch="1-0-b", last="PodStart"))]


IDENTITY = HostIdentity(
    host="web-1",
    kind=TpmKind.SOFTWARE,
    tcti="",
    pcr=15,
    ak_name=b"\x00\x0b",
    ak_public=b"\x01",
    manufacturer="IBM",
    firmware="00",
    ek_certificate=False,
)


def test_an_identity_is_kept_and_read_back(layout):
    assert load(layout) is None
    with pytest.raises(StateError, match="no attestation identity"):
        required(layout)
    store(layout, IDENTITY)
    assert required(layout) == IDENTITY


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"pcr":15', '"pcr":"15"'),
        ('"kind":"software"', '"kind":"magic"'),
        ('"ak_name":"000b"', '"ak_name":"zz"'),
    ],
)
def test_a_damaged_identity_is_refused(layout, old, new):
    store(layout, IDENTITY)
    path = layout.measure / "identity.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(StateError, match="identity"):
        load(layout)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/web.service\n", "web.service"),
        (
            "12:pids:/x.service\n1:name=systemd:/user.slice/user-0.slice/session-3.scope\n0::/\n",
            "session-3.scope",
        ),
        ("0::/machine.slice/a.scope/payload\n", "a.scope"),
        ("3:cpu:/x.service\n0::/\n", ""),
        ("", ""),
        ("no line", ""),
    ],
)
def test_the_unit_is_the_innermost_of_the_hierarchy_that_systemd_keeps(text, unit):
    assert actor.parse_unit(text) == unit


@pytest.mark.parametrize(
    ("text", "login"), [("1000\n", 1000), ("0", 0), ("4294967295", None), ("", None), ("x", None)]
)
def test_who_logged_in_is_a_number_or_nobody(text, login):
    assert actor.parse_login(text) == login


def test_an_account_is_found_by_its_digest_only(tmp_path):
    layout = Layout(root=tmp_path)
    digest = accounts.keep(layout, b"{}")
    read = accounts.reader(layout)
    assert read(digest) == b"{}"
    assert (accounts.path_of(layout, Digest.parse(digest))).stat().st_mode & 0o077 == 0
    assert [read(word) for word in (str(DIGEST), "../../x", "")] == [None] * 3


def test_what_was_refused_for_want_of_room_is_told_when_there_is_some(layout):
    journal.refuse(layout, subject=UUID, code="log-write", why="no space")
    with pytest.raises(StateError), journal.told(layout):
        raise StateError("the log cannot be written")
    with journal.told(layout) as (bypasses, refusals):
        assert bypasses == ()
        assert refusals == ({"what": "trail", "subject": UUID, "code": "log-write", "why": "no space"},)
    with journal.told(layout) as found:
        assert found == ((), ())
