"""From open layer blobs to a packed image; runs inside the sandbox and parses what strangers wrote."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.rootfs import accounts, forks
from secrun.image.rootfs.inflate import Budget, expand
from secrun.image.rootfs.merge import MergedTree
from secrun.image.rootfs.model import Compression, Group, PackedImage, Passwd
from secrun.image.rootfs.pack import pack
from secrun.image.rootfs.tarindex import TarIndex
from secrun.image.rootfs.tree import highest_id


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLayer:
    """A layer blob and the scratch file it is decompressed into, both opened by the parent."""

    blob_fd: int
    scratch_fd: int
    compression: Compression
    size: int
    digest: Digest
    diff_id: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What rendering found out, beside the file it wrote."""

    packed: PackedImage
    max_id: int
    users: tuple[Passwd, ...]
    groups: tuple[Group, ...]
    dropped_xattrs: tuple[str, ...]


class _Expander:
    """Decompresses layers in as many threads as there are cores, and keeps the first error."""

    def __init__(self, layers: Sequence[OpenLayer]) -> None:
        self._todo = list(enumerate(layers))
        self._todo.reverse()
        self._budget = Budget()
        self._lock = threading.Lock()
        self.sizes: list[int | None] = [None] * len(layers)
        self.errors: list[BaseException] = []

    def work(self) -> None:
        """Take layers until none is left or one has failed."""
        while True:
            with self._lock:
                if not self._todo or self.errors:
                    return
                index, layer = self._todo.pop()
            try:
                self.sizes[index] = expand(
                    layer.blob_fd,
                    layer.scratch_fd,
                    compression=layer.compression,
                    size=layer.size,
                    digest=layer.digest,
                    diff_id=layer.diff_id,
                    budget=self._budget,
                )
            except (ImageError, OSError, MemoryError) as error:
                self.errors.append(error)


def _expand_all(layers: Sequence[OpenLayer], threads: int) -> list[int]:
    expander = _Expander(layers)
    helpers = [threading.Thread(target=expander.work) for _ in range(min(threads, len(layers)) - 1)]
    for helper in helpers:
        helper.start()
    expander.work()
    for helper in helpers:
        helper.join()
    if expander.errors:
        raise expander.errors[0]
    sizes = [size for size in expander.sizes if size is not None]
    if len(sizes) != len(layers):
        # A thread died of a defect: its layer must not pass for an empty one.
        raise RuntimeError("a layer was not decompressed")
    return sizes


def merged(
    layers: Sequence[OpenLayer], *, processes: int, note: Callable[[str], None] = lambda _: None
) -> MergedTree:
    """Decompress `layers`, bottom first, and apply them to one tree; raises what `render` raises."""
    note("expand")
    sizes = _expand_all(layers, processes)
    note("merge")
    tree = MergedTree()
    for layer, size in zip(layers, sizes, strict=True):
        tree.apply(TarIndex(layer.scratch_fd, size, layer=str(layer.digest)), layer.scratch_fd)
    return tree


def render(
    layers: Sequence[OpenLayer], out_fd: int, *, processes: int, note: Callable[[str], None] = lambda _: None
) -> Rendered:
    """Render `layers`, bottom first, into the empty file `out_fd`.

    `note` is told the name of each phase as it begins. Raises ImageError for whatever is wrong with the
    layers, OSError from writing.
    """
    tree = merged(layers, processes=processes, note=note)
    entries = tree.entries()
    note("pack")
    packed = pack(entries, out_fd, processes=processes, contents=False)
    return Rendered(
        packed=packed,
        max_id=highest_id(entries),
        users=accounts.users(tree),
        groups=accounts.groups(tree),
        dropped_xattrs=tuple(
            sorted(name.decode("utf-8", "backslashreplace") for name in tree.dropped_xattrs)
        ),
    )


def default_processes() -> int:
    """Return how many processes and threads rendering uses on this host."""
    return forks.processors()
