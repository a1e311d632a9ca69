"""The pod state machine: a state is a folder name plus a lock, a transition is one rename.

    embryo -> preparing -> prepared -> run -> exited-garbage -> garbage -> (gone)
                   |                                              ^
                   +---- aborted prepare (lock gone) -------------+

The lock is a flock(2) on the pod's folder; its holder is the process that works on the pod. The kernel
drops it when that process dies, so no state needs a daemon to be true.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Self

from secrun.errors import StateError, UsageError
from secrun.files import fsync_dir
from secrun.locks import is_missing, lock_fd, open_dir
from secrun.paths import Layout
from secrun.record import row

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
_PREFIX = re.compile(r"[0-9a-f-]{1,36}\Z")
# A reader looks for a pod that another process renames meanwhile; each miss means one transition.
_LOOKUPS = 8
# A reader holds its shared lock for some microseconds, an export until it is written: the first and the
# longest pause between two attempts.
_READER_SECONDS, _LONGEST_SECONDS = 0.001, 0.1


class Folder(StrEnum):
    """Where a pod's folder lies."""

    EMBRYO = "embryo"
    PREPARING = "preparing"
    PREPARED = "prepared"
    RUN = "run"
    EXITED_GARBAGE = "exited-garbage"
    GARBAGE = "garbage"


class State(StrEnum):
    """What users see: folder and lock together."""

    EMBRYO = "embryo"
    PREPARING = "preparing"
    ABORTED_PREPARE = "aborted prepare"
    PREPARED = "prepared"
    RUNNING = "running"
    EXITED = "exited"
    EXITED_GARBAGE = "exited garbage"
    EXITED_DELETING = "exited deleting"
    GARBAGE = "garbage"
    DELETING = "deleting"


# In the other states a pod is being made or being deleted, and may lack anything.
WHOLE = (State.PREPARED, State.RUNNING, State.EXITED, State.EXITED_GARBAGE)

_STATES = {
    # folder: (state while locked, state while not)
    Folder.EMBRYO: (State.EMBRYO, State.ABORTED_PREPARE),
    Folder.PREPARING: (State.PREPARING, State.ABORTED_PREPARE),
    Folder.PREPARED: (State.PREPARED, State.PREPARED),
    Folder.RUN: (State.RUNNING, State.EXITED),
    Folder.EXITED_GARBAGE: (State.EXITED_DELETING, State.EXITED_GARBAGE),
    Folder.GARBAGE: (State.DELETING, State.GARBAGE),
}

TRANSITIONS = {
    Folder.EMBRYO: (Folder.PREPARING, Folder.GARBAGE),
    Folder.PREPARING: (Folder.PREPARED, Folder.GARBAGE),
    Folder.PREPARED: (Folder.RUN, Folder.GARBAGE),
    Folder.RUN: (Folder.EXITED_GARBAGE, Folder.GARBAGE),
    Folder.EXITED_GARBAGE: (Folder.GARBAGE,),
    Folder.GARBAGE: (),
}


def state_of(folder: Folder, *, locked: bool) -> State:
    """Return the state that users see."""
    return _STATES[folder][0 if locked else 1]


def new_uuid() -> str:
    """Return a random UUID (RFC 9562, version 4)."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def folder_path(layout: Layout, folder: Folder, uuid: str = "") -> Path:
    """Return the path of a state's folder, or of one pod in it."""
    return layout.pods / folder / uuid


@row
class Found:
    """A pod as a reader saw it; it may have moved on since."""

    uuid: str
    folder: Folder
    path: Path

    @property
    def locked(self) -> bool:
        """Tell whether some process works on the pod now."""
        try:
            fd = open_dir(self.path)
        except OSError as error:
            if is_missing(error):
                return False
            raise
        try:
            return not lock_fd(fd, shared=True, blocking=False)
        finally:
            os.close(fd)

    @property
    def state(self) -> State:
        """The state that users see."""
        return state_of(self.folder, locked=self.locked)


class LockedPod:
    """A pod whose lock this process holds; the only thing that may move or change a pod."""

    def __init__(self, layout: Layout, uuid: str, folder: Folder, fd: int) -> None:
        self.layout = layout
        self.uuid = uuid
        self.folder = folder
        self.fd = fd

    @property
    def path(self) -> Path:
        """The pod's folder; changes with each transition."""
        return folder_path(self.layout, self.folder, self.uuid)

    def move(self, target: Folder) -> None:
        """Take one transition and make it durable."""
        if target not in TRANSITIONS[self.folder]:
            raise StateError(f"pod {self.uuid}: no way leads from {self.folder} to {target}")
        source = self.path
        destination = folder_path(self.layout, target, self.uuid)
        destination.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.rename(source, destination)
        self.folder = target
        fsync_dir(destination.parent)

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def create(layout: Layout, uuid: str) -> LockedPod:
    """Make a pod in `embryo`, lock it and move it to `preparing`."""
    path = folder_path(layout, Folder.EMBRYO, uuid)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.mkdir(mode=0o700)
    fd = open_dir(path)
    pod = LockedPod(layout, uuid, Folder.EMBRYO, fd)
    if not _take(fd) or not _still_there(fd, path):
        # gc took the unlocked embryo for a dead one in the instant between mkdir and flock.
        pod.close()
        raise StateError(f"pod {uuid} was collected while it was made", hint="try again")
    pod.move(Folder.PREPARING)
    return pod


def adopt(layout: Layout, uuid: str, folder: Folder, fd: int) -> LockedPod:
    """Go on with a pod whose lock was inherited as `fd`; raises StateError if it is not that pod's."""
    path = folder_path(layout, folder, uuid)
    if not os.path.samestat(os.fstat(fd), os.stat(path)) or not lock_fd(fd, blocking=False):
        raise StateError(f"file descriptor {fd} is not the lock of pod {uuid}")
    os.set_inheritable(fd, False)
    return LockedPod(layout, uuid, folder, fd)


def lock(found: Found, layout: Layout) -> LockedPod | None:
    """Lock a pod that a reader found; None if it is taken or has moved on."""
    try:
        fd = open_dir(found.path)
    except OSError as error:
        if is_missing(error):
            return None
        raise
    if _take(fd) and _still_there(fd, found.path):
        return LockedPod(layout, found.uuid, found.folder, fd)
    os.close(fd)
    return None


def _take(fd: int) -> bool:
    """Lock `fd` alone; False if another process works on the pod, not if one merely looks at it."""
    pause = _READER_SECONDS
    while not lock_fd(fd, blocking=False):
        if not lock_fd(fd, shared=True, blocking=False):
            return False
        # Readers share the lock for an instant, and so did we just now.
        fcntl.flock(fd, fcntl.LOCK_UN)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_SECONDS)
    return True


def _still_there(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError as error:
        if is_missing(error):
            return False
        raise


def uuids_in(folder: str | Path) -> list[str]:
    """Return the pods of one state's folder, sorted; other names in it are none."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if _UUID.match(name))


def walk(layout: Layout) -> Iterator[Found]:
    """Yield every pod, each state's folder in the order of the state machine.

    A pod that moves forward meanwhile is seen at least once, perhaps twice.
    """
    for folder in Folder:
        base = folder_path(layout, folder)
        for uuid in uuids_in(base):
            yield Found(uuid, folder, base / uuid)


def find(layout: Layout, text: str) -> Found:
    """Return the pod whose UUID begins with `text`; raises UsageError if none or several do."""
    prefix = text.strip().lower()
    if not prefix:
        raise UsageError("the UUID is empty", code="usage-uuid")
    if not _PREFIX.match(prefix):
        raise UsageError(f"{text[:80]!r} is no UUID", hint="see secrun list", code="usage-uuid")
    for _ in range(_LOOKUPS):
        found = {pod.uuid: pod for pod in walk(layout) if pod.uuid.startswith(prefix)}
        if len(found) > 1:
            several = ", ".join(sorted(found)[:5])
            raise UsageError(f"{text!r} is ambiguous: {several}", hint="give more digits", code="usage-uuid")
        for pod in found.values():
            if pod.path.is_dir():
                return pod
        if not found:
            break
    raise UsageError(f"no pod matches {text!r}", hint="see secrun list", code="usage-no-pod")
