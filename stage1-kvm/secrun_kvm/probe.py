"""What the KVM flavour needs of a host, and what is missing of it."""

import grp
import os
import pwd
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from secrun.errors import SecrunError
from secrun.record import replace
from secrun.stage1.agent import stage0_path
from secrun.stage1.contract import Problem
from secrun_kvm import accel, kernel, lvroot, modules
from secrun_kvm.helpers import SWTPM_PARTS, VIRTIOFSD
from secrun_kvm.spec import Architecture

# libvirt 9.0 opens its embedded driver as root only where this user exists, whoever QEMU runs as.
LIBVIRT_USER = "libvirt-qemu"
# What the interfaces of a machine are made with.
TUN = Path("/dev/net/tun")
MKE2FS = Path("/usr/sbin/mke2fs")
# Loads a kernel and does nothing else; SeaBIOS takes longer, and is ten times as large.
FIRMWARE = Path("/usr/share/qemu/qboot.rom")


def binding() -> Path | None:
    """Return the folder of libvirt's Python binding, None if it is not installed."""
    found = PathFinder.find_spec("libvirt")
    return None if found is None or found.origin is None else Path(found.origin).parent


def virtiofsd() -> Path | None:
    """Return the daemon that shares host folders, None if it is not installed."""
    return next((path for path in VIRTIOFSD if os.access(path, os.X_OK)), None)


def _absent(subject: object, hint: str) -> Problem:
    return Problem(subject=str(subject), text="is not installed", hint=hint)


def programs(architecture: Architecture) -> list[Problem]:
    """Return what is missing of QEMU and libvirt."""
    found = []
    emulator = lvroot.EMULATORS[architecture]
    package = "qemu-system-x86" if architecture is Architecture.X86_64 else "qemu-system-arm"
    if not os.access(emulator, os.X_OK):
        found.append(_absent(emulator, f"apt install {package}"))
    if architecture is Architecture.X86_64 and not FIRMWARE.exists():
        found.append(_absent(FIRMWARE, "apt install qemu-system-data"))
    if lvroot.driver(architecture) is None:
        found.append(_absent("libvirt's driver for QEMU", "apt install libvirt-daemon-driver-qemu"))
    if binding() is None:
        hint = "apt install python3-libvirt, or pip install secrun[kvm]"
        found.append(_absent("the Python binding of libvirt", hint))
    try:
        pwd.getpwnam(LIBVIRT_USER)
        grp.getgrnam(LIBVIRT_USER)
    except KeyError:
        found.append(
            Problem(
                subject=f"user {LIBVIRT_USER}",
                text="or its group does not exist: libvirt does not open without",
                hint=f"adduser --system --group --no-create-home {LIBVIRT_USER}",
            )
        )
    return found


def can_start() -> bool:
    """Tell whether this process could start a machine."""
    architecture = accel.architecture()
    return os.geteuid() == 0 and architecture is not None and not programs(architecture)


def _guest() -> list[Problem]:
    """Look for what guests boot: a kernel with its modules, and our own init."""
    try:
        path = kernel.installed()
        release = kernel.release(kernel.read(path), path)
        modules.resolve(modules.read(release), modules.GROUPS, kernel.this_platform().hashes)
        stage0_path()
    except SecrunError as error:
        return [Problem(subject="guest kernel:", text=error.message, hint=error.hint)]
    return []


def helpers(*, volumes: bool, vtpm: bool, storage: bool, networks: bool) -> list[Problem]:
    """Return what is missing for these options of a pod."""
    found = []
    if volumes and virtiofsd() is None:
        hint = "apt install qemu-system-common (Debian 12) or virtiofsd"
        found.append(Problem(subject="virtiofsd", text="is not installed: no volumes", hint=hint))
    for part in SWTPM_PARTS if vtpm else ():
        if not os.access(part, os.X_OK):
            text = "is not installed: no --vtpm"
            found.append(Problem(subject=str(part), text=text, hint="apt install swtpm swtpm-tools"))
    if storage and not os.access(MKE2FS, os.X_OK):
        text = "is not installed: no --storage"
        found.append(Problem(subject=str(MKE2FS), text=text, hint="apt install e2fsprogs"))
    if networks and not TUN.exists():
        text = "does not exist: no network but --net=none"
        found.append(Problem(subject=str(TUN), text=text, hint="modprobe tun"))
    return found


def problems() -> Sequence[Problem]:
    """Return what keeps machines from starting; what only an option needs is not fatal."""
    architecture = accel.architecture()
    if architecture is None:
        text = "has no guests: they need x86_64 or aarch64"
        return [Problem(subject=os.uname().machine, text=text)]
    found = [*programs(architecture), *_guest()]
    options = helpers(volumes=True, vtpm=True, storage=True, networks=True)
    found += [replace(item, fatal=False) for item in options]
    return [*found, *accel.missing(accel.read(architecture))]
