"""Stores of ordinary users: what a member of the group fetched saves root the download, and nothing else.

Root asks the registry what a name means, and judges it; only then bytes of a digest that is already decided
may come from a member's store. They are copied and digested in one pass, from a file that was opened without
following a link: whoever changes it meanwhile changes the digest too, and the blob is downloaded instead.
"""

import os
import stat
from collections.abc import Iterator

from secrun.digest import Digest
from secrun.errors import HostError
from secrun.image import account, limits
from secrun.image.blobs import BlobWriter
from secrun.image.manifest import Descriptor
from secrun.paths import Layout

# Members may make a folder of their own and see no others; it is sticky: they cannot remove one.
_MODE = 0o1730
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# More than that are not looked at for one blob.
_MAX_MEMBERS = 1000


def prepare(layout: Layout) -> None:
    """Make the folder that members have theirs in, if there is such a group; for root."""
    try:
        group = account.fetching().gid
    except HostError:
        return
    try:
        os.mkdir(layout.members, 0o700)
    except FileExistsError:
        return
    os.chown(layout.members, 0, group)
    os.chmod(layout.members, _MODE)


def take(layout: Layout, descriptor: Descriptor, writer: BlobWriter) -> bool:
    """Write a blob from a member's store; return whether it is whole and has the digest."""
    for fd in _offered(layout, descriptor):
        try:
            _copy(fd, descriptor.size, writer)
        finally:
            os.close(fd)
        if writer.good:
            return True
        writer.restart()
    return False


def _copy(fd: int, size: int, writer: BlobWriter) -> None:
    """Copy `size` bytes at most; a member's file may shrink, grow and change as it likes."""
    while writer.offset < size:
        chunk = os.read(fd, min(limits.CHUNK_BYTES, size - writer.offset))
        if not chunk:
            return
        writer.write(chunk)


def _offered(layout: Layout, descriptor: Descriptor) -> Iterator[int]:
    """Yield open files that call themselves the blob and have its size."""
    try:
        top = os.open(layout.members, _FLAGS | os.O_DIRECTORY)
    except OSError:
        return
    try:
        device = os.fstat(top).st_dev
        for name in sorted(os.listdir(top))[:_MAX_MEMBERS]:
            fd = _walk(top, [name, *_place(descriptor.digest)])
            if fd is None:
                continue
            status = os.fstat(fd)
            # Nothing that a member has mounted, no pipe, no device.
            if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_size) == (device, descriptor.size):
                yield fd
            else:
                os.close(fd)
    finally:
        os.close(top)


def _place(digest: Digest) -> tuple[str, ...]:
    return ("images", "blobs", digest.algorithm, digest.hex)


def _walk(top: int, names: list[str]) -> int | None:
    """Open a file step by step, no step through a link; None if there is none."""
    folder = os.dup(top)
    for name in names[:-1]:
        try:
            below = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
        except OSError:
            return None
        finally:
            os.close(folder)
        folder = below
    try:
        return os.open(names[-1], _FLAGS, dir_fd=folder)
    except OSError:
        return None
    finally:
        os.close(folder)
