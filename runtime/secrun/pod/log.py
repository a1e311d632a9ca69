"""Read what apps wrote: the CRI log line format, `TIME STREAM TAG TEXT`, one file per app."""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime

from secrun.errors import UsageError
from secrun.pod.inside import open_regular
from secrun.pod.request import duration
from secrun.pod.states import Found
from secrun.record import record
from secrun.stage1.podfiles import PodFiles

_POLL_SECONDS = 0.1
# The agent writes at most 16 KiB of text per line; a longer one was not written by it.
_MAX_LINE_BYTES = 64 * 1024
_NS = 1_000_000_000
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)\Z")


@record
class Line:
    """One log line; `partial` means that the app's own line goes on in the next one."""

    time: str
    stream: str
    partial: bool
    text: bytes


@record
class Span:
    """From when to when, in nanoseconds since the epoch; both ends belong to it."""

    since_ns: int = 0
    until_ns: int | None = None

    def holds(self, line: Line) -> bool:
        """Tell whether a line is of this time; one whose time cannot be read is."""
        stamp = _nanoseconds(line.time)
        return stamp is None or (
            self.since_ns <= stamp and (self.until_ns is None or stamp <= self.until_ns)
        )


ALWAYS = Span()


def _nanoseconds(text: str) -> int | None:
    """Return a time of RFC 3339 in nanoseconds since the epoch; None if it is none."""
    match = _STAMP.match(text)
    if match is None:
        return None
    whole, fraction, zone = match.groups()
    try:
        seconds = int(datetime.fromisoformat(f"{whole}{zone.upper()}").timestamp())
    except ValueError:
        return None
    return seconds * _NS + int((fraction or "").ljust(9, "0")[:9])


def moment(text: str, now_ns: int, option: str) -> int:
    """Parse a time in RFC 3339, or how long ago it was; raises UsageError."""
    stamp = _nanoseconds(text)
    if stamp is not None:
        return stamp
    try:
        return now_ns - int(duration(text) * _NS)
    except UsageError as error:
        hint = "e.g. 10m, 1h30m, 2026-01-31T12:00:00Z"
        raise UsageError(f"{option} {text[:80]!r} is neither a duration nor a time", hint=hint) from error


def span(since: str | None, until: str | None, now_ns: int) -> Span:
    """Return the time that two options tell; raises UsageError."""
    return Span(
        since_ns=moment(since, now_ns, "--since") if since else 0,
        until_ns=moment(until, now_ns, "--until") if until else None,
    )


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


def history(files: PodFiles, app: str, tail: int | None, when: Span = ALWAYS) -> Iterator[Line]:
    """Yield what is in the log now, the older part first; `tail` keeps the last lines only."""
    found = (line for name in ("log.1", "log") for line in _read_file(files, app, name))
    everything = found if when == ALWAYS else (line for line in found if when.holds(line))
    if tail is None:
        yield from everything
    else:
        yield from deque(everything, maxlen=tail)


def follow(found: Found, app: str, tail: int | None, when: Span = ALWAYS) -> Iterator[Line]:
    """Yield the log and what is added to it, until the pod has ended."""
    files = PodFiles(found.path)
    yield from history(files, app, tail, when)
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
