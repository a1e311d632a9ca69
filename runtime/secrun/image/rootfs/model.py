"""The values that travel between the parts of the renderer."""

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from secrun.digest import Digest
from secrun.record import record, row

# Bumped whenever the bytes made from the same layers change: it is part of every key.
FORMAT_VERSION = 1


class Compression(StrEnum):
    """How a layer blob is packed, by its media type."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    """Of app container images only, as is the next."""
    XZ = "xz"


class FileKind(StrEnum):
    """Types of file that a rootfs image can hold; sockets are not among them."""

    FILE = "file"
    DIRECTORY = "dir"
    SYMLINK = "link"
    CHAR = "char"
    BLOCK = "block"
    FIFO = "fifo"


@record
class LayerSource:
    """One layer blob in the store, bottom layer first in every sequence of them."""

    path: Path
    digest: Digest
    size: int
    compression: Compression
    diff_id: Digest


@record
class Passwd:
    """One line of the image's /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


@record
class Group:
    """One line of the image's /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


@record
class RootfsImage:
    """A rendered rootfs image: one EROFS file with its dm-verity tree at offset `data_size`.

    `max_id` is the highest uid or gid that owns a file; `dropped_xattrs` names those attributes of
    the layers that are left out by rule.
    """

    key: Digest
    path: Path
    format_version: int
    data_size: int
    file_size: int
    tree_digest: Digest
    verity_root: str
    verity_salt: str
    max_id: int
    users: tuple[Passwd, ...]
    groups: tuple[Group, ...]
    diff_ids: tuple[Digest, ...]
    dropped_xattrs: tuple[str, ...] = ()


@row
class Extent:
    """A run of stored bytes of a sparse file: its place in the file, in the source, and its length."""

    file_offset: int
    source_offset: int
    length: int


@row
class FdSource:
    """Content inside an open file; with `extents` the rest of the file is a hole."""

    fd: int
    offset: int = 0
    extents: tuple[Extent, ...] | None = None


@row
class PathSource:
    """Content that is a whole file on disk, opened when it is copied."""

    path: Path


Source: TypeAlias = bytes | FdSource | PathSource
Xattrs: TypeAlias = tuple[tuple[bytes, bytes], ...]


@record
class TreeEntry:
    """One name of the tree.

    `path` is relative without a leading slash and empty for the root; `mode` holds the twelve permission
    bits; `mtime_ns` counts nanoseconds since 1970; `size` and `source` are for regular files. Entries with
    the same `link_group` (not 0) are names of one inode, described by the first of them in tree order.
    """

    path: bytes
    kind: FileKind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    source: Source = b""
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()
    link_group: int = 0


@record
class PackedImage:
    """What packing a tree gives: its identity and the layout of the file."""

    tree_digest: Digest
    verity_root: str
    verity_salt: str
    data_size: int
    file_size: int
    contents: tuple[tuple[bytes, Digest], ...]


def rootfs_key(diff_ids: Sequence[Digest]) -> Digest:
    """Return the name of the rootfs image that these layers, bottom first, render to."""
    lines = [f"secrun rootfs image format {FORMAT_VERSION}", *map(str, diff_ids)]
    return Digest("sha256", hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest())


def tree_order(path: bytes) -> bytes:
    """Return the sort key that puts a folder before its contents and siblings in byte order."""
    return path.replace(b"/", b"\0")
