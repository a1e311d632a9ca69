"""Numbers and extended headers of tar: POSIX.1-2017 pax, and the GNU dialects.

Sources: pax(1p) "pax Header Block", the appendices "Basic Tar Format" and "Storing Sparse Files" of the
GNU tar manual. Where readers disagree, this one follows Go's archive/tar, which other container tools use.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.model import Extent

# Python's int() takes signs, underscores and 0o prefixes; tar does not.
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*\Z")
_DECIMAL = re.compile(rb"[0-9]{1,20}\Z")
_TIME = re.compile(rb"(-?)([0-9]{1,15})(?:\.([0-9]*))?\Z")

Records = dict[bytes, bytes]


def bad(why: str) -> ImageError:
    """Return the error for a malformed header; the caller adds the layer and the place."""
    return ImageError(why, code="image-tar", hint="the layer is damaged or was made by a broken tool")


def over(what: str, got: int, name: str, limit: int) -> ImageError:
    """Return the error for a crossed limit."""
    return ImageError(f"{what} is {got}, the limit {name} is {limit}", code="image-limit")


@lru_cache(maxsize=4096)
def number(field: bytes) -> int:
    """Parse an octal or base-256 field; the latter may be negative."""
    if field[0] & 0x80:
        width = len(field) * 8 - 1
        value = int.from_bytes(field, "big") & ((1 << width) - 1)
        return value - (1 << width) if field[0] & 0x40 else value
    match = _OCTAL.match(field)
    if not match:
        raise bad(f"{field!r} is not a number")
    return int(match[1] or b"0", 8)


def decimal(text: bytes, what: str) -> int:
    """Parse an unsigned decimal number of at most 20 digits."""
    if not _DECIMAL.match(text):
        raise bad(f"{what} {text[:40]!r} is not a number")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """Parse a pax time such as -1.25 into nanoseconds; further digits are cut off."""
    match = _TIME.match(text)
    if not match:
        raise bad(f"time {text[:40]!r} is not a number")
    value = int(match[2]) * 1_000_000_000 + int((match[3] or b"")[:9].ljust(9, b"0"))
    return -value if match[1] else value


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split the data of an extended header into its records, in order; keys may repeat."""
    records = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 21)
        if space < 0:
            raise bad("an extended header record has no length")
        length = decimal(data[position:space], "record length")
        end = position + length
        if end > len(data) or end <= space or data[end - 1 : end] != b"\n":
            raise bad("an extended header record does not end where its length says")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not key or not equals or b"\0" in key:
            raise bad("an extended header record has no key")
        records.append((key, value))
        position = end
    return records


def _checked(extents: Sequence[Extent], stored: int, size: int) -> tuple[Extent, ...]:
    """Refuse extents that overlap, go backwards, leave the file or do not use the stored bytes exactly."""
    if len(extents) > limits.MAX_SPARSE_EXTENTS:
        raise over(
            "the number of sparse extents", len(extents), "MAX_SPARSE_EXTENTS", limits.MAX_SPARSE_EXTENTS
        )
    end = 0
    for extent in extents:
        if extent.length < 0 or extent.file_offset < end:
            raise bad("the sparse map is not in order")
        end = extent.file_offset + extent.length
    if end > size:
        raise bad(f"the sparse map ends at {end}, the file at {size}")
    used = sum(extent.length for extent in extents)
    if used != stored:
        raise bad(f"the sparse map covers {used} bytes, the archive stores {stored}")
    return tuple(extent for extent in extents if extent.length)


def sparse_extents(pairs: Sequence[int], *, start: int, stored: int, size: int) -> tuple[Extent, ...]:
    """Turn offset and length pairs of a sparse map into extents of the layer file.

    `start` is where the fragments begin, `stored` their total, `size` that of the file with its holes.
    """
    if len(pairs) % 2:
        raise bad("the sparse map has an odd number of values")
    extents = []
    place = start
    for offset, length in zip(pairs[::2], pairs[1::2], strict=True):
        extents.append(Extent(offset, place, length))
        place += length
    return _checked(extents, stored, size)


def sparse_pairs(records: Sequence[tuple[bytes, bytes]]) -> list[int] | None:
    """Return the map of GNU sparse formats 0.0 and 0.1, which is in the records; None without one."""
    pairs: list[int] | None = None
    for key, value in records:
        if key == b"GNU.sparse.map":
            pairs = [decimal(item, "sparse map value") for item in value.split(b",")] if value else []
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pairs = pairs if pairs is not None else []
            if len(pairs) % 2 != (key == b"GNU.sparse.numbytes"):
                raise bad("sparse offsets and lengths do not alternate")
            pairs.append(decimal(value, "sparse map value"))
        if pairs is not None and len(pairs) > 2 * limits.MAX_SPARSE_EXTENTS:
            raise over("the sparse map", len(pairs) // 2, "MAX_SPARSE_EXTENTS", limits.MAX_SPARSE_EXTENTS)
    return pairs
