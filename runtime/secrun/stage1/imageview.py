"""Stored images that root has mounted to look at: read-only, checked as those of pods are."""

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from secrun import locks
from secrun.checkpoint import reached
from secrun.digest import Digest
from secrun.errors import HostError, StateError
from secrun.image.rootfs import RootfsImage
from secrun.paths import Layout
from secrun.record import record
from secrun.stage1 import devicemapper
from secrun.stage1.imagemount import mount_rootfs
from secrun.syscalls import MNT_DETACH, MS_NOEXEC, MS_NOSUID, UMOUNT_NOFOLLOW, Syscalls

_KEY_DIGITS = 64


@record
class Mounted:
    """An image, named by the digest of its manifest, and where it is mounted."""

    digest: Digest
    path: Path


def _folder(layout: Layout, digest: Digest) -> Path:
    # Both algorithms have names of their own length.
    return layout.mounts / digest.hex


def _device(folder: Path) -> str:
    """Return the first part of the name of its device-mapper device, if it has one."""
    return f"image-{folder.name[:_KEY_DIGITS]}"


def _points() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split(" ")[4].encode().decode("unicode_escape") for line in lines}


def _folders(layout: Layout) -> list[Path]:
    try:
        names = sorted(os.listdir(layout.mounts))
    except FileNotFoundError:
        return []
    return [layout.mounts / name for name in names]


def mounted(layout: Layout) -> Iterator[Mounted]:
    """Yield what is mounted now."""
    points = _points()
    for folder in _folders(layout):
        if os.path.realpath(folder) in points:
            algorithm = "sha256" if len(folder.name) == _KEY_DIGITS else "sha512"
            yield Mounted(digest=Digest.parse(f"{algorithm}:{folder.name}"), path=folder)


def images_mounted(layout: Layout) -> frozenset[Digest]:
    """Return the images that are mounted now."""
    return frozenset(item.digest for item in mounted(layout))


def _lock(layout: Layout) -> Path:
    return layout.locks / "image-mounts.lock"


def mount(layout: Layout, calls: Syscalls, digest: Digest, image: RootfsImage) -> Path:
    """Mount an image that was admitted; return where. It stays until `unmount` or a reboot.

    Raises ImageError if it is damaged, HostError or OSError if the kernel will not.
    """
    folder = _folder(layout, digest)
    with locks.held(_lock(layout)):
        if digest in images_mounted(layout):
            return folder
        layout.mounts.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What a mount that was killed has left.
        devicemapper.remove_left(_device(folder))
        folder.mkdir(mode=0o700, exist_ok=True)
        reached("image-folder-made")
        mapper = devicemapper.open_mapper()
        try:
            name = devicemapper.name_of(_device(folder), 0)
            mount_rootfs(calls, image, folder, MS_NOSUID | MS_NOEXEC, mapper=mapper, name=name)
        except BaseException:
            folder.rmdir()
            raise
        finally:
            if mapper is not None:
                mapper.close()
        reached("image-mounted")
    return folder


def unmount(layout: Layout, calls: Syscalls, digest: Digest, *, force: bool) -> Path:
    """Unmount an image; `force` does so although somebody has a file of it open. Raises StateError."""
    folder = _folder(layout, digest)
    with locks.held(_lock(layout)):
        if digest not in images_mounted(layout):
            raise StateError(f"image {digest.hex[:12]} is not mounted", code="state-not-mounted")
        try:
            calls.umount(str(folder), UMOUNT_NOFOLLOW | (MNT_DETACH if force else 0))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise HostError(
                f"{folder} is in use",
                hint="end who works in it (fuser -m), or give --force",
                code="host-busy",
            ) from error
        reached("image-unmounted")
        folder.rmdir()
    return folder


def remove_stale(layout: Layout) -> Sequence[Path]:
    """Remove what mounting or unmounting left that was killed; return the folders."""
    removed: list[Path] = []
    if not _folders(layout):
        return removed
    with locks.held(_lock(layout)):
        points = _points()
        for folder in _folders(layout):
            if os.path.realpath(folder) not in points:
                devicemapper.remove_left(_device(folder))
                folder.rmdir()
                removed.append(folder)
    return removed
