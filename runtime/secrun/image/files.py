"""Named files of a folder or of an archive, read the same way."""

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from secrun.errors import ImageError
from secrun.image import limits
from secrun.image.blobs import BlobWriter
from secrun.image.tarscan import Member, MemberKind

# An old `docker save` links a layer to the same layer of another image, one step.
_MAX_LINKS = 8
# blobs/ALGORITHM: nothing of a layout lies deeper.
_MAX_FOLDER_DEPTH = 2


class Files(Protocol):
    """Where the parts of an image lie; every method raises ImageError for what is missing."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole file of at most `limit` bytes."""

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a file."""

    def copy(self, name: str, writer: BlobWriter) -> None:
        """Write a file into `writer`."""


def _missing(what: str, name: str) -> ImageError:
    return ImageError(f"{what} has no file {name}", code="image-layout")


def _too_large(what: str, name: str, limit: int) -> ImageError:
    return ImageError(f"{what}: {name} is larger than {limit} bytes", code="image-limit")


def open_regular(path: Path, what: str, *, follow: bool = False) -> int:
    """Open a regular file; a FIFO or a device would block or have no end, a link may lead anywhere."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except FileNotFoundError as error:
        raise ImageError(f"{what}: {path} does not exist", code="image-layout") from error
    except OSError as error:
        raise ImageError(f"{what}: {path}: {error.strerror}", code="image-layout") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{what}: {path} is not a regular file", code="image-layout")
    return fd


class _Bounded(ABC):
    """Reads whole files by their beginnings; `_what` names the image in errors."""

    _what: str

    @abstractmethod
    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a file."""

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole file of at most `limit` bytes."""
        data = self.head(name, limit + 1)
        if len(data) > limit:
            raise _too_large(self._what, name, limit)
        return data


class FolderFiles(_Bounded):
    """The files below a folder."""

    def __init__(self, folder: Path, what: str) -> None:
        self._folder = folder
        self._what = what

    def exists(self, name: str) -> bool:
        """Tell whether there is something of this name."""
        return os.path.lexists(self._folder / name)

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        fd = open_regular(self._folder / name, self._what)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a file."""
        with os.fdopen(open_regular(self._folder / name, self._what), "rb") as stream:
            return stream.read(count)

    def copy(self, name: str, writer: BlobWriter) -> None:
        """Write a file into `writer`."""
        fd = open_regular(self._folder / name, self._what)
        try:
            while chunk := os.read(fd, limits.CHUNK_BYTES):
                writer.write(chunk)
        finally:
            os.close(fd)


def hold_folder(folder: Path, what: str) -> "HeldFiles":
    """Open every file of a layout or a folder of skopeo's, and read none; raises ImageError.

    Links and whatever is no regular file are passed over, as they could be no part of an image.
    """
    held: dict[str, int] = {}
    try:
        for base, folders, names, base_fd in os.fwalk(folder, onerror=_raise, follow_symlinks=False):
            relative = os.path.relpath(base, folder)
            if relative.count("/") >= _MAX_FOLDER_DEPTH - 1:
                folders.clear()
            for name in names:
                fd = _held(name, base_fd)
                if fd is None:
                    continue
                held[os.path.normpath(os.path.join(relative, name))] = fd
                if len(held) > limits.MAX_ARCHIVE_MEMBERS:
                    raise _too_many(what, limits.MAX_ARCHIVE_MEMBERS)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise _too_many(what, len(held)) from error
        raise ImageError(f"{what}: {error.strerror}", code="image-layout") from error
    return HeldFiles(held, what)


def _raise(error: OSError) -> None:
    raise error


def _held(name: str, folder: int) -> int | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOENT):
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _too_many(what: str, count: int) -> ImageError:
    return ImageError(
        f"{what} has more files than can be open at once ({count})",
        hint="raise the limit of open files (ulimit -n), or copy the one image out with skopeo",
        code="image-limit",
    )


class HeldFiles(_Bounded):
    """Files of a folder that were opened while that was allowed."""

    def __init__(self, held: Mapping[str, int], what: str) -> None:
        self._held = held
        self._what = what

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return name in self._held

    def _find(self, name: str) -> int:
        if name not in self._held:
            raise _missing(self._what, name)
        return self._held[name]

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return os.fstat(self._find(name)).st_size

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a file."""
        fd = self._find(name)
        return os.pread(fd, min(count, os.fstat(fd).st_size), 0)

    def copy(self, name: str, writer: BlobWriter) -> None:
        """Write a file into `writer`."""
        fd, position = self._find(name), 0
        while chunk := os.pread(fd, limits.CHUNK_BYTES, position):
            writer.write(chunk)
            position += len(chunk)


class ArchiveFiles:
    """The members of an open archive, found by the sandbox."""

    def __init__(self, fd: int, members: Mapping[str, Member], what: str) -> None:
        self._fd = fd
        self._members = members
        self._what = what

    def _find(self, name: str) -> Member:
        """Follow links inside the archive; there is no outside."""
        wanted = name
        for _ in range(_MAX_LINKS):
            member = self._members.get(wanted)
            if member is None:
                break
            if member.kind is MemberKind.FILE:
                return member
            wanted = member.target
        raise _missing(self._what, name)

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return self._find(name).size

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole file of at most `limit` bytes."""
        member = self._find(name)
        if member.size > limit:
            raise _too_large(self._what, name, limit)
        return self.head(name, member.size)

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a file."""
        member = self._find(name)
        return os.pread(self._fd, min(count, member.size), member.offset)

    def copy(self, name: str, writer: BlobWriter) -> None:
        """Write a file into `writer`."""
        self.feed(name, writer.write)

    def feed(self, name: str, sink: Callable[[bytes], None]) -> None:
        """Hand a file to `sink` in pieces."""
        member = self._find(name)
        position, end = member.offset, member.offset + member.size
        while position < end:
            chunk = os.pread(self._fd, min(limits.CHUNK_BYTES, end - position), position)
            if not chunk:
                raise ImageError(f"{self._what} ends within {name}", code="image-tar")
            sink(chunk)
            position += len(chunk)
