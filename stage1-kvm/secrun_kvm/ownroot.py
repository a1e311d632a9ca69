"""A root folder for QEMU and its helpers: programs, libraries, firmware, devices and the pod's own folder.

Nothing else of the host has a path in it: whoever is started in it cannot name another file, whatever that
file's mode.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from secrun.record import record
from secrun.stage1.elf import closure
from secrun.syscalls import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_UNBINDABLE,
    Syscalls,
)

# Where the loader finds libraries outside of the folders that it was built with (ld.so(8)).
_LOADER_CACHE = "/etc/ld.so.cache"
# QEMU's firmware and option ROMs in Debian, Fedora and Arch.
_FIRMWARE = ("/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu")
# Where /usr is merged they are links into it.
_TOP = ("bin", "sbin", "lib", "lib64")
_DEVICES = ("null", "full", "zero", "random", "urandom")
# What taps are made with.
_TUN = Path("/dev/net/tun")
# What libvirt reads while it starts a machine, and helpers while they begin.
_PASSING = ("/proc", "/sys", "/usr/share/libvirt/cpu_map")


@record
class Contents:
    """What the root has of the host's, by the host's own paths."""

    files: frozenset[Path]
    folders: tuple[Path, ...]
    devices: tuple[Path, ...]
    passing: tuple[Path, ...] = ()
    """Devices that only the start needs."""


def _place(path: str | Path) -> Path:
    """Return where a file is, by whichever link to its folder it was named."""
    return Path(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def contents(
    programs: Sequence[Path],
    modules: Path | None = None,
    plugins: Iterable[Path] = (),
    *,
    kvm: bool,
    taps: bool = False,
) -> Contents:
    """Return what `programs` need; QEMU loads `plugins` from the folder `modules`.

    Raises HostError naming the library that is missing.
    """
    files = {*programs, *closure([*programs, *plugins])}
    if os.path.exists(_LOADER_CACHE):
        files.add(Path(_LOADER_CACHE))
    folders = [Path(name) for name in _FIRMWARE if os.path.isdir(name)]
    return Contents(
        files=frozenset(map(_place, files)),
        # Whole, with its own times: libvirt forgets what it knows of QEMU when they change.
        folders=(*folders, *(() if modules is None else (_place(modules),))),
        devices=tuple(Path("/dev", name) for name in (*_DEVICES, *(("kvm",) if kvm else ()))),
        passing=(_TUN,) if taps else (),
    )


def _empty(path: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))


def _passing() -> list[str]:
    return [name for name in _PASSING if os.path.isdir(name)]


def enter(call: Syscalls, root: Path, shown: Contents, own: Path) -> None:
    """Move this process, in a mount namespace of its own, to a new root that is put together at `root`.

    It holds `shown`, read-only, and `own` as it is; until `leave_host` what only a start needs, too.
    """
    target, passing = str(root), _passing()
    call.mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755,size=1m")
    # `own` may hold `root`, and must not hold itself.
    call.mount("", target, "", MS_UNBINDABLE)
    for name in _TOP:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{target}/{name}")
    for file in (*shown.files, *shown.devices, *shown.passing):
        _empty(f"{target}{file}")
    for folder in (*shown.folders, own, *map(Path, passing)):
        os.makedirs(f"{target}{folder}", mode=0o755, exist_ok=True)
    for path in (*shown.files, *shown.folders):
        call.mount(str(path), f"{target}{path}", "", MS_BIND)
    call.seal_mounts(target, read_only=True)
    for path in (*shown.devices, *shown.passing):
        call.mount(str(path), f"{target}{path}", "", MS_BIND)
        flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC
        call.mount("", f"{target}{path}", "", flags)
    for name in (str(own), *passing):
        call.mount(name, f"{target}{name}", "", MS_BIND | MS_REC)
    call.seal_mounts(f"{target}{own}", read_only=False)
    os.chdir(target)
    # Onto itself: the old root lies on top, and goes.
    call.pivot_root(".", ".")
    call.umount(".", MNT_DETACH)
    os.chdir("/")


def leave_host(call: Syscalls, shown: Contents) -> None:
    """Take away what only the start needed."""
    for name in (*map(str, shown.passing), *_passing()):
        call.umount(name, MNT_DETACH)
