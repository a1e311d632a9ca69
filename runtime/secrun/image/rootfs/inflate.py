"""Decompress a layer blob into a file while its diff_id is checked, within the limits on bombs."""

import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from queue import Queue
from typing import Protocol

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.model import Compression

_INPUT = 256 << 10
_OUTPUT = 1 << 20
# Chunks in flight between decompressing and hashing: enough to keep both busy, bounded in memory.
_QUEUE = 4
# RFC 1952 framing for zlib's window parameter.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
}


class _Inflater(Protocol):
    @property
    def eof(self) -> bool:
        """Whether the member has ended."""

    @property
    def unused_data(self) -> bytes:
        """Input behind the end of the member."""

    @property
    def unconsumed_tail(self) -> bytes:
        """Input that did not fit into the output asked for."""

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        """Return up to `max_length` bytes of output."""


class Budget:
    """Counts decompressed bytes of all layers, which may run in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = limits.MAX_IMAGE_BYTES

    def spend(self, count: int) -> None:
        """Take `count` bytes; raises ImageError once MAX_IMAGE_BYTES is used up."""
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise ImageError(
                    f"the layers decompress to more than {limits.MAX_IMAGE_BYTES} bytes, "
                    "the limit MAX_IMAGE_BYTES",
                    code="image-limit",
                )


def preload(compression: Compression) -> None:
    """Import what decompression needs, while the file system can still be read."""
    if compression is Compression.GZIP:
        _gzip_backend()
    elif compression is Compression.ZSTD:
        import zstandard  # noqa: F401 - loading it is the point
    elif compression is Compression.BZIP2:
        import bz2  # noqa: F401
    elif compression is Compression.XZ:
        import lzma  # noqa: F401


def preload_hash(algorithm: str) -> None:
    """Let OpenSSL load its configuration and the algorithm, which it does on first use."""
    hashlib.new(algorithm, b"")


def _gzip_backend() -> tuple[Callable[[], _Inflater], type[Exception]]:
    """Return what makes a decompressor for one gzip member, and its error.

    isal gives the same bytes as zlib in half the time; it is used if it is installed.
    """
    try:
        from isal import isal_zlib
    except ImportError:
        return lambda: zlib.decompressobj(_GZIP_WINDOW), zlib.error
    # The stub declares the error as an instance.
    failure: type[Exception] = isal_zlib.error  # type: ignore[assignment]
    return lambda: isal_zlib.decompressobj(_GZIP_WINDOW), failure


def _plain(fd: int, name: str) -> Iterator[bytes]:
    head = os.pread(fd, 8, 0)
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise ImageError(
                f"layer {name} is {what} data, its media type says uncompressed tar",
                code="image-compression",
            )
    position = 0
    while chunk := os.pread(fd, _OUTPUT, position):
        position += len(chunk)
        yield chunk


def _gzip(fd: int, name: str) -> Iterator[bytes]:
    """Yield the output of all members, in order."""
    _expect_magic(fd, b"\x1f\x8b", "gzip", name)
    start, failure = _gzip_backend()
    inflater = start()
    data = b""
    position = 0
    while True:
        if len(data) < 2:
            more = os.pread(fd, _INPUT, position)
            position += len(more)
            data += more
        if inflater.eof:
            if not data:
                return
            # A further member (RFC 1952, 2.2); anything else behind a member is an error, as for Go.
            if not data.startswith(b"\x1f\x8b"):
                raise ImageError(
                    f"layer {name}: data that is not gzip follows the gzip data", code="image-compression"
                )
            inflater = start()
        ended = not data
        try:
            chunk = inflater.decompress(data, _OUTPUT)
        except failure as error:
            raise ImageError(
                f"layer {name} is not valid gzip data: {error}", code="image-compression"
            ) from error
        if ended and not chunk and not inflater.eof:
            raise ImageError(
                f"layer {name} is truncated: its gzip data has no end", code="image-compression"
            )
        yield chunk
        data = inflater.unused_data if inflater.eof else inflater.unconsumed_tail


def _zstd(fd: int, name: str) -> Iterator[bytes]:
    import zstandard

    _expect_magic(fd, b"\x28\xb5\x2f\xfd", "zstd", name)
    decompressor = zstandard.ZstdDecompressor(max_window_size=limits.MAX_ZSTD_WINDOW)
    with open(os.dup(fd), "rb", buffering=0) as blob:
        blob.seek(0)
        reader = decompressor.stream_reader(blob, read_size=_INPUT, read_across_frames=True)
        try:
            while chunk := reader.read(_OUTPUT):
                yield chunk
        except zstandard.ZstdError as error:
            raise ImageError(
                f"layer {name} is not valid zstd data: {error}", code="image-compression"
            ) from error


class _Streaming(Protocol):
    """A decompressor of bz2 or lzma."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether all that was given is used up."""

    @property
    def unused_data(self) -> bytes:
        """Input behind the end of the stream."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Return up to `max_length` bytes of output."""


def _streams(
    fd: int, name: str, what: str, start: Callable[[], _Streaming], failures: tuple[type[Exception], ...]
) -> Iterator[bytes]:
    """Yield the output of all streams of a file, in order."""
    position = 0
    inflater = start()
    data = b""
    while True:
        if inflater.eof:
            data = inflater.unused_data or os.pread(fd, _INPUT, position)
            position += 0 if inflater.unused_data else len(data)
            if not data:
                return
            inflater = start()
        elif inflater.needs_input:
            data = os.pread(fd, _INPUT, position)
            position += len(data)
            if not data:
                raise ImageError(
                    f"layer {name} is truncated: its {what} data has no end", code="image-compression"
                )
        else:
            data = b""
        try:
            yield inflater.decompress(data, _OUTPUT)
        except failures as error:
            raise ImageError(
                f"layer {name} is not valid {what} data: {error}", code="image-compression"
            ) from error


def _bzip2(fd: int, name: str) -> Iterator[bytes]:
    import bz2

    return _streams(fd, name, "bzip2", bz2.BZ2Decompressor, (OSError, ValueError))


def _xz(fd: int, name: str) -> Iterator[bytes]:
    import lzma

    def start() -> _Streaming:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.MAX_XZ_MEMORY)

    return _streams(fd, name, "xz", start, (lzma.LZMAError,))


def _expect_magic(fd: int, magic: bytes, what: str, name: str) -> None:
    head = os.pread(fd, 8, 0)
    # Skippable frames (RFC 8878, 3.1.2), which zstd:chunked uses, may come first.
    skippable = what == "zstd" and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    if not head.startswith(magic) and not skippable:
        found = next((other for start, other in _MAGIC.items() if head.startswith(start)), "something else")
        raise ImageError(
            f"layer {name} is {found}, its media type says {what}",
            hint="the image was pushed with a wrong media type; rebuild or copy it with skopeo",
            code="image-compression",
        )


_READERS: dict[Compression, Callable[[int, str], Iterator[bytes]]] = {
    Compression.NONE: _plain,
    Compression.GZIP: _gzip,
    Compression.ZSTD: _zstd,
    Compression.BZIP2: _bzip2,
    Compression.XZ: _xz,
}


def compression_of(fd: int) -> Compression:
    """Return how a file is packed, by its first bytes; what has none of the marks counts as plain."""
    head = os.pread(fd, 8, 0)
    packed = next((what for start, what in _MAGIC.items() if head.startswith(start)), "none")
    known = {item.value: item for item in Compression}
    if packed not in known:
        raise ImageError(f"{packed} data is not taken", code="image-compression")
    return known[packed]


def _bounded(chunks: Iterator[bytes], size: int, name: str, budget: Budget) -> Iterator[bytes]:
    """Pass `chunks` on until they cross a limit."""
    total = 0
    ceiling = max(limits.RATIO_FLOOR_BYTES, size * limits.MAX_RATIO)
    for chunk in chunks:
        total += len(chunk)
        budget.spend(len(chunk))
        if total > ceiling:
            raise ImageError(
                f"layer {name}: {size} bytes decompress to more than {ceiling}, the limit MAX_RATIO is "
                f"{limits.MAX_RATIO}",
                hint="the layer is a decompression bomb",
                code="image-limit",
            )
        yield chunk


class _Pump:
    """Runs an iterator in a thread of its own and hands its items over through a bounded queue."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._queue: Queue[bytes] = Queue(_QUEUE)
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            for chunk in self._chunks:
                if self._stopped:
                    return
                if chunk:
                    self._queue.put(chunk)
        except (ImageError, OSError, MemoryError) as error:
            self._error = error
        finally:
            self._queue.put(b"")

    def __iter__(self) -> Iterator[bytes]:
        self._thread.start()
        ended = False
        try:
            while chunk := self._queue.get():
                yield chunk
            ended = True
        finally:
            self._stopped = True
            while not ended and self._queue.get():
                pass
            self._thread.join()
        if self._error is not None:
            raise self._error


def inflated(fd: int, compression: Compression, *, size: int, name: str, budget: Budget) -> Iterable[bytes]:
    """Return the decompressed bytes of a file in pieces; raises ImageError past a limit or for bad data."""
    return _Pump(_bounded(_READERS[compression](fd, name), size, name, budget))


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def expand(
    blob_fd: int,
    out_fd: int,
    *,
    compression: Compression,
    size: int,
    digest: Digest,
    diff_id: Digest,
    budget: Budget,
) -> int:
    """Decompress `blob_fd` into `out_fd` and return the number of bytes written.

    Raises ImageError if the blob has not `size` bytes, is not what `compression` says, crosses a limit, or
    does not have `diff_id`; OSError from writing. The blob's own digest was checked when it was stored, and
    what is used from here on is bound by the diff_id alone.
    """
    name = str(digest)
    actual = os.fstat(blob_fd).st_size
    if actual != size:
        raise ImageError(
            f"layer {name} has {actual} bytes, its descriptor says {size}", code="image-layer-size"
        )
    state = hashlib.new(diff_id.algorithm)
    total = 0
    for chunk in inflated(blob_fd, compression, size=size, name=name, budget=budget):
        state.update(chunk)
        write_all(out_fd, chunk)
        total += len(chunk)
    if state.hexdigest() != diff_id.hex:
        raise ImageError(
            f"layer {name} has diff_id {diff_id.algorithm}:{state.hexdigest()}, "
            f"the image config says {diff_id}",
            hint="the image is damaged or its config belongs to another image",
            code="image-diff-id",
        )
    return total
