"""dm-verity devices by ioctl: the kernel checks each block of an image against its root hash on reading.

Source: linux/dm-ioctl.h; Documentation/admin-guide/device-mapper/verity.rst. A device is told to go with its
last user as soon as it is open here, so a mount is all that keeps it, and nothing has to be undone.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from secrun.record import record

CONTROL = Path("/dev/mapper/control")
_BLOCK_DEVICES = Path("/sys/block")
_PREFIX = "secrun-"

# struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr, padding, dev,
# name, uuid, data.
_HEADER = struct.Struct("=3I 2I I i I I 4x Q 128s 129s 7x")
# struct dm_target_spec: sector_start, length, status, next, target_type.
_TARGET = struct.Struct("=QQiI16s")
_VERSION = (4, 0, 0)
_IOWR = 0xC0000000 | _HEADER.size << 16 | 0xFD << 8
_DEV_CREATE, _DEV_REMOVE, _DEV_SUSPEND, _TABLE_LOAD, _GET_TARGET_VERSION = 3, 4, 6, 9, 17
_READ_ONLY, _DEFERRED_REMOVE = 1 << 0, 1 << 17
_SECTOR = 512
_BUFFER = 4096


@record
class VerityTable:
    """What dm-verity needs to know of an image: sizes in bytes, root hash and salt in hex."""

    data_size: int
    root: str
    salt: str
    block: int = 4096

    def line(self, device: str) -> str:
        """Return the target's parameters for an image on `device`, whose tree follows a superblock; pure."""
        blocks = self.data_size // self.block
        words = ["1", device, device, str(self.block), str(self.block), str(blocks), str(blocks + 1)]
        return " ".join([*words, "sha256", self.root, self.salt])


def request(name: str, *, flags: int = 0, targets: int = 0, data: bytes = b"") -> bytearray:
    """Return a request as the kernel reads it; pure."""
    size = max(_BUFFER, _HEADER.size + len(data))
    header = _HEADER.pack(*_VERSION, size, _HEADER.size, targets, 0, flags, 0, 0, name.encode(), b"")
    return bytearray((header + data).ljust(size, b"\0"))


def table(target: VerityTable, device: str) -> bytes:
    """Return the one target of a table; pure."""
    line = target.line(device).encode() + b"\0"
    length = _TARGET.size + len(line) + 7 & ~7
    head = _TARGET.pack(0, target.data_size // _SECTOR, 0, length, b"verity")
    return (head + line).ljust(length, b"\0")


class DeviceMapper:
    """The kernel's device-mapper, open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def _call(self, number: int, message: bytearray) -> int:
        """Make one call; return the device number that it answers."""
        fcntl.ioctl(self._fd, _IOWR | number, message)
        device: int = _HEADER.unpack_from(message)[9]
        return device

    def knows_verity(self) -> bool:
        """Tell whether the kernel has the target, which it loads by itself."""
        try:
            self._call(_GET_TARGET_VERSION, request("verity"))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENOTTY, errno.ENXIO):
                return False
            raise
        return True

    def open_verity(self, name: str, target: VerityTable, loop: int) -> int:
        """Return an open read-only device that checks what it gives of the device `loop`; raises OSError."""
        data = os.fstat(loop).st_rdev
        table_bytes = table(target, f"{os.major(data)}:{os.minor(data)}")
        self._call(_DEV_CREATE, request(name))
        try:
            self._call(_TABLE_LOAD, request(name, flags=_READ_ONLY, targets=1, data=table_bytes))
            device = self._call(_DEV_SUSPEND, request(name))
            fd = os.open(f"/dev/dm-{os.minor(device)}", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.remove(name)
            raise
        self.remove(name)
        return fd

    def remove(self, name: str) -> None:
        """Remove a device now, or with its last user; fine if it is gone."""
        try:
            self._call(_DEV_REMOVE, request(name, flags=_DEFERRED_REMOVE))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise

    def close(self) -> None:
        """Let go of the control device."""
        os.close(self._fd)


def open_mapper() -> DeviceMapper | None:
    """Return the kernel's device-mapper if it is there and knows dm-verity."""
    try:
        mapper = DeviceMapper(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # A node without a module behind it is what udev leaves where there is none.
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return None
        raise
    try:
        known = mapper.knows_verity()
    except BaseException:
        mapper.close()
        raise
    if known:
        return mapper
    mapper.close()
    return None


def name_of(uuid: str, number: int) -> str:
    """Return the name of a pod's device: 0 is stage1, then the apps in their order."""
    return f"{_PREFIX}{uuid}-{number}"


def _mounted_here() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split(" ")[2] for line in lines}


def _attribute(path: Path) -> str:
    """Return what sysfs says of a device, nothing if that is just going."""
    try:
        return path.read_text().strip()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            return ""
        raise


def left_behind(uuid: str) -> Sequence[str]:
    """Name the devices of a pod that are mounted nowhere that this process sees."""
    mounted = _mounted_here()
    return [
        name
        for folder in _BLOCK_DEVICES.glob("dm-*")
        if (name := _attribute(folder / "dm/name")).startswith(f"{_PREFIX}{uuid}-")
        and _attribute(folder / "dev") not in mounted
    ]


def remove_left(uuid: str) -> None:
    """Remove what a start of a pod left that was killed between two calls."""
    names = left_behind(uuid)
    if names and (mapper := open_mapper()) is not None:
        try:
            for name in names:
                mapper.remove(name)
        finally:
            mapper.close()
