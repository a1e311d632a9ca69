"""What root and its helper say to each other: frames on a socket pair, each a letter, a length and bytes."""

import socket
from enum import IntEnum

from secrun.errors import ImageError
from secrun.image import limits
from secrun.jsonio import JsonObject, canonical, parse_object
from secrun.record import record

# A letter and a length.
_HEADER_BYTES = 5
# Words and numbers only: the largest, an index of a thousand members, has some hundred KiB.
MAX_RECORD_BYTES = 2 * 1024 * 1024


class Kind(IntEnum):
    """What a frame is."""

    RECORD = ord("J")
    """One JSON object; it ends a request and an answer."""
    ERROR = ord("E")
    """One JSON object that ends an answer."""
    BYTES = ord("B")
    """The whole of something small, as it is."""
    CHUNK = ord("D")
    """The next bytes of a blob."""
    RESTART = ord("R")
    """The blob begins again."""


@record
class Frame:
    """One frame."""

    kind: Kind
    data: bytes

    def fields(self, what: str) -> JsonObject:
        """Parse a record; raises ImageError."""
        return parse_object(self.data, what=what, limit=MAX_RECORD_BYTES)


class ClosedError(Exception):
    """The other side is gone."""


class Channel:
    """One end; frames arrive whole, in order, and within the limit that their reader sets."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * limits.CHUNK_BYTES)

    def send(self, kind: Kind, data: bytes) -> None:
        """Send one frame; raises ClosedError."""
        try:
            self.end.sendall(kind.to_bytes(1, "little") + len(data).to_bytes(4, "little"))
            self.end.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ClosedError from error

    def record(self, fields: JsonObject, kind: Kind = Kind.RECORD) -> None:
        """Send a JSON object; raises ClosedError."""
        self.send(kind, canonical(fields))

    def receive(self, limit: int) -> Frame:
        """Return the next frame of at most `limit` bytes; raises ClosedError, ImageError for nonsense."""
        head = self._exactly(_HEADER_BYTES)
        size = int.from_bytes(head[1:], "little")
        if head[0] not in set(Kind) or size > max(limit, MAX_RECORD_BYTES):
            raise ImageError("a helper process of secrun speaks nonsense", code="image-worker")
        return Frame(kind=Kind(head[0]), data=self._exactly(size))

    def _exactly(self, count: int) -> bytes:
        try:
            data = self.end.recv(count, socket.MSG_WAITALL) if count else b""
        except ConnectionResetError as error:
            raise ClosedError from error
        if len(data) != count:
            raise ClosedError
        return data
