"""Read files that a pod's root may have written: no link is followed, no size is believed."""

import os
import stat
from pathlib import Path

from secrun.errors import StateError

# Enough for an exit record with a long error text.
MAX_RECORD_BYTES = 64 * 1024
# The agent writes twenty digits and a newline.
_TALLY_BYTES = 21


def open_path(base: Path, *parts: str, flags: int = os.O_RDONLY) -> int | None:
    """Open `base/part/part` without following a link in any part; None if it is missing.

    Raises StateError if a part is a link or not what it should be. O_NONBLOCK keeps a planted FIFO from
    hanging the reader.
    """
    try:
        fd = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        for part in parts[:-1]:
            step = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = step
        return os.open(parts[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        # ENOTDIR is how O_NOFOLLOW reports a link in place of a folder.
        raise StateError(
            f"{base.joinpath(*parts)}: {error.strerror}",
            hint="the pod put something else in its place",
            code="state-hostile",
        ) from error
    finally:
        os.close(fd)


def open_regular(base: Path, *parts: str) -> int | None:
    """Open a regular file as open_path does; raises StateError if it is anything else."""
    fd = open_path(base, *parts)
    if fd is not None and not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise StateError(f"{base.joinpath(*parts)} is not a regular file", code="state-hostile")
    return fd


def read_record(base: Path, *parts: str) -> bytes | None:
    """Read a small file whole; None if it is missing, StateError if it is larger than a record can be."""
    fd = open_regular(base, *parts)
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as stream:
        data = stream.read(MAX_RECORD_BYTES + 1)
    if len(data) > MAX_RECORD_BYTES:
        raise StateError(f"{base.joinpath(*parts)} is larger than {MAX_RECORD_BYTES} bytes")
    return data


def log_lost(base: Path, app: str) -> int:
    """Return how many bytes of an app's log could not be written, as its shim counts them."""
    fd = open_regular(base, "apps", app, "log.lost")
    if fd is None:
        return 0
    with os.fdopen(fd, "rb") as stream:
        text = stream.read(_TALLY_BYTES).strip()
    return int(text) if text.isdigit() else 0


def printable(text: str, limit: int = 500) -> str:
    """Return untrusted text without control characters, so that it cannot drive a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text[:limit])
