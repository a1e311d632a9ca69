"""The tar parser: every dialect that layers use, and nothing that only looks like one."""

import pytest

from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.model import Extent, FileKind
from secrun.image.rootfs.tarindex import LinkKind, TarEntry
from support.layers import (
    BLOCK,
    END,
    Member,
    block,
    file,
    folder,
    gnu_long,
    hardlink,
    index,
    octal,
    pax,
    record,
    symlink,
    tar,
)


def only(archive: bytes) -> TarEntry:
    (entry,) = index(archive)
    return entry


def refused(archive: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        index(archive)
    return caught.value.message


def test_ustar_entry_of_every_kind() -> None:
    found = index(
        tar(
            Member(name=b"f", data=b"x" * 700, mode=0o104755, uid=7, gid=8, mtime=9),
            folder(b"d/"),
            symlink(b"s", b"../t"),
            hardlink(b"h", b"f"),
            Member(name=b"c", type=b"3", device=(4095, 1048575)),
            Member(name=b"b", type=b"4", device=(8, 1)),
            Member(name=b"p", type=b"6"),
            Member(name=b"old/", type=b"\0", magic=b""),
            Member(name=b"oldfile", type=b"\0", magic=b"", data=b"v7"),
        )
    )
    assert [entry.kind for entry in found] == [
        FileKind.FILE,
        FileKind.DIRECTORY,
        FileKind.SYMLINK,
        LinkKind.HARD,
        FileKind.CHAR,
        FileKind.BLOCK,
        FileKind.FIFO,
        FileKind.DIRECTORY,
        FileKind.FILE,
    ]
    first = found[0]
    assert (first.mode, first.uid, first.gid, first.mtime_ns) == (0o4755, 7, 8, 9_000_000_000)
    assert (first.size, first.offset) == (700, BLOCK)
    assert found[2].target == b"../t"
    assert found[3].target == b"f"
    assert found[4].rdev == (4095, 1048575)


def test_data_of_links_folders_and_devices_is_not_there() -> None:
    # As in Go's archive/tar: the size field of such an entry counts nothing.
    found = index(tar(Member(name=b"l", type=b"1", link=b"x", size=octal(5000, 12)), file(b"next")))
    assert [entry.name for entry in found] == [b"l", b"next"]


def test_prefix_joins_names_in_posix_headers_only() -> None:
    assert only(tar(Member(name=b"n", prefix=b"a/b"))).name == b"a/b/n"
    assert only(tar(Member(name=b"n", prefix=b"a/b", magic=b"ustar  \0"))).name == b"n"
    assert only(
        tar(Member(name=b"n", prefix=b"p" * 131 + b"123456789012", fields=((508, b"tar\0"),)))
    ).name == (b"p" * 131 + b"/n")


def test_gnu_long_name_and_link() -> None:
    name, link = b"n/" * 150 + b"x", b"l/" * 150 + b"y"
    found = only(tar(gnu_long(symlink(b"short", b"short"), name=name, link=link)))
    assert (found.name, found.target) == (name, link)


def test_pax_records_override_the_header() -> None:
    member = Member(name=b"short", data=b"12345", size=octal(0, 12))
    found = only(
        tar(
            pax(
                member,
                (b"path", b"long\nname\xff"),
                (b"size", b"5"),
                (b"uid", b"4294967294"),
                (b"gid", b"70000"),
                (b"mtime", b"1234567890.123456789999"),
                (b"SCHILY.xattr.user.a", b"v\n\0\xff"),
                (b"SCHILY.xattr.user.empty", b""),
                (b"LIBARCHIVE.xattr.user.a", b"ignored"),
                (b"comment", b"ignored"),
            )
        )
    )
    assert found.name == b"long\nname\xff"
    assert (found.size, found.uid, found.gid) == (5, 4294967294, 70000)
    assert found.mtime_ns == 1234567890_123456789
    assert found.xattrs == ((b"user.a", b"v\n\0\xff"), (b"user.empty", b""))
    link = only(tar(pax(symlink(b"s", b"short"), (b"linkpath", b"t" * 300))))
    assert link.target == b"t" * 300


@pytest.mark.parametrize(
    ("text", "value"),
    [(b"-1.5", -1_500_000_000), (b"0.000000001", 1), (b"5.", 5_000_000_000), (b"-0.25", -250_000_000)],
)
def test_pax_times_keep_nanoseconds_before_and_after_1970(text: bytes, value: int) -> None:
    assert only(tar(pax(file(b"f"), (b"mtime", text)))).mtime_ns == value


def test_extended_header_serves_one_entry_and_a_global_one_all_that_follow() -> None:
    archive = tar(
        file(b"before"),
        pax(file(b"a"), (b"gid", b"5"), (b"comment", b"commit"), type_=b"g"),
        pax(file(b"b"), (b"gid", b"6")),
        file(b"c"),
        pax(file(b"d"), (b"gid", b"")),
    )
    assert [entry.gid for entry in index(archive)] == [0, 5, 6, 5, 0]


@pytest.mark.parametrize("key", [b"path", b"linkpath", b"size", b"GNU.sparse.name"])
def test_a_global_header_cannot_name_every_entry(key: bytes) -> None:
    assert "global" in refused(tar(pax(file(b"a"), (key, b"1"), type_=b"g")))


def test_base_256_numbers() -> None:
    big = Member(name=b"f", uid=2**31, mtime=-5)
    found = only(tar(big))
    assert (found.uid, found.mtime_ns) == (2**31, -5_000_000_000)


SPARSE_DATA = b"A" * 100 + b"B" * 600


def sparse_expectation(start: int) -> tuple[Extent, ...]:
    return (Extent(1000, start, 100), Extent(5000, start + 100, 600))


def test_gnu_sparse_0_0_and_0_1() -> None:
    member = Member(name=b"GNUSparseFile.0/f", data=SPARSE_DATA)
    old = only(
        tar(
            pax(
                member,
                (b"GNU.sparse.size", b"9000"),
                (b"GNU.sparse.numblocks", b"2"),
                (b"GNU.sparse.offset", b"1000"),
                (b"GNU.sparse.numbytes", b"100"),
                (b"GNU.sparse.offset", b"5000"),
                (b"GNU.sparse.numbytes", b"600"),
            )
        )
    )
    new = only(
        tar(
            pax(
                member,
                (b"GNU.sparse.size", b"9000"),
                (b"GNU.sparse.name", b"f"),
                (b"GNU.sparse.map", b"1000,100,5000,600"),
            )
        )
    )
    for found in (old, new):
        assert found.size == 9000
        assert found.extents == sparse_expectation(3 * BLOCK)
    assert new.name == b"f"


def test_gnu_sparse_1_0_keeps_its_map_in_front_of_the_data() -> None:
    table = b"2\n1000\n100\n5000\n600\n".ljust(BLOCK, b"\0")
    found = index(
        tar(
            pax(
                Member(name=b"GNUSparseFile.0/f", data=table + SPARSE_DATA),
                (b"GNU.sparse.major", b"1"),
                (b"GNU.sparse.minor", b"0"),
                (b"GNU.sparse.name", b"f"),
                (b"GNU.sparse.realsize", b"9000"),
            ),
            file(b"next"),
        )
    )
    assert found[0].name == b"f"
    assert found[0].size == 9000
    assert found[0].extents == sparse_expectation(4 * BLOCK)
    assert found[1].name == b"next"


def old_sparse(pairs: list[tuple[int, int]], data: bytes, size: int, *, stored: int | None = None) -> bytes:
    """Return an 'S' entry, with continuation blocks if the map needs them."""
    cells = [octal(offset, 12) + octal(length, 12) for offset, length in pairs]
    head, rest = cells[:4], cells[4:]
    member = Member(
        name=b"s",
        type=b"S",
        magic=b"ustar  \0",
        size=octal(len(data) if stored is None else stored, 12),
        fields=((386, b"".join(head)), (482, bytes([bool(rest)])), (483, octal(size, 12))),
    )
    result = block(member)
    while rest:
        part, rest = rest[:21], rest[21:]
        result += b"".join(part).ljust(504, b"\0") + bytes([bool(rest)]) + bytes(7)
    return result + data + bytes(-len(data) % BLOCK)


def test_old_gnu_sparse_with_continuation_blocks() -> None:
    few = only(tar(old_sparse([(1000, 100), (5000, 600)], SPARSE_DATA, 9000)))
    assert few.extents == sparse_expectation(BLOCK)
    pairs = [(index_ * 1000, 10) for index_ in range(30)]
    many = index(tar(old_sparse(pairs, b"z" * 300, 40000), file(b"next")))
    assert len(many[0].extents or ()) == 30
    assert (many[0].extents or ())[0].source_offset == 3 * BLOCK
    assert many[1].name == b"next"


@pytest.mark.parametrize(
    ("pairs", "stored", "size"),
    [
        ([(100, 10), (50, 10)], 20, 1000),
        ([(0, 10), (5, 10)], 20, 1000),
        ([(995, 10)], 10, 1000),
        ([(0, 10)], 11, 1000),
        ([(0, 10)], 9, 1000),
    ],
    ids=["backwards", "overlap", "beyond the end", "less than stored", "more than stored"],
)
def test_a_sparse_map_must_fit_its_file_and_its_data(
    pairs: list[tuple[int, int]], stored: int, size: int
) -> None:
    assert "sparse map" in refused(tar(old_sparse(pairs, bytes(stored), size)))


def test_sparse_sizes_and_offsets_are_not_negative() -> None:
    assert "negative" in refused(tar(old_sparse([], b"", -1)))
    assert "negative" in refused(tar(old_sparse([(-10, 10)], bytes(10), 100)))


def test_sparse_file_cannot_claim_more_than_an_image_may_hold() -> None:
    assert "MAX_IMAGE_BYTES" in refused(tar(old_sparse([(0, 1)], b"x", 2**60)))


def test_sparse_map_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SPARSE_EXTENTS", 3)
    assert "MAX_SPARSE_EXTENTS" in refused(tar(old_sparse([(i * 10, 1) for i in range(4)], b"xxxx", 100)))


def test_empty_archives_hold_nothing() -> None:
    assert index(b"") == []
    assert index(END) == []
    assert index(bytes(10240)) == []


def test_a_missing_end_marker_is_accepted_and_what_follows_one_is_ignored() -> None:
    assert len(index(tar(file(b"a", b"x"), end=b""))) == 1
    assert len(index(tar(file(b"a"), end=END + b"not a header"))) == 1
    # Without its padding too, as the very last thing in the file.
    assert len(index(tar(file(b"a", b"x"), end=b"")[:513])) == 1


GOOD = file(b"a", b"content")


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (tar(Member(name=b"a", checksum=b"000000")), "checksum"),
        (tar(Member(name=b"a", checksum=b"zzz")), "number"),
        (tar(Member(name=b"a", checksum=b"0_1")), "number"),
        (tar(GOOD)[:300], "ends at 300"),
        (tar(GOOD, end=b"")[:515], "missing"),
        (tar(Member(name=b"a", size=b"77777777777\0")), "missing"),
        (tar(Member(name=b"a", size=octal(-1, 12))), "negative"),
        (tar(Member(name=b"a", size=b"0o000000007\0")), "number"),
        (tar(Member(name=b"a", size=b"12 34\0")), "number"),
        (tar(Member(name=b"a", uid=-1)), "uid"),
        (tar(Member(name=b"a", gid=2**32 - 1)), "gid"),
        (tar(Member(name=b"a", type=b"3", device=(4096, 0))), "major"),
        (tar(Member(name=b"a", type=b"4", device=(0, 1 << 20))), "minor"),
        (tar(Member(name=b"a", type=b"7")), "type b'7'"),
        (tar(Member(name=b"a", type=b"V")), "type b'V'"),
        (tar(GOOD, end=bytes(BLOCK) + b"x" * BLOCK), "zero block"),
        (tar(pax(GOOD, (b"path", b"a\0b"))), "NUL"),
        (tar(pax(symlink(b"s", b"t"), (b"linkpath", b"a\0b"))), "NUL"),
        (tar(pax(GOOD, (b"size", b"-1"))), "number"),
        (tar(pax(GOOD, (b"size", b"1e3"))), "number"),
        (tar(pax(GOOD, (b"uid", b"4294967295"))), "uid"),
        (tar(pax(GOOD, (b"mtime", b"nan"))), "time"),
        (tar(pax(GOOD, (b"mtime", b"999999999999"))), "year"),
        (tar(Member(name=b"p", type=b"x", data=b"nonsense"), GOOD), "record"),
        (tar(Member(name=b"p", type=b"x", data=b"99 path=a\n"), GOOD), "record"),
        (tar(Member(name=b"p", type=b"x", data=b"5 a=b"), GOOD), "record"),
        (tar(Member(name=b"p", type=b"x", data=b"5 =b\n"), GOOD), "key"),
        (tar(Member(name=b"p", type=b"x", data=b"0 path=a\n"), GOOD), "record"),
        (
            tar(block(Member(name=b"p", type=b"x", data=record(b"uid", b"1"))), pax(GOOD, (b"gid", b"1"))),
            "second",
        ),
        (tar(pax(GOOD, (b"GNU.sparse.map", b"1,2,3"), (b"GNU.sparse.size", b"9"))), "odd"),
        (tar(pax(GOOD, (b"GNU.sparse.offset", b"1"), (b"GNU.sparse.offset", b"2"))), "alternate"),
        (tar(pax(GOOD, (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))), "sparse map"),
    ],
)
def test_garbage_is_refused_with_its_place(archive: bytes, words: str) -> None:
    message = refused(archive)
    assert words in message
    assert "layer test, tar header at " in message


def test_extension_headers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PAX_BYTES", 1000)
    assert "MAX_PAX_BYTES" in refused(tar(pax(GOOD, (b"comment", b"c" * 1000))))
    assert "MAX_GNU_LONG_BYTES" in refused(tar(gnu_long(GOOD, name=b"n" * 5000)))
    many = [pax(GOOD, (b"k%d" % number, b"v" * 500), type_=b"g") for number in range(3)]
    assert "MAX_PAX_BYTES" in refused(tar(*many))


def test_xattrs_are_bounded() -> None:
    assert "MAX_XATTR_NAME_BYTES" in refused(tar(pax(GOOD, (b"SCHILY.xattr.user." + b"n" * 251, b"v"))))
    assert "MAX_XATTR_VALUE_BYTES" in refused(tar(pax(GOOD, (b"SCHILY.xattr.user.n", b"v" * 65536))))


def test_headers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ENTRIES", 3)
    assert len(index(tar(*[GOOD] * 3))) == 3
    assert "MAX_ENTRIES" in refused(tar(*[GOOD] * 4))
