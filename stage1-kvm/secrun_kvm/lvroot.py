"""The folder in which one pod's libvirt lives: settings, capability cache, sockets and what QEMU opens.

libvirt's embedded driver (https://libvirt.org/drvqemu.html#embedded-driver) keeps everything below one
root. A pod's is in the pod's folder, bound to one short place in the pod's own mount namespace: a unix
socket's path has 108 bytes, and nothing outside that place is needed by path.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import HostError
from secrun.jsonio import canonical
from secrun.locks import held
from secrun.paths import Layout
from secrun.stage1.machine import Accelerator
from secrun.syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT, Syscalls
from secrun_kvm import accel
from secrun_kvm.accel import DEVICE
from secrun_kvm.place import CACHE, PLACE, Root
from secrun_kvm.spec import Architecture

FOLDER_NAME = "lv"

EMULATORS = {
    Architecture.X86_64: Path("/usr/bin/qemu-system-x86_64"),
    Architecture.AARCH64: Path("/usr/bin/qemu-system-aarch64"),
}
# Debian, Fedora and Arch; whichever is there is the one that libvirt's Python binding loads.
DRIVERS = (
    "/usr/lib/{arch}-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
    "/usr/lib64/libvirt/connection-driver/libvirt_driver_qemu.so",
    "/usr/lib/libvirt/connection-driver/libvirt_driver_qemu.so",
)
_LIBRARIES = (
    "/usr/lib/{arch}-linux-gnu/libvirt.so.0",
    "/usr/lib64/libvirt.so.0",
    "/usr/lib/libvirt.so.0",
)
# QEMU's loadable parts: libvirt forgets what it knows when this folder changes.
_QEMU_MODULES = ("/usr/lib/{arch}-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib/qemu")


def _first(patterns: Sequence[str], architecture: Architecture) -> Path | None:
    paths = (Path(pattern.format(arch=architecture)) for pattern in patterns)
    return next((path for path in paths if path.exists()), None)


def qemu_modules(architecture: Architecture) -> Path | None:
    """Return the folder of QEMU's loadable parts, None if it has none."""
    return _first(_QEMU_MODULES, architecture)


def driver(architecture: Architecture) -> Path | None:
    """Return libvirt's driver for QEMU, None if it is not installed."""
    return _first(DRIVERS, architecture)


def settings(uid: int, gid: int) -> str:
    """Return qemu.conf: no rights, no relabelling, no control group, namespace or daemon of libvirt's; pure.

    libvirt's driver for SELinux knows of the emulator alone; the starter gives each helper a label too.
    """
    return (
        f'user = "+{uid}"\ngroup = "+{gid}"\n'
        "dynamic_ownership = 0\nremember_owner = 0\n"
        # Without this every console needs virtlogd.
        'stdio_handler = "file"\n'
        # QEMU stays in the group that the pod's waiter put it into.
        "cgroup_controllers = []\n"
        # QEMU is started in a root that holds no more than it needs (ownroot).
        "namespaces = []\nseccomp_sandbox = 1\nmax_core = 0\n"
        'security_driver = "none"\n'
        f'swtpm_user = "+{uid}"\nswtpm_group = "+{gid}"\n'
    )


def kvm_group() -> int:
    """Return the group that may use /dev/kvm; raises HostError if there is no such device."""
    try:
        return DEVICE.stat().st_gid
    except FileNotFoundError as error:
        raise HostError(f"{DEVICE} does not exist", hint="secrun doctor --stage1=kvm") from error


def make(root: Root, text: str) -> None:
    """Make the folders and settings of a new libvirt root."""
    root.path.mkdir()
    for name in ("etc", "disk", "share", "root", CACHE):
        (root.path / name).mkdir(parents=True)
    # QEMU and its helpers search them, whatever the caller's umask; the folder above is root's alone.
    for base, _, _ in os.walk(root.path):
        os.chmod(base, 0o755)  # noqa: S103 - searching is all that others may do
    (root.path / "etc/qemu.conf").write_text(text)
    fd = os.open(root.no_device, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0)
    os.close(fd)


def enter(call: Syscalls, root: Root, accelerator: Accelerator) -> Root:
    """Bind `root` to its place in this mount namespace, the pod's own; hide a /dev/kvm not asked for.

    libvirt believes that KVM is used wherever the device can be opened, and forgets its cache when that
    changes.
    """
    PLACE.mkdir(mode=0o700, exist_ok=True)
    call.mount(str(root.path), str(PLACE), "", MS_BIND)
    if accelerator is not Accelerator.KVM and DEVICE.exists():
        call.mount(str(root.no_device), str(DEVICE), "", MS_BIND)
    return Root(PLACE)


def bind_file(call: Syscalls, source: Path, target: Path) -> None:
    """Bind one file read-only, owner and label untouched."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    call.mount(str(source), str(target), "", MS_BIND)
    flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    call.mount("", str(target), "", flags)


def _facts(path: Path | None) -> list[str | int]:
    if path is None:
        return []
    facts = path.stat()
    return [str(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


def cache_key(architecture: Architecture, accelerator: Accelerator) -> str:
    """Return what a capability cache is valid for: QEMU, libvirt, the kernel, the accelerator."""
    system = os.uname()
    parts: list[list[str | int]] = [
        _facts(EMULATORS[architecture]),
        _facts(driver(architecture)),
        _facts(_first(_LIBRARIES, architecture)),
        _facts(qemu_modules(architecture)),
        [system.release, system.version, str(accelerator)],
    ]
    return Digest.of(canonical([list(part) for part in parts])).hex


def _caches(layout: Layout) -> Path:
    return layout.run_root / "vm-capabilities"


def _cache_lock(layout: Layout) -> Path:
    return layout.locks / "vm-capabilities.lock"


def _ensure(layout: Layout, architecture: Architecture, accelerator: Accelerator) -> Path:
    """Return the capability cache, made if there is none that fits. Needs the lock, for itself alone."""
    folder = _caches(layout) / cache_key(architecture, accelerator)
    if not folder.is_dir():
        from secrun_kvm import capabilities

        valid = {cache_key(architecture, item) for item in Accelerator}
        capabilities.build(folder, architecture, accelerator, keep=valid)
    return folder


def warm(layout: Layout) -> None:
    """Make the capability cache of each accelerator that this host has; raises HostError."""
    architecture = accel.architecture()
    if architecture is None:
        return
    hardware = not accel.missing(accel.read(architecture))
    with held(_cache_lock(layout)):
        for accelerator in Accelerator if hardware else (Accelerator.TCG,):
            _ensure(layout, architecture, accelerator)


def _copy(cache: Path, root: Root) -> None:
    import shutil

    for name in os.listdir(cache):
        shutil.copyfile(cache / name, root.path / CACHE / name)


def seed(layout: Layout, architecture: Architecture, accelerator: Accelerator, root: Root) -> None:
    """Give a root what is known about this host's QEMU.

    The first machine after an upgrade waits a second or two for it; raises HostError if QEMU or libvirt
    cannot be used.
    """
    folder = _caches(layout) / cache_key(architecture, accelerator)
    with held(_cache_lock(layout), shared=True):
        if folder.is_dir():
            _copy(folder, root)
            return
    with held(_cache_lock(layout)):
        _copy(_ensure(layout, architecture, accelerator), root)
