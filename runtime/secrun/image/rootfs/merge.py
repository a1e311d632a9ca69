"""Apply layers, bottom first, to one tree in memory: what `umoci unpack` does, without a file system.

Source: OCI image-spec 1.1, layer.md ("Applying Changesets"); clobbering, whiteouts and hard links follow
umoci in what comes first. Names are cleaned lexically and parents are resolved inside the tree, so nothing
can leave it.
"""

import stat
from collections import deque
from collections.abc import Iterable, Sequence

from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.model import FdSource, FileKind, TreeEntry, Xattrs
from secrun.image.rootfs.tarindex import LinkKind, TarEntry

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"


class Node:
    """A file of the merged tree; several names may share one, folders never."""

    __slots__ = (
        "children",
        "depth",
        "gid",
        "kind",
        "layer",
        "link_group",
        "mode",
        "mtime_ns",
        "parent",
        "path_length",
        "rdev",
        "size",
        "source",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, kind: FileKind, layer: int) -> None:
        self.kind = kind
        # The last layer that made the file or, for folders, put something below it.
        self.layer = layer
        self.mode = 0o755
        self.uid = 0
        self.gid = 0
        self.mtime_ns = 0
        self.size = 0
        self.source: FdSource | bytes = b""
        self.target = b""
        self.rdev = (0, 0)
        self.xattrs: Xattrs = ()
        self.link_group = 0
        # Folders only; other files share one empty table.
        self.children: dict[bytes, Node] = {} if kind is FileKind.DIRECTORY else _NO_CHILDREN
        self.parent: Node | None = None
        self.depth = 0
        self.path_length = 0


_NO_CHILDREN: dict[bytes, Node] = {}


def clean(name: bytes) -> list[bytes]:
    """Return the components of `name` below the root, `.` and `..` taken lexically and never above it."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return parts


# Attributes that belong to the machine that built the image, or steer an overlay mounted above it.
_DROPPED_NAMES = (b"security.selinux", b"security.evm")
_DROPPED_PREFIXES = (b"trusted.", b"user.overlay.")
_KEPT_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")
_KEPT_PREFIXES = (b"user.", b"security.")


def keeps_xattr(name: bytes) -> bool:
    """Tell whether an attribute of a layer goes into the image (docs/rootfs-format.md says why)."""
    if name in _DROPPED_NAMES or name.startswith(_DROPPED_PREFIXES):
        return False
    return name in _KEPT_NAMES or (name.startswith(_KEPT_PREFIXES) and name not in _KEPT_PREFIXES)


def _bad(entry: TarEntry, why: str) -> ImageError:
    return ImageError(f"entry {entry.name[:200]!r}: {why}", code="image-layer")


class MergedTree:
    """The tree so far; `apply` adds one layer."""

    def __init__(self) -> None:
        self.root = Node(FileKind.DIRECTORY, -1)
        self.dropped_xattrs: set[bytes] = set()
        self._layer = -1
        self._nodes = 1
        self._groups = 0
        # Names that this layer made by linking to a file of a layer below.
        self._linked: set[tuple[Node, bytes]] = set()
        # Raw folder name to folder, valid until a name is removed.
        self._folders: dict[bytes, Node] = {}

    def apply(self, entries: Iterable[TarEntry], fd: int) -> None:
        """Apply the entries of the next layer, whose contents are in the file `fd`.

        Raises ImageError for entries that cannot be applied: below a file, hard links to nothing or to a
        folder, a whiteout without a name, a root that is no folder.
        """
        self._layer += 1
        self._linked.clear()
        self._folders.clear()
        for entry in entries:
            self._apply(entry, fd)

    def _apply(self, entry: TarEntry, fd: int) -> None:
        parts = clean(entry.name)
        if not parts:
            if entry.kind is not FileKind.DIRECTORY:
                raise _bad(entry, "the root of an image is a folder")
            self._describe(self.root, entry, fd)
            return
        name = parts[-1]
        if name.startswith(_WHITEOUT):
            self._whiteout(entry, parts[:-1], name)
            return
        folder = self._folder(entry, parts[:-1])
        old = folder.children.get(name)
        if entry.kind is FileKind.DIRECTORY and old is not None and old.kind is FileKind.DIRECTORY:
            self._describe(old, entry, fd)
            self._mark(old)
            return
        if old is not None:
            del folder.children[name]
            self._folders.clear()
        if entry.kind is LinkKind.HARD:
            self._link(entry, folder, name)
        else:
            node = self._new(entry, entry.kind, folder, name)
            self._describe(node, entry, fd)

    def _new(self, entry: TarEntry, kind: FileKind, folder: Node, name: bytes) -> Node:
        self._check_place(entry, folder, name)
        self._nodes += 1
        if self._nodes > limits.MAX_ENTRIES:
            raise ImageError(
                f"the image has more than {limits.MAX_ENTRIES} files, the limit MAX_ENTRIES",
                code="image-limit",
            )
        self._mark(folder)
        node = Node(kind, self._layer)
        if kind is FileKind.DIRECTORY:
            node.parent = folder
            node.depth = folder.depth + 1
            node.path_length = folder.path_length + 1 + len(name)
        folder.children[name] = node
        return node

    @staticmethod
    def _check_place(entry: TarEntry, folder: Node, name: bytes) -> None:
        for what, got, limit_name, limit in (
            ("a name", len(name), "MAX_NAME_BYTES", limits.MAX_NAME_BYTES),
            ("the path", folder.path_length + 1 + len(name), "MAX_PATH_BYTES", limits.MAX_PATH_BYTES),
            ("the depth", folder.depth + 1, "MAX_PATH_DEPTH", limits.MAX_PATH_DEPTH),
        ):
            if got > limit:
                raise ImageError(
                    f"entry {entry.name[:80]!r}: {what} is {got}, the limit {limit_name} is {limit}",
                    code="image-limit",
                )

    def _describe(self, node: Node, entry: TarEntry, fd: int) -> None:
        """Give `node` the metadata and content of `entry`, replacing all it had."""
        node.mode = entry.mode
        node.uid = entry.uid
        node.gid = entry.gid
        node.mtime_ns = entry.mtime_ns
        node.xattrs = self._kept(entry.xattrs) if entry.xattrs else ()
        if entry.kind is FileKind.FILE:
            node.size = entry.size
            node.source = FdSource(fd, entry.offset, entry.extents) if entry.size else b""
        elif entry.kind is FileKind.SYMLINK:
            node.target = entry.target
            if not 0 < len(entry.target) <= limits.MAX_LINK_TARGET_BYTES:
                raise _bad(entry, f"a link target of {len(entry.target)} bytes is empty or too long")
        else:
            node.rdev = entry.rdev

    def _kept(self, xattrs: Xattrs) -> Xattrs:
        kept = tuple(pair for pair in xattrs if keeps_xattr(pair[0]))
        if len(kept) != len(xattrs) and len(self.dropped_xattrs) < limits.MAX_DROPPED_NAMES:
            self.dropped_xattrs.update(name for name, _ in xattrs if not keeps_xattr(name))
        return kept

    def _mark(self, folder: Node) -> None:
        """Note that this layer put something into `folder`."""
        node: Node | None = folder
        while node is not None and node.layer != self._layer:
            node.layer = self._layer
            node = node.parent

    def _walk(self, asked: bytes, parts: Sequence[bytes]) -> list[tuple[bytes, Node | None]]:
        """Resolve `parts` inside the tree; a name that is not there stays as it is written, with None."""
        path: list[tuple[bytes, Node | None]] = [(b"", self.root)]
        todo = deque(parts)
        links = 0
        while todo:
            part = todo.popleft()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if len(path) > 1:
                    path.pop()
                continue
            here = path[-1][1]
            child = here.children.get(part) if here is not None else None
            if child is None or child.kind is not FileKind.SYMLINK:
                path.append((part, child))
                continue
            links += 1
            if links > limits.MAX_SYMLINKS:
                raise ImageError(
                    f"entry {asked[:200]!r} goes through more than {links - 1} symbolic links, "
                    "the limit MAX_SYMLINKS",
                    code="image-limit",
                )
            if child.target.startswith(b"/"):
                del path[1:]
            todo.extendleft(reversed(child.target.split(b"/")))
        return path

    def _folder(self, entry: TarEntry, parts: list[bytes]) -> Node:
        """Return the folder that an entry goes into, making what is missing.

        What is made is 0755, 0:0 with mtime 0, but below a set-group-ID folder it takes over group and bit,
        as mkdir(2) has it.
        """
        if not parts:
            return self.root
        key = b"/".join(parts)
        known = self._folders.get(key)
        if known is not None:
            return known
        folder = self.root
        for name, node in self._walk(entry.name, parts)[1:]:
            if folder.kind is not FileKind.DIRECTORY:
                raise _bad(entry, "its parent is not a folder")
            folder = node if node is not None else self._implied(entry, folder, name)
        if folder.kind is not FileKind.DIRECTORY:
            raise _bad(entry, "its parent is not a folder")
        self._folders[key] = folder
        return folder

    def _implied(self, entry: TarEntry, folder: Node, name: bytes) -> Node:
        node = self._new(entry, FileKind.DIRECTORY, folder, name)
        if folder.mode & stat.S_ISGID:
            node.mode |= stat.S_ISGID
            node.gid = folder.gid
        return node

    def _link(self, entry: TarEntry, folder: Node, name: bytes) -> None:
        target = clean(entry.target)
        place = self._walk(entry.name, target[:-1])[-1][1]
        node = place.children.get(target[-1]) if place is not None and target else None
        if node is None:
            raise _bad(entry, f"hard link to {entry.target[:200]!r}, which is not there")
        if node.kind is FileKind.DIRECTORY:
            raise _bad(entry, f"hard link to the folder {entry.target[:200]!r}")
        self._check_place(entry, folder, name)
        self._mark(folder)
        if not node.link_group:
            self._groups += 1
            node.link_group = self._groups
        folder.children[name] = node
        self._linked.add((folder, name))

    def _whiteout(self, entry: TarEntry, parts: list[bytes], name: bytes) -> None:
        folder = self._walk(entry.name, parts)[-1][1]
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise _bad(entry, "a whiteout without the name it removes")
        if folder is None:
            return
        if name == _OPAQUE:
            todo = [(folder, child) for child in folder.children]
        else:
            todo = [(folder, hidden)] if hidden in folder.children else []
        while todo:
            above, child_name = todo.pop()
            child = above.children[child_name]
            if child.layer != self._layer and (above, child_name) not in self._linked:
                del above.children[child_name]
                self._folders.clear()
            else:
                # What this layer itself brought stays; look for older files below it.
                todo.extend((child, below) for below in child.children)

    def entries(self) -> list[TreeEntry]:
        """Return the tree as entries ready to pack; raises ImageError if the files are too large in sum."""
        result = []
        total = 0
        counted: set[int] = set()
        todo: list[tuple[bytes, Node]] = [(b"", self.root)]
        while todo:
            path, node = todo.pop()
            if node.link_group not in counted:
                total += node.size
            if node.link_group:
                counted.add(node.link_group)
            result.append(_tree_entry(path, node))
            prefix = path + b"/" if path else b""
            todo.extend((prefix + name, child) for name, child in node.children.items())
        if total > limits.MAX_IMAGE_BYTES:
            raise ImageError(
                f"the files have {total} bytes, the limit MAX_IMAGE_BYTES is {limits.MAX_IMAGE_BYTES}",
                code="image-limit",
            )
        return result

    def lookup(self, path: bytes) -> Node | None:
        """Return the file at `path`, following symbolic links inside the tree; None if it is not there."""
        try:
            return self._walk(path, path.split(b"/"))[-1][1]
        except ImageError:
            # A loop: there is no such file.
            return None


def _tree_entry(path: bytes, node: Node) -> TreeEntry:
    return TreeEntry(
        path=path,
        kind=node.kind,
        mode=0o777 if node.kind is FileKind.SYMLINK else node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_ns=node.mtime_ns,
        size=node.size,
        source=node.source,
        target=node.target,
        rdev=node.rdev,
        xattrs=node.xattrs,
        link_group=node.link_group,
    )
