"""Tar layers built header by header, so that tests can write what no tar program would."""

import bz2
import dataclasses
import gzip
import hashlib
import lzma
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from secrun.digest import Digest
from secrun.image.rootfs import Compression, LayerSource
from secrun.image.rootfs.merge import MergedTree
from secrun.image.rootfs.model import FileKind, TreeEntry
from secrun.image.rootfs.tarindex import TarEntry, TarIndex
from secrun.record import replace

BLOCK = 512
END = bytes(2 * BLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One header with its data; `fields` overwrites raw bytes of the header by offset."""

    name: bytes
    type: bytes = b"0"
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_700_000_000
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    magic: bytes = b"ustar\x0000"
    prefix: bytes = b""
    size: bytes | None = None
    fields: tuple[tuple[int, bytes], ...] = ()
    checksum: bytes | None = None


def octal(value: int, width: int) -> bytes:
    """Write a number as tar does, in base 256 if it does not fit."""
    text = b"%0*o" % (width - 1, value) if value >= 0 else b""
    if text and len(text) < width:
        return text + b"\0"
    return (value & ((1 << (8 * width - 1)) - 1) | 1 << (8 * width - 1)).to_bytes(width, "big")


def block(member: Member) -> bytes:
    """Return the header of `member` and its padded data."""
    raw = bytearray(BLOCK)
    struct.pack_into(
        "100s8s8s8s12s12s8sc100s8s",
        raw,
        0,
        member.name,
        octal(member.mode, 8),
        octal(member.uid, 8),
        octal(member.gid, 8),
        octal(len(member.data), 12) if member.size is None else member.size,
        octal(member.mtime, 12),
        b" " * 8,
        member.type,
        member.link,
        member.magic,
    )
    struct.pack_into(
        "8s8s155s", raw, 329, octal(member.device[0], 8), octal(member.device[1], 8), member.prefix
    )
    for offset, value in member.fields:
        raw[offset : offset + len(value)] = value
    raw[148:156] = b"%06o\0 " % sum(raw) if member.checksum is None else member.checksum.ljust(8, b"\0")
    return bytes(raw) + member.data + bytes(-len(member.data) % BLOCK)


def tar(*members: Member | bytes, end: bytes = END) -> bytes:
    """Join members, or bytes made before, into an archive."""
    return b"".join(member if isinstance(member, bytes) else block(member) for member in members) + end


def record(key: bytes, value: bytes) -> bytes:
    """Return one pax record; its length counts itself."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def pax(member: Member, *records: tuple[bytes, bytes], type_: bytes = b"x") -> bytes:
    """Return `member` behind an extended header."""
    data = b"".join(record(key, value) for key, value in records)
    return block(Member(name=b"pax", type=type_, data=data)) + block(member)


def gnu_long(member: Member, *, name: bytes = b"", link: bytes = b"") -> bytes:
    """Return `member` behind GNU long name and link headers."""
    result = b""
    for kind, text in ((b"L", name), (b"K", link)):
        if text:
            result += block(Member(name=b"././@LongLink", type=kind, data=text + b"\0", magic=b"ustar  \0"))
    return result + block(dataclasses.replace(member, magic=b"ustar  \0"))


def folder(name: bytes, *, mode: int = 0o755, mtime: int = 1_700_000_000) -> Member:
    return Member(name=name, type=b"5", mode=mode, mtime=mtime)


def file(name: bytes, data: bytes = b"", *, mode: int = 0o644) -> Member:
    return Member(name=name, data=data, mode=mode)


def symlink(name: bytes, target: bytes) -> Member:
    return Member(name=name, type=b"2", link=target, mode=0o777)


def hardlink(name: bytes, target: bytes) -> Member:
    return Member(name=name, type=b"1", link=target)


def index(archive: bytes) -> list[TarEntry]:
    """Parse an archive with the product's parser."""
    fd = os.memfd_create("layer")
    try:
        os.write(fd, archive)
        return list(TarIndex(fd, len(archive), layer="test"))
    finally:
        os.close(fd)


def merge(*archives: bytes) -> dict[bytes, TreeEntry]:
    """Merge layers, bottom first, with the product's code; the tree by path."""
    tree = MergedTree()
    for archive in archives:
        tree.apply(index(archive), -1)
    return {entry.path: entry for entry in tree.entries()}


def shape(tree: dict[bytes, TreeEntry]) -> dict[bytes, str]:
    """Reduce a merged tree to path and kind, without the root."""
    return {path: entry.kind.value for path, entry in sorted(tree.items()) if path}


def store_layers(
    folder_: Path, archives: Iterable[bytes], compression: Compression = Compression.NONE
) -> list[LayerSource]:
    """Write layers as blobs and describe them."""
    folder_.mkdir(parents=True, exist_ok=True)
    layers = []
    for archive in archives:
        blob = compress(archive, compression)
        digest = Digest.of(blob)
        path = folder_ / digest.hex
        path.write_bytes(blob)
        path.chmod(0o644)
        layers.append(
            LayerSource(
                path=path, digest=digest, size=len(blob), compression=compression, diff_id=Digest.of(archive)
            )
        )
    return layers


def compress(data: bytes, compression: Compression) -> bytes:
    if compression is Compression.GZIP:
        return gzip.compress(data, mtime=0)
    if compression is Compression.ZSTD:
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    if compression is Compression.BZIP2:
        return bz2.compress(data)
    if compression is Compression.XZ:
        return lzma.compress(data)
    return data


def entry(path: bytes, kind: FileKind = FileKind.FILE, *, data: bytes = b"", **changes: object) -> TreeEntry:
    """Return a tree entry with plain values for what a test does not care about."""
    mode = 0o755 if kind is FileKind.DIRECTORY else 0o644
    plain = TreeEntry(
        path=path, kind=kind, mode=mode, uid=0, gid=0, mtime_ns=10**18 + 1, size=len(data), source=data
    )
    return replace(plain, **changes)


def pack_bytes(entries: Sequence[TreeEntry], processes: int = 1) -> bytes:
    """Pack into memory and return the whole image file."""
    from secrun.image.rootfs.pack import pack

    fd = os.memfd_create("image")
    try:
        packed = pack(entries, fd, processes=processes)
        return os.pread(fd, packed.file_size + 1, 0)
    finally:
        os.close(fd)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
