"""Write all layers of an image as the one rootfs of an app container image; runs in the sandbox."""

from collections.abc import Sequence

from secrun.image.aci.filter import ROOTFS
from secrun.image.aci.tarwriter import END, header, padding
from secrun.image.rootfs.inflate import write_all
from secrun.image.rootfs.model import FdSource, FileKind, TreeEntry, tree_order
from secrun.image.rootfs.render import OpenLayer, default_processes, merged
from secrun.image.rootfs.sandbox import Confined
from secrun.image.rootfs.tarindex import LinkKind
from secrun.image.rootfs.worker import confined
from secrun.image.rootfs.writer import fill
from secrun.jsonio import JsonObject

_COPY = 1 << 20


def _content(entry: TreeEntry, out_fd: int) -> None:
    source = entry.source
    if not isinstance(source, bytes | FdSource):
        raise TypeError(source)
    buffer = bytearray(min(_COPY, entry.size))
    position = 0
    while position < entry.size:
        view = memoryview(buffer)[: entry.size - position]
        fill(source, view, position)
        write_all(out_fd, bytes(view))
        position += len(view)
    write_all(out_fd, padding(entry.size))


def write_rootfs(entries: Sequence[TreeEntry], out_fd: int) -> None:
    """Write a tree below `rootfs`, folders before their contents; further names of a file are hard links."""
    first: dict[int, bytes] = {}
    for entry in sorted(entries, key=lambda entry: tree_order(entry.path)):
        name = ROOTFS + b"/" + entry.path if entry.path else ROOTFS
        linked = first.setdefault(entry.link_group, name) if entry.link_group else name
        if linked != name:
            write_all(out_fd, header(name, LinkKind.HARD, entry, target=linked))
        elif entry.kind is FileKind.FILE:
            write_all(out_fd, header(name, FileKind.FILE, entry, size=entry.size))
            _content(entry, out_fd)
        else:
            write_all(out_fd, header(name, entry.kind, entry, target=entry.target))
    write_all(out_fd, END)


def job(layers: Sequence[OpenLayer], out_fd: int) -> Confined:
    """Return the writing of `layers` behind what is in `out_fd` as a job for the sandbox."""
    processes = default_processes()

    def body() -> JsonObject:
        write_rootfs(merged(layers, processes=processes).entries(), out_fd)
        return {}

    return confined(body, layers, out_fd)
