"""Packing is a pure function of the tree, and the format stays what it is."""

import hashlib
import os
import random
import struct
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.rootfs import erofs, forks, limits, treedigest, verity
from secrun.image.rootfs.model import Extent, FdSource, FileKind, PathSource, TreeEntry
from secrun.image.rootfs.pack import pack
from secrun.image.rootfs.tree import build_tree
from support.layers import entry, pack_bytes, sha256


def sample() -> list[TreeEntry]:
    """One of everything."""
    return [
        entry(b"", FileKind.DIRECTORY, mode=0o751),
        entry(b"bin", FileKind.DIRECTORY),
        entry(b"bin/su", data=b"#!" * 3000, mode=0o4755),
        entry(b"bin/link", FileKind.SYMLINK, target=b"su"),
        entry(b"dev", FileKind.DIRECTORY),
        entry(b"dev/null", FileKind.CHAR, rdev=(1, 3)),
        entry(b"dev/sda", FileKind.BLOCK, rdev=(259, 70000)),
        entry(b"dev/pipe", FileKind.FIFO, uid=4294967294),
        entry(b"empty"),
        entry(b"hard1", data=b"same", link_group=1),
        entry(b"hard2", data=b"same", link_group=1),
        entry(b"odd\n \xff%", data=b"x", mtime_ns=-5),
        entry(b"caps", data=b"c", xattrs=((b"user.b", b"2"), (b"security.capability", b"\1" * 20))),
    ]


def packed(entries: list[TreeEntry], processes: int = 1) -> tuple[str, str, str]:
    fd = os.memfd_create("image")
    try:
        result = pack(entries, fd, processes=processes)
        return str(result.tree_digest), result.verity_root, sha256(os.pread(fd, result.file_size, 0))
    finally:
        os.close(fd)


def test_format_1_keeps_its_bytes() -> None:
    # A change here is a new FORMAT_VERSION: stored images and published reference values depend on it.
    assert packed(sample()) == (
        "sha256:4eaa0dd40bb7b7959b0012a80bf9c5eedcbd9266615ef459cd650d3d1be1a967",
        "93f4ccf67726d9eb7e56e6b278a59545afe3650d7cdd50e428ded599da8f385e",
        "bac6eef1f4d67c6f22365ae9c475e2527cc93516497fd76fe7599731e1390fdf",
    )


def test_order_of_entries_and_number_of_processes_do_not_matter() -> None:
    shuffled = sample()
    random.Random(7).shuffle(shuffled)
    assert packed(shuffled) == packed(sample())
    assert packed(sample(), processes=3) == packed(sample())


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_umask_does_not_matter(umask: int) -> None:
    expected = packed(sample())
    before = os.umask(umask)
    try:
        assert packed(sample()) == expected
    finally:
        os.umask(before)


def changed(position: int, **values: object) -> list[TreeEntry]:
    entries = sample()
    old = entries[position]
    fields = {name: getattr(old, name) for name in TreeEntry.__slots__}
    entries[position] = TreeEntry(**{**fields, **values})
    return entries


@pytest.mark.parametrize(
    "entries",
    [
        changed(0, mode=0o755),
        changed(2, mode=0o755),
        changed(2, uid=1),
        changed(2, gid=1),
        changed(2, mtime_ns=1),
        changed(2, source=b"#?" * 3000),
        changed(2, path=b"bin/sv"),
        changed(3, target=b"sv"),
        changed(5, rdev=(1, 4)),
        changed(5, kind=FileKind.BLOCK),
        changed(10, link_group=0),
        changed(12, xattrs=((b"user.b", b"3"), (b"security.capability", b"\1" * 20))),
        changed(12, xattrs=((b"user.b", b"2"),)),
        sample()[:-1],
    ],
)
def test_tree_digest_sees_every_property(entries: list[TreeEntry]) -> None:
    assert packed(entries)[0] != packed(sample())[0]


def test_tree_digest_is_the_documented_listing() -> None:
    content = sha256(b"same")
    listing = (
        "secrun tree 1\n"
        "dir 755 0 0 0 /\n"
        f"file 644 1 2 5 /a size=4 sha256={content} xattr=user.k=00ff\n"
        f"file 644 1 2 5 /b%20%25%0a size=4 sha256={content} same=/a xattr=user.k=00ff\n"
        "char 600 0 0 1000000000000000001 /c rdev=1,3\n"
        "link 777 0 0 1000000000000000001 /l target=../x%20y\n"
    )
    shared = {"uid": 1, "gid": 2, "mtime_ns": 5, "link_group": 3, "xattrs": ((b"user.k", b"\0\xff"),)}
    entries = [
        entry(b"a", data=b"same", **shared),
        entry(b"b %\n", data=b"same", **shared),
        entry(b"c", FileKind.CHAR, mode=0o600, rdev=(1, 3)),
        entry(b"l", FileKind.SYMLINK, target=b"../x y"),
    ]
    assert packed(entries)[0] == "sha256:" + sha256(listing.encode())


def test_tree_digest_escapes_so_that_no_name_can_forge_a_field() -> None:
    assert treedigest.escape(b"a b%\n\xff~!=") == b"a%20b%25%0a%ff~!="


def test_contents_are_reported_per_regular_file() -> None:
    fd = os.memfd_create("image")
    result = pack(sample(), fd)
    os.close(fd)
    assert dict(result.contents)[b"hard2"] == Digest.of(b"same")
    assert len(result.contents) == 6


def test_content_comes_from_paths_descriptors_and_sparse_maps_alike(tmp_path: Path) -> None:
    content = b"A" * 5000 + bytes(70_000) + b"B" * 100
    whole = tmp_path / "whole"
    whole.write_bytes(content)
    fragments = os.memfd_create("layer")
    os.write(fragments, b"junk" + b"A" * 5000 + b"B" * 100)
    offset = os.memfd_create("offset")
    os.write(offset, b"junk" + content)
    sparse = FdSource(fragments, 4, (Extent(0, 4, 5000), Extent(75_000, 5004, 100)))
    digests = set()
    for source in (content, PathSource(whole), FdSource(offset, 4), sparse):
        changed_entry = entry(b"f", size=len(content), source=source)
        digests.add(packed([changed_entry])[0])
    os.close(fragments)
    os.close(offset)
    assert len(digests) == 1


def test_holes_take_no_space() -> None:
    fd = os.memfd_create("layer")
    os.write(fd, b"data")
    image = pack_bytes([entry(b"f", size=1 << 20, source=FdSource(fd, 0, (Extent(1 << 19, 0, 4),)))])
    os.close(fd)
    assert len(image) < 10 * erofs.BLOCK


def test_short_source_is_an_error(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"123")
    fd = os.open(short, os.O_RDONLY)
    for source in (b"123", PathSource(short), FdSource(fd)):
        with pytest.raises(ImageError):
            pack_bytes([entry(b"f", size=4, source=source)])
    os.close(fd)


def test_path_source_does_not_follow_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="symbolic links"):
        pack_bytes([entry(b"f", size=6, source=PathSource(tmp_path / "link"))])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry(b"a/b")], "folder is missing"),
        ([entry(b"a"), entry(b"a/b")], "folder is missing"),
        ([entry(b"a"), entry(b"a")], "twice"),
        ([entry(b"a/")], "canonical"),
        ([entry(b"/a")], "canonical"),
        ([entry(b"..")], "canonical"),
        ([entry(b"a\0b")], "canonical"),
        ([entry(b"", data=b"x")], "root"),
        ([entry(b"n" * 256)], "too long"),
        ([entry(b"a", mode=0o10644)], "mode"),
        ([entry(b"a", uid=2**32 - 1)], "owner"),
        ([entry(b"a", gid=-1)], "owner"),
        ([entry(b"a", mtime_ns=10**30)], "mtime"),
        ([entry(b"a", FileKind.SYMLINK)], "target"),
        ([entry(b"a", FileKind.SYMLINK, target=b"t" * 4096)], "target"),
        ([entry(b"a", FileKind.DIRECTORY, link_group=1)], "hard link"),
        ([entry(b"a", size=-1)], "size"),
        ([entry(b"a", xattrs=((b"odd.name", b""),))], "odd.name"),
        ([entry(b"a", xattrs=((b"user.x", b"v" * 65536),))], "user.x"),
        (
            [entry(b"a", xattrs=tuple((b"user.%d" % n, b"v" * 65000) for n in range(3)))],
            "MAX_XATTR_SET_BYTES",
        ),
    ],
)
def test_what_is_no_tree_is_refused(entries: list[TreeEntry], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        pack_bytes(entries)


def test_missing_root_is_made() -> None:
    tree = build_tree([entry(b"a")])
    assert (tree.inodes[0].entry.mode, tree.inodes[0].nlink) == (0o755, 2)


def test_names_in_folder_blocks_are_sorted_over_dot_and_dotdot() -> None:
    tree = build_tree([entry(name) for name in (b"+", b"a", b"-", b".a", b"...")])
    erofs.plan(tree)
    data = erofs.directory_data(tree.inodes[0])
    count = struct.unpack_from("<H", data, 8)[0] // 12
    assert data[count * 12 :] == b"".join((b"+", b"-", b".", b"..", b"...", b".a", b"a"))


def test_crc32c_is_castagnoli() -> None:
    # RFC 3720, B.4: 32 bytes of zeros; EROFS leaves out the final inversion.
    assert erofs.crc32c(bytes(32)) ^ 0xFFFFFFFF == 0x8A9136AA


def test_every_inode_and_its_tail_stay_in_their_block() -> None:
    rng = random.Random(3)
    entries = [
        entry(
            b"%04d" % number,
            data=bytes(rng.randrange(5000)),
            xattrs=((b"user.a", bytes(rng.randrange(6000))),),
        )
        for number in range(300)
    ]
    tree = build_tree(entries)
    plan = erofs.plan(tree)
    end = 0
    for inode in tree.inodes:
        start = inode.nid * erofs.SLOT
        assert start >= end
        end = start + inode.head + inode.tail
        if inode.tail:
            assert start // erofs.BLOCK == (end - 1) // erofs.BLOCK
    assert plan.meta_block * erofs.BLOCK + end <= plan.data_size


class TestVerity:
    def test_levels(self) -> None:
        assert verity.level_sizes(2) == [1]
        assert verity.level_sizes(128) == [1]
        assert verity.level_sizes(129) == [2, 1]
        assert verity.level_sizes(128 * 128 + 1) == [129, 2, 1]

    def test_root_of_a_small_tree_by_hand(self, tmp_path: Path) -> None:
        blocks = [b"a" * 4096, b"b" * 4096, bytes(4096)]
        path = tmp_path / "data"
        path.write_bytes(b"".join(blocks))
        fd = os.open(path, os.O_RDONLY)
        root, tree = verity.compute(fd, 3 * 4096, processes=1)
        os.close(fd)
        leaves = b"".join(hashlib.sha256(verity.SALT + block).digest() for block in blocks).ljust(
            4096, b"\0"
        )
        assert root == sha256(verity.SALT + leaves)
        assert tree[4096:] == leaves
        assert len(tree) == verity.tree_size(3)

    def test_salt_is_the_documented_constant(self) -> None:
        assert sha256(b"secrun rootfs image format 1") == verity.SALT.hex()

    def test_partial_blocks_are_refused(self) -> None:
        with pytest.raises(ValueError, match="whole blocks"):
            verity.compute(0, 5000, processes=1)


class TestForks:
    def test_error_of_a_share_reaches_the_caller_with_its_errno(self) -> None:
        def full() -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left") as caught:
            forks.run_shares([full, lambda: None])
        assert caught.value.errno == 28

    def test_death_of_a_share_is_an_error(self) -> None:
        with pytest.raises(ChildProcessError):
            forks.run_shares([lambda: os._exit(3), lambda: None])


def test_a_tree_beyond_32_bit_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 1 << 60)
    with pytest.raises(ImageError, match="blocks"):
        erofs.plan(build_tree([entry(b"f", size=1 << 45)]))
