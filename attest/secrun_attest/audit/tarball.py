"""Tar files as POSIX wrote them down (ustar), strictly: plain files, in bounded memory, whatever is sent.

The standard library reads many dialects, some of which let a header ask for gigabytes. One is enough here.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO

from secrun_attest import frozen
from secrun_attest.errors import FormatError

BLOCK = 512
MAX_MEMBERS = 200_000
# Eleven octal digits.
MAX_SIZE = 8**11 - 1
_CHUNK = 1 << 18
_MAGIC = b"ustar\x0000"
_NAME_SIZE, _PREFIX_SIZE = 100, 155


class TarError(FormatError):
    """A file is not a tar of ours."""

    code = "audit-bundle-format"


class TruncatedError(TarError):
    """The end of a tar is missing."""

    code = "audit-bundle-truncated"


@frozen.record
class Member:
    """A file in a tar: where its bytes begin, and how many there are."""

    name: str
    begin: int
    size: int


class TarWriter:
    """Writes plain files, the same bytes for the same contents; `sums` are the digests by name."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sums: dict[str, str] = {}

    def add(self, name: str, data: bytes) -> None:
        """Add a file."""
        self.add_parts(name, len(data), (data,))

    def add_parts(self, name: str, size: int, parts: Iterable[bytes]) -> None:
        """Add a file of `size` bytes that come in parts; raises TarError if they are more or fewer."""
        self._stream.write(_header(name, size))
        digest, count = hashlib.sha256(), 0
        for part in parts:
            digest.update(part)
            count += len(part)
            self._stream.write(part)
        if count != size:
            raise TarError(f"{name} has {count} bytes, expected {size}: it changed while it was read")
        self._stream.write(bytes(-size % BLOCK))
        self.sums[name] = digest.hexdigest()

    def end(self) -> None:
        """Write the end."""
        self._stream.write(bytes(2 * BLOCK))


def parts_of(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield `size` bytes of a stream in pieces, fewer if it ends."""
    while size and (part := stream.read(min(size, _CHUNK))):
        yield part
        size -= len(part)


def _header(name: str, size: int) -> bytes:
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _NAME_SIZE or not 0 <= size <= MAX_SIZE:
        raise TarError(f"{name[:80]!r} of {size} bytes does not fit into a tar")
    fields = encoded.ljust(_NAME_SIZE, b"\0") + b"0000644\0" + b"0000000\0" * 2
    fields += b"%011o\0" % size + b"%011o\0" % 0 + b" " * 8 + b"0" + bytes(_NAME_SIZE)
    fields += _MAGIC + bytes(64) + b"0000000\0" * 2
    fields = fields.ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def index(stream: BinaryIO) -> dict[str, Member]:
    """Return the files of a tar by name, in their order; raises TarError, TruncatedError."""
    end = stream.seek(0, 2)
    found: dict[str, Member] = {}
    at = 0
    while True:
        stream.seek(at)
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise TruncatedError(f"the bundle ends at {end} bytes, within a file or before its end mark")
        if block.count(0) == BLOCK:
            if (rest := stream.read(BLOCK + 1)) != bytes(BLOCK):
                kind = TruncatedError if len(rest) < BLOCK else TarError
                raise kind(f"the end mark of the bundle at byte {at} is cut, or something follows it")
            return found
        member = _member(block, at + BLOCK)
        if member.name in found or len(found) >= MAX_MEMBERS:
            raise TarError(f"the bundle has {member.name!r} twice, or more than {MAX_MEMBERS} files")
        found[member.name] = member
        at = member.begin + member.size + -member.size % BLOCK
        if at > end:
            raise TruncatedError(f"the bundle ends at {end} bytes, within {member.name}")


def _member(block: bytes, begin: int) -> Member:
    # Bytes 148 to 155 count as blanks in the sum that they hold.
    if _octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise TarError(f"the bundle has no header of a file at byte {begin - BLOCK}")
    name = block[:_NAME_SIZE].rstrip(b"\0")
    if block[257:265] != _MAGIC or block[156:157] != b"0" or block[345 : 345 + _PREFIX_SIZE].strip(b"\0"):
        raise TarError(f"{name[:60]!r} is not a plain file of a ustar")
    if not name or not name.isascii() or b"\0" in name or not name.decode().isprintable():
        raise TarError(f"{name[:60]!r} is no name of a file in a bundle")
    return Member(name=name.decode(), begin=begin, size=_octal(block[124:136]))


def _octal(data: bytes) -> int:
    text = data.rstrip(b"\0 ")
    if not text or text.strip(b"01234567"):
        raise TarError(f"{data!r} is no number of a tar")
    return int(text, 8)
