"""From a list of entries to a checked tree of inodes, in the order that every later step follows."""

from collections.abc import Iterable, Sequence

from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.model import FileKind, TreeEntry, tree_order


class Inode:
    """One inode of the tree; the layout fills in where its bytes go."""

    __slots__ = (
        "children",
        "chunk_bits",
        "chunks",
        "data_block",
        "data_blocks",
        "entry",
        "file_index",
        "head",
        "layout",
        "nid",
        "nlink",
        "parent",
        "size",
        "tail",
        "xattrs",
    )

    def __init__(self, entry: TreeEntry, parent: "Inode | None") -> None:
        self.entry = entry
        self.parent = parent or self
        self.nlink = 1
        self.children: list[tuple[bytes, Inode]] = []
        # Index among the regular files, where the content digest is kept.
        self.file_index = -1
        self.size = 0
        self.layout = 0
        self.xattrs = b""
        # Bytes of the inode, its xattrs and its chunk table.
        self.head = 0
        # Bytes of content stored right behind the head.
        self.tail = 0
        self.data_block = 0
        self.data_blocks = 0
        self.chunk_bits = 0
        # Per chunk whether it holds data; empty unless the file is stored in chunks.
        self.chunks: tuple[bool, ...] = ()
        self.nid = 0


class Tree:
    """Inodes and names in tree order: a folder, then its contents, siblings by the bytes of their names."""

    __slots__ = ("files", "inodes", "names")

    def __init__(self) -> None:
        self.inodes: list[Inode] = []
        self.names: list[tuple[TreeEntry, Inode]] = []
        self.files = 0

    def add(self, entry: TreeEntry, parent: Inode | None) -> Inode:
        """Append a new inode with its first name."""
        inode = Inode(entry, parent)
        if entry.kind is FileKind.FILE:
            inode.file_index = self.files
            self.files += 1
        elif entry.kind is FileKind.DIRECTORY:
            inode.nlink = 2
            if parent is not None:
                parent.nlink += 1
        self.inodes.append(inode)
        self.names.append((entry, inode))
        return inode


_ROOT = TreeEntry(path=b"", kind=FileKind.DIRECTORY, mode=0o755, uid=0, gid=0, mtime_ns=0)


def _bad(path: bytes, why: str) -> ImageError:
    return ImageError(f"{path[:200]!r} cannot be packed: {why}", code="image-tree")


def _check(entry: TreeEntry) -> None:
    seconds = entry.mtime_ns // 1_000_000_000
    name = entry.path.rpartition(b"/")[2]
    if len(entry.path) > limits.MAX_PATH_BYTES or len(name) > limits.MAX_NAME_BYTES:
        raise _bad(entry.path, "its path or name is too long")
    if entry.path and (name in (b"", b".", b"..") or entry.path[:1] == b"/" or b"\0" in entry.path):
        raise _bad(entry.path, "its path is not canonical")
    if not 0 <= entry.mode <= 0o7777:
        raise _bad(entry.path, f"mode {entry.mode:o} has more than permission bits")
    if not (0 <= entry.uid <= limits.MAX_ID and 0 <= entry.gid <= limits.MAX_ID):
        raise _bad(entry.path, f"owner {entry.uid}:{entry.gid} is out of range")
    if not limits.MIN_MTIME_SECONDS <= seconds <= limits.MAX_MTIME_SECONDS:
        raise _bad(entry.path, "its mtime is outside the years 1 to 9999")
    if entry.kind is FileKind.SYMLINK and not 0 < len(entry.target) <= limits.MAX_LINK_TARGET_BYTES:
        raise _bad(entry.path, "its link target is empty or too long")
    if entry.kind is FileKind.FILE and (entry.size < 0 or entry.size > limits.MAX_IMAGE_BYTES):
        raise _bad(entry.path, f"size {entry.size} is out of range")


def build_tree(entries: Iterable[TreeEntry]) -> Tree:
    """Order and link `entries`; a missing root is made (0755, 0:0, mtime 0).

    Raises ImageError for anything that is not a tree: a missing parent, two entries of one path, a name
    below a file, values out of range.
    """
    ordered = sorted(entries, key=lambda entry: tree_order(entry.path))
    if not ordered or ordered[0].path:
        ordered.insert(0, _ROOT)
    if ordered[0].kind is not FileKind.DIRECTORY:
        raise _bad(b"", "the root is not a folder")
    _check(ordered[0])
    tree = Tree()
    groups: dict[int, Inode] = {}
    # The folders on the way to the current entry, with their paths.
    above: list[tuple[bytes, Inode]] = [(b"", tree.add(ordered[0], None))]
    for entry in ordered[1:]:
        _check(entry)
        folder, _, name = entry.path.rpartition(b"/")
        while above[-1][0] != folder:
            above.pop()
            if not above:
                raise _bad(entry.path, "its folder is missing or not a folder")
        parent = above[-1][1]
        if parent.children and parent.children[-1][0] == name:
            raise _bad(entry.path, "the path is there twice")
        inode = _place(tree, entry, parent, groups)
        parent.children.append((name, inode))
        if entry.kind is FileKind.DIRECTORY:
            above.append((entry.path, inode))
    return tree


def _place(tree: Tree, entry: TreeEntry, parent: Inode, groups: dict[int, Inode]) -> Inode:
    if not entry.link_group:
        return tree.add(entry, parent)
    if entry.kind is FileKind.DIRECTORY:
        raise _bad(entry.path, "a folder cannot be a hard link")
    known = groups.get(entry.link_group)
    if known is None:
        known = groups[entry.link_group] = tree.add(entry, parent)
    else:
        known.nlink += 1
        tree.names.append((entry, known))
    return known


def highest_id(entries: Sequence[TreeEntry]) -> int:
    """Return the highest uid or gid that owns anything."""
    return max((max(entry.uid, entry.gid) for entry in entries), default=0)
