"""Layers decompress within their limits and only to what the image config promised."""

import gzip
import os
import zlib
from collections.abc import Iterator

import pytest
import zstandard

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.rootfs import Compression, inflate, limits
from secrun.image.rootfs.inflate import Budget, expand

DATA = os.urandom(100_000) + bytes(3_000_000) + os.urandom(1)


@pytest.fixture(params=["isal", "zlib"])
def _gzip_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zlib":
        monkeypatch.setattr(inflate, "_gzip_backend", lambda: (lambda: zlib.decompressobj(31), zlib.error))


@pytest.fixture
def fds() -> Iterator[tuple[int, int]]:
    pair = os.memfd_create("blob"), os.memfd_create("out")
    yield pair
    for fd in pair:
        os.close(fd)


def run(
    fds: tuple[int, int],
    blob: bytes,
    compression: Compression,
    *,
    expected: bytes = DATA,
    size: int | None = None,
    diff_id: Digest | None = None,
    budget: Budget | None = None,
) -> bytes:
    os.write(fds[0], blob)
    total = expand(
        *fds,
        compression=compression,
        size=len(blob) if size is None else size,
        digest=Digest.of(blob),
        diff_id=diff_id or Digest.of(expected),
        budget=budget or Budget(),
    )
    return os.pread(fds[1], total + 1, 0)


def refused(fds: tuple[int, int], blob: bytes, compression: Compression, **options: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        run(fds, blob, compression, **options)
    return caught.value


def test_plain(fds: tuple[int, int]) -> None:
    assert run(fds, DATA, Compression.NONE) == DATA


def test_an_empty_plain_layer_is_an_empty_file(fds: tuple[int, int]) -> None:
    assert run(fds, b"", Compression.NONE, expected=b"") == b""


@pytest.mark.usefixtures("_gzip_backend")
class TestGzip:
    def test_one_member(self, fds: tuple[int, int]) -> None:
        assert run(fds, gzip.compress(DATA), Compression.GZIP) == DATA

    def test_concatenated_members(self, fds: tuple[int, int]) -> None:
        parts = [DATA[:7], b"", DATA[7:500_000], DATA[500_000:]]
        assert run(fds, b"".join(map(gzip.compress, parts)), Compression.GZIP) == DATA

    @pytest.mark.parametrize("cut", range(2, 40, 3))
    def test_members_that_end_at_the_edge_of_a_read(
        self, fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch, cut: int
    ) -> None:
        monkeypatch.setattr(inflate, "_INPUT", cut)
        parts = [b"hello", b"", b"world" * 9]
        blob = b"".join(map(gzip.compress, parts))
        assert run(fds, blob, Compression.GZIP, expected=b"".join(parts)) == b"".join(parts)

    @pytest.mark.parametrize("tail", [b"garbage", b"\0" * 100, b"\x1f", b"\x1f\x8bgarbage"])
    def test_trailing_garbage(self, fds: tuple[int, int], tail: bytes) -> None:
        assert refused(fds, gzip.compress(DATA) + tail, Compression.GZIP).code == "image-compression"

    @pytest.mark.parametrize("keep", [3, 12, 1000, -9, -1])
    def test_truncated(self, fds: tuple[int, int], keep: int) -> None:
        assert refused(fds, gzip.compress(DATA)[:keep], Compression.GZIP).code == "image-compression"

    def test_flipped_bit(self, fds: tuple[int, int]) -> None:
        blob = bytearray(gzip.compress(DATA))
        blob[5000] ^= 1
        assert refused(fds, bytes(blob), Compression.GZIP).code in ("image-compression", "image-diff-id")

    def test_bomb(self, fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "RATIO_FLOOR_BYTES", 2 << 20)
        error = refused(fds, gzip.compress(bytes(8 << 20)), Compression.GZIP)
        assert error.code == "image-limit"
        assert "MAX_RATIO" in error.message
        assert os.fstat(fds[1]).st_size <= 4 << 20


class TestZstd:
    def test_one_frame_and_several(self, fds: tuple[int, int]) -> None:
        compress = zstandard.ZstdCompressor().compress
        assert run(fds, compress(DATA[:9]) + compress(DATA[9:]), Compression.ZSTD) == DATA

    def test_skippable_frame_in_front(self, fds: tuple[int, int]) -> None:
        skippable = b"\x50\x2a\x4d\x18" + (8).to_bytes(4, "little") + b"12345678"
        assert run(fds, skippable + zstandard.ZstdCompressor().compress(DATA), Compression.ZSTD) == DATA

    def test_truncated(self, fds: tuple[int, int]) -> None:
        refused(fds, zstandard.ZstdCompressor().compress(DATA)[:-20], Compression.ZSTD)

    def test_trailing_garbage(self, fds: tuple[int, int]) -> None:
        blob = zstandard.ZstdCompressor().compress(DATA) + b"garbage"
        assert refused(fds, blob, Compression.ZSTD).code == "image-compression"

    def test_bomb(self, fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "RATIO_FLOOR_BYTES", 2 << 20)
        error = refused(fds, zstandard.ZstdCompressor().compress(bytes(64 << 20)), Compression.ZSTD)
        assert "MAX_RATIO" in error.message
        assert os.fstat(fds[1]).st_size <= 4 << 20

    def test_window_that_asks_for_gigabytes(self, fds: tuple[int, int]) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        blob = compressor.compress(DATA) + compressor.flush()
        assert refused(fds, blob, Compression.ZSTD).code == "image-compression"


@pytest.mark.parametrize(
    ("says", "blob", "found"),
    [
        (Compression.NONE, gzip.compress(b"x", mtime=0), "gzip"),
        (Compression.NONE, zstandard.ZstdCompressor().compress(b"x"), "zstd"),
        (Compression.NONE, b"\xfd7zXZ\0rest", "xz"),
        (Compression.NONE, b"BZh91AY", "bzip2"),
        (Compression.GZIP, zstandard.ZstdCompressor().compress(b"x"), "zstd"),
        (Compression.GZIP, b"plain tar", "something else"),
        (Compression.GZIP, b"", "something else"),
        (Compression.ZSTD, gzip.compress(b"x", mtime=0), "gzip"),
    ],
)
def test_foreign_compression_is_named(
    fds: tuple[int, int], says: Compression, blob: bytes, found: str
) -> None:
    error = refused(fds, blob, says)
    assert error.code == "image-compression"
    assert found in error.message


def test_wrong_diff_id_names_both(fds: tuple[int, int]) -> None:
    promised = Digest.of(b"other")
    error = refused(fds, DATA, Compression.NONE, diff_id=promised)
    assert error.code == "image-diff-id"
    assert str(promised) in error.message
    assert str(Digest.of(DATA)) in error.message


@pytest.mark.parametrize("difference", [-1, 1])
def test_wrong_size(fds: tuple[int, int], difference: int) -> None:
    error = refused(fds, DATA, Compression.NONE, size=len(DATA) + difference)
    assert error.code == "image-layer-size"


def test_sum_over_layers_is_bounded(fds: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", len(DATA) + 10)
    budget = Budget()
    assert run(fds, DATA, Compression.NONE, budget=budget) == DATA
    error = refused(fds, DATA, Compression.NONE, size=2 * len(DATA), budget=budget)
    assert "MAX_IMAGE_BYTES" in error.message
