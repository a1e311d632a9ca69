"""The guest's initramfs: stage0, modules, and the tree of stage1, as a cpio archive of fixed bytes.

Format: Documentation/driver-api/early-userspace/buffer-format.rst (newc). Time, owner, inode numbers and
order are fixed, and nothing is compressed: compressors change, and a guest would have to undo it.
"""

import stat
from collections.abc import Iterable, Iterator, Sequence

from secrun.image.rootfs import verity
from secrun.image.rootfs.model import FileKind, TreeEntry
from secrun.record import record
from secrun_kvm.modules import Module

INIT = "init"
_MODULES = "secrun/modules.d"
# What becomes the guest's root.
STAGE1 = "stage1"
_TRAILER = "TRAILER!!!"
_CONSOLE = (5, 1)
_FOLDERS = ("dev", "proc", "secrun", _MODULES, "sys")


@record
class Node:
    """One entry: `mode` with the bits of its type, `rdev` for devices."""

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


def _entry(node: Node, inode: int, links: int) -> Iterator[bytes]:
    name = node.path.encode() + b"\0"
    numbers = (inode, node.mode, 0, 0, links, 0, len(node.data), 0, 0, *node.rdev, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    yield header + bytes(-len(header) % 4)
    yield node.data + bytes(-len(node.data) % 4)


def archive(nodes: Sequence[Node]) -> bytes:
    """Return the cpio archive of `nodes`, in their order; folders come before what is in them."""
    parts = list[bytes]()
    for number, node in enumerate(nodes, start=1):
        parts += _entry(node, number, 2 if stat.S_ISDIR(node.mode) else 1)
    parts += _entry(Node(path=_TRAILER, mode=0), 0, 1)
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % _SECTOR)


# cpio(1) pads to it; the kernel does not care.
_SECTOR = 512


def file_name(module: Module) -> str:
    """Return the name of a module's file in the archive, without a leading slash."""
    return f"{_MODULES}/{module.name}.ko"


def module_lines(order: Sequence[Module]) -> str:
    """Return /secrun/modules: group and path of each module, in load order."""
    return "".join(f"{module.group} /{file_name(module)}\n" for module in order)


_TYPES = {FileKind.FILE: stat.S_IFREG, FileKind.DIRECTORY: stat.S_IFDIR, FileKind.SYMLINK: stat.S_IFLNK}


def tree(entries: Iterable[tuple[TreeEntry, bytes]]) -> list[Node]:
    """Return the entries of stage1's tree, with the bytes of its files, as nodes below `STAGE1`."""
    return [
        Node(
            path=f"{STAGE1}/{entry.path.decode()}".rstrip("/"),
            mode=_TYPES[entry.kind] | entry.mode,
            data=entry.target if entry.kind is FileKind.SYMLINK else data,
        )
        for entry, data in entries
    ]


def nodes(stage0: bytes, order: Sequence[Module], files: dict[str, bytes]) -> list[Node]:
    """Return the entries of a guest's initramfs, parents first; `files` are modules by name in it."""
    regular = {
        "secrun/modules": module_lines(order).encode(),
        "secrun/salt": f"{verity.SALT.hex()}\n".encode(),
        **files,
    }
    found = [Node(path=name, mode=stat.S_IFDIR | 0o755) for name in _FOLDERS]
    found += [
        # The kernel opens it for init before anything is mounted on /dev (init/main.c, console_on_rootfs).
        Node(path="dev/console", mode=stat.S_IFCHR | 0o600, rdev=_CONSOLE),
        Node(path=INIT, mode=stat.S_IFREG | 0o755, data=stage0),
        *(Node(path=name, mode=stat.S_IFREG | 0o644, data=data) for name, data in regular.items()),
    ]
    return sorted(found, key=lambda node: node.path.split("/"))
