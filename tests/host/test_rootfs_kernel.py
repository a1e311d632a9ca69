"""The kernel, fsck.erofs, dump.erofs and veritysetup accept what the writer makes, and see what went in."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from secrun.errors import ImageError
from secrun.image import rootfs
from secrun.image.rootfs.model import Extent, FdSource, FileKind, TreeEntry
from secrun.image.rootfs.store import ensure
from secrun.launch import run
from secrun.paths import Layout
from support.erofs_judges import fsck, judge, model, mounted, pack_to, trees, veritysetup_verify, walk
from support.layers import entry, file, store_layers, tar

TREES = 1000


@pytest.fixture(scope="module")
def fragments() -> Iterator[int]:
    """Ten thousand bytes that sparse files take their data from."""
    fd = os.memfd_create("fragments")
    os.write(fd, bytes(range(1, 251)) * 40)
    yield fd
    os.close(fd)


@settings(
    max_examples=TREES,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_thousand_generated_trees(
    fragments: int, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    entries = data.draw(trees(fragments))
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as folder:
        judge(entries, Path(folder))


def test_ten_thousand_entries_with_every_name_found(tmp_path: Path) -> None:
    names = [b"%05d" % number + b"n" * (number % 230) for number in range(10_000)]
    names += [bytes([value]) for value in range(1, 256) if value not in (46, 47)]
    entries = [entry(b"", FileKind.DIRECTORY), entry(b"big", FileKind.DIRECTORY)]
    entries += [entry(b"big/" + name) for name in names]
    judge(entries, tmp_path)
    with mounted(tmp_path / "image.erofs", tmp_path / "mnt") as top:
        for name in names:
            os.lstat(top + b"/big/" + name)
        for absent in (b"!", b"00000a", b"zzzz", b"\xff\xff", b"05000"):
            if absent not in names:
                with pytest.raises(FileNotFoundError):
                    os.lstat(top + b"/big/" + absent)


def test_file_beyond_four_gigabytes_with_holes(tmp_path: Path, fragments: int) -> None:
    size = (5 << 30) + 77
    extents = (Extent(0, 0, 5000), Extent((4 << 30) + 10, 100, 9000), Extent(size - 7, 0, 7))
    big = entry(b"big", size=size, source=FdSource(fragments, 0, extents))
    image = tmp_path / "image.erofs"
    packed = pack_to(image, [big])
    assert packed.file_size < 64 << 20
    veritysetup_verify(image, packed)
    with mounted(image, tmp_path / "mnt") as top, open(top + b"/big", "rb") as stream:
        assert os.fstat(stream.fileno()).st_size == size
        for extent in extents:
            data = os.pread(fragments, extent.length, extent.source_offset)
            around = os.pread(stream.fileno(), extent.length + 20, max(0, extent.file_offset - 10))
            assert data in around
        assert os.pread(stream.fileno(), 4096, 3 << 30) == bytes(4096)


def test_depth_and_path_limits_are_mountable(tmp_path: Path) -> None:
    entries: list[TreeEntry] = []
    path = b""
    for _ in range(500):
        path = path + b"/d" if path else b"d"
        entries.append(entry(path, FileKind.DIRECTORY))
    entries.append(entry(path + b"/f", data=b"deep"))
    image = tmp_path / "image.erofs"
    pack_to(image, entries)
    with mounted(image, tmp_path / "mnt") as top, open(top + b"/" + path + b"/f", "rb") as stream:
        assert stream.read() == b"deep"


def test_dump_reads_the_superblock(tmp_path: Path) -> None:
    image = tmp_path / "image.erofs"
    pack_to(image, [entry(b"a"), entry(b"b", FileKind.DIRECTORY)])
    said = run(["dump.erofs", "-s", image]).stdout.decode()
    assert "c13901f0-87ca-450e-9a58-7fca31fb8242" in said
    assert said.split("inode count:")[1].split()[0] == "3"


def test_one_flipped_bit_is_found_by_veritysetup_and_by_verify_file(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "root", tmp_path / "run")
    image = ensure(layout, store_layers(tmp_path / "blobs", [tar(file(b"f", b"x" * 50_000))]))
    rootfs.verify_file(image)
    fsck(image.path)
    command = [
        "veritysetup",
        "verify",
        image.path,
        image.path,
        image.verity_root,
        f"--hash-offset={image.data_size}",
    ]
    run(command)
    for place in (1024, 5000, image.data_size - 1, image.data_size + 3, image.file_size - 5000):
        with open(image.path, "r+b") as stream:
            old = os.pread(stream.fileno(), 1, place)
            os.pwrite(stream.fileno(), bytes([old[0] ^ 1]), place)
            with pytest.raises(ImageError) as caught:
                rootfs.verify_file(image)
            assert caught.value.code == "image-rootfs-damaged"
            os.pwrite(stream.fileno(), old, place)
    rootfs.verify_file(image)


def test_many_processes_write_the_same_mountable_bytes(tmp_path: Path) -> None:
    entries = [entry(b"", FileKind.DIRECTORY)]
    entries += [entry(b"%03d" % number, data=bytes([number]) * (number * 700)) for number in range(200)]
    one, four = tmp_path / "one", tmp_path / "four"
    assert pack_to(one, entries) == pack_to(four, entries, processes=4)
    assert one.read_bytes() == four.read_bytes()
    with mounted(four, tmp_path / "mnt") as top:
        assert walk(top) == model(entries)
