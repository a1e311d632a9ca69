"""Turn the files of an image into one OCI layer; runs in the sandbox, since the bytes are a stranger's.

An entry of the result differs from that of the image in its name only. Paths are taken as they are written:
`..` and absolute names are errors, and symbolic links are resolved by nobody.
"""

import os
from collections.abc import Iterable, Iterator, Sequence

from secrun.errors import ImageError
from secrun.image.aci import limits
from secrun.image.aci.tarwriter import END, header, padding
from secrun.image.rootfs.inflate import write_all
from secrun.image.rootfs.model import FileKind
from secrun.image.rootfs.tarindex import LinkKind, TarEntry
from secrun.record import record

MANIFEST = b"manifest"
ROOTFS = b"rootfs"
_WHITEOUT = b".wh."
_COPY = 1 << 20


@record
class Place:
    """Where the manifest lies in the image's tar."""

    offset: int
    size: int


def bad(why: str) -> ImageError:
    """Return the error for a file that is no app container image."""
    return ImageError(
        f"not an app container image: {why}",
        hint="expected a tar of the file `manifest` and the folder `rootfs`, nothing else",
        code="image-aci",
    )


def _shown(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "backslashreplace"))


def parts_of(name: bytes) -> tuple[bytes, ...]:
    """Return the components of a member's name; raises ImageError if it leaves the archive."""
    words = [word for word in name.split(b"/") if word not in (b"", b".")]
    if name.startswith(b"/") or b".." in words:
        raise bad(f"its member {_shown(name)} leads out of it")
    return tuple(words)


def _inner(name: bytes, parts: tuple[bytes, ...]) -> bytes:
    """Return a path below the rootfs as the layer has it."""
    if any(part.startswith(_WHITEOUT) for part in parts):
        raise bad(f"a layer cannot hold {_shown(name)}: names that begin with .wh. remove files there")
    return b"/".join(parts[1:])


def _link_target(entry: TarEntry) -> bytes:
    parts = parts_of(entry.target)
    if len(parts) < 2 or parts[0] != ROOTFS:
        raise bad(f"its hard link {_shown(entry.name)} leads out of rootfs, to {_shown(entry.target)}")
    return _inner(entry.target, parts)


@record
class Named:
    """One file of the rootfs: its path there, and for a hard link the path of the other name."""

    path: bytes
    entry: TarEntry
    target: bytes


def split(entries: Iterable[TarEntry]) -> tuple[Place, list[Named]]:
    """Check an image's layout; return where its manifest is, and its files. Raises ImageError."""
    place: Place | None = None
    files: list[Named] = []
    seen: set[bytes] = set()
    for entry in entries:
        parts = parts_of(entry.name)
        if not parts and entry.kind is FileKind.DIRECTORY:
            continue  # `./`, as tar(1) writes it for a folder's contents
        name = b"/".join(parts)
        if name in seen:
            raise bad(f"it has two members called {_shown(name)}")
        seen.add(name)
        if name == MANIFEST:
            place = _manifest(entry)
        elif not parts or parts[0] != ROOTFS:
            raise bad(f"its member {_shown(entry.name)} is neither the manifest nor below rootfs")
        else:
            files.append(_named(entry, parts))
    if place is None:
        raise bad("it has no manifest")
    if ROOTFS not in seen:
        raise bad("it has no rootfs")
    return place, files


def _manifest(entry: TarEntry) -> Place:
    if entry.kind is not FileKind.FILE or entry.extents is not None:
        raise bad("its manifest is not a regular file")
    if entry.size > limits.MAX_MANIFEST_BYTES:
        raise ImageError(
            f"the manifest has {entry.size} bytes, the limit is {limits.MAX_MANIFEST_BYTES}",
            code="image-limit",
        )
    return Place(offset=entry.offset, size=entry.size)


def _named(entry: TarEntry, parts: tuple[bytes, ...]) -> Named:
    if len(parts) == 1 and entry.kind is not FileKind.DIRECTORY:
        raise bad("its rootfs is not a folder")
    if entry.extents is not None:
        raise bad(f"its member {_shown(entry.name)} is sparse")
    target = _link_target(entry) if entry.kind is LinkKind.HARD else entry.target
    return Named(path=_inner(entry.name, parts), entry=entry, target=target)


def layer_files(entries: Iterable[TarEntry]) -> Iterator[Named]:
    """Yield the files of a layer that secrun made."""
    for entry in entries:
        path = b"/".join(parts_of(entry.name))
        hard = entry.kind is LinkKind.HARD
        target = b"/".join(parts_of(entry.target)) if hard else entry.target
        yield Named(path=path, entry=entry, target=target)


class Whitelist:
    """The paths that an image's rootfs is to have, and the folders that lead to them; empty means all."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = {path.strip("/").encode() for path in paths}
        self._folders = {b""}
        for path in self._paths:
            words = path.split(b"/")
            self._folders.update(b"/".join(words[:count]) for count in range(1, len(words)))
        self.found: set[bytes] = set()

    def keeps(self, file: Named) -> bool:
        """Tell whether a file stays, and remember that it was there."""
        if file.path in self._paths:
            self.found.add(file.path)
            return True
        return not self._paths or (file.entry.kind is FileKind.DIRECTORY and file.path in self._folders)


class _Layer:
    """A layer in the making; a hard link whose first name does not stay becomes the file itself."""

    def __init__(self, source_fd: int, out_fd: int) -> None:
        self._source_fd = source_fd
        self._out_fd = out_fd
        self._originals: dict[bytes, Named] = {}
        self._written: dict[bytes, bytes] = {}

    def add(self, file: Named, *, keep: bool) -> None:
        original = file
        if file.entry.kind is LinkKind.HARD:
            found = self._originals.get(file.target)
            if found is None or found.entry.kind is FileKind.DIRECTORY:
                raise bad(
                    f"its hard link {_shown(file.entry.name)} leads to a folder, or to nothing before it"
                )
            original = found
        self._originals[file.path] = original
        if keep:
            self._write(file, original)

    def _write(self, file: Named, original: Named) -> None:
        entry, kind = original.entry, original.entry.kind
        first = self._written.setdefault(original.path, file.path)
        if first != file.path:
            write_all(self._out_fd, header(file.path, LinkKind.HARD, entry, target=first))
        elif kind is FileKind.FILE:
            self._write_content(file.path, entry)
        else:
            write_all(self._out_fd, header(file.path or b".", kind, entry, target=original.target))

    def _write_content(self, path: bytes, entry: TarEntry) -> None:
        write_all(self._out_fd, header(path, FileKind.FILE, entry, size=entry.size))
        position, end = entry.offset, entry.offset + entry.size
        while position < end:
            chunk = os.pread(self._source_fd, min(_COPY, end - position), position)
            if not chunk:
                raise bad(f"it ends within {_shown(entry.name)}")
            write_all(self._out_fd, chunk)
            position += len(chunk)
        write_all(self._out_fd, padding(entry.size))


def write_layer(files: Iterable[Named], source_fd: int, whitelist: Whitelist, out_fd: int) -> None:
    """Write the files that stay as a layer; raises ImageError for links to nothing, OSError from writing."""
    layer = _Layer(source_fd, out_fd)
    for file in files:
        layer.add(file, keep=whitelist.keeps(file))
    write_all(out_fd, END)


def owner_of(files: Sequence[Named], path: str) -> tuple[int, int] | None:
    """Return the owner and group of the file at an absolute path, None if the image has none there."""
    wanted = path.strip("/").encode()
    found = [file.entry for file in files if file.path == wanted]
    return (found[-1].uid, found[-1].gid) if found else None
