"""Read the headers of an uncompressed layer: a bounded tar parser that trusts nothing.

Bytes behind the end-of-archive marker are ignored, as Go's archive/tar ignores them; a missing marker is
accepted at a header boundary.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from secrun.errors import ImageError
from secrun.image.rootfs import limits, pax
from secrun.image.rootfs.model import Extent, FileKind, Xattrs
from secrun.image.rootfs.pax import bad, number, over

BLOCK = 512
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_ZERO_BLOCK = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_SPARSE_LINE = re.compile(rb"([0-9]{1,20})\n")

# Headers of small files lie close together, so one read serves many of them.
_WINDOW = 64 << 10

# A global record with one of these would give every later entry the same name or size.
_NEVER_GLOBAL = (b"path", b"linkpath", b"size")


class LinkKind(Enum):
    """The one kind of entry that is a name and no file."""

    HARD = "hard link"


_KINDS: dict[bytes, FileKind | LinkKind] = {
    b"0": FileKind.FILE,
    b"\0": FileKind.FILE,
    b"S": FileKind.FILE,
    b"1": LinkKind.HARD,
    b"2": FileKind.SYMLINK,
    b"3": FileKind.CHAR,
    b"4": FileKind.BLOCK,
    b"5": FileKind.DIRECTORY,
    b"6": FileKind.FIFO,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TarEntry:
    """One entry: its raw name, what it is, and where its content lies in the layer file."""

    name: bytes
    kind: FileKind | LinkKind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    offset: int
    extents: tuple[Extent, ...] | None
    target: bytes
    rdev: tuple[int, int]
    xattrs: Xattrs


class _Window:
    """Cheap random access to a file that is mostly read forwards."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size
        self._start = 0
        self._bytes = b""

    def get(self, position: int, length: int) -> bytes:
        """Return `length` bytes at `position`; raises ImageError if the layer ends before."""
        offset = position - self._start
        if offset < 0 or offset + length > len(self._bytes):
            if position + length > self.size:
                raise bad(f"the archive ends at {self.size} in the middle of an entry")
            self._bytes = os.pread(self._fd, max(_WINDOW, length), position)
            self._start = position
            offset = 0
            if len(self._bytes) < length:
                raise bad("the layer file shrank while it was read")
        return self._bytes[offset : offset + length]


class _Extensions:
    """What extended headers say about the next entry."""

    __slots__ = ("long_link", "long_name", "ordered", "records")

    def __init__(self, defaults: pax.Records) -> None:
        self.records = dict(defaults)
        self.ordered: list[tuple[bytes, bytes]] = []
        self.long_name = b""
        self.long_link = b""

    def update(self, data: bytes) -> None:
        self.ordered = pax.parse_records(data)
        for key, value in self.ordered:
            # An empty value takes back what a global header said (pax(1p)).
            if value or key.startswith(_XATTR):
                self.records[key] = value
            else:
                self.records.pop(key, None)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _check_sum(block: bytes, field: bytes) -> None:
    expected = number(field)
    # The sum counts the field itself as spaces.
    unsigned = sum(block) - sum(field) + 8 * 32
    if unsigned != expected:
        # Some old tars summed signed characters.
        high = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in field)
        if unsigned - 256 * high != expected:
            raise bad(f"header checksum is {unsigned}, the header says {expected}")


def _unsigned(field: bytes, what: str, limit: int) -> int:
    value = number(field)
    if not 0 <= value <= limit:
        raise bad(f"{what} {value} is out of range")
    return value


class TarIndex:
    """Iterates over the entries of one layer file."""

    def __init__(self, fd: int, size: int, *, layer: str) -> None:
        self._window = _Window(fd, size)
        self._layer = layer
        self._position = 0
        self._globals: pax.Records = {}
        self.headers = 0

    def __iter__(self) -> Iterator[TarEntry]:
        while True:
            start = self._position
            try:
                entry = self._next()
            except ImageError as error:
                raise ImageError(
                    f"layer {self._layer}, tar header at {start}: {error.message}",
                    code=error.code,
                    hint=error.hint,
                ) from error
            if entry is None:
                return
            yield entry

    def _header(self) -> bytes | None:
        """Return the next header block, None at the end of the archive."""
        window = self._window
        if self._position == window.size:
            return None
        block = window.get(self._position, BLOCK)
        self._position += BLOCK
        if block == _ZERO_BLOCK:
            if self._position < window.size and window.get(self._position, BLOCK) != _ZERO_BLOCK:
                raise bad("one zero block is not the end of an archive")
            return None
        self.headers += 1
        if self.headers > limits.MAX_ENTRIES:
            raise over("the number of tar headers", self.headers, "MAX_ENTRIES", limits.MAX_ENTRIES)
        return block

    def _data(self, size: int, what: str, limit_name: str, limit: int) -> bytes:
        """Return the data of an extension header and step over it."""
        if size > limit:
            raise over(what, size, limit_name, limit)
        data = self._window.get(self._position, size)
        self._skip(size)
        return data

    def _skip(self, size: int) -> None:
        end = self._position + size
        if end > self._window.size:
            raise bad(f"{size} bytes of data are missing, the archive ends at {self._window.size}")
        # The padding of the very last entry may be missing.
        self._position = min(end + -size % BLOCK, self._window.size)

    def _next(self) -> TarEntry | None:
        extensions = _Extensions(self._globals)
        while True:
            block = self._header()
            if block is None:
                return None
            fields = _HEADER.unpack(block)
            _check_sum(block, fields[6])
            kind = fields[7]
            if kind in b"xgLK":
                self._extend(kind, number(fields[4]), extensions)
            elif kind in _KINDS:
                return self._entry(block, fields, extensions)
            else:
                raise bad(f"entry type {kind!r} of {_text(fields[0])[:80]!r} is not known")

    def _extend(self, kind: bytes, size: int, extensions: _Extensions) -> None:
        if size < 0:
            raise bad(f"size {size} is negative")
        if kind in b"xg":
            data = self._data(size, "the size of an extended header", "MAX_PAX_BYTES", limits.MAX_PAX_BYTES)
            if extensions.ordered:
                raise bad("a second extended header for one entry")
            if kind == b"x":
                extensions.update(data)
            else:
                self._extend_all(data)
                extensions.records = dict(self._globals)
            return
        data = self._data(
            size, "the size of a GNU long name", "MAX_GNU_LONG_BYTES", limits.MAX_GNU_LONG_BYTES
        )
        if kind == b"L":
            extensions.long_name = _text(data)
        else:
            extensions.long_link = _text(data)

    def _extend_all(self, data: bytes) -> None:
        """Take over the records of a global header."""
        for key, value in pax.parse_records(data):
            if key in _NEVER_GLOBAL or key.startswith(b"GNU.sparse."):
                raise bad(f"a global header sets {key!r} for every entry")
            self._globals.pop(key, None)
            if value:
                self._globals[key] = value
        size = sum(map(len, self._globals)) + sum(map(len, self._globals.values()))
        if size > limits.MAX_PAX_BYTES:
            raise over("the size of all global headers", size, "MAX_PAX_BYTES", limits.MAX_PAX_BYTES)

    def _entry(self, block: bytes, fields: tuple[bytes, ...], extensions: _Extensions) -> TarEntry:
        records = extensions.records
        name, target = _names(block, fields, extensions)
        kind = _KINDS[fields[7]]
        if fields[7] == b"\0" and name.endswith(b"/"):
            kind = FileKind.DIRECTORY
        mtime = records.get(b"mtime")
        size, offset, extents = 0, 0, None
        if kind is FileKind.FILE:
            stored = pax.decimal(records[b"size"], "size") if b"size" in records else number(fields[4])
            if stored < 0:
                raise bad(f"size {stored} is negative")
            size, offset, extents = self._content(block, fields[7], stored, extensions)
            name = records.get(b"GNU.sparse.name", name) if extents is not None else name
        if b"\0" in name or b"\0" in target:
            raise bad(f"name {name[:80]!r} or its target contains a NUL")
        mtime_ns = pax.nanoseconds(mtime) if mtime is not None else number(fields[5]) * 1_000_000_000
        if not limits.MIN_MTIME_SECONDS <= mtime_ns // 1_000_000_000 <= limits.MAX_MTIME_SECONDS:
            raise bad(f"mtime of {name[:80]!r} is outside the years 1 to 9999")
        return TarEntry(
            name=name,
            kind=kind,
            mode=number(fields[1]) & 0o7777,
            uid=_owner(records, b"uid", fields[2]),
            gid=_owner(records, b"gid", fields[3]),
            mtime_ns=mtime_ns,
            size=size,
            offset=offset,
            extents=extents,
            target=target if kind is FileKind.SYMLINK or kind is LinkKind.HARD else b"",
            rdev=_rdev(fields) if kind is FileKind.CHAR or kind is FileKind.BLOCK else (0, 0),
            xattrs=_xattrs(records) if records else (),
        )

    def _content(
        self, block: bytes, kind: bytes, stored: int, extensions: _Extensions
    ) -> tuple[int, int, tuple[Extent, ...] | None]:
        """Return logical size, data offset and sparse map of a regular file, and step over its data."""
        records = extensions.records
        start = self._position
        if kind == b"S":
            pairs, size, start = self._old_sparse(block)
        elif records.get(b"GNU.sparse.major") == b"1":
            pairs, size, start = self._sparse_1_0(records, stored)
            stored -= start - self._position
            self._position = start
        else:
            found = pax.sparse_pairs(extensions.ordered)
            if found is None:
                self._skip(stored)
                return stored, start, None
            pairs = found
            size = pax.decimal(records.get(b"GNU.sparse.size", b""), "sparse size")
        if size > limits.MAX_IMAGE_BYTES:
            raise over("the size of a sparse file", size, "MAX_IMAGE_BYTES", limits.MAX_IMAGE_BYTES)
        extents = pax.sparse_extents(pairs, start=start, stored=stored, size=size)
        self._position = start
        self._skip(stored)
        return size, start, extents

    def _old_sparse(self, block: bytes) -> tuple[list[int], int, int]:
        """Read the map of a GNU 'S' header and its continuation blocks."""
        pairs: list[int] = []

        def collect(table: bytes) -> None:
            for place in range(0, len(table), 24):
                if table[place] == 0:
                    return
                pairs.extend((number(table[place : place + 12]), number(table[place + 12 : place + 24])))

        collect(block[386:482])
        size = number(block[483:495])
        position = self._position
        extended = block[482]
        while extended:
            if len(pairs) > 2 * limits.MAX_SPARSE_EXTENTS:
                raise over(
                    "the sparse map", len(pairs) // 2, "MAX_SPARSE_EXTENTS", limits.MAX_SPARSE_EXTENTS
                )
            more = self._window.get(position, BLOCK)
            position += BLOCK
            collect(more[:504])
            extended = more[504]
        if size < 0 or any(value < 0 for value in pairs):
            raise bad("the sparse map has negative values")
        return pairs, size, position

    def _sparse_1_0(self, records: pax.Records, stored: int) -> tuple[list[int], int, int]:
        """Read the map that GNU sparse format 1.0 keeps in front of the data, as decimal lines."""
        if records.get(b"GNU.sparse.minor") != b"0":
            raise bad("this minor version of GNU sparse format 1 is not known")
        length = min(stored, limits.MAX_PAX_BYTES)
        table = self._window.get(self._position, length)
        values: list[int] = []
        place = 0
        wanted = 1
        while len(values) < wanted:
            match = _SPARSE_LINE.match(table, place)
            if not match:
                raise bad("the sparse map in front of the data is malformed or too long")
            values.append(int(match[1]))
            place = match.end()
            if len(values) == 1:
                wanted += 2 * values[0]
                if values[0] > limits.MAX_SPARSE_EXTENTS:
                    raise over("the sparse map", values[0], "MAX_SPARSE_EXTENTS", limits.MAX_SPARSE_EXTENTS)
        used = place + -place % BLOCK
        if used > stored:
            raise bad("the sparse map is longer than the data that holds it")
        size = pax.decimal(records.get(b"GNU.sparse.realsize", b""), "sparse size")
        return values[1:], size, self._position + used


def _names(block: bytes, fields: tuple[bytes, ...], extensions: _Extensions) -> tuple[bytes, bytes]:
    """Return name and link target from whichever of the four places holds them."""
    records = extensions.records
    name = extensions.long_name or records.get(b"path", b"")
    if not name:
        name = _text(fields[0])
        if fields[9] == b"ustar\x0000":
            # Schily's star keeps times in the last 24 bytes of the prefix and says so in a trailer.
            prefix = fields[14][:131] if block[508:] == b"tar\0" else fields[14]
            prefix = _text(prefix)
            if prefix:
                name = prefix + b"/" + name
    target = extensions.long_link or records.get(b"linkpath", b"") or _text(fields[8])
    return name, target


def _owner(records: pax.Records, key: bytes, field: bytes) -> int:
    text = records.get(key)
    if text is None:
        return _unsigned(field, key.decode(), limits.MAX_ID)
    value = pax.decimal(text, key.decode())
    if value > limits.MAX_ID:
        raise bad(f"{key.decode()} {value} is out of range")
    return value


def _rdev(fields: tuple[bytes, ...]) -> tuple[int, int]:
    return (
        _unsigned(fields[12], "device major", limits.MAX_MAJOR),
        _unsigned(fields[13], "device minor", limits.MAX_MINOR),
    )


def _xattrs(records: pax.Records) -> Xattrs:
    found = []
    for key, value in records.items():
        if key.startswith(_XATTR):
            name = key[len(_XATTR) :]
            if len(name) > limits.MAX_XATTR_NAME_BYTES:
                raise over(
                    "the length of an xattr name",
                    len(name),
                    "MAX_XATTR_NAME_BYTES",
                    limits.MAX_XATTR_NAME_BYTES,
                )
            if len(value) > limits.MAX_XATTR_VALUE_BYTES:
                raise over(
                    f"the size of xattr {name[:80]!r}",
                    len(value),
                    "MAX_XATTR_VALUE_BYTES",
                    limits.MAX_XATTR_VALUE_BYTES,
                )
            found.append((name, value))
    return tuple(found)
