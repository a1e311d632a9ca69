"""Random and damaged layers: the renderer answers with a tree or an ImageError, never with anything else."""

import gzip
import os
import random
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.rootfs import Compression
from secrun.image.rootfs.inflate import Budget, expand
from secrun.image.rootfs.pax import parse_records
from secrun.image.rootfs.record import decode
from support.erofs_judges import judge, trees
from support.layers import (
    BLOCK,
    Member,
    file,
    folder,
    gnu_long,
    hardlink,
    index,
    merge,
    octal,
    pack_bytes,
    pax,
    symlink,
    tar,
)
from support.merge_judge import difference, random_layers

SPARSE = Member(
    name=b"s",
    type=b"S",
    magic=b"ustar  \0",
    data=b"z" * 20,
    fields=((386, octal(0, 12) + octal(10, 12) + octal(5000, 12) + octal(10, 12)), (483, octal(9000, 12))),
)
SEED_ARCHIVE = tar(
    folder(b"d"),
    file(b"d/f", b"content" * 100),
    symlink(b"l", b"/d"),
    hardlink(b"h", b"d/f"),
    Member(name=b"dev", type=b"3", device=(1, 3)),
    gnu_long(symlink(b"x", b"y"), name=b"n" * 200, link=b"t" * 200),
    pax(file(b"p", b"12345"), (b"path", b"long"), (b"SCHILY.xattr.user.k", b"v"), (b"mtime", b"1.5")),
    pax(
        Member(name=b"q", data=b"1\n0\n5\n".ljust(512, b"\0") + b"12345"),
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"50"),
    ),
    SPARSE,
    file(b"d/.wh.f"),
    file(b"d/.wh..wh..opq"),
)


def with_checksums(archive: bytes) -> bytes:
    """Repair every block that looks like a header, so that damage gets past the first check."""
    result = bytearray(archive)
    for start in range(0, len(result) - BLOCK + 1, BLOCK):
        if result[start + 257 : start + 262] == b"ustar":
            result[start + 148 : start + 156] = b" " * 8
            total = sum(result[start : start + BLOCK])
            result[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(result)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Flip, overwrite, cut out, repeat or cut off pieces."""
    result = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        if not result:
            break
        place = rng.randrange(len(result))
        action = rng.randrange(5)
        if action == 0:
            result[place] ^= 1 << rng.randrange(8)
        elif action == 1:
            value = rng.choice(
                (b"\xff" * 12, b"\0" * 8, b"77777777777\0", b"\x80" + b"\0" * 11, b"../", b"9" * 20)
            )
            result[place : place + len(value)] = value
        elif action == 2:
            del result[place : place + rng.choice((1, BLOCK))]
        elif action == 3:
            block = place // BLOCK * BLOCK
            result[block:block] = result[block : block + BLOCK]
        else:
            del result[place + 1 :]
    return bytes(result)


def test_damaged_archives(fuzz_scale: int) -> None:
    rng = random.Random(20)
    outcomes = {True: 0, False: 0}
    for _ in range(6000 * fuzz_scale):
        archive = damaged(rng, SEED_ARCHIVE)
        if rng.random() < 0.8:
            archive = with_checksums(archive)
        try:
            entries = merge(archive).values()
        except ImageError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert all(entry.size < 1 << 40 for entry in entries)
            assert not any(
                part in (b"", b".", b"..") for entry in entries for part in entry.path.split(b"/")[1:]
            )
    # Damage that is always or never noticed would test one half only.
    assert min(outcomes.values()) > 500 * fuzz_scale, outcomes


def test_archives_of_random_headers(fuzz_scale: int) -> None:
    rng = random.Random(21)
    for _ in range(3000 * fuzz_scale):
        members = [
            Member(
                name=rng.randbytes(rng.randrange(100)),
                type=rng.choice((b"0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S", rng.randbytes(1))),
                data=rng.randbytes(rng.randrange(600)),
                link=rng.randbytes(rng.randrange(100)),
                fields=((rng.randrange(500), rng.randbytes(rng.randrange(12))),),
            )
            for _ in range(3)
        ]
        try:
            merge(tar(*members))
        except ImageError:
            continue


def test_random_pax_records(fuzz_scale: int) -> None:
    rng = random.Random(22)
    for _ in range(5000 * fuzz_scale):
        data = damaged(rng, b"12 path=abc\n30 mtime=1350244992.023960108\n20 GNU.sparse.map=1,\n")
        try:
            parse_records(data)
            index(tar(Member(name=b"p", type=b"x", data=data), file(b"f")))
        except ImageError:
            continue


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD])
def test_damaged_compression(fuzz_scale: int, compression: Compression) -> None:
    rng = random.Random(23)
    plain = SEED_ARCHIVE * 3
    good = (
        gzip.compress(plain)
        if compression is Compression.GZIP
        else zstandard.ZstdCompressor().compress(plain)
    )
    for _ in range(1500 * fuzz_scale):
        blob = damaged(rng, good)
        blob_fd, out_fd = os.memfd_create("blob"), os.memfd_create("out")
        try:
            os.write(blob_fd, blob)
            expand(
                blob_fd,
                out_fd,
                compression=compression,
                size=len(blob),
                digest=Digest.of(blob),
                diff_id=Digest.of(plain),
                budget=Budget(),
            )
        except ImageError:
            continue
        else:
            assert os.pread(out_fd, len(plain) + 1, 0) == plain
        finally:
            os.close(blob_fd)
            os.close(out_fd)


def test_damaged_records(fuzz_scale: int) -> None:
    key = Digest.of(b"key")
    rng = random.Random(24)
    good = (
        b'{"data_size":8192,"diff_ids":[],"dropped_xattrs":[],"file_size":12288,"format_version":1,"groups":[["a",1,'
        b'["b"]]],"key":"'
        + str(key).encode()
        + b'","max_id":0,"tree_digest":"'
        + str(key).encode()
        + b'","users":'
        b'[["r",0,0,"/"]],"verity_root":"' + b"a" * 64 + b'","verity_salt":"' + b"b" * 64 + b'"}'
    )
    assert decode(good, key=key, path=Path("/x")).max_id == 0
    for _ in range(4000 * fuzz_scale):
        try:
            decode(damaged(rng, good), key=key, path=Path("/x"))
        except ImageError:
            continue


def test_what_merges_also_packs(fuzz_scale: int) -> None:
    for seed in range(300 * fuzz_scale):
        layers = random_layers(10_000 + seed)
        try:
            entries = [entry for entry in merge(*layers).values() if not entry.size]
        except ImageError:
            continue
        pack_bytes(entries)


def test_random_layers_against_umoci(fuzz_scale: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    for seed in range(20_000, 20_000 + 100 * fuzz_scale):
        with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as work:
            assert difference(random_layers(seed), Path(work))[1] == "", f"seed {seed}"


@pytest.mark.timeout(3600)
def test_generated_trees_against_kernel_and_tools(
    fuzz_scale: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fd = os.memfd_create("fragments")
    os.write(fd, bytes(range(1, 251)) * 40)

    # Ten thousand in the long run; the host tier has a thousand of its own.
    @settings(
        max_examples=10_000 if fuzz_scale > 1 else 100,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        entries = data.draw(trees(fd))
        with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as work:
            judge(entries, Path(work), verity=False)

    run()
    os.close(fd)
