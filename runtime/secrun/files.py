"""Durable writes: whole or absent, never torn."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def fsync_dir(path: Path) -> None:
    """Make renames and unlinks below `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(path: Path) -> None:
    """Make what lies below `path` durable, content and names; nobody else may write there meanwhile."""
    for base, _, names in os.walk(path, topdown=False):
        for name in names:
            fd = os.open(os.path.join(base, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        fsync_dir(Path(base))


def append_line(path: Path, line: bytes, *, durable: bool = False) -> None:
    """Append a whole line to a file of mode 0600, or nothing; raises OSError.

    Several writers of one file take turns by a lock of their own; `durable` waits for the disk.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        size = os.fstat(fd).st_size
        if os.write(fd, line + b"\n") != len(line) + 1:
            # What was cut would make the next line unreadable too.
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    if durable:
        fsync_dir(path.parent)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace `path` with `data` by a rename in its folder; with `durable`, fsync file and folder."""
    with replaced(path, mode=mode, durable=durable) as stream:
        stream.write(data)


@contextmanager
def replaced(path: Path, *, mode: int = 0o644, durable: bool = True) -> "Iterator[BinaryIO]":
    """Give a file to write that takes the place of `path` when all is written, or leaves it as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as stream:
            # The umask must not decide what others may read.
            os.fchmod(fd, mode)
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_dir(path.parent)


def file_stamp(status: os.stat_result) -> str:
    """Return what changes when a file is written again."""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
