"""Label a pod: decide with the host's policy, take categories of its own, label what it is given.

The pair of categories is what keeps one pod from another under a policy of one type for all. It comes from
a registry of locked files below the run root: a file is locked as long as a process of its pod lives, so a
pair is never shared by two live pods, and nothing has to be cleaned after a crash.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from secrun import selinux
from secrun.errors import HostError, UsageError
from secrun.locks import held, lock_fd, open_dir
from secrun.paths import Layout
from secrun.record import record
from secrun.selinux import Mode
from secrun.stage1.label import Label
from secrun.stage1.volume import Relabel, Volume
from secrun_policies.errors import PolicyError
from secrun_policies.labels import (
    CATEGORIES,
    OWN_OPEN,
    OWN_RUN,
    OWN_STORE,
    Contexts,
    LabelKind,
    LabelRequest,
    choose,
    with_level,
)

# So many taken pairs in a row cannot be chance.
_ATTEMPTS = 4096
# Labelling these would label the host itself; podman refuses them likewise (go-selinux).
_NEVER = frozenset(
    Path(text)
    for text in (
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/lib32",
        "/lib64",
        "/libx32",
        "/media",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/srv",
        "/sys",
        "/tmp",  # noqa: S108 - a path that is refused
        "/usr",
        "/var",
        "/var/lib",
        "/var/log",
        "/var/tmp",  # noqa: S108 - a path that is refused
    )
)
# Nothing of these is anybody's data.
_NEVER_BELOW = tuple(Path(text) for text in ("/boot", "/dev", "/etc", "/proc", "/sys", "/usr"))
# A folder of this depth was made to harm whoever walks it.
_MAX_DEPTH = 256


@record
class Assigned:
    """The label of a pod that starts: whole contexts, and its categories' lock, owned by the caller."""

    process: str
    file: str
    shared: str
    """Of volumes that several pods may use (`:z`)."""
    runtime: str
    guard_fd: int


def decide(kind: LabelKind, asked: LabelRequest) -> Label | None:
    """Return the label of a pod on this host; None where SELinux does not enforce anything for it.

    Raises HostError if the kernel enforces a policy that has no types for pods, UsageError for a type or
    level that the policy does not define.
    """
    mode = selinux.mode()
    if mode is Mode.OFF:
        if asked.type or asked.level:
            raise HostError(
                "a type or level of a label needs SELinux, which is off on this host",
                hint="leave out --security-opt label=..., or boot with selinux=1 security=selinux",
                code="host-selinux",
            )
        return None
    try:
        found: Contexts | None = choose(kind, asked, selinux.contexts())
    except PolicyError as error:
        raise UsageError(error.message, hint=error.hint, code=error.code) from error
    if found is None:
        if mode is Mode.ENFORCING and not asked.disable:
            raise HostError(
                f"SELinux is enforced, and its policy {selinux.policy_name()!r} has no type for pods",
                hint="secrun policy install selinux",
                code="host-selinux",
            )
        return None
    return Label(process=found.process, file=found.file, runtime=found.runtime, level=asked.level or "")


def check(label: Label | None, relaxations: Sequence[str]) -> None:
    """Raise HostError if a pod would start unlabelled where the kernel enforces, or cannot get its label."""
    mode = selinux.mode()
    if label is None and mode is Mode.ENFORCING and "label:disable" not in relaxations:
        raise HostError(
            "the kernel enforces SELinux, and the pod was prepared without a label",
            hint="prepare it again",
            code="host-selinux",
        )
    if label is not None and mode is Mode.OFF and label.process:
        raise HostError(
            f"the pod was prepared to run as {label.process}, and SELinux is off now",
            hint="prepare it again, or boot with SELinux",
            code="host-selinux",
        )


def candidates(seed: str) -> Iterator[tuple[int, int]]:
    """Yield pairs of categories, the smaller first, in an order that differs from pod to pod; pure."""
    for number in range(_ATTEMPTS):
        digest = sha256(f"{seed}/{number}".encode()).digest()
        first = int.from_bytes(digest[:8], "big") % CATEGORIES
        second = int.from_bytes(digest[8:16], "big") % CATEGORIES
        if first != second:
            yield min(first, second), max(first, second)


def _claim(folder: Path, level: str, *, shared: bool) -> int | None:
    """Lock the file of a level; None if another live pod has it. Needs the registry's lock."""
    fd = os.open(
        folder / level.replace(":", "_"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    if lock_fd(fd, shared=shared, blocking=False):
        return fd
    os.close(fd)
    return None


def _forget_dead(folder: Path) -> None:
    """Remove the files that nobody locks any more. Needs the registry's lock."""
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if lock_fd(fd, blocking=False):
                path.unlink()
        finally:
            os.close(fd)


def take_level(layout: Layout, seed: str, wanted: str) -> tuple[str, int]:
    """Return a level and the descriptor of its lock; raises HostError if none is left.

    A `wanted` one may be shared by pods that name it, never by a pod that was given its own.
    """
    folder = layout.categories
    with held(layout.locks / "categories.lock"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_dead(folder)
        levels = (wanted,) if wanted else (f"s0:c{first},c{second}" for first, second in candidates(seed))
        for level in levels:
            fd = _claim(folder, level, shared=bool(wanted))
            if fd is not None:
                return level, fd
    if wanted:
        raise HostError(
            f"a running pod has the level {wanted} for itself",
            hint="ask for another level, or for none",
            code="host-selinux",
        )
    raise HostError(
        f"no free pair of categories after {_ATTEMPTS} attempts", hint="stop some pods", code="host-selinux"
    )


def _own(folder: Path, context: str) -> None:
    """See to it that a folder of secrun's is labelled as such, wherever it lies.

    The policy names the usual places; another --root is labelled at its first pod. What is below `pods` is
    left alone: its labels are its pods', and what is made there later inherits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if selinux.label_of(folder) == context:
        return
    check_place(folder, "labelling it as secrun's own")
    for name in os.listdir(folder):
        if name != "pods":
            label_tree(folder / name, context)
            continue
        for path in (folder / name, *(folder / name).iterdir()):
            label_one(path, context)
    label_one(folder, context)


def own_pod(folder: Path) -> None:
    """See to it that a pod's folder is labelled, which may be older than the labels of what is around it."""
    if selinux.label_of(folder) != OWN_STORE:
        label_tree(folder, OWN_STORE)


def assign(layout: Layout, uuid: str, label: Label) -> Assigned:
    """Complete the label of a pod that starts now; raises HostError if that cannot be done."""
    if label.runtime:
        _own(layout.root, OWN_STORE)
        _own(layout.run_root, OWN_RUN)
    level, fd = take_level(layout, uuid, label.level)
    # label=disable: what is not confined has no categories.
    confined = label.process not in ("", OWN_OPEN)
    return Assigned(
        process=with_level(label.process, level) if confined else label.process,
        file=with_level(label.file, level),
        shared=with_level(label.file, "s0"),
        runtime=label.runtime,
        guard_fd=fd,
    )


def label_one(path: Path, context: str) -> None:
    """Label a file or folder alone, not through a link."""
    parent = open_dir(path.parent)
    try:
        selinux.label(path.name, context, dir_fd=parent)
    finally:
        os.close(parent)


def label_tree(path: Path, context: str) -> None:
    """Label a file, or a folder and all below it on the same file system.

    Links are labelled, not followed, and every step is taken from an open folder: others may write there
    meanwhile. Raises HostError for what cannot be labelled.
    """
    parent = open_dir(path.parent)
    try:
        device = os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_dev
        _label_entry(parent, path.name, context, device, depth=0)
    except OSError as error:
        raise HostError(
            f"{path} cannot be labelled {context}: {error.strerror}",
            hint="a file system without extended attributes gets its label when it is mounted (context=)",
            code="host-selinux",
        ) from error
    finally:
        os.close(parent)


def _label_entry(parent: int, name: str, context: str, device: int, *, depth: int) -> None:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if status.st_dev != device:
        return
    if depth > _MAX_DEPTH:
        raise HostError(f"{name} lies more than {_MAX_DEPTH} folders deep", code="host-selinux")
    selinux.label(name, context, dir_fd=parent)
    if not stat.S_ISDIR(status.st_mode):
        return
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for child in os.listdir(folder):
            _label_entry(folder, child, context, device, depth=depth + 1)
    finally:
        os.close(folder)


def check_place(path: Path, what: str) -> None:
    """Raise UsageError for a path that belongs to the host as a whole; pure."""
    if path in _NEVER or any(path == top or top in path.parents for top in _NEVER_BELOW):
        raise UsageError(
            f"{path}: {what} would lock the host out of its own files",
            hint="use a folder of its own",
            code="usage-relabel",
        )


def check_relabel(volume: Volume) -> None:
    """Raise UsageError for a volume that may not be labelled anew; pure."""
    if volume.relabel is not Relabel.NONE:
        check_place(Path(volume.source), f"the option {volume.relabel} of the volume")


def label_volumes(volumes: Sequence[Volume], assigned: Assigned) -> None:
    """Give each volume that asks for it the label of this pod alone, or of all pods."""
    for volume in volumes:
        if volume.relabel is not Relabel.NONE:
            context = assigned.file if volume.relabel is Relabel.PRIVATE else assigned.shared
            label_tree(Path(volume.source), context)
