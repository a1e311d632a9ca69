"""One blob on its way into the store: written, counted and hashed in the same pass."""

import hashlib
import os
import threading
from typing import Protocol

from secrun.errors import ImageError, SecrunError
from secrun.image.manifest import Descriptor


class CancelledError(SecrunError):
    """Another part of the same fetch failed; that failure is the one to report."""

    code = "internal-cancelled"


class ByteCounter(Protocol):
    """Whoever wants to know how far a download is."""

    def advance(self, count: int) -> None:
        """Add `count` bytes; negative when a download starts again."""


class BlobWriter:
    """Takes the bytes of one blob; what is more than promised is refused at once."""

    def __init__(
        self, fd: int, descriptor: Descriptor, *, counter: ByteCounter, cancelled: threading.Event
    ) -> None:
        self._fd = fd
        self._descriptor = descriptor
        self._counter = counter
        self._cancelled = cancelled
        self._hash = hashlib.new(descriptor.digest.algorithm)
        self.offset = 0

    @property
    def complete(self) -> bool:
        """Whether every promised byte is there."""
        return self.offset == self._descriptor.size

    @property
    def good(self) -> bool:
        """Whether every promised byte is there, and they have the digest."""
        return self.complete and self._hash.hexdigest() == self._descriptor.digest.hex

    def write(self, chunk: bytes) -> None:
        """Append bytes; raises ImageError if the blob grows past its size, OSError if the disk fails."""
        if self._cancelled.is_set():
            raise CancelledError("cancelled")
        self.check_room(len(chunk))
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._fd, view) :]
        self._hash.update(chunk)
        self.offset += len(chunk)
        self._counter.advance(len(chunk))

    def check_room(self, count: int) -> None:
        """Raise ImageError if `count` more bytes are more than was promised."""
        if self.offset + count > self._descriptor.size:
            raise ImageError(
                f"blob {self._descriptor.digest} is longer than the {self._descriptor.size} bytes promised",
                code="image-size",
            )

    def restart(self) -> None:
        """Forget what was written."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.new(self._descriptor.digest.algorithm)
        self._counter.advance(-self.offset)
        self.offset = 0

    def finish(self) -> None:
        """Check size and digest and make the bytes durable; raises ImageError."""
        if not self.complete:
            raise ImageError(
                f"blob {self._descriptor.digest} has {self.offset} bytes, expected {self._descriptor.size}",
                hint="the source is cut short",
                code="image-size",
            )
        if self._hash.hexdigest() != self._descriptor.digest.hex:
            raise ImageError(
                f"blob {self._descriptor.digest} has digest {self._hash.name}:{self._hash.hexdigest()}",
                hint="the source is broken or lies; nothing was stored",
                code="image-digest",
            )
        os.fchmod(self._fd, 0o644)
        os.fsync(self._fd)
