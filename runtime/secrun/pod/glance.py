"""What a table of pods shows, and no more: a thousand pods must not take longer than a person notices."""

import os
from collections.abc import Iterator

from secrun.errors import ImageError, StateError
from secrun.locks import is_missing, lock_fd
from secrun.paths import Layout
from secrun.pod.states import WHOLE, Folder, State, folder_path, state_of, uuids_in
from secrun.record import record
from secrun.stage1.manifest import FILE_NAME, MAX_MANIFEST_BYTES, Outline
from secrun.stage1.podfiles import ADDRESSES_NAME, EXIT_NAME, MAX_EXIT_BYTES, STARTED_NAME

# A line for each of a pod's few interfaces.
MAX_ADDRESSES_BYTES = 64 * 1024


@record
class Glance:
    """What a table of pods shows of one; `apps` are (name, image reference, image ID)."""

    uuid: str
    state: State
    problem: str
    created_ns: int
    started_ns: int | None
    apps: tuple[tuple[str, str, str], ...]
    networks: tuple[tuple[str, ...], ...]
    """Of each interface the network, its name, its addresses."""
    labels: tuple[str, ...] = ()
    """Those of all apps, `NAME=VALUE`."""
    exit_code: int | None = None
    """Read only if it was asked for; None also if the pod has not ended."""


def _read_at(folder_fd: int, name: str, limit: int) -> bytes | None:
    """Read a small file of a folder, None if it is missing; a file object would cost twice as much."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder_fd)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, min(limit, os.fstat(fd).st_size + 1))
    finally:
        os.close(fd)


def _exit_code(data: bytes | None) -> int | None:
    if data is None:
        return None
    from secrun.pod.exits import PodExit  # most tables do without

    try:
        return PodExit.from_bytes(data).code
    except (StateError, ImageError):
        return None  # the look at this pod says what is wrong


def _glance(uuid: str, folder: Folder, fd: int, *, ends: bool) -> Glance:
    state = state_of(folder, locked=not lock_fd(fd, shared=True, blocking=False))
    outline, problem = Outline(created_ns=0, apps=()), "the pod has no manifest"
    data = _read_at(fd, FILE_NAME, MAX_MANIFEST_BYTES + 1)
    if data is not None:
        try:
            outline, problem = Outline.from_bytes(data), ""
        except (StateError, ImageError) as error:
            problem = error.message
    started = _read_at(fd, STARTED_NAME, 100)
    connected = _read_at(fd, ADDRESSES_NAME, MAX_ADDRESSES_BYTES) or b""
    return Glance(
        uuid=uuid,
        state=state,
        problem=problem if state in WHOLE else "",
        created_ns=outline.created_ns,
        started_ns=int(started.split()[0]) if started and started.split()[0].isdigit() else None,
        apps=outline.apps,
        networks=tuple(tuple(line.split()) for line in connected.decode("utf-8", "replace").splitlines()),
        labels=outline.labels,
        exit_code=_exit_code(_read_at(fd, EXIT_NAME, MAX_EXIT_BYTES + 1)) if ends else None,
    )


def glances(layout: Layout, *, ends: bool = False) -> Iterator[Glance]:
    """Yield every pod as a table shows it, with `ends` also how it ended; takes no lock."""
    seen: dict[str, Glance] = {}
    for folder in Folder:
        base = str(folder_path(layout, folder))
        for uuid in uuids_in(base):
            try:
                fd = os.open(f"{base}/{uuid}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                if not is_missing(error):
                    raise
                continue
            try:
                seen[uuid] = _glance(uuid, folder, fd, ends=ends)
            finally:
                os.close(fd)
    yield from seen.values()
