"""How long the start of a pod took: marks that each process beside it leaves in the pod's folder.

A line is `SIDE NAME NS`. NS of side `host` are of CLOCK_MONOTONIC and comparable with each other; those of
`guest` count from the boot of the guest's kernel and are that kernel's word.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from secrun.errors import StateError
from secrun.record import record
from secrun.stage1.podfiles import PodFiles

if TYPE_CHECKING:
    from secrun.jsonio import JsonObject

HOST, GUEST = "host", "guest"
# 64 apps leave two lines each, the steps of a start some thirty; what a guest may add its bridge bounds.
MAX_BYTES = 64 * 1024
_MAX_DIGITS = 19
_LINE = rf"(host|guest) ([A-Za-z0-9:._-]{{1,100}}) ([0-9]{{1,{_MAX_DIGITS}}})"
_NS_PER_MS = 1e6


@record
class Mark:
    """One step and when it was reached, in nanoseconds."""

    side: str
    name: str
    ns: int

    def to_json(self) -> "JsonObject":
        """Return the documented JSON form (docs/state.md)."""
        return {"side": self.side, "name": self.name, "ns": self.ns}


def append(files: PodFiles, marks: Iterable[tuple[str, int]]) -> int:
    """Add marks of this host in one write; return a descriptor for whoever adds more, closed on exec."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(files.timing, flags, 0o644)
    os.write(fd, "".join(f"{HOST} {name} {ns}\n" for name, ns in marks).encode())
    return fd


def read(files: PodFiles) -> tuple[Mark, ...]:
    """Return the marks of a pod in the order they were written; raises StateError if they are none."""
    try:
        with files.timing.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return ()
    return parse(data, what=str(files.timing))


def parse(data: bytes, *, what: str) -> tuple[Mark, ...]:
    """Read the lines of a file; one that is still being written is left out. Raises StateError."""
    if len(data) > MAX_BYTES:
        raise StateError(f"{what} has more than {MAX_BYTES} bytes", code="state-timing")
    *lines, _ = data.decode("utf-8", "replace").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(_LINE, line)
        if match is None:
            raise StateError(
                f"{what}: line {number} is {line[:80]!r}, expected SIDE NAME NANOSECONDS",
                code="state-timing",
            )
        found.append(Mark(side=match[1], name=match[2], ns=int(match[3])))
    return tuple(found)


def table(marks: Sequence[Mark]) -> Iterator[str]:
    """Return lines for people: milliseconds since the begin of each side, and since the line before."""
    for side, origin in ((HOST, None), (GUEST, 0)):
        own = sorted((mark for mark in marks if mark.side == side), key=lambda mark: mark.ns)
        if not own:
            continue
        begin = before = own[0].ns if origin is None else origin
        width = max(len(mark.name) for mark in own)
        yield f"{side}, ms{'' if origin is None else ' since its kernel began'}:"
        for mark in own:
            since, step = ((mark.ns - base) / _NS_PER_MS for base in (begin, before))
            yield f"  {mark.name:<{width}} {since:9.1f} {step:+9.1f}"
            before = mark.ns
