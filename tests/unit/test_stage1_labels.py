"""Categories of a pod's own, what is labelled, and what keeps a pod from starting."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from secrun import selinux
from secrun.errors import HostError, UsageError
from secrun.paths import Layout
from secrun.selinux import Mode
from secrun.stage1 import labels
from secrun.stage1.label import Label
from secrun.stage1.volume import Relabel, Volume
from secrun_policies.labels import (
    OWN_FILE,
    OWN_OPEN,
    OWN_PROCESS,
    OWN_RUN,
    OWN_RUNTIME,
    OWN_STORE,
    HostContexts,
    LabelKind,
    LabelRequest,
)

LABEL = Label(process=OWN_PROCESS, file=OWN_FILE, runtime="", level="")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path / "root", run_root=tmp_path / "run")


@pytest.fixture
def labelled(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Record which label each path gets; the kernel here need not have SELinux."""
    seen: dict[str, str] = {}

    def label(name: str, context: str, *, dir_fd: int) -> None:
        seen[os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)] = context

    monkeypatch.setattr(selinux, "label", label)
    return seen


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def be(mode: Mode, *defined: str) -> None:
        monkeypatch.setattr(selinux, "mode", lambda: mode)
        monkeypatch.setattr(selinux, "policy_name", lambda: "default")
        contexts = HostContexts(lxc="", defined=defined.__contains__)
        monkeypatch.setattr(selinux, "contexts", lambda: contexts)

    return be


def test_a_pair_is_never_given_twice_while_it_is_held(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(labels, "candidates", lambda _: iter([(1, 2), (1, 3), (2, 3)]))
    taken = [labels.take_level(layout, "seed", "") for _ in range(3)]
    assert [level for level, _ in taken] == ["s0:c1,c2", "s0:c1,c3", "s0:c2,c3"]
    with pytest.raises(HostError, match="no free pair"):
        labels.take_level(layout, "seed", "")
    os.close(taken[1][1])
    level, fd = labels.take_level(layout, "seed", "")
    assert level == "s0:c1,c3"
    assert len(list(layout.categories.iterdir())) == 3
    for held in (taken[0][1], taken[2][1], fd):
        os.close(held)


def test_another_process_holds_its_pair_too(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(labels, "candidates", lambda _: iter([(1, 2), (3, 4)]))
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        labels.take_level(layout, "a", "")
        os.write(write_fd, b"x")
        os.close(write_fd)
        signal.pause()
    os.read(read_fd, 1)
    try:
        level, fd = labels.take_level(layout, "b", "")
        assert level == "s0:c3,c4"
        os.close(fd)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read_fd)
        os.close(write_fd)
    level, fd = labels.take_level(layout, "c", "")
    assert level == "s0:c1,c2"
    os.close(fd)


def test_a_level_by_name_may_be_shared_but_not_one_of_a_pods_own(layout: Layout):
    first, second = (labels.take_level(layout, "x", "s0:c1,c2") for _ in range(2))
    assert first[0] == second[0] == "s0:c1,c2"
    own, fd = labels.take_level(layout, "y", "")
    with pytest.raises(HostError, match="for itself"):
        labels.take_level(layout, "z", own)
    for held in (first[1], second[1], fd):
        os.close(held)


def test_pairs_are_ordered_distinct_and_in_range():
    pairs = list(labels.candidates("7f0e"))
    assert all(0 <= first < second < 1024 for first, second in pairs)
    assert pairs == list(labels.candidates("7f0e"))
    assert pairs != list(labels.candidates("7f0f"))


def test_a_label_is_completed_for_processes_files_and_shared_volumes(layout: Layout):
    assigned = labels.assign(
        layout, "seed", Label(process=OWN_PROCESS, file=OWN_FILE, runtime="", level="s0:c5,c6")
    )
    assert assigned.process == OWN_PROCESS.removesuffix("s0") + "s0:c5,c6"
    assert assigned.file == OWN_FILE.removesuffix("s0") + "s0:c5,c6"
    assert assigned.shared == OWN_FILE
    os.close(assigned.guard_fd)


@pytest.mark.parametrize("process", ["", OWN_OPEN])
def test_what_is_not_confined_has_no_categories(layout: Layout, process: str):
    assigned = labels.assign(layout, "seed", Label(process=process, file=OWN_FILE, runtime="", level=""))
    assert assigned.process == process
    assert assigned.file != OWN_FILE
    os.close(assigned.guard_fd)


def test_links_are_labelled_and_not_followed(tmp_path: Path, labelled: dict[str, str]):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    top = tmp_path / "volume"
    (top / "folder").mkdir(parents=True)
    (top / "folder/file").touch()
    (top / "link").symlink_to(outside)
    labels.label_tree(top, "ctx")
    names = ("", "/folder", "/folder/file", "/link")
    assert labelled == {f"{top}{name}": "ctx" for name in names}


def test_a_tree_without_end_is_refused(tmp_path: Path, labelled: dict[str, str]):
    path = tmp_path / "volume"
    for _ in range(300):
        path /= "d"
    path.mkdir(parents=True)
    with pytest.raises(HostError, match="folders deep"):
        labels.label_tree(tmp_path / "volume", "ctx")


@pytest.mark.parametrize(
    "source",
    ["/", "/etc", "/etc/ssl", "/usr", "/usr/share/x", "/home", "/root", "/var/lib", "/proc/1", "/tmp"],
)
@pytest.mark.parametrize("relabel", [Relabel.SHARED, Relabel.PRIVATE])
def test_the_host_itself_is_never_labelled(source: str, relabel: Relabel):
    with pytest.raises(UsageError, match="lock the host out"):
        labels.check_relabel(Volume(source=source, target="/v", read_only=False, relabel=relabel))
    labels.check_relabel(Volume(source=source, target="/v", read_only=False))


def test_a_folder_of_its_own_may_be_labelled():
    for source in ("/srv/data", "/home/me/data", "/var/lib/app", "/opt/app/data"):
        labels.check_relabel(Volume(source=source, target="/v", read_only=False, relabel=Relabel.PRIVATE))


def test_volumes_get_the_label_they_ask_for(tmp_path: Path, labelled: dict[str, str], layout: Layout):
    volumes = []
    for relabel in Relabel:
        folder = tmp_path / f"v{relabel}"
        folder.mkdir()
        volumes.append(Volume(source=str(folder), target="/v", read_only=False, relabel=relabel))
    assigned = labels.assign(layout, "seed", LABEL)
    labels.label_volumes(volumes, assigned)
    assert labelled == {f"{tmp_path}/vz": assigned.shared, f"{tmp_path}/vZ": assigned.file}
    os.close(assigned.guard_fd)


def test_without_selinux_there_is_no_label_and_none_may_be_asked_for(kernel: Callable[..., None]):
    kernel(Mode.OFF)
    assert labels.decide(LabelKind.CONTAINER, LabelRequest()) is None
    assert labels.decide(LabelKind.CONTAINER, LabelRequest(disable=True)) is None
    with pytest.raises(HostError, match="needs SELinux"):
        labels.decide(LabelKind.CONTAINER, LabelRequest(type="x_t"))


def test_an_enforcing_kernel_without_types_starts_no_pod(kernel: Callable[..., None]):
    kernel(Mode.ENFORCING)
    with pytest.raises(HostError, match="no type for pods") as caught:
        labels.decide(LabelKind.CONTAINER, LabelRequest())
    assert caught.value.hint == "secrun policy install selinux"
    assert labels.decide(LabelKind.CONTAINER, LabelRequest(disable=True)) is None
    kernel(Mode.PERMISSIVE)
    assert labels.decide(LabelKind.CONTAINER, LabelRequest()) is None


def test_the_modules_types_make_a_label(kernel: Callable[..., None]):
    kernel(Mode.ENFORCING, OWN_PROCESS, OWN_FILE)
    assert labels.decide(LabelKind.CONTAINER, LabelRequest()) == LABEL


def test_a_pod_starts_only_where_its_label_is_what_was_decided(kernel: Callable[..., None]):
    kernel(Mode.ENFORCING)
    with pytest.raises(HostError, match="without a label"):
        labels.check(None, ())
    labels.check(None, ("label:disable",))
    labels.check(LABEL, ())
    kernel(Mode.OFF)
    labels.check(None, ())
    with pytest.raises(HostError, match="SELinux is off now"):
        labels.check(LABEL, ())


def test_a_store_elsewhere_is_labelled_once_and_its_pods_are_left_alone(
    layout: Layout, labelled: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(selinux, "label_of", lambda path: labelled.get(str(path), "other"))
    # Wherever temporary files are.
    monkeypatch.setattr(labels, "_NEVER_BELOW", ())
    for folder in (layout.rootfs, layout.pods / "run/uuid/rw", layout.run_root):
        folder.mkdir(parents=True)
    (layout.rootfs / "image").touch()
    own = Label(process=OWN_PROCESS, file=OWN_FILE, runtime=OWN_RUNTIME, level="")
    os.close(labels.assign(layout, "seed", own).guard_fd)
    names = ("", "/rootfs", "/rootfs/image", "/pods", "/pods/run")
    stored = {path: label for path, label in labelled.items() if path.startswith(str(layout.root))}
    assert stored == {f"{layout.root}{name}": OWN_STORE for name in names}
    assert labelled[str(layout.run_root)] == OWN_RUN
    labelled[str(layout.rootfs / "image")] = "changed"
    os.close(labels.assign(layout, "seed", own).guard_fd)
    assert labelled[str(layout.rootfs / "image")] == "changed"


def test_a_pods_folder_is_labelled_if_it_is_older_than_the_labels_around_it(
    layout: Layout, labelled: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(selinux, "label_of", lambda path: labelled.get(str(path), "other"))
    folder = layout.pods / "run/uuid"
    (folder / "mnt").mkdir(parents=True)
    labels.own_pod(folder)
    assert labelled == {str(folder): OWN_STORE, str(folder / "mnt"): OWN_STORE}
    labelled[str(folder / "mnt")] = "its own"
    labels.own_pod(folder)
    assert labelled[str(folder / "mnt")] == "its own"


def test_a_root_that_is_the_hosts_own_folder_is_refused(
    labelled: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(selinux, "label_of", lambda _: "other")
    own = Label(process=OWN_PROCESS, file=OWN_FILE, runtime=OWN_RUNTIME, level="")
    with pytest.raises(UsageError, match="lock the host out"):
        labels.assign(Layout(root=Path("/var/lib"), run_root=Path("/run/x")), "seed", own)
    assert labelled == {}


@pytest.mark.parametrize(
    ("text", "mode"), [("0", Mode.PERMISSIVE), ("1\n", Mode.ENFORCING), (None, Mode.OFF)]
)
def test_the_kernel_says_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, mode: Mode
):
    if text is not None:
        (tmp_path / "enforce").write_text(text)
    monkeypatch.setattr(selinux, "ENFORCE", tmp_path / "enforce")
    assert selinux.mode() is mode


def test_selinux_without_its_binding_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "selinux", None)
    with pytest.raises(HostError, match="python3-selinux is not installed"):
        selinux.contexts()
