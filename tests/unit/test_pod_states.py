"""The pod state machine on a real file system, without root."""

import contextlib
import os
import re

import pytest

from secrun.errors import StateError, UsageError
from secrun.pod import states
from secrun.pod.removal import delete
from secrun.pod.states import Folder, State


def make(layout, uuid=None):
    return states.create(layout, uuid or states.new_uuid())


def test_a_uuid_is_random_and_of_version_four():
    uuids = {states.new_uuid() for _ in range(100)}
    assert len(uuids) == 100
    form = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(form.fullmatch(uuid) for uuid in uuids)


def test_a_pod_walks_through_its_states_by_rename_alone(layout):
    with make(layout) as pod:
        inode = pod.path.stat().st_ino
        seen = [states.find(layout, pod.uuid).state]
        for folder in (Folder.PREPARED, Folder.RUN, Folder.EXITED_GARBAGE, Folder.GARBAGE):
            pod.move(folder)
            seen.append(states.find(layout, pod.uuid).state)
        assert pod.path.stat().st_ino == inode
    assert seen == [
        State.PREPARING,
        State.PREPARED,
        State.RUNNING,
        State.EXITED_DELETING,
        State.DELETING,
    ]


@pytest.mark.parametrize(
    ("folder", "state"),
    [
        (Folder.PREPARING, State.ABORTED_PREPARE),
        (Folder.PREPARED, State.PREPARED),
        (Folder.RUN, State.EXITED),
        (Folder.EXITED_GARBAGE, State.EXITED_GARBAGE),
        (Folder.GARBAGE, State.GARBAGE),
    ],
)
def test_without_its_lock_a_pod_is_what_its_folder_says(layout, folder, state):
    path = {
        Folder.PREPARING: [],
        Folder.PREPARED: [Folder.PREPARED],
        Folder.RUN: [Folder.PREPARED, Folder.RUN],
        Folder.EXITED_GARBAGE: [Folder.PREPARED, Folder.RUN, Folder.EXITED_GARBAGE],
        Folder.GARBAGE: [Folder.GARBAGE],
    }[folder]
    with make(layout) as pod:
        for step in path:
            pod.move(step)
    assert states.find(layout, pod.uuid).state is state


def test_a_pod_cannot_jump(layout):
    with make(layout) as pod, pytest.raises(StateError, match="no way leads from preparing to run"):
        pod.move(Folder.RUN)


def test_only_one_process_can_hold_a_pod(layout):
    with make(layout) as pod:
        assert states.lock(states.find(layout, pod.uuid), layout) is None
    taken = states.lock(states.find(layout, pod.uuid), layout)
    assert taken is not None
    taken.close()


def test_a_lock_on_a_pod_that_moved_on_is_not_taken(layout):
    with make(layout) as pod:
        found = states.find(layout, pod.uuid)
        pod.move(Folder.PREPARED)
    assert states.lock(found, layout) is None


def test_an_inherited_lock_must_be_the_pods_own(layout):
    with make(layout) as pod, make(layout) as other:
        with pytest.raises(StateError, match="is not the lock of pod"):
            states.adopt(layout, pod.uuid, Folder.PREPARING, other.fd)
        copy = os.dup(pod.fd)
        assert states.adopt(layout, pod.uuid, Folder.PREPARING, copy).uuid == pod.uuid
        os.close(copy)


def test_prefixes_find_one_pod_or_say_why_not(layout):
    first, second = "aaaaaaaa-1111-4111-8111-111111111111", "aaaabbbb-2222-4222-8222-222222222222"
    for uuid in (first, second):
        make(layout, uuid).close()
    assert states.find(layout, "AAAAB").uuid == second
    for text, message in (
        ("aaaa", "ambiguous"),
        ("ffff", "no pod matches"),
        ("", "empty"),
        ("../x", "is no UUID"),
    ):
        with pytest.raises(UsageError, match=message):
            states.find(layout, text)


def test_names_that_are_no_pods_are_ignored(layout):
    make(layout).close()
    (layout.pods / "run").mkdir()
    (layout.pods / "run" / "lost+found").mkdir()
    assert len(list(states.walk(layout))) == 1


def test_deleting_copes_with_depth_links_and_odd_names(layout, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("stays")
    pod = make(layout)
    os.symlink(outside, pod.path / "link")
    (pod.path / "new\nline").write_text("x")
    os.mkfifo(pod.path / "fifo")
    fd = os.open(pod.path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.symlink(outside, "up", dir_fd=deeper)
        os.close(fd)
        fd = deeper
    os.close(fd)
    delete(pod)
    pod.close()
    assert list(states.walk(layout)) == []
    assert (outside / "precious").read_text() == "stays"


def test_a_deletion_that_was_killed_is_taken_up_again(layout, monkeypatch):
    pod = make(layout)
    (pod.path / "a" / "b" / "c").mkdir(parents=True)
    (pod.path / "a" / "d").mkdir()
    real, left = os.rmdir, [1]

    def dies(*args, **kwargs):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*args, **kwargs)

    for allowed in range(6):
        left[0] = allowed
        monkeypatch.setattr(os, "rmdir", dies)
        with contextlib.suppress(KeyboardInterrupt):
            delete(pod)
        monkeypatch.undo()
        if list(states.walk(layout)) == []:
            break
    else:
        delete(pod)
    pod.close()
    assert list(states.walk(layout)) == []


def test_a_list_shows_damaged_and_half_made_pods_without_giving_up(layout, capsys):
    from secrun.cli import main as cli

    with make(layout) as good, make(layout) as bad, make(layout) as young:
        for pod in (good, bad):
            pod.move(Folder.PREPARED)
        (bad.path / "manifest").write_text("{")
    words = ["--root", str(layout.root), "--run-root", str(layout.run_root), "list", "--full"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    for pod in (good, bad, young):
        assert pod.uuid in shown.out
    assert f"{bad.uuid}: pod manifest is not valid JSON" in shown.err
    assert f"{good.uuid}: the pod has no manifest" in shown.err
    assert young.uuid not in shown.err
