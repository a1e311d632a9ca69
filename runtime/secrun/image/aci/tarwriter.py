"""Write tar headers: ustar where it can say it, a pax extended header (pax(1p)) where it cannot.

The same entry gives the same bytes everywhere.
"""

import struct
from typing import Protocol

from secrun.image.rootfs.model import FileKind, Xattrs
from secrun.image.rootfs.tarindex import BLOCK, LinkKind

END = bytes(2 * BLOCK)
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_TYPES: dict[FileKind | LinkKind, bytes] = {
    FileKind.FILE: b"0",
    LinkKind.HARD: b"1",
    FileKind.SYMLINK: b"2",
    FileKind.CHAR: b"3",
    FileKind.BLOCK: b"4",
    FileKind.DIRECTORY: b"5",
    FileKind.FIFO: b"6",
}
_MAX_NAME = 100
_SECOND = 1_000_000_000


class Described(Protocol):
    """What a header tells of a file beside its name."""

    @property
    def mode(self) -> int:
        """Permission bits, twelve of them."""

    @property
    def uid(self) -> int:
        """Owner."""

    @property
    def gid(self) -> int:
        """Group."""

    @property
    def mtime_ns(self) -> int:
        """Nanoseconds since 1970."""

    @property
    def rdev(self) -> tuple[int, int]:
        """Device number."""

    @property
    def xattrs(self) -> Xattrs:
        """Extended attributes."""


def padding(size: int) -> bytes:
    """Return what fills the last block of `size` bytes of data."""
    return bytes(-size % BLOCK)


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def _record(key: bytes, value: bytes) -> bytes:
    """Return one pax record; its length counts itself."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _seconds(mtime_ns: int) -> bytes:
    """Write a time as pax has it: seconds, and a fraction if there is one."""
    whole, rest = divmod(abs(mtime_ns), _SECOND)
    sign = "-" if mtime_ns < 0 else ""
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{sign}{whole}{fraction}".encode()


class _Fields:
    """The numbers of a header; what does not fit goes into records."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes]] = []

    def text(self, key: bytes, value: bytes) -> bytes:
        if len(value) > _MAX_NAME:
            self.records.append((key, value))
            return value[:_MAX_NAME]
        return value

    def number(self, key: bytes, value: int, width: int) -> bytes:
        if value >= 8 ** (width - 1):
            self.records.append((key, str(value).encode()))
            value = 0
        return _octal(value, width)

    def time(self, mtime_ns: int) -> bytes:
        whole, rest = divmod(mtime_ns, _SECOND)
        if rest or not 0 <= whole < 8**11:
            self.records.append((b"mtime", _seconds(mtime_ns)))
        return _octal(whole if 0 <= whole < 8**11 else 0, 12)


def _block(name: bytes, kind: bytes, *rest: bytes) -> bytes:
    mode, uid, gid, size, mtime, target, major, minor = rest
    raw = bytearray(
        _HEADER.pack(
            *(name, mode, uid, gid, size, mtime, b" " * 8, kind, target),
            *(b"ustar\x0000", b"", b"", major, minor, b""),
        )
    )
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def _extended(records: list[tuple[bytes, bytes]]) -> bytes:
    data = b"".join(_record(key, value) for key, value in sorted(records))
    zero = _octal(0, 8)
    head = _block(
        b"pax", b"x", _octal(0o644, 8), zero, zero, _octal(len(data), 12), _octal(0, 12), b"", zero, zero
    )
    return head + data + padding(len(data))


def header(
    name: bytes, kind: FileKind | LinkKind, file: Described, *, size: int = 0, target: bytes = b""
) -> bytes:
    """Return the header blocks of one entry; `size` bytes of data and `padding` must follow."""
    fields = _Fields()
    written = name + b"/" if kind is FileKind.DIRECTORY else name
    block = _block(
        fields.text(b"path", written),
        _TYPES[kind],
        _octal(file.mode, 8),
        fields.number(b"uid", file.uid, 8),
        fields.number(b"gid", file.gid, 8),
        fields.number(b"size", size, 12),
        fields.time(file.mtime_ns),
        fields.text(b"linkpath", target),
        _octal(file.rdev[0], 8),
        _octal(file.rdev[1], 8),
    )
    fields.records += [(b"SCHILY.xattr." + key, value) for key, value in file.xattrs]
    return _extended(fields.records) + block if fields.records else block
