"""The tree digest: what a tree is, whatever file system holds it (docs/rootfs-format.md)."""

import hashlib
import re
from collections.abc import Callable

from secrun.digest import Digest
from secrun.image.rootfs.model import FileKind, TreeEntry
from secrun.image.rootfs.tree import Tree

_HEADER = b"secrun tree 1\n"
_BATCH = 2000
_ESCAPED = re.compile(rb"[^!-$&-~]")


def escape(raw: bytes) -> bytes:
    """Write every byte outside printable ASCII, the space and the percent sign as %xx."""
    return _ESCAPED.sub(lambda match: b"%%%02x" % match[0][0], raw)


def line(entry: TreeEntry, content: str, first_name: bytes | None) -> bytes:
    """Return the line of one name, with the hex sha256 `content` of a regular file."""
    kind = entry.kind
    fields = [
        kind.value.encode(),
        b"%o" % (0o777 if kind is FileKind.SYMLINK else entry.mode),
        b"%d" % entry.uid,
        b"%d" % entry.gid,
        b"%d" % entry.mtime_ns,
        b"/" + escape(entry.path),
    ]
    if kind is FileKind.FILE:
        fields.append(b"size=%d" % entry.size)
        fields.append(b"sha256=" + content.encode())
    elif kind is FileKind.SYMLINK:
        fields.append(b"target=" + escape(entry.target))
    elif kind is FileKind.CHAR or kind is FileKind.BLOCK:
        fields.append(b"rdev=%d,%d" % entry.rdev)
    if first_name is not None:
        fields.append(b"same=/" + escape(first_name))
    fields.extend(
        b"xattr=" + escape(name) + b"=" + value.hex().encode() for name, value in sorted(entry.xattrs)
    )
    return b" ".join(fields) + b"\n"


def tree_digest(tree: Tree, content_of: Callable[[int], str]) -> Digest:
    """Hash the listing of `tree`; `content_of` gives the hex sha256 of a regular file by its index."""
    state = hashlib.sha256(_HEADER)
    batch = []
    for entry, inode in tree.names:
        first = inode.entry
        content = content_of(inode.file_index) if first.kind is FileKind.FILE else ""
        if entry is first:
            batch.append(line(entry, content, None))
        else:
            batch.append(_link_line(entry, first, content))
        if len(batch) >= _BATCH:
            state.update(b"".join(batch))
            batch.clear()
    state.update(b"".join(batch))
    return Digest("sha256", state.hexdigest())


def _link_line(entry: TreeEntry, first: TreeEntry, content: str) -> bytes:
    """Describe a further name of an inode: the inode's values with this name's path."""
    described = TreeEntry(
        path=entry.path,
        kind=first.kind,
        mode=first.mode,
        uid=first.uid,
        gid=first.gid,
        mtime_ns=first.mtime_ns,
        size=first.size,
        target=first.target,
        rdev=first.rdev,
        xattrs=first.xattrs,
    )
    return line(described, content, first.path)
