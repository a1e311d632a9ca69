"""Boot a guest image with plain QEMU, emulated, and a pod image made by hand; no libvirt.

A /dev/kvm proves nothing about what this processor can run, so the accelerator is always TCG.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secrun.image.rootfs.model import FileKind, PackedImage, PathSource, TreeEntry
from secrun.image.rootfs.pack import pack
from secrun_kvm.guestimage import GuestImage

# An emulated guest needs 3 s on a quiet core; one that takes this long hangs.
DEADLINE_SECONDS = 120
MEMORY_MIB = 256
UUID = "2f1d9c5e-6a0b-4f57-9f0d-3c1e5b7a9d11"
# The speed of the counter: a microvm has no other clock to measure it by.
_MHZ = re.compile(r"^cpu MHz\s*: (\d+)\.(\d{3})", re.MULTILINE)

COMMAND_LINE = (
    *("console=ttyS0", "quiet", "reboot=t", "panic=-1", "cryptomgr.notests", "no_timer_check"),
    *("noreplace-smp", "rcupdate.rcu_expedited=1", "i8042.noaux", "8250.nr_uarts=1"),
    *("module.sig_enforce=1", "lockdown=integrity"),
)

# What the unit says goes to the console, where the test reads it.
UNITS = {
    "pod.target": "[Unit]\nDefaultDependencies=no\nWants=app.service\n",
    "app.service": (
        "[Unit]\nDefaultDependencies=no\nSuccessAction=poweroff-force\nFailureAction=poweroff-force\n"
        "[Service]\nType=oneshot\nStandardOutput=file:/dev/ttyS0\nStandardError=inherit\n"
        "ExecStart=/usr/bin/secrun-agent --version\n"
    ),
}
SETTINGS = "[Manager]\nLogLevel=err\nShowStatus=no\n"


def _microvm_words() -> tuple[str, ...]:
    found = _MHZ.search(Path("/proc/cpuinfo").read_text())
    return (f"tsc_early_khz={found[1]}{found[2]}",) if found else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine type as QEMU's -machine takes it, how its disks are attached, and words of its own."""

    name: str
    option: str
    disk: str
    words: tuple[str, ...] = ()


def machines() -> dict[str, Machine]:
    bare = "pit=off,pic=off,rtc=on"
    found = [
        Machine(name="q35", option="q35", disk="virtio-blk-pci"),
        Machine(
            name="microvm-pcie",
            option=f"microvm,pcie=on,{bare}",
            disk="virtio-blk-pci",
            words=_microvm_words(),
        ),
        Machine(
            name="microvm-mmio",
            option=f"microvm,{bare}",
            disk="virtio-blk-device",
            words=("pci=off", *_microvm_words()),
        ),
    ]
    return {machine.name: machine for machine in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """Everything that one boot is given."""

    kernel: Path
    initrd: Path
    machine: Machine
    words: tuple[str, ...]
    disks: Mapping[str, Path] = field(default_factory=dict)
    memory_mib: int = MEMORY_MIB

    def command(self) -> list[str]:
        words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        words += ["-machine", self.machine.option, "-accel", "tcg", "-cpu", "max", "-smp", "1"]
        words += ["-m", str(self.memory_mib), "-kernel", str(self.kernel), "-initrd", str(self.initrd)]
        words += ["-append", " ".join([*self.words, *self.machine.words]), "-serial", "stdio"]
        for serial, path in self.disks.items():
            words += ["-blockdev", f"driver=raw,node-name={serial},read-only=on,file.driver=file,"]
            words[-1] += f"file.filename={path},file.locking=off"
            words += ["-device", f"{self.machine.disk},drive={serial},serial={serial}"]
        return words

    def run(self) -> str:
        """Run the guest until it ends and return its console; raises if it does not end."""
        done = subprocess.run(
            self.command(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="replace")


def _tree(files: Mapping[str, bytes | Path]) -> list[TreeEntry]:
    folders = {""}
    for name in files:
        parts = name.split("/")[:-1]
        folders |= {"/".join(parts[: depth + 1]) for depth in range(len(parts))}
    common = {"uid": 0, "gid": 0, "mtime_ns": 0}
    found = [
        TreeEntry(path=name.encode(), kind=FileKind.DIRECTORY, mode=0o755, **common) for name in folders
    ]
    for name, content in files.items():
        whole = isinstance(content, Path)
        facts = {
            "size": content.stat().st_size if whole else len(content),
            "mode": 0o755 if whole else 0o644,
            "source": PathSource(content) if whole else content,
        }
        found.append(TreeEntry(path=name.encode(), kind=FileKind.FILE, **facts, **common))
    return found


def packed(target: Path, files: Mapping[str, bytes | Path]) -> PackedImage:
    """Write an EROFS image with its verity tree."""
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        return pack(_tree(files), fd)
    finally:
        os.close(fd)


def verity(image: PackedImage) -> str:
    return f"{image.data_size // 4096} {image.verity_root} {image.verity_salt}"


def prepared(guest: GuestImage, machine: Machine, folder: Path, units: Mapping[str, str] = UNITS) -> Boot:
    """Make the disks of a pod of one app, whose image is one small file."""
    folder.mkdir(parents=True, exist_ok=True)
    app = packed(folder / "app-0", {"etc/hello": b"hello\n"})
    table = f"secrun-guest 1\nhostname hand-made\nuuid {UUID}\nimage app app-0 {verity(app)}\n"
    pod = packed(
        folder / "pod",
        {
            "guest": table.encode(),
            "system.conf": SETTINGS.encode(),
            **{f"units/{name}": text.encode() for name, text in units.items()},
        },
    )
    return Boot(
        kernel=guest.kernel,
        initrd=guest.initrd,
        machine=machine,
        words=(*COMMAND_LINE, f"secrun.pod={pod.data_size // 4096}:{pod.verity_root}"),
        disks={"pod": folder / "pod", "app-0": folder / "app-0"},
    )
