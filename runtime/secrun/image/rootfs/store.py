"""Load a rootfs image, or render it once whoever asks first."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import HostError, ImageError, StateError
from secrun.image.rootfs import limits
from secrun.image.rootfs.model import LayerSource, RootfsImage, rootfs_key
from secrun.image.rootfs.record import Facts, decode, encode, image_of, parse_facts
from secrun.locks import held
from secrun.paths import Layout

if TYPE_CHECKING:
    from secrun.image.rootfs.render import OpenLayer
    from secrun.syscalls import Syscalls


def _image_path(layout: Layout, key: Digest) -> Path:
    return layout.rootfs / f"{key.hex}.erofs"


def _record_path(layout: Layout, key: Digest) -> Path:
    return layout.rootfs / f"{key.hex}.json"


def _lock_path(layout: Layout, name: str) -> Path:
    return layout.locks / f"rootfs-{name}.lock"


def load(layout: Layout, key: Digest) -> RootfsImage | None:
    """Return the image `key` if it is in the store; None if its file or record is missing.

    Raises ImageError if the record is not what secrun writes or the file has another size. The content is
    not read: dm-verity or `verify_file` does that.
    """
    path = _image_path(layout, key)
    try:
        size = os.stat(path, follow_symlinks=False).st_size
        data = _record_path(layout, key).read_bytes()
    except FileNotFoundError:
        return None
    image = decode(data, key=key, path=path)
    if size != image.file_size:
        raise ImageError(
            f"rootfs image {path} has {size} bytes, its record says {image.file_size}",
            hint="remove it with secrun image rm and fetch the image again",
            code="image-rootfs-damaged",
        )
    return image


def ensure(layout: Layout, layers: Sequence[LayerSource], *, calls: "Syscalls | None" = None) -> RootfsImage:
    """Return the rootfs image of `layers`, bottom first, rendering it if the store does not have it.

    Callers that ask for one image at the same time wait for the first of them. Rendering forks: the process
    must have no other threads. Raises ImageError for bad layers, HostError if the sandbox cannot be made or
    the disk is full; nothing is left behind then.
    """
    diff_ids = tuple(layer.diff_id for layer in layers)
    key = rootfs_key(diff_ids)
    image = load(layout, key)
    if image is not None:
        return image
    with held(_lock_path(layout, key.hex)):
        image = load(layout, key)
        if image is None:
            try:
                image = _render(layout, layers, key, diff_ids, calls)
            except OSError as error:
                raise _worded(error, layout) from error
    return image


def _worded(error: OSError, layout: Layout) -> HostError:
    from secrun.image.rootfs.sandbox import is_disk_full

    if is_disk_full(error):
        return HostError(
            f"no space is left below {layout.root} while rendering a rootfs image: {error.strerror}",
            hint="free space (secrun gc, secrun image rm) or use another --root; "
            "rendering needs about twice the unpacked size of the image",
            code="host-disk-full",
        )
    return HostError(f"rendering a rootfs image below {layout.root} failed: {error}", code="host-render")


def open_layers(layers: Sequence[LayerSource], folder: Path, stack: ExitStack) -> "list[OpenLayer]":
    """Open the blobs of `layers`, and for each a file in `folder` that it is decompressed into."""
    from secrun.image.rootfs.render import OpenLayer

    if len(layers) > limits.MAX_LAYERS:
        raise ImageError(
            f"the image has {len(layers)} layers, the limit MAX_LAYERS is {limits.MAX_LAYERS}",
            code="image-limit",
        )
    opened = []
    for index, layer in enumerate(layers):
        try:
            blob = os.open(layer.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise ImageError(
                f"layer {layer.digest} is not in the store",
                hint="fetch the image again",
                code="image-blob-missing",
            ) from None
        stack.callback(os.close, blob)
        scratch = _create(folder / f"layer-{index}.tar", 0o600, stack)
        opened.append(
            OpenLayer(
                blob_fd=blob,
                scratch_fd=scratch,
                compression=layer.compression,
                size=layer.size,
                digest=layer.digest,
                diff_id=layer.diff_id,
            )
        )
    return opened


def _create(path: Path, mode: int, stack: ExitStack) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    stack.callback(os.close, fd)
    # The umask must not decide what the store looks like.
    os.fchmod(fd, mode)
    return fd


def _render(
    layout: Layout,
    layers: Sequence[LayerSource],
    key: Digest,
    diff_ids: Sequence[Digest],
    calls: "Syscalls | None",
) -> RootfsImage:
    from secrun.files import fsync_dir
    from secrun.image.rootfs.sandbox import run_confined
    from secrun.image.rootfs.scratch import scratch_folder
    from secrun.image.rootfs.worker import job
    from secrun.syscalls import LinuxSyscalls

    layout.rootfs.mkdir(mode=0o755, parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(layout))
        opened = open_layers(layers, folder, stack)
        unfinished = folder / "image.erofs"
        out_fd = _create(unfinished, 0o644, stack)
        facts = parse_facts(run_confined(job(opened, out_fd), calls or LinuxSyscalls()))
        _check_size(out_fd, facts)
        os.fsync(out_fd)
        path = _image_path(layout, key)
        image = image_of(facts, key=key, path=path, diff_ids=diff_ids)
        record = folder / "image.json"
        _write_record(record, encode(image), stack)
        # The record comes last: an image without one is not there.
        os.rename(unfinished, path)
        fsync_dir(layout.rootfs)
        os.rename(record, _record_path(layout, key))
        fsync_dir(layout.rootfs)
    return image


def _write_record(path: Path, data: bytes, stack: ExitStack) -> None:
    fd = _create(path, 0o644, stack)
    with os.fdopen(fd, "wb", closefd=False) as stream:
        stream.write(data)
    os.fsync(fd)


def purge_stale(layout: Layout) -> list[Path]:
    """Remove what rendering processes that no longer live have left; return what was removed.

    That is their scratch folders, and image files that never got their record.
    """
    from secrun.image.rootfs.scratch import purge_folders

    removed = purge_folders(layout)
    for path in sorted(layout.rootfs.glob("*.erofs")):
        record = path.with_suffix(".json")
        if record.exists():
            continue
        try:
            with held(_lock_path(layout, path.stem), blocking=False):
                if not record.exists():
                    path.unlink(missing_ok=True)
                    removed.append(path)
        except StateError:
            # Its owner lives: between the two renames.
            continue
    return removed


def _check_size(fd: int, facts: Facts) -> None:
    size = os.fstat(fd).st_size
    if size != facts.file_size:
        raise ImageError(
            f"the rendering process wrote {size} bytes and reports {facts.file_size}", code="image-worker"
        )


# Below this a fork costs more than the hashing that it takes over.
_WORTH_FORKING = 32 << 20


def _alone() -> bool:
    import threading

    return threading.active_count() == 1


def verify_file(image: RootfsImage) -> None:
    """Read the whole image file and hash it against its verity root; raises ImageError if a byte differs."""
    from secrun.image.rootfs import forks, verity

    processes = forks.processors() if image.file_size >= _WORTH_FORKING and _alone() else 1
    fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        good = size == image.file_size
        if good:
            root, hashes = verity.compute(fd, image.data_size, processes=processes)
            good = root == image.verity_root and os.pread(fd, len(hashes) + 1, image.data_size) == hashes
    finally:
        os.close(fd)
    if not good:
        raise ImageError(
            f"rootfs image {image.path} does not have the verity root {image.verity_root}",
            hint="remove it with secrun image rm and fetch the image again",
            code="image-rootfs-damaged",
        )
