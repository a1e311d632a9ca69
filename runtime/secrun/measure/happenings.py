"""What happened, as the event logs of this root tell it; reads files, needs neither TPM nor lock."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from secrun.errors import StateError
from secrun.measure.hostlog import translated
from secrun.paths import Layout
from secrun_attest.audit.trail import Projection, Row
from secrun_attest.audit.walk import Walk, parse_record

_NAME = re.compile(r"(\d{1,10})-(\d{1,10})\.cel\Z")
_POLL_SECONDS = 0.1
_CHUNK = 1 << 20


def _logs(layout: Layout) -> list[Path]:
    """Return the logs of all boot epochs, the oldest first."""
    try:
        names = os.listdir(layout.measure)
    except FileNotFoundError:
        return []
    found = [(match, name) for name in names if (match := _NAME.match(name))]
    return [layout.measure / name for _, name in sorted(((int(m[1]), int(m[2])), name) for m, name in found)]


class _Tail:
    """Reads whole lines of a file that others append to, and that may lose a line that was never whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.walk = Walk()

    def lines(self) -> Iterator[bytes]:
        """Yield the whole lines that have come since the last call."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            # Pruned meanwhile.
            return
        try:
            while data := os.pread(fd, _CHUNK, self._offset):
                end = data.rfind(b"\n") + 1
                if end == 0:
                    if len(data) == _CHUNK:
                        raise StateError(
                            f"{self._path} has a line of more than {_CHUNK} bytes", code="state-log"
                        )
                    return
                self._offset += end
                yield from data[:end].splitlines(keepends=True)
        finally:
            os.close(fd)


def happenings(
    layout: Layout, *, follow: bool, beside: Callable[[], Iterable[Row]] = tuple
) -> Iterator[Row]:
    """Yield a row of the trail for each record of each log, and with `follow` for those to come.

    `beside` returns rows that no record is behind, whenever all records have been told.

    Raises StateError or HostError for a log that is damaged: each record has to follow the last.
    """
    tails: dict[Path, _Tail] = {}
    projection = Projection()
    index = 0
    while True:
        for path in _logs(layout):
            tail = tails.setdefault(path, _Tail(path))
            for line in tail.lines():
                with translated(str(path)):
                    row = projection.row(index, tail.walk.take(parse_record(line)))
                index += 1
                yield row
        yield from beside()
        if not follow:
            return
        time.sleep(_POLL_SECONDS)
