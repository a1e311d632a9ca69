"""Host uid ranges for pods: 65,536 ids each, never shared by two live pods."""

import errno
import socket
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from secrun.errors import HostError
from secrun.record import row

SIZE = 65536
# systemd's container range (UIDS-GIDS.md): multiples of 65536 that no login, DynamicUser= or
# systemd-homed range touches.
FIRST = 0x00080000
LAST = 0x6FFF0000
_SLOTS = (LAST - FIRST) // SIZE + 1
# So many taken ranges in a row cannot be chance.
_ATTEMPTS = 512


@row
class UidRange:
    """A locked range; the lock lives as long as a copy of `guard` is open in any process."""

    base: int
    guard: socket.socket


def _subordinate(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the ranges in subuid(5) and subgid(5): rootless users own them."""
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
            yield int(parts[1]), int(parts[1]) + int(parts[2])


def reserved_ranges(
    files: Iterable[Path] = (Path("/etc/subuid"), Path("/etc/subgid")),
) -> list[tuple[int, int]]:
    """Return what the host gave to its users."""
    return [area for path in files for area in _subordinate(path)]


def candidates(seed: str, reserved: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Yield bases in an order that differs from pod to pod; pure."""
    taken = list(reserved)
    start = int.from_bytes(sha256(seed.encode()).digest()[:8], "big")
    for step in range(_ATTEMPTS):
        base = FIRST + (start + step) % _SLOTS * SIZE
        if not any(first < base + SIZE and base < end for first, end in taken):
            yield base


def acquire(seed: str) -> UidRange:
    """Lock a free range; raises HostError if none is found.

    The lock is an abstract unix socket address (unix(7)): unique per host whatever `--root` says, gone
    with the last process that holds it, and with no file to clean up.
    """
    for base in candidates(seed, reserved_ranges()):
        guard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            guard.bind(f"\0secrun/uid-range/{base}")
        except OSError as error:
            guard.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        return UidRange(base, guard)
    raise HostError(f"no free uid range after {_ATTEMPTS} attempts", hint="stop some pods")
