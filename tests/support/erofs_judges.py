"""The kernel, fsck.erofs and veritysetup as judges of packed images, and trees for them to judge."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from secrun.image.rootfs.model import Extent, FdSource, FileKind, PackedImage, TreeEntry
from secrun.image.rootfs.pack import pack
from secrun.launch import run
from secrun.record import replace
from secrun.stage1.imagemount import mount_image
from secrun.syscalls import LinuxSyscalls

# What lstat, readlink, listxattr and read say about one path.
Seen = tuple[object, ...]

_KINDS = {
    FileKind.FILE: stat.S_IFREG,
    FileKind.DIRECTORY: stat.S_IFDIR,
    FileKind.SYMLINK: stat.S_IFLNK,
    FileKind.CHAR: stat.S_IFCHR,
    FileKind.BLOCK: stat.S_IFBLK,
    FileKind.FIFO: stat.S_IFIFO,
}


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[bytes]:
    """Mount an image file read-only; yields the mount point as bytes."""
    place.mkdir(exist_ok=True)
    calls = LinuxSyscalls()
    mount_image(calls, image, place)
    try:
        yield os.fsencode(place)
    finally:
        calls.umount(str(place))


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    names = os.listxattr(path, follow_symlinks=False)
    return tuple(
        sorted((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names)
    )


def walk(top: bytes, *, mtimes: bool = True) -> dict[bytes, Seen]:
    """Read back a whole tree; hard links are the set of names of one inode."""
    seen: dict[bytes, Seen] = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        full = top + b"/" + path if path else top
        status = os.lstat(full)
        kind = stat.S_IFMT(status.st_mode)
        content: bytes = b""
        if kind == stat.S_IFREG:
            with open(full, "rb") as stream:
                content = stream.read()
            inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
        elif kind == stat.S_IFLNK:
            content = os.readlink(full)
        elif kind == stat.S_IFDIR:
            todo += [path + b"/" + name if path else name for name in os.listdir(full)]
        device = status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        time = status.st_mtime_ns if mtimes else 0
        seen[path] = (status.st_mode, status.st_uid, status.st_gid, time, device, content, _xattrs(full))
    for names in inodes.values():
        for name in names:
            seen[name] = (*seen[name], tuple(sorted(names)))
    return seen


def content_of(entry: TreeEntry) -> bytes:
    """Return the bytes that a regular file of the model has."""
    source = entry.source
    if isinstance(source, bytes):
        return source
    assert isinstance(source, FdSource)
    assert source.extents is not None
    result = bytearray(entry.size)
    for extent in source.extents:
        data = os.pread(source.fd, extent.length, extent.source_offset)
        result[extent.file_offset : extent.file_offset + extent.length] = data
    return bytes(result)


def model(entries: list[TreeEntry]) -> dict[bytes, Seen]:
    """Say what `walk` must see of `entries`."""
    groups: dict[int, list[bytes]] = {}
    for entry in entries:
        if entry.link_group:
            groups.setdefault(entry.link_group, []).append(entry.path)
    expected: dict[bytes, Seen] = {}
    for entry in entries:
        mode = _KINDS[entry.kind] | (0o777 if entry.kind is FileKind.SYMLINK else entry.mode)
        content = entry.target
        if entry.kind is FileKind.FILE:
            content = content_of(entry)
        device = os.makedev(*entry.rdev) if entry.kind in (FileKind.CHAR, FileKind.BLOCK) else 0
        values = (mode, entry.uid, entry.gid, entry.mtime_ns, device, content, tuple(sorted(entry.xattrs)))
        if entry.kind is FileKind.FILE:
            names = groups[entry.link_group] if entry.link_group else [entry.path]
            expected[entry.path] = (*values, tuple(sorted(names)))
        else:
            expected[entry.path] = values
    return expected


def pack_to(path: Path, entries: list[TreeEntry], processes: int = 1) -> PackedImage:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return pack(entries, fd, processes=processes)
    finally:
        os.close(fd)


def fsck(image: Path) -> None:
    """Let fsck.erofs read everything; its complaints go to stderr or its exit status."""
    done = run(["fsck.erofs", image])
    assert not done.stderr, done.stderr


def veritysetup_verify(image: Path, packed: PackedImage) -> None:
    run(["veritysetup", "verify", image, image, packed.verity_root, f"--hash-offset={packed.data_size}"])


def judge(entries: list[TreeEntry], folder: Path, *, verity: bool = True) -> None:
    """Pack `entries`; every judge must accept the image, and the kernel must see what the model says."""
    image = folder / "image.erofs"
    packed = pack_to(image, entries)
    fsck(image)
    if verity:
        veritysetup_verify(image, packed)
    with mounted(image, folder / "mnt") as top:
        assert walk(top) == model(entries)


_NAMES = (
    st.one_of(
        st.binary(min_size=1, max_size=12),
        st.binary(min_size=250, max_size=255),
        st.sampled_from([b"a", b"+", b"-", b"...", b".a", b" ", b"\n", b"\xff", b"a\n\xfe", b"\xc3\xbc"]),
    )
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0"))
    .filter(lambda name: name not in (b".", b".."))
)

# Around the edges of blocks, slots and inline tails.
_SIZES = st.one_of(
    st.integers(0, 200),
    st.integers(3900, 4200),
    st.sampled_from([4032, 4096, 8192, 8191, 8193, 12288, 100_000]),
)
_IDS = st.one_of(st.integers(0, 70_000), st.sampled_from([2**31, 2**32 - 2]))
_TIMES = st.one_of(
    st.integers(0, 2 * 10**18), st.sampled_from([0, -1, -(10**18), 1_700_000_000_000_000_001, 4 * 10**18])
)
_ACL = bytes.fromhex("02000000 01000600 ffffffff 04000400 ffffffff 20000400 ffffffff".replace(" ", ""))


def _attributes(kind: FileKind) -> st.SearchStrategy[tuple[tuple[bytes, bytes], ...]]:
    prefixes = [b"trusted.", b"security."]
    if kind in (FileKind.FILE, FileKind.DIRECTORY):
        prefixes.append(b"user.")
    names = st.tuples(st.sampled_from(prefixes), st.text("abcXYZ.-_ü", min_size=1, max_size=40)).map(
        lambda pair: pair[0] + b"x" + pair[1].encode()
    )
    values = st.one_of(st.binary(max_size=40), st.integers(0, 6000).map(lambda size: b"v" * size))
    plain = st.dictionaries(names, values, max_size=3)
    if kind is FileKind.SYMLINK:
        return plain.map(lambda found: tuple(found.items()))
    access = st.booleans().map(lambda there: {b"system.posix_acl_access": _ACL} if there else {})
    return st.tuples(plain, access).map(lambda both: tuple({**both[0], **both[1]}.items()))


@st.composite
def _file(draw: st.DrawFn, path: bytes, sparse_fd: int) -> TreeEntry:
    kind = draw(
        st.sampled_from(
            [FileKind.FILE] * 5 + [FileKind.SYMLINK, FileKind.CHAR, FileKind.BLOCK, FileKind.FIFO]
        )
    )
    entry = TreeEntry(
        path=path,
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(_IDS),
        gid=draw(_IDS),
        mtime_ns=draw(_TIMES),
        xattrs=draw(_attributes(kind)) if draw(st.integers(0, 3)) == 0 else (),
    )
    if kind is FileKind.SYMLINK:
        size = draw(st.one_of(st.integers(1, 100), st.sampled_from([4031, 4032, 4033, 4095])))
        return replace(entry, mode=0o777, target=b"t" * size)
    if kind is FileKind.FILE:
        if draw(st.integers(0, 9)) == 0:
            return _sparse(draw, entry, sparse_fd)
        size = draw(_SIZES)
        seed = draw(st.binary(min_size=1, max_size=7))
        return replace(entry, size=size, source=(seed * (size // len(seed) + 1))[:size])
    if kind in (FileKind.CHAR, FileKind.BLOCK):
        return replace(entry, rdev=(draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1))))
    return entry


def _sparse(draw: st.DrawFn, entry: TreeEntry, fd: int) -> TreeEntry:
    extents = []
    offset = 0
    for _ in range(draw(st.integers(0, 4))):
        offset += draw(st.integers(0, 40_000))
        length = draw(st.integers(1, 9000))
        extents.append(Extent(offset, draw(st.integers(0, 1000)), length))
        offset += length
    size = offset + draw(st.integers(0, 30_000))
    return replace(entry, size=size, source=FdSource(fd, 0, tuple(extents)))


@st.composite
def trees(draw: st.DrawFn, sparse_fd: int) -> list[TreeEntry]:
    """Draw a tree of up to about thirty entries; `sparse_fd` holds 10,000 bytes for sparse files."""
    root = TreeEntry(
        path=b"",
        kind=FileKind.DIRECTORY,
        mode=draw(st.integers(0, 0o7777)),
        uid=0,
        gid=0,
        mtime_ns=draw(_TIMES),
    )
    entries = [root]
    folders = [b""]
    for folder in folders:
        for name in draw(st.lists(_NAMES, unique=True, max_size=8 if folder == b"" else 4)):
            path = folder + b"/" + name if folder else name
            if len(folders) < 6 and draw(st.integers(0, 3)) == 0:
                folders.append(path)
                made = replace(
                    root, path=path, mode=draw(st.integers(0, 0o7777)), uid=draw(_IDS), mtime_ns=draw(_TIMES)
                )
                if draw(st.integers(0, 3)) == 0:
                    made = replace(made, xattrs=draw(_attributes(FileKind.DIRECTORY)))
                entries.append(made)
            else:
                entries.append(draw(_file(path, sparse_fd)))
    return _with_hard_links(draw, entries)


def _with_hard_links(draw: st.DrawFn, entries: list[TreeEntry]) -> list[TreeEntry]:
    files = [entry for entry in entries if entry.kind is FileKind.FILE]
    if not files or draw(st.integers(0, 2)):
        return entries
    chosen = replace(draw(st.sampled_from(files)), link_group=1)
    linked = [chosen if entry.path == chosen.path else entry for entry in entries]
    paths = {entry.path for entry in entries}
    extra = [replace(chosen, path=path) for path in (b"link-1", b"link-2") if path not in paths]
    return linked + extra
