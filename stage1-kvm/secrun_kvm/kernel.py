"""The guest's kernel: where this host's packages put one, and which release a kernel file is.

Sources: Documentation/arch/x86/boot.rst (the setup header), Documentation/arch/arm64/booting.rst.
"""

import os
import re
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from secrun.errors import HostError
from secrun.record import record

BOOT = Path("/boot")
# A distribution's kernel has 10 to 60 MB; a file beyond this is something else.
MAX_KERNEL_BYTES = 256 << 20

_RELEASE = re.compile(rb"[0-9][0-9A-Za-z.+~_-]{0,63}")
# What Debian calls the files of a version: upstream's number, and the ABI if it counts one.
_VERSION = r"(\d[0-9a-z.+~]*(?:-[0-9][0-9a-z.+~]*)?)"

# boot.rst, offsets in the file.
_SECTORS = 0x1F1
_MAGIC = 0x202
_PROTOCOL = 0x206
_KERNEL_VERSION = 0x20E
_SECTOR = 512
# "If the field contains 0, the real value is 4."
_OLD_SECTORS = 4
_ARM_MAGIC = 56
_BANNER = re.compile(rb"Linux version ([0-9][0-9A-Za-z.+~_-]{0,63}) \(")


def _word(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<H", data, offset)[0])


def _bzimage_release(data: bytes) -> str:
    """Read the release of a bzImage: the first word of the text that its setup header points to."""
    if len(data) < _KERNEL_VERSION + 2 or data[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise ValueError("it has no bzImage header")
    if _word(data, _PROTOCOL) < 0x200:
        raise ValueError("its boot protocol is older than 2.00")
    setup = ((data[_SECTORS] or _OLD_SECTORS) + 1) * _SECTOR
    pointer = _word(data, _KERNEL_VERSION)
    if not pointer or len(data) < setup:
        raise ValueError("its header points to no version")
    # It counts from 0x200 and leads into the setup part: behind that there is no text.
    text = data[pointer + 0x200 : setup].partition(b"\0")[0].partition(b" ")[0]
    return _checked(text)


def _image_release(data: bytes) -> str:
    """Read the release of an arm64 Image, whose header has none: from the banner in its data."""
    if data[_ARM_MAGIC : _ARM_MAGIC + 4] != b"ARM\x64":
        raise ValueError("it has no arm64 Image header")
    found = _BANNER.search(data)
    if found is None:
        raise ValueError("it holds no version")
    return _checked(found[1])


def _checked(text: bytes) -> str:
    """Accept a release as part of a path."""
    if not _RELEASE.fullmatch(text):
        raise ValueError(f"its version {text[:80]!r} is none")
    return text.decode()


@record
class Platform:
    """What depends on the processor's architecture."""

    package: str
    names: re.Pattern[str]
    release: Callable[[bytes], str]
    hashes: tuple[str, ...]
    """Modules that make sha256 fast, of which a kernel has those that it has."""


_PLATFORMS = {
    "x86_64": Platform(
        package="linux-image-cloud-amd64",
        names=re.compile(rf"vmlinuz-{_VERSION}-cloud-amd64"),
        release=_bzimage_release,
        hashes=("sha256-ssse3",),
    ),
    "aarch64": Platform(
        package="linux-image-arm64",
        names=re.compile(rf"vmlinuz-{_VERSION}-arm64"),
        release=_image_release,
        hashes=("sha2-ce", "sha256-arm64"),
    ),
}


def this_platform() -> Platform:
    """Return the host's platform; raises HostError if guests are not supported there."""
    found = _PLATFORMS.get(os.uname().machine)
    if found is None:
        raise HostError(
            f"pods in a virtual machine are for {' and '.join(_PLATFORMS)}, this is {os.uname().machine}",
            code="host-kernel",
        )
    return found


def newest(names: Iterable[str], pattern: re.Pattern[str]) -> str | None:
    """Return the file name with the highest version, numbers compared as numbers; pure."""
    found = [(match[1], name) for name in names if (match := pattern.fullmatch(name))]
    return max(found, key=lambda item: (_ranked(item[0]), item[1]))[1] if found else None


def _ranked(version: str) -> list[tuple[int, str]]:
    """Split a version so that `6.1.0-9` comes before `6.1.0-56`, and `~rc1` before nothing."""
    parts = re.findall(r"\d+|~|[^\d~]+", version)
    ranks = [(int(part), "") if part.isdigit() else (-2 if part == "~" else -1, part) for part in parts]
    # deb-version(7): the end sorts after a tilde and before everything else. Numbers sort after words.
    return [*ranks, (-2, "~~")]


def installed() -> Path:
    """Return the newest kernel for guests that is installed here; raises HostError if there is none."""
    host = this_platform()
    try:
        name = newest(os.listdir(BOOT), host.names)
    except FileNotFoundError:
        name = None
    if name is None:
        raise HostError(
            f"there is no kernel of {host.package} in {BOOT}",
            hint=f"apt install {host.package}, or name one: secrun stage1 build kvm --kernel FILE",
            code="host-kernel",
        )
    return BOOT / name


def read(path: Path) -> bytes:
    """Read a kernel file; raises HostError if it is no file or too large."""
    try:
        # A FIFO would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as stream:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise HostError(f"kernel {path} is not a regular file", code="host-kernel")
            data = stream.read(MAX_KERNEL_BYTES + 1)
    except OSError as error:
        raise HostError(
            f"cannot read kernel {path}: {error.strerror}",
            hint="choose another: secrun stage1 build kvm --kernel FILE, or without it the newest one",
            code="host-kernel",
        ) from error
    if len(data) > MAX_KERNEL_BYTES:
        raise HostError(f"kernel {path} has more than {MAX_KERNEL_BYTES} bytes", code="host-kernel")
    return data


def release(data: bytes, path: Path) -> str:
    """Return the release (uname(2)) of a kernel file's bytes; raises HostError naming `path`."""
    host = this_platform()
    try:
        return host.release(data)
    except ValueError as error:
        raise HostError(
            f"{path} is no kernel for guests: {error}",
            hint=f"apt install {host.package}, or name one: secrun stage1 build kvm --kernel FILE",
            code="host-kernel",
        ) from error
