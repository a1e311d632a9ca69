"""Write a planned tree into a file, in shares of whole inodes that can run in several processes."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from secrun.errors import ImageError
from secrun.image.rootfs import erofs
from secrun.image.rootfs.erofs import BLOCK, SLOT, Plan
from secrun.image.rootfs.model import FdSource, FileKind, PathSource, Source, TreeEntry
from secrun.image.rootfs.tree import Inode

DIGEST_SIZE = 32

_BUFFER = 1 << 20
# What an inode costs beside its bytes, measured in bytes hashed: balances the shares.
_INODE_COST = 8192


_ZEROS = bytes(_BUFFER)


def _write_all(fd: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, position)
        position += count
        view = view[count:]


class _DataArea:
    """Buffered, strictly sequential output of the data blocks of one share."""

    def __init__(self, fd: int, position: int) -> None:
        self._fd = fd
        self._position = position
        self._buffer = memoryview(bytearray(_BUFFER))
        self._used = 0

    def room(self, want: int) -> memoryview:
        """Return space for up to `want` bytes; the caller fills all of it."""
        if self._used == _BUFFER:
            self.flush()
        length = min(want, _BUFFER - self._used)
        view = self._buffer[self._used : self._used + length]
        self._used += length
        return view

    def put(self, data: bytes) -> None:
        """Append `data`."""
        view = memoryview(data)
        while view:
            space = self.room(len(view))
            space[:] = view[: len(space)]
            view = view[len(space) :]

    def pad(self) -> None:
        """Fill the block with zeros; the buffer is a whole number of blocks."""
        self.put(bytes(-(self._position + self._used) % BLOCK))

    def flush(self) -> None:
        """Write out what is buffered."""
        _write_all(self._fd, self._buffer[: self._used], self._position)
        self._position += self._used
        self._used = 0


class _MetaArea:
    """Buffered output of inodes; gaps between them are zeros."""

    def __init__(self, fd: int, base: int, position: int) -> None:
        self._fd = fd
        self._base = base
        self._start = position
        self._position = position
        self._pieces: list[bytes] = []

    def put(self, position: int, *pieces: bytes) -> None:
        """Place `pieces` at `position`, at or behind the end of what was put before."""
        self._pieces.append(bytes(position - self._position))
        self._pieces.extend(pieces)
        self._position = position + sum(map(len, pieces))
        if self._position - self._start > _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write out what is buffered."""
        _write_all(self._fd, b"".join(self._pieces), self._base + self._start)
        self._start = self._position
        self._pieces.clear()


def _read(fd: int, view: memoryview, position: int) -> None:
    while view:
        count = os.preadv(fd, [view], position)
        if not count:
            raise ImageError("the source of a file is shorter than the file", code="image-tree")
        view = view[count:]
        position += count


def fill(source: bytes | FdSource, view: memoryview, offset: int) -> None:
    """Fill `view` with content from `offset` on; raises ImageError if the source ends early."""
    if isinstance(source, bytes):
        view[:] = source[offset : offset + len(view)]
    elif source.extents is None:
        _read(source.fd, view, source.offset + offset)
    else:
        view[:] = bytes(len(view))
        end = offset + len(view)
        # The extents are in order: skip those before the view.
        index = bisect_right(source.extents, offset, key=lambda extent: extent.file_offset + extent.length)
        for extent in islice(source.extents, index, None):
            first = max(offset, extent.file_offset)
            last = min(end, extent.file_offset + extent.length)
            if first >= last:
                return
            place = extent.source_offset + first - extent.file_offset
            _read(source.fd, view[first - offset : last - offset], place)


def read_content(source: bytes | FdSource, size: int) -> bytes:
    """Return the whole content of a small file."""
    content = bytearray(size)
    fill(source, memoryview(content), 0)
    return bytes(content)


@contextmanager
def _opened(entry: TreeEntry) -> Iterator[bytes | FdSource]:
    source: Source = entry.source
    if not isinstance(source, PathSource):
        if isinstance(source, bytes) and len(source) != entry.size:
            raise ImageError(
                f"{entry.path[:200]!r}: {len(source)} bytes of content, expected {entry.size}",
                code="image-tree",
            )
        yield source
        return
    fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        if size != entry.size:
            raise ImageError(f"{source.path} has {size} bytes, expected {entry.size}", code="image-tree")
        yield FdSource(fd)
    finally:
        os.close(fd)


def _stored_ranges(inode: Inode) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, stored) over the whole file, chunk by chunk or at once."""
    if inode.layout != erofs.CHUNKED:
        yield 0, inode.size - inode.tail, True
        return
    chunk = BLOCK << inode.chunk_bits
    for index, stored in enumerate(inode.chunks):
        offset = index * chunk
        yield offset, min(chunk, inode.size - offset), stored


def _write_file(inode: Inode, data: _DataArea) -> tuple[bytes, bytes]:
    """Write the blocks of a regular file; return its sha256 and its inline tail."""
    state = hashlib.sha256()
    tail = b""
    with _opened(inode.entry) as source:
        for start, length, stored in _stored_ranges(inode):
            offset = start
            end = start + length
            while offset < end:
                if stored:
                    view = data.room(end - offset)
                    fill(source, view, offset)
                else:
                    view = memoryview(_ZEROS)[: min(end - offset, _BUFFER)]
                state.update(view)
                offset += len(view)
            if stored:
                data.pad()
        if inode.tail:
            buffer = bytearray(inode.tail)
            fill(source, memoryview(buffer), inode.size - inode.tail)
            state.update(buffer)
            tail = bytes(buffer)
    return state.digest(), tail


def _write_other(inode: Inode, data: _DataArea) -> bytes:
    """Write the blocks of a folder or symbolic link; return the inline tail."""
    entry = inode.entry
    if entry.kind is FileKind.DIRECTORY:
        content = erofs.directory_data(inode)
    elif entry.kind is FileKind.SYMLINK:
        content = entry.target
    else:
        return b""
    split = len(content) - inode.tail
    data.put(content[:split])
    data.pad()
    return content[split:]


def write_share(plan: Plan, first: int, last: int, fd: int, digests: memoryview) -> None:
    """Write the inodes `first` to `last` (excluded) of the plan, and their content digests into `digests`.

    Raises OSError (ENOSPC among others) from the writes, ImageError if a source is shorter than planned.
    """
    inodes = plan.tree.inodes
    start = next((inode.data_block for inode in inodes[first:last] if inode.data_blocks), 0)
    data = _DataArea(fd, start * BLOCK)
    meta = _MetaArea(fd, plan.meta_block * BLOCK, inodes[first].nid * SLOT)
    for number in range(first, last):
        inode = inodes[number]
        if inode.entry.kind is FileKind.FILE:
            digest, tail = _write_file(inode, data)
            place = inode.file_index * DIGEST_SIZE
            digests[place : place + DIGEST_SIZE] = digest
        else:
            tail = _write_other(inode, data)
        meta.put(inode.nid * SLOT, erofs.encode_inode(inode, number + 1), tail)
    data.flush()
    meta.flush()


def share_bounds(inodes: Sequence[Inode], shares: int) -> list[int]:
    """Cut the inodes into `shares` runs of about equal work; returns `shares + 1` indexes."""
    costs = [_INODE_COST + inode.size for inode in inodes]
    total = sum(costs)
    bounds = [0]
    done = 0
    for index, cost in enumerate(costs):
        done += cost
        while len(bounds) < shares and done * shares >= total * len(bounds):
            bounds.append(index + 1)
    return [*bounds[:shares], *[len(costs)] * (shares + 1 - len(bounds[:shares]))]
