"""A Debian 12 machine of its own under QEMU: Debian's kernel and systemd, nothing of the host's kernel.

It is always emulated (TCG): a /dev/kvm proves nothing about what this processor can run. It needs root,
debootstrap, mkfs.ext4, busybox-static and qemu-system-x86_64.
"""

import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from support import lab
from support.images import busybox_image

# The cloud kernel is Debian's kernel with fewer drivers. What secrun names as needed comes first.
PACKAGES = (
    *("systemd", "systemd-container", "crun", "libseccomp2", "python3-seccomp", "python3-selinux"),
    *("iproute2", "mount", "uidmap", "ca-certificates"),
    *("systemd-sysv", "udev", "dbus", "kmod", "linux-image-cloud-amd64"),
)
DISK_BYTES = 3 << 30
MEMORY_MIB = 2048
# An emulated machine on two busy cores; a run that takes this long has hung.
DEADLINE_SECONDS = 900
BUILD_SECONDS = 900
LEFT_OUT = (
    "var/cache/apt/archives",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)

GUEST_FOLDER = "opt/secrun-test"
# Ends with the test, however it ends: the machine is switched off by its failure too.
UNIT = f"""[Unit]
Description=tests of secrun
After=systemd-user-sessions.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStartPre=/bin/tar -C / -xf /dev/vdb
ExecStart=/usr/bin/python3 -B /{GUEST_FOLDER}/guest.py /dev/ttyS1
StandardOutput=journal+console
StandardError=journal+console
"""
FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/hostname": "vmhost\n",
    "etc/systemd/system/secrun-test.service": UNIT,
    "usr/local/bin/secrun": '#!/bin/sh\nexec /usr/bin/python3 -P -m secrun "$@"\n',
}
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "systemd-networkd.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What QEMU boots: never written to, every run works on a copy that goes away with it."""

    disk: Path
    kernel: Path
    initrd: Path

    def files(self) -> tuple[Path, ...]:
        return (self.disk, self.kernel, self.initrd)


def _seal(machine: Machine) -> str:
    """Digest of the machine's files by size and time: reading gigabytes before each run costs too much."""
    facts = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in machine.files()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def build() -> Machine:
    """Return the machine, made by debootstrap once per recipe and kept outside the checkout."""
    recipe = [lab.SUITE, lab.mirror(), *PACKAGES, *LEFT_OUT, *MASKED, str(DISK_BYTES), json.dumps(FILES)]
    folder = lab.cache_folder() / hashlib.sha256("\n".join(recipe).encode()).hexdigest()
    machine = Machine(disk=folder / "disk.ext4", kernel=folder / "vmlinuz", initrd=folder / "initrd.img")
    seal = folder / "vm.seal"
    if (
        seal.exists()
        and all(path.exists() for path in machine.files())
        and seal.read_text() == _seal(machine)
    ):
        return machine
    folder.mkdir(parents=True, exist_ok=True)
    seal.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="tree-") as scratch:
        tree = Path(scratch, "tree")
        include = f"--include={','.join(PACKAGES)}"
        lab.tool("debootstrap", "--variant=minbase", include, lab.SUITE, tree, lab.mirror())
        _furnish(tree)
        shutil.copy(next(tree.glob("boot/vmlinuz-*")), machine.kernel)
        shutil.copy(next(tree.glob("boot/initrd.img-*")), machine.initrd)
        made = Path(scratch, "disk.ext4")
        with made.open("wb") as disk:
            disk.truncate(DISK_BYTES)
        lab.tool("mkfs.ext4", "-q", "-d", tree, made)
        made.rename(machine.disk)
    seal.write_text(_seal(machine))
    return machine


def _furnish(tree: Path) -> None:
    for name in LEFT_OUT:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "usr/local/bin/secrun").chmod(0o755)
    units = tree / "etc/systemd/system"
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "secrun-test.service").symlink_to("../secrun-test.service")


def _needed() -> list[str]:
    """Name the Python packages that secrun needs to run."""
    rows = importlib.metadata.requires("secrun") or []
    return [row[0] for row in (re.match(r"[A-Za-z0-9_-]+", line) for line in rows) if row]


def payload(checkout: Path, guest: Path, target: Path) -> Path:
    """Write a tar of what is tested: secrun as its wheel, its packages, an image, the guest's script."""
    with tempfile.TemporaryDirectory(prefix="payload-") as scratch:
        top = Path(scratch)
        packages = top / "usr/local/lib/python3.11/dist-packages"
        offline = ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
        lab.tool(sys.executable, "-m", "pip", "install", "-qq", *offline, "--target", packages, checkout)
        for name in _needed():
            for file in importlib.metadata.distribution(name).files or ():
                source = Path(file.locate())
                if ".." not in file.parts and source.is_file():
                    (packages / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, packages / file)
        work = top / GUEST_FOLDER
        work.mkdir(parents=True)
        shutil.copy(guest, work / "guest.py")
        busybox_image(work / "images", "busybox")
        with tarfile.open(target, "w") as tar:
            tar.add(top, arcname=".", filter=_as_root)
    return target


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    if member.name == ".":
        member.mode = 0o755
    return member


def boot(machine: Machine, payload_tar: Path, folder: Path) -> list[dict[str, object]]:
    """Run the machine to its end; return what the guest reported, one object a line.

    Raises RuntimeError with the end of the console when it does not switch itself off.
    """
    console, results = folder / "console.log", folder / "results.jsonl"
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
        *("-m", str(MEMORY_MIB), "-kernel", str(machine.kernel), "-initrd", str(machine.initrd)),
        *("-append", "root=/dev/vda rw console=ttyS0 panic=-1 quiet systemd.show_status=false"),
        *("-drive", f"file={machine.disk},format=raw,if=virtio,snapshot=on,cache=unsafe"),
        *("-drive", f"file={payload_tar},format=raw,if=virtio,readonly=on"),
        *("-serial", f"file:{console}", "-serial", f"file:{results}"),
    ]
    try:
        done = subprocess.run(
            argv, timeout=DEADLINE_SECONDS, check=False, stdin=subprocess.DEVNULL, capture_output=True
        )
        end = f"exit status {done.returncode}: {done.stderr.decode(errors='replace')}"
    except subprocess.TimeoutExpired:
        end = f"stopped after {DEADLINE_SECONDS} s"
    lines = results.read_text(errors="replace").splitlines() if results.exists() else []
    reports = [json.loads(line) for line in lines if line.startswith("{")]
    if not reports or reports[-1].get("name") != "end":
        said = console.read_text(errors="replace")[-6000:] if console.exists() else ""
        raise RuntimeError(f"the machine did not finish ({end}); its console:\n{said}")
    return reports[:-1]
