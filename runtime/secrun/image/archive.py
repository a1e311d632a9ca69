"""Write OCI archives, the same bytes each time: tars of an image layout (OCI image-spec 1.1)."""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from secrun.checkpoint import reached
from secrun.digest import Digest
from secrun.errors import ImageError, StateError
from secrun.image import limits
from secrun.image.aci.tarwriter import END, header, padding
from secrun.image.manifest import Descriptor
from secrun.image.rootfs.model import FileKind, Xattrs
from secrun.image.store import ImageStore, space_errors
from secrun.jsonio import JsonObject, canonical
from secrun.record import record

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_MODE = 0o644
# open(2): no such flag, or a file system that cannot.
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})


@record
class _Member:
    """What all members of an archive have in common: the same bytes come of the same image."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()


_FOLDER, _FILE = _Member(mode=0o755), _Member(mode=_MODE)


@record
class Blob:
    """Bytes in a file, or in memory where `path` is None."""

    digest: Digest
    size: int
    path: Path | None = None
    data: bytes = b""


def stored(store: ImageStore, descriptor: Descriptor) -> Blob:
    """Return a blob of the store."""
    return Blob(digest=descriptor.digest, size=descriptor.size, path=store.blob_path(descriptor.digest))


def small(data: bytes) -> Blob:
    """Return bytes as a blob."""
    return Blob(digest=Digest.of(data), size=len(data), data=data)


@contextmanager
def whole(path: Path, *, overwrite: bool, mode: int = _MODE) -> Iterator[BinaryIO]:
    """Yield a file that is there, whole, when the block ends without an error, or not at all.

    Where the file system has files without a name, none is left if the process is killed. Raises StateError
    for a file that exists, unless `overwrite` is given, and HostError for a full disk.
    """
    if path.exists() and not overwrite:
        raise exists(path)
    with space_errors(str(path)):
        try:
            fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_TMPFILE or not path.parent.is_dir():
                raise
            with _named(path, mode, overwrite=overwrite) as stream:
                yield stream
            return
        with os.fdopen(fd, "w+b") as stream:
            yield stream
            _sync(stream, mode)
            reached("archive-written")
            _link(fd, path, overwrite=overwrite)


def exists(path: Path) -> StateError:
    """Return the error for a file that would have to be replaced."""
    return StateError(
        f"{path} exists already", hint="remove it first, or give --overwrite", code="state-target"
    )


def _sync(stream: BinaryIO, mode: int) -> None:
    stream.flush()
    os.fchmod(stream.fileno(), mode)
    os.fsync(stream.fileno())


def _link(fd: int, path: Path, *, overwrite: bool) -> None:
    """Give a file without a name its name; another one goes in one step."""
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not overwrite:
            _name(descriptors, fd, path)
            return
        temporary = _temporary(path)
        temporary.unlink(missing_ok=True)
        _name(descriptors, fd, temporary)
        temporary.rename(path)
    finally:
        os.close(descriptors)


def _name(descriptors: int, fd: int, path: Path) -> None:
    try:
        # With a folder given this is linkat(2), which follows the link that /proc has.
        os.link(str(fd), path, src_dir_fd=descriptors)
    except FileExistsError as error:
        raise exists(path) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


@contextmanager
def _named(path: Path, mode: int, *, overwrite: bool) -> Iterator[BinaryIO]:
    temporary = _temporary(path)
    try:
        with temporary.open("w+b") as stream:
            yield stream
            _sync(stream, mode)
        if overwrite:
            temporary.rename(path)
        else:
            os.link(temporary, path)
    except FileExistsError as error:
        raise exists(path) from error
    finally:
        temporary.unlink(missing_ok=True)


def add(out: BinaryIO, name: str, data: bytes) -> None:
    """Add a small member to a tar."""
    out.write(header(name.encode(), FileKind.FILE, _FILE, size=len(data)) + data + padding(len(data)))


def add_file(out: BinaryIO, name: str, blob: Blob) -> None:
    """Add a blob to a tar, and check that it still is what its digest says; raises ImageError."""
    out.write(header(name.encode(), FileKind.FILE, _FILE, size=blob.size))
    state = hashlib.new(blob.digest.algorithm, blob.data)
    left = blob.size - len(blob.data)
    out.write(blob.data)
    if blob.path is not None:
        with _opened(blob) as stream:
            while chunk := stream.read(min(limits.CHUNK_BYTES, left)):
                state.update(chunk)
                out.write(chunk)
                left -= len(chunk)
    if left or state.hexdigest() != blob.digest.hex:
        raise _damaged(blob)
    out.write(padding(blob.size))


def _opened(blob: Blob) -> BinaryIO:
    try:
        return Path(blob.path or "").open("rb")
    except FileNotFoundError as error:
        raise _damaged(blob) from error


def _damaged(blob: Blob) -> ImageError:
    return ImageError(
        f"blob {blob.digest} of the image store is damaged",
        hint="fetch the image again with --pull=always",
        code="image-digest",
    )


def write(out: BinaryIO, index: JsonObject, blobs: Sequence[Blob]) -> None:
    """Write an archive of a layout; each blob is digested once more. Raises ImageError, OSError."""
    distinct = {blob.digest: blob for blob in blobs}
    add(out, "oci-layout", _LAYOUT)
    add(out, "index.json", canonical(index))
    below = (f"blobs/{name}" for name in sorted({item.algorithm for item in distinct}))
    out.writelines(header(name.encode(), FileKind.DIRECTORY, _FOLDER) for name in ("blobs", *below))
    for digest in sorted(distinct):
        add_file(out, f"blobs/{digest.algorithm}/{digest.hex}", distinct[digest])
    out.write(END)
