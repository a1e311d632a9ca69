"""The one lock helper: flock(2) on files and folders, held by a file descriptor."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secrun.errors import StateError


def lock_fd(fd: int, *, shared: bool = False, blocking: bool = True) -> bool:
    """Take a flock on `fd`; return False if `blocking` is off and somebody else holds it."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, operation if blocking else operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_dir(path: Path, *, dir_fd: int | None = None) -> int:
    """Open a folder for locking, never through a final symbolic link; the fd is close-on-exec."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


@contextmanager
def held(path: Path, *, shared: bool = False, blocking: bool = True) -> Iterator[int]:
    """Hold the lock file `path`, made if absent; raises StateError if taken and not `blocking`.

    The file stays: removing a lock file under a waiter would let two holders in.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if not lock_fd(fd, shared=shared, blocking=blocking):
            raise StateError(
                f"{path} is locked by another process",
                hint="wait for it to end, then try again",
                code="state-locked",
            )
        yield fd
    finally:
        os.close(fd)


def is_missing(error: OSError) -> bool:
    """Tell whether `error` only says that the object is already gone."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR)
