"""Mount EROFS images read-only: by dm-verity where the kernel has it, else from the file or by loop."""

import errno
import fcntl
import os
import re
import struct
from pathlib import Path

from secrun.errors import HostError
from secrun.image import rootfs
from secrun.image.rootfs import RootfsImage
from secrun.stage1.devicemapper import DeviceMapper, VerityTable
from secrun.syscalls import MS_NODEV, MS_RDONLY, Syscalls

# linux/loop.h
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
# struct loop_config: fd, block_size, loop_info64 (52 bytes, lo_flags, the rest), reserved.
_LOOP_CONFIG = struct.Struct("=II 52xI 176x 64x")
# Another process may take the device between the two calls.
_ATTEMPTS = 64
# CONFIG_EROFS_FS_BACKED_BY_FILE
_MOUNTS_FILES_SINCE = (6, 12)


def mounts_files(release: str) -> bool:
    """Tell whether a kernel of this release (uname(2)) may mount an EROFS file itself; pure.

    An older one must not be asked: it writes an error to the kernel log each time.
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) >= _MOUNTS_FILES_SINCE


def _configure_loop(image_fd: int) -> int:
    """Return an open loop device on `image_fd`; it frees itself with its last user (loop(4), autoclear)."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
            config = _LOOP_CONFIG.pack(image_fd, 4096, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
                continue
            return device
    finally:
        os.close(control)
    raise HostError(f"no free loop device after {_ATTEMPTS} attempts", code="host-loop")


def _options(label: str) -> str:
    """Return mount(8)'s "context=": the quotes keep the comma between two categories."""
    return f'context="{label}"' if label else ""


def _loop(image: Path) -> int:
    image_fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _configure_loop(image_fd)
    finally:
        os.close(image_fd)


def mount_verified(
    call: Syscalls,
    image: Path,
    target: Path,
    flags: int = 0,
    *,
    mapper: DeviceMapper,
    name: str,
    verity: VerityTable,
    label: str = "",
) -> None:
    """Mount an EROFS file so that the kernel checks each block of it; raises OSError or HostError.

    A block that is not what the root hash says is an I/O error to whoever reads it.
    """
    loop = _loop(image)
    try:
        device = mapper.open_verity(name, verity, loop)
    finally:
        # The device-mapper holds it from now on.
        os.close(loop)
    try:
        flags |= MS_RDONLY | MS_NODEV
        call.mount(f"/proc/self/fd/{device}", str(target), "erofs", flags, _options(label))
    finally:
        os.close(device)


def mount_rootfs(
    call: Syscalls,
    image: RootfsImage,
    target: Path,
    flags: int = 0,
    *,
    mapper: DeviceMapper | None,
    name: str,
    label: str = "",
) -> None:
    """Mount a rootfs image read-only, after reading and checking all of it if the kernel has no dm-verity.

    Raises ImageError if it is damaged, OSError or HostError.
    """
    if mapper is None:
        rootfs.verify_file(image)
        mount_image(call, image.path, target, flags, label=label)
        return
    verity = VerityTable(data_size=image.data_size, root=image.verity_root, salt=image.verity_salt)
    mount_verified(call, image.path, target, flags, mapper=mapper, name=name, verity=verity, label=label)


def mount_image(call: Syscalls, image: Path, target: Path, flags: int = 0, *, label: str = "") -> None:
    """Mount the EROFS file `image` on `target`, all of it labelled `label`; raises OSError or HostError.

    Where the kernel was built without it, or the file system cannot serve it, a file gives ENOTBLK; the
    bytes and the rights of a loop mount are the same.
    """
    flags |= MS_RDONLY | MS_NODEV
    data = _options(label)
    if mounts_files(os.uname().release):
        try:
            call.mount(str(image), str(target), "erofs", flags, data)
        except OSError as error:
            if error.errno != errno.ENOTBLK:
                raise
        else:
            return
    device = _loop(image)
    try:
        call.mount(f"/proc/self/fd/{device}", str(target), "erofs", flags, data)
    finally:
        # The mount holds the device from now on.
        os.close(device)
