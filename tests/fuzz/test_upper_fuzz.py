"""Whatever tree an app leaves, the layer that is written of it is read back as the same tree."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from secrun.image import upper
from secrun.image.rootfs.merge import MergedTree
from secrun.image.rootfs.model import FdSource, FileKind
from secrun.image.rootfs.tarindex import TarIndex

_NAMES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.binary(min_size=90, max_size=255),
    st.sampled_from([b"a", b"b", b"..x", b" ", b"\xff", b"\n=5", b"PaxHeader"]),
).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0"))
_STEPS = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        _NAMES,
        st.sampled_from(["file", "folder", "symlink", "pipe", "link", "attribute"]),
        st.binary(max_size=1500),
        st.integers(0, 0o7777),
        st.integers(-(2**31), 2**33),
    ),
    max_size=25,
)
_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFIFO: FileKind.FIFO,
}


def _add(folder: bytes, name: bytes, kind: str, data: bytes, files: list[bytes]) -> bytes | None:
    """Make one thing; return its path, None if that cannot be."""
    path = os.path.join(folder, name)
    if name in {b".", b".."} or name.startswith(b".wh.") or len(path) > 3000 or os.path.lexists(path):
        return None
    match kind:
        case "folder":
            os.mkdir(path)
        case "symlink":
            os.symlink(data.replace(b"\0", b"0")[:1000] or b".", path)
        case "pipe":
            os.mkfifo(path)
        case "link" if files:
            os.link(files[len(data) % len(files)], path)
        case _:
            Path(os.fsdecode(path)).write_bytes(data)
            files.append(path)
            if kind == "attribute":
                os.setxattr(path, b"user." + name[:20].replace(b"=", b"e"), data)
    return path


def _grow(root: bytes, steps: list[tuple[int, bytes, str, bytes, int, int]]) -> None:
    folders, files = [root], list[bytes]()
    for number, name, kind, data, mode, seconds in steps:
        path = _add(folders[number % len(folders)], name, kind, data, files)
        if path is None:
            continue
        if kind == "folder":
            folders.append(path)
        if kind != "symlink":
            os.chmod(path, mode | 0o700)
        os.utime(path, ns=(0, seconds * 10**9 + number), follow_symlinks=False)


def _described(root: bytes) -> dict[bytes, tuple[object, ...]]:
    """Return what the file system says of every name."""
    found: dict[bytes, tuple[object, ...]] = {}
    for base, folders, files in os.walk(root):
        for path in (base, *(os.path.join(base, name) for name in (*folders, *files))):
            status = os.lstat(path)
            kind = _KINDS[stat.S_IFMT(status.st_mode)]
            plain = kind is FileKind.FILE
            found[os.path.relpath(path, root).replace(b".", b"", path == root)] = (
                kind,
                stat.S_IMODE(status.st_mode) if kind is not FileKind.SYMLINK else 0,
                status.st_mtime_ns,
                Path(os.fsdecode(path)).read_bytes() if plain else b"",
                os.readlink(path) if kind is FileKind.SYMLINK else b"",
                tuple(sorted(os.listxattr(path))) if plain else (),
                status.st_nlink > 1 if plain else False,
            )
    return found


def _read_back(fd: int) -> dict[bytes, tuple[object, ...]]:
    tree = MergedTree()
    tree.apply(TarIndex(fd, os.fstat(fd).st_size, layer="layer"), fd)
    found: dict[bytes, tuple[object, ...]] = {}
    for entry in tree.entries():
        source = entry.source
        data = os.pread(fd, entry.size, source.offset) if isinstance(source, FdSource) else b""
        found[entry.path] = (
            entry.kind,
            entry.mode if entry.kind is not FileKind.SYMLINK else 0,
            entry.mtime_ns,
            data,
            entry.target,
            tuple(sorted(os.fsdecode(name) for name, _ in entry.xattrs)),
            entry.link_group != 0,
        )
    return found


@given(steps=_STEPS)
def test_a_tree_is_read_back_from_its_layer(steps: list[tuple[int, bytes, str, bytes, int, int]]) -> None:
    folder = tempfile.mkdtemp(prefix="upper-")
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _grow(os.fsencode(folder), steps)
        with tempfile.TemporaryFile() as out:
            assert upper.write_layer(root, out.fileno()) == {"sockets": 0}
            assert _read_back(out.fileno()) == _described(os.fsencode(folder))
    finally:
        os.close(root)
        shutil.rmtree(folder)
