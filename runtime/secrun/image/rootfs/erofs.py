"""EROFS on disk: the structures that the writer uses, and where every byte of a tree goes.

Source: fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst of Linux 5.15 to 6.18. Only features that
5.15 has are used: extended inodes, flat and inline data, inline xattrs, and chunks for files with holes.
"""

import struct
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.model import FdSource, FileKind, TreeEntry, Xattrs
from secrun.image.rootfs.tree import Inode, Tree

BLOCK = 4096
SLOT = 32
INODE_SIZE = 64
UUID = bytes.fromhex("c13901f087ca450e9a587fca31fb8242")

_MAGIC = 0xE0F5E1E2
_COMPAT_SB_CHKSUM = 0x1
_COMPAT_MTIME = 0x2
_INCOMPAT_CHUNKED_FILE = 0x4
_SUPER_OFFSET = 1024
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")

# i_format: bit 0 marks an extended inode, bits 1-3 the data layout.
FLAT_PLAIN = 0
FLAT_INLINE = 2
CHUNKED = 4
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_HOLE = 0xFFFFFFFF

_DIRENT = struct.Struct("<QHBx")
_FILE_TYPE = {
    FileKind.FILE: 1,
    FileKind.DIRECTORY: 2,
    FileKind.CHAR: 3,
    FileKind.BLOCK: 4,
    FileKind.FIFO: 5,
    FileKind.SYMLINK: 7,
}
_FORMAT_BITS = {
    FileKind.FILE: 0o100000,
    FileKind.DIRECTORY: 0o040000,
    FileKind.CHAR: 0o020000,
    FileKind.BLOCK: 0o060000,
    FileKind.FIFO: 0o010000,
    FileKind.SYMLINK: 0o120000,
}

_XATTR_HEADER = 12
_XATTR_WHOLE = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}
_XATTR_PREFIX = {b"user": 1, b"trusted": 4, b"security": 6}

# A chunk table stays below 16 KiB: larger files get larger chunks.
_MAX_CHUNKS = 4096

# The first slot stays empty: inode number 0 means "no entry" to readdir(3) of some libraries.
_FIRST_NID = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where everything goes: data from block 1 on, inodes from `meta_block` on, `data_size` bytes in all."""

    tree: Tree
    meta_block: int
    data_size: int
    chunked: bool


def xattr_key(name: bytes) -> tuple[int, bytes] | None:
    """Return prefix index and stored rest of an attribute name; None if EROFS has no place for it."""
    index = _XATTR_WHOLE.get(name)
    if index is not None:
        return index, b""
    prefix, dot, rest = name.partition(b".")
    index = _XATTR_PREFIX.get(prefix)
    return (index, rest) if index is not None and dot and rest else None


def encode_xattrs(xattrs: Xattrs, path: bytes) -> bytes:
    """Return the inline attribute area of an inode, sorted by name; empty without attributes."""
    if not xattrs:
        return b""
    area = bytearray(_XATTR_HEADER)
    for name, value in sorted(xattrs):
        key = xattr_key(name)
        if (
            key is None
            or len(name) > limits.MAX_XATTR_NAME_BYTES
            or len(value) > limits.MAX_XATTR_VALUE_BYTES
        ):
            raise ImageError(
                f"{path[:200]!r}: extended attribute {name[:80]!r} of {len(value)} bytes cannot be stored",
                code="image-xattr",
            )
        area += struct.pack("<BBH", len(key[1]), key[0], len(value)) + key[1] + value
        area += bytes(-len(area) % 4)
    if len(area) > limits.MAX_XATTR_SET_BYTES:
        raise ImageError(
            f"{path[:200]!r} has {len(area)} bytes of extended attributes, "
            f"the limit MAX_XATTR_SET_BYTES is {limits.MAX_XATTR_SET_BYTES}",
            code="image-limit",
        )
    return bytes(area)


def directory_blocks(names: Iterable[bytes]) -> list[list[bytes]]:
    """Split the sorted names of a folder (with . and ..) into blocks as full as they get."""
    blocks: list[list[bytes]] = [[]]
    used = 0
    for name in names:
        need = _DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += need
    return blocks


def _names(inode: Inode) -> list[bytes]:
    names = [name for name, _ in inode.children]
    insort(names, b".")
    insort(names, b"..")
    return names


def directory_data(inode: Inode) -> bytes:
    """Return the whole content of a folder, `inode.size` bytes."""
    known = dict(inode.children)
    known[b"."] = inode
    known[b".."] = inode.parent
    blocks = []
    for names in directory_blocks(_names(inode)):
        offset = len(names) * _DIRENT.size
        entries = []
        for name in names:
            child = known[name]
            entries.append(_DIRENT.pack(child.nid, offset, _FILE_TYPE[child.entry.kind]))
            offset += len(name)
        blocks.append(b"".join((*entries, *names)).ljust(BLOCK, b"\0"))
    return b"".join(blocks)[: inode.size]


def _directory_size(inode: Inode) -> int:
    blocks = directory_blocks(_names(inode))
    return (len(blocks) - 1) * BLOCK + sum(_DIRENT.size + len(name) for name in blocks[-1])


def _chunk_map(entry: TreeEntry) -> tuple[int, tuple[bool, ...]]:
    """Return the chunk size as bits above a block, and which chunks hold data."""
    if not isinstance(entry.source, FdSource) or entry.source.extents is None:
        return 0, ()
    bits = 0
    while -(-entry.size // (BLOCK << bits)) > _MAX_CHUNKS:
        bits += 1
    size = BLOCK << bits
    present = [False] * -(-entry.size // size)
    for extent in entry.source.extents:
        if extent.length:
            first = extent.file_offset // size
            last = (extent.file_offset + extent.length - 1) // size
            present[first : last + 1] = [True] * (last + 1 - first)
    return bits, tuple(present)


def _measure_chunks(inode: Inode, present: Sequence[bool], bits: int) -> None:
    inode.layout = CHUNKED
    inode.chunks = tuple(present)
    inode.chunk_bits = bits
    inode.head = -(-inode.head // 4) * 4 + 4 * len(present)
    blocks = -(-inode.size // BLOCK)
    inode.data_blocks = sum(
        min(1 << bits, blocks - (index << bits)) for index, stored in enumerate(present) if stored
    )


def _measure(inode: Inode) -> None:
    """Decide size, data layout, inline tail and data blocks of one inode."""
    entry = inode.entry
    inode.xattrs = encode_xattrs(entry.xattrs, entry.path)
    inode.head = INODE_SIZE + len(inode.xattrs)
    if entry.kind is FileKind.FILE:
        inode.size = entry.size
        bits, present = _chunk_map(entry)
        if not all(present):
            _measure_chunks(inode, present, bits)
            return
    elif entry.kind is FileKind.DIRECTORY:
        inode.size = _directory_size(inode)
    elif entry.kind is FileKind.SYMLINK:
        inode.size = len(entry.target)
    full, tail = divmod(inode.size, BLOCK)
    # The kernel reads an inline tail from one block only.
    if tail and inode.head + tail <= BLOCK:
        inode.layout = FLAT_INLINE
        inode.tail = tail
        inode.data_blocks = full
    else:
        inode.data_blocks = full + bool(tail)


def plan(tree: Tree) -> Plan:
    """Place every block and inode of `tree`; pure, and the whole of what makes the bytes deterministic."""
    block = 1
    position = _FIRST_NID * SLOT
    chunked = False
    for inode in tree.inodes:
        _measure(inode)
        if inode.data_blocks:
            inode.data_block = block
            block += inode.data_blocks
        chunked = chunked or inode.layout == CHUNKED
        length = inode.head + inode.tail
        if position % BLOCK + min(length, BLOCK) > BLOCK:
            position += -position % BLOCK
        inode.nid = position // SLOT
        position += -(-length // SLOT) * SLOT
    if block + position // BLOCK >= 2**32:
        raise ImageError("the tree needs more than 2**32 blocks", code="image-limit")
    data_size = block * BLOCK + -(-position // BLOCK) * BLOCK
    return Plan(tree=tree, meta_block=block, data_size=data_size, chunked=chunked)


def encode_inode(inode: Inode, number: int) -> bytes:
    """Return the inode with its xattrs and chunk table; `number` is what 32-bit stat shows."""
    entry = inode.entry
    permissions = 0o777 if entry.kind is FileKind.SYMLINK else entry.mode
    union = inode.data_block
    if inode.layout == CHUNKED:
        union = inode.chunk_bits
    elif entry.kind is FileKind.CHAR or entry.kind is FileKind.BLOCK:
        major, minor = entry.rdev
        union = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
    count = (len(inode.xattrs) - _XATTR_HEADER) // 4 + 1 if inode.xattrs else 0
    head = _INODE.pack(
        1 | inode.layout << 1,
        count,
        _FORMAT_BITS[entry.kind] | permissions,
        0,
        inode.size,
        union,
        number,
        entry.uid,
        entry.gid,
        seconds & 0xFFFFFFFFFFFFFFFF,
        nanoseconds,
        inode.nlink,
    )
    table = _chunk_table(inode) if inode.layout == CHUNKED else b""
    return head + inode.xattrs + table


def _chunk_table(inode: Inode) -> bytes:
    blocks = -(-inode.size // BLOCK)
    address = inode.data_block
    table = []
    for index, stored in enumerate(inode.chunks):
        table.append(address if stored else _HOLE)
        if stored:
            address += min(1 << inode.chunk_bits, blocks - (index << inode.chunk_bits))
    return struct.pack(f"<{len(table)}I", *table)


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901 - shifted out bit by bit
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """Return the Castagnoli checksum of `data` as EROFS wants it: seed all ones, not inverted at the end."""
    table = _crc32c_table()
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value


def superblock(what: Plan) -> bytes:
    """Return block 0."""

    def pack(checksum: int) -> bytes:
        fields = _SUPER.pack(
            _MAGIC,
            checksum,
            _COMPAT_SB_CHKSUM | _COMPAT_MTIME,
            12,
            0,
            _FIRST_NID,
            len(what.tree.inodes),
            0,
            0,
            what.data_size // BLOCK,
            what.meta_block,
            0,
            UUID,
            b"",
            _INCOMPAT_CHUNKED_FILE if what.chunked else 0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        )
        return fields.ljust(BLOCK - _SUPER_OFFSET, b"\0")

    return bytes(_SUPER_OFFSET) + pack(crc32c(pack(0)))
