"""Write what an app changed, the upper folder of an overlay, as a layer of an image; runs in the sandbox.

Sources: Documentation/filesystems/overlayfs.rst (whiteouts, opaque folders); OCI image-spec 1.1, layer.md.
"""

import os
import stat
from collections.abc import Iterator

from secrun.errors import ImageError
from secrun.image.aci.tarwriter import END, header, padding
from secrun.image.rootfs import limits
from secrun.image.rootfs.inflate import write_all
from secrun.image.rootfs.merge import keeps_xattr
from secrun.image.rootfs.model import FileKind, Xattrs
from secrun.image.rootfs.tarindex import LinkKind
from secrun.jsonio import JsonObject
from secrun.record import record

_COPY = 1 << 20
_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"
_OVERLAYS = ("user.overlay.", "trusted.overlay.")
# They say that a name means something that is not here. secrun mounts without them; whoever finds one
# would write another tree than the app saw.
_ELSEWHERE = ("redirect", "metacopy", "whiteout")
_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFCHR: FileKind.CHAR,
    stat.S_IFBLK: FileKind.BLOCK,
    stat.S_IFIFO: FileKind.FIFO,
}


@record
class _Header:
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()


_MARK = _Header(mode=0o600, uid=0, gid=0, mtime_ns=0)


def _bad(path: bytes, why: str, hint: str = "") -> ImageError:
    return ImageError(f"{path[:200]!r} {why}", hint=hint, code="image-export")


def _described(status: os.stat_result, xattrs: Xattrs) -> _Header:
    special = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return _Header(
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if special else (0, 0),
        xattrs=xattrs,
    )


def _read_xattrs(place: int | str, path: bytes) -> tuple[Xattrs, bool]:
    """Return the attributes of a file, and whether it hides what lies below; `place` is open or a path."""
    follow = {} if isinstance(place, int) else {"follow_symlinks": False}
    kept: list[tuple[bytes, bytes]] = []
    opaque = False
    for name in sorted(os.listxattr(place, **follow)):
        prefix = next((item for item in _OVERLAYS if name.startswith(item)), "")
        if keeps_xattr(os.fsencode(name)):
            if "=" in name:
                # A pax record ends its key there: another attribute would be read back.
                raise _bad(path, f"has the attribute {name[:80]!r}, and tar knows no = in such names")
            kept.append((os.fsencode(name), os.getxattr(place, name, **follow)))
        elif name.removeprefix(prefix) in _ELSEWHERE and prefix:
            raise _bad(path, f"has the attribute {name}, which secrun's overlays never write")
        elif prefix and name.removeprefix(prefix) == "opaque":
            opaque = _is_opaque(os.getxattr(place, name, **follow), path)
    return tuple(kept), opaque


def _is_opaque(value: bytes, path: bytes) -> bool:
    if value != b"y":
        raise _bad(path, f"is opaque in a way that is not known: {value[:20]!r}")
    return True


class _Layer:
    """A layer in the making; paths are relative to the root of the app, without a slash in front."""

    def __init__(self, upper_fd: int, out_fd: int) -> None:
        self._upper = upper_fd
        self._out = out_fd
        self._links: dict[tuple[int, int], bytes] = {}
        self._entries = 0
        self._bytes = 0
        self.sockets = 0

    def write(self) -> None:
        """Write the whole tree: a folder, its files in order, then its folders."""
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            waiting += reversed([*self._folder(path)])
        write_all(self._out, END)

    def _folder(self, path: bytes) -> Iterator[bytes]:
        """Write a folder and its files; yield the folders in it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(path or b".", flags, dir_fd=self._upper)
        try:
            xattrs, opaque = _read_xattrs(folder, path)
            self._head(path or b".", FileKind.DIRECTORY, _described(os.fstat(folder), xattrs))
            if opaque and path:
                self._head(path + b"/" + _OPAQUE, FileKind.FILE, _MARK)
            for name in sorted(os.fsencode(item) for item in os.listdir(folder)):
                whole = path + b"/" + name if path else name
                if self._member(folder, name, whole):
                    yield whole
        finally:
            os.close(folder)

    def _head(
        self, path: bytes, kind: FileKind | LinkKind, file: _Header, *, size: int = 0, target: bytes = b""
    ) -> None:
        self._entries += 1
        if self._entries > limits.MAX_ENTRIES:
            raise _bad(path, f"is one file too many: an image has at most {limits.MAX_ENTRIES}")
        write_all(self._out, header(path, kind, file, size=size, target=target))

    def _member(self, folder: int, name: bytes, path: bytes) -> bool:
        """Write what is no folder; tell whether it is one."""
        if len(path) > limits.MAX_PATH_BYTES or path.count(b"/") >= limits.MAX_PATH_DEPTH:
            raise _bad(path, "lies deeper than a path can say", "remove such folders in the app")
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if name.startswith(_WHITEOUT):
            raise _bad(path, "has a name that means a removal in layers", "rename it in the app")
        if stat.S_ISDIR(status.st_mode):
            return True
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            above = path[: len(path) - len(name)]
            self._head(above + _WHITEOUT + name, FileKind.FILE, _MARK)
        elif stat.S_ISSOCK(status.st_mode):
            # Nobody listens any more, and tar has no word for it.
            self.sockets += 1
        elif not self._again(status, path):
            self._new(folder, name, path, status)
        return False

    def _again(self, status: os.stat_result, path: bytes) -> bool:
        """Write a further name of a file that has been written; tell whether it was one."""
        if status.st_nlink < 2:
            return False
        first = self._links.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            return False
        self._head(path, LinkKind.HARD, _described(status, ()), target=first)
        return True

    def _new(self, folder: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        if kind is FileKind.FILE:
            self._file(folder, name, path)
            return
        # Only a path names what is not opened: a link, a pipe, a device.
        xattrs, _ = _read_xattrs(f"/proc/self/fd/{folder}/{os.fsdecode(name)}", path)
        target = os.readlink(name, dir_fd=folder) if kind is FileKind.SYMLINK else b""
        self._head(path, kind, _described(status, xattrs), target=target)

    def _file(self, folder: int, name: bytes, path: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(fd)
            xattrs, _ = _read_xattrs(fd, path)
            self._bytes += status.st_size
            if self._bytes > limits.MAX_IMAGE_BYTES:
                hint = "holes count too; keep such files on a volume"
                raise _bad(
                    path, f"is beyond the {limits.MAX_IMAGE_BYTES} bytes that an image may have", hint
                )
            self._head(path, FileKind.FILE, _described(status, xattrs), size=status.st_size)
            left = status.st_size
            while left:
                chunk = os.read(fd, min(_COPY, left))
                if not chunk:
                    raise _bad(path, "became shorter while it was read")
                write_all(self._out, chunk)
                left -= len(chunk)
            write_all(self._out, padding(status.st_size))
        finally:
            os.close(fd)


def write_layer(upper_fd: int, out_fd: int) -> JsonObject:
    """Write the layer to `out_fd`; return how many sockets were left out.

    Owners are those that this process sees, so it belongs into the user namespace of the app. The same
    tree gives the same bytes. Raises ImageError for what a layer cannot say, OSError.
    """
    layer = _Layer(upper_fd, out_fd)
    layer.write()
    return {"sockets": layer.sockets}
