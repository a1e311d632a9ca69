"""Sockets that a pod gets from its caller: socket activation (sd_listen_fds(3)) and --preserve-fds."""

import os
import stat
from collections.abc import Mapping

from secrun.errors import UsageError

FIRST = 3
"""SD_LISTEN_FDS_START: the first descriptor behind the standard streams, here and in the app."""
# One message carries all of them from the waiter to the shim (runtime/agent/src/sys/rights.rs).
MAX_SOCKETS = 32
RELAXATION = "caller-sockets"
_UNNAMED = "unknown"  # what sd_listen_fds_with_names(3) calls it


def _activated(caller: Mapping[str, str], pid: int) -> int:
    """Return how many descriptors the service manager meant for this very process."""
    count, owner = caller.get("LISTEN_FDS", ""), caller.get("LISTEN_PID", "")
    if owner != str(pid) or not (count.isascii() and count.isdecimal()):
        return 0
    return int(count)


def count(asked: int | None, caller: Mapping[str, str], pid: int) -> int:
    """Return how many sockets a pod gets: as many as asked for, else as the service manager passed; pure.

    Raises UsageError for numbers that contradict each other or are too large.
    """
    activated = _activated(caller, pid)
    if asked is not None and activated and asked not in (0, activated):
        raise UsageError(
            f"--preserve-fds={asked} and LISTEN_FDS={activated} contradict each other",
            hint="leave out --preserve-fds where systemd passes sockets",
            code="usage-sockets",
        )
    wanted = activated if asked is None else asked
    if not 0 <= wanted <= MAX_SOCKETS:
        raise UsageError(
            f"a pod gets at most {MAX_SOCKETS} sockets of its caller's, not {wanted}", code="usage-sockets"
        )
    return wanted


def names(number: int, caller: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names that the service manager gave to so many sockets; pure."""
    given = tuple(caller.get("LISTEN_FDNAMES", "").split(":"))
    return given if number and len(given) == number else (_UNNAMED,) * number


def _check(fd: int) -> None:
    import socket

    try:
        found = os.fstat(fd)
    except OSError as error:
        raise UsageError(
            f"descriptor {fd} is not open: {error.strerror}",
            hint="--preserve-fds=N passes on 3 and those after it; redirect sockets there",
            code="usage-sockets",
        ) from error
    if not stat.S_ISSOCK(found.st_mode):
        # A folder, a device or a file would be a way out of the pod.
        raise UsageError(f"descriptor {fd} is not a socket, all that a pod is given", code="usage-sockets")
    with socket.socket(fileno=os.dup(fd)) as given:
        family = given.family
    if family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        raise UsageError(
            f"descriptor {fd} is a socket of family {int(family)}, a pod gets those of unix, inet and inet6",
            code="usage-sockets",
        )


def given(asked: int | None) -> tuple[str, ...]:
    """Look at the sockets that this process was started with for its pod; return a name for each.

    To be called before anything is opened. Raises UsageError for what is not there or no such socket.
    """
    number = count(asked, os.environ, os.getpid())
    for fd in range(FIRST, FIRST + number):
        _check(fd)
    return names(number, os.environ)


def variables(sockets: tuple[str, ...]) -> dict[str, str]:
    """Return how the app is told of them; it is the first process of its PID namespace."""
    if not sockets:
        return {}
    return {"LISTEN_FDS": str(len(sockets)), "LISTEN_PID": "1", "LISTEN_FDNAMES": ":".join(sockets)}
