"""Pack a tree into one EROFS file with its dm-verity tree."""

import mmap
import os
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

from secrun.digest import Digest
from secrun.image.rootfs import erofs, verity
from secrun.image.rootfs.forks import run_shares
from secrun.image.rootfs.model import FileKind, PackedImage, TreeEntry
from secrun.image.rootfs.tree import Tree, build_tree
from secrun.image.rootfs.treedigest import tree_digest
from secrun.image.rootfs.writer import DIGEST_SIZE, share_bounds, write_share


def pack(
    entries: Iterable[TreeEntry], out_fd: int, *, processes: int = 1, contents: bool = True
) -> PackedImage:
    """Write the tree of `entries`, in any order, into the empty file `out_fd`.

    The same entries give the same bytes, whatever their order, the host, the user or the number of
    `processes`. More than one forks and so needs a process without other threads. `contents` asks for the
    digest of every regular file in the result. Raises ImageError for entries that
    are not a tree, OSError from the file (ENOSPC among others). The caller syncs the file.
    """
    tree = build_tree(entries)
    plan = erofs.plan(tree)
    os.ftruncate(out_fd, plan.data_size)
    os.pwrite(out_fd, erofs.superblock(plan), 0)
    with mmap.mmap(-1, max(1, tree.files) * DIGEST_SIZE) as shared:
        with memoryview(shared) as digests:
            bounds = share_bounds(tree.inodes, processes)
            run_shares(
                [
                    partial(write_share, plan, first, last, out_fd, digests)
                    for first, last in pairwise(bounds)
                    if first < last
                ]
            )
        digests_hex = shared[: tree.files * DIGEST_SIZE].hex()

    def content_of(index: int) -> str:
        place = index * DIGEST_SIZE * 2
        return digests_hex[place : place + DIGEST_SIZE * 2]

    listing: list[Digest] = []
    root, hashes = verity.compute(
        out_fd,
        plan.data_size,
        processes=processes,
        meanwhile=lambda: listing.append(tree_digest(tree, content_of)),
    )
    _append(out_fd, hashes, plan.data_size)
    return PackedImage(
        tree_digest=listing[0],
        verity_root=root,
        verity_salt=verity.SALT.hex(),
        data_size=plan.data_size,
        file_size=plan.data_size + len(hashes),
        contents=_contents(tree, content_of) if contents else (),
    )


def _append(fd: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, position)
        position += count
        view = view[count:]


def _contents(tree: Tree, content_of: Callable[[int], str]) -> tuple[tuple[bytes, Digest], ...]:
    return tuple(
        (entry.path, Digest("sha256", content_of(inode.file_index)))
        for entry, inode in tree.names
        if inode.entry.kind is FileKind.FILE
    )
