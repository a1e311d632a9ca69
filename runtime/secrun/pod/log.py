"""Read what apps wrote: the CRI log line format, `TIME STREAM TAG TEXT`, one file per app."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator

from secrun.pod.inside import open_regular
from secrun.pod.states import Found
from secrun.record import record
from secrun.stage1.podfiles import PodFiles

_POLL_SECONDS = 0.1
# The agent writes at most 16 KiB of text per line; a longer one was not written by it.
_MAX_LINE_BYTES = 64 * 1024


@record
class Line:
    """One log line; `partial` means that the app's own line goes on in the next one."""

    time: str
    stream: str
    partial: bool
    text: bytes


def parse(raw: bytes) -> Line | None:
    """Parse one line without its newline; None if it is not in the format."""
    parts = raw.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or parts[2] not in (b"F", b"P"):
        return None
    stamp = parts[0].decode("ascii", "replace")
    return Line(time=stamp, stream=parts[1].decode(), partial=parts[2] == b"P", text=parts[3])


def _read_file(files: PodFiles, app: str, name: str) -> Iterator[Line]:
    fd = open_regular(files.rw, "apps", app, name)
    if fd is None:
        return
    with os.fdopen(fd, "rb") as stream:
        yield from _lines(stream.readline)


def _lines(readline: Callable[[int], bytes]) -> Iterator[Line]:
    while raw := readline(_MAX_LINE_BYTES):
        line = parse(raw.rstrip(b"\n"))
        if line is not None:
            yield line


def history(files: PodFiles, app: str, tail: int | None) -> Iterator[Line]:
    """Yield what is in the log now, the older part first; `tail` keeps the last lines only."""
    everything = (line for name in ("log.1", "log") for line in _read_file(files, app, name))
    if tail is None:
        yield from everything
    else:
        yield from deque(everything, maxlen=tail)


def follow(found: Found, app: str, tail: int | None) -> Iterator[Line]:
    """Yield the log and what is added to it, until the pod has ended."""
    files = PodFiles(found.path)
    yield from history(files, app, tail)
    fd = open_regular(files.rw, "apps", app, "log")
    offset = os.fstat(fd).st_size if fd is not None else 0
    try:
        while True:
            running = found.locked
            if fd is None:
                fd = open_regular(files.rw, "apps", app, "log")
            if fd is not None:
                data = os.pread(fd, 1 << 20, offset)
                end = data.rfind(b"\n") + 1
                offset += end
                yield from (line for raw in data[:end].splitlines() if (line := parse(raw)) is not None)
                if end:
                    continue
                rotated = open_regular(files.rw, "apps", app, "log")
                if rotated is not None and not os.path.samestat(os.fstat(rotated), os.fstat(fd)):
                    os.close(fd)
                    fd, offset = rotated, 0
                    continue
                if rotated is not None:
                    os.close(rotated)
            if not running:
                return
            time.sleep(_POLL_SECONDS)
    finally:
        if fd is not None:
            os.close(fd)
