"""The packets of a signed OpenPGP message, taken out of their compression within bounds (RFC 9580, 4 and 5).

gpg compresses what it signs. A library that unpacks it does so without a bound, and bzip2 makes gigabytes of
some hundred bytes; so it is unpacked here, once, and nothing compressed is left inside.
"""

import bz2
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NoReturn, Protocol

from secrun.trust import limits
from secrun.trust.faults import SignatureFaultError

_COMPRESSED = 8
# What a signed message is made of: signature, one-pass signature, marker, literal data, padding.
_ALLOWED = frozenset({2, 4, 10, 11, 21})


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_UNPACKERS: Mapping[bytes, Callable[[], _Unpacker]] = MappingProxyType(
    {
        b"\1": lambda: zlib.decompressobj(-zlib.MAX_WBITS),
        b"\2": zlib.decompressobj,
        b"\3": bz2.BZ2Decompressor,
    }
)
_ARMOR = b"-----BEGIN PGP"


def _bad(why: str) -> NoReturn:
    raise SignatureFaultError(f"it is no signed OpenPGP message: {why}")


class _Reader:
    """Reads packets from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at >= len(self._data)

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            _bad("it ends within a packet")
        self._at += count
        return piece

    def _number(self, count: int) -> int:
        return int.from_bytes(self._take(count), "big")

    def packet(self) -> tuple[int, bytes]:
        """Return the type of the next packet and its body, its parts joined."""
        head = self._number(1)
        if not head & 0x80:
            _bad("it does not begin like a packet")
        if head & 0x40:
            return head & 0x3F, self._new_body()
        size = head & 3
        length = len(self._data) - self._at if size == 3 else self._number(1 << size)
        return head >> 2 & 0xF, self._take(length)

    def _new_body(self) -> bytes:
        body = b""
        while True:
            first = self._number(1)
            if 224 <= first < 255:
                body += self._take(1 << (first & 0x1F))
                continue
            return body + self._take(self._length(first))

    def _length(self, first: int) -> int:
        if first < 192:
            return first
        if first < 224:
            return ((first - 192) << 8) + self._number(1) + 192
        return self._number(4)


def _unpacked(body: bytes) -> bytes:
    """Return what a compressed packet holds, at most MAX_PAYLOAD_BYTES and the signatures around it."""
    limit = limits.MAX_MESSAGE_BYTES
    algorithm, data = body[:1], body[1:]
    if algorithm == b"\0":
        return data
    if algorithm not in _UNPACKERS:
        _bad("its compression is unknown")
    unpacker = _UNPACKERS[algorithm]()
    try:
        found = unpacker.decompress(data, limit + 1)
    except (zlib.error, OSError, ValueError) as error:
        raise SignatureFaultError("it is no signed OpenPGP message: its compression is broken") from error
    if len(found) > limit:
        _bad(f"unpacked it is larger than {limit} bytes")
    if not unpacker.eof:
        _bad("its compression is broken off")
    return found


def flattened(message: bytes) -> bytes:
    """Return the packets of a binary message without compression; raises SignatureFaultError."""
    if len(message) > limits.MAX_MESSAGE_BYTES:
        _bad(f"it is larger than {limits.MAX_MESSAGE_BYTES} bytes")
    if message.startswith(_ARMOR):
        _bad("it is armored, and signatures of images are not")
    reader = _Reader(message)
    if reader.done:
        _bad("it is empty")
    kind, body = reader.packet()
    plain = message
    if kind == _COMPRESSED:
        if not reader.done:
            _bad("something follows its compressed packet")
        plain = _unpacked(body)
    _check(plain)
    return plain


def _check(data: bytes) -> None:
    """Raise SignatureFaultError unless these are packets of a signed message and nothing more."""
    reader = _Reader(data)
    while not reader.done:
        kind, _ = reader.packet()
        if kind not in _ALLOWED:
            _bad(f"it has a packet of type {kind}")
