"""A Debian 12 machine of its own under QEMU: Debian's kernel, which enforces SELinux, systemd, a TPM.

It is always emulated (TCG): a /dev/kvm proves nothing about what this processor can run. Its TPM is a swtpm
of this side, which the machine sees as a chip: SeaBIOS measures into it, its kernel drives it. It needs
root, debootstrap, setfiles, mkfs.ext4, busybox-static, swtpm and qemu-system-x86_64.
"""

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from support import answer, lab, qmp
from support.images import busybox_image
from support.swtpm import Swtpm
from support.systemimage import system_image

# The cloud kernel is Debian's kernel with fewer drivers. What secrun names as needed comes first.
PACKAGES = (
    *("systemd", "systemd-container", "crun", "libseccomp2", "python3-seccomp", "python3-selinux"),
    *("iproute2", "mount", "uidmap", "ca-certificates"),
    *("libtss2-esys-3.0.2-0", "libtss2-rc0", "libtss2-tctildr0"),
    *("libtss2-tcti-device0", "libtss2-tcti-swtpm0", "swtpm", "swtpm-tools"),
    # Pods in virtual machines.
    *("qemu-system-x86", "libvirt-daemon-driver-qemu", "python3-libvirt"),
    # Networks.
    "containernetworking-plugins",
    # The judge of what is measured.
    "tpm2-tools",
    *("systemd-sysv", "udev", "dbus", "kmod", "linux-image-cloud-amd64"),
    *("selinux-policy-default", "policycoreutils", "auditd", "dmsetup"),
)
DISK_BYTES = 3 << 30
MEMORY_MIB = 2048
# An emulated machine on two busy cores; a run that takes this long has hung.
DEADLINE_SECONDS = 3600
BUILD_SECONDS = 1800
LEFT_OUT = (
    "var/cache/apt/archives",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)

GUEST_FOLDER = "opt/secrun-test"
# Where a package of a distribution puts the files for systemd that are in the wheel.
SHIPPED = {
    "secrun-audit.service": "usr/lib/systemd/system/secrun-audit.service",
    "secrun-gc.service": "usr/lib/systemd/system/secrun-gc.service",
    "secrun-gc.timer": "usr/lib/systemd/system/secrun-gc.timer",
    "secrun-generator": "usr/lib/systemd/system-generators/secrun-generator",
    "secrun.sysusers.conf": "usr/lib/sysusers.d/secrun.conf",
    "secrun.tmpfiles.conf": "usr/lib/tmpfiles.d/secrun.conf",
}
SHELL_WORD = "secrun.shell"
# The test ends the machine; so does its failure.
PAYLOAD = """ExecStartPre=/bin/tar -C / -xf /dev/vdb
ExecStartPre=/sbin/restorecon -R /usr/local/lib/python3.11/dist-packages/secrun
ExecStartPre=/sbin/restorecon -R /usr/lib/systemd/system-generators
"""
UNIT = f"""[Unit]
Description=tests of secrun
ConditionKernelCommandLine=!{SHELL_WORD}
After=systemd-user-sessions.service
FailureAction=poweroff-force

[Service]
Type=oneshot
WorkingDirectory=-/{GUEST_FOLDER}
{PAYLOAD}ExecStart=/usr/bin/python3 -B -m vmhost.guest /dev/ttyS1
StandardOutput=journal+console
StandardError=journal+console
"""
# A shell of root's, logged in as people are, on the same machine with the same things in it.
SHELL = f"""[Unit]
Description=shell on the console
ConditionKernelCommandLine={SHELL_WORD}
After=systemd-user-sessions.service
Conflicts=serial-getty@ttyS0.service
Before=serial-getty@ttyS0.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=idle
{PAYLOAD}ExecStart=/sbin/agetty --autologin root --noclear --keep-baud 115200 ttyS0 linux
TTYPath=/dev/ttyS0
TTYReset=yes
"""
FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/hostname": "vmhost\n",
    "etc/systemd/system/secrun-test.service": UNIT,
    "etc/systemd/system/secrun-shell.service": SHELL,
    "etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=default\n",
    "usr/bin/secrun": '#!/bin/sh\nexec /usr/bin/python3 -P -m secrun "$@"\n',
}
# The host's policy, secrun's module, and what lets a test act as a pod that has got out of all else.
MODULES = ("policies/selinux/secrun.cil", "tests/vmhost/intruder.cil")
POLICY = "etc/selinux/default"
LIBVIRT_USER = "libvirt-qemu"
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "systemd-networkd.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What QEMU boots: never written to, every run works on a copy of the disk."""

    disk: Path
    kernel: Path
    initrd: Path

    def files(self) -> tuple[Path, ...]:
        return (self.disk, self.kernel, self.initrd)


def _seal(machine: Machine) -> str:
    """Digest of the machine's files by size and time: reading gigabytes before each run costs too much."""
    facts = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in machine.files()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _digest(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _debian() -> Path:
    """Return a tar of the packages' tree, made by debootstrap once and kept outside the checkout."""
    folder = lab.cache_folder() / _digest([lab.SUITE, lab.mirror(), *PACKAGES, *LEFT_OUT])
    kept = folder / "vm.tar"
    if kept.exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="tree-") as scratch:
        tree, made = Path(scratch, "tree"), Path(scratch, "vm.tar")
        include = f"--include={','.join(PACKAGES)}"
        lab.tool("debootstrap", "--variant=minbase", include, lab.SUITE, tree, lab.mirror())
        for name in LEFT_OUT:
            shutil.rmtree(tree / name, ignore_errors=True)
        lab.tool("tar", "-C", tree, "--numeric-owner", "--xattrs", "-cf", made, ".")
        made.rename(kept)
    return kept


def build(checkout: Path) -> Machine:
    """Return the machine, made once per recipe, the policy's modules included, outside the checkout."""
    debian, modules = _debian(), [checkout / name for name in MODULES]
    texts = [path.read_text() for path in modules]
    recipe = [debian.parent.name, LIBVIRT_USER, *MASKED, str(DISK_BYTES), json.dumps(FILES), *texts]
    folder = lab.cache_folder() / _digest(recipe)
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
        tree.mkdir()
        lab.tool("tar", "-C", tree, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", debian)
        _furnish(tree)
        _label(tree, modules)
        shutil.copy(next(tree.glob("boot/vmlinuz-*")), machine.kernel)
        shutil.copy(next(tree.glob("boot/initrd.img-*")), machine.initrd)
        made = Path(scratch, "disk.ext4")
        with made.open("wb") as disk:
            disk.truncate(DISK_BYTES)
        lab.tool("mkfs.ext4", "-q", "-d", tree, made)
        made.rename(machine.disk)
    seal.write_text(_seal(machine))
    return machine


def _label(tree: Path, modules: Iterable[Path]) -> None:
    """Add the modules to the tree's policy and label every file by it: this kernel need not know SELinux."""
    for path in modules:
        shutil.copy(path, tree / "root")
        lab.tool("chroot", tree, "semodule", "--noreload", "--install", f"/root/{path.name}")
        (tree / "root" / path.name).unlink()
    lab.tool("setfiles", "-F", "-r", tree, tree / POLICY / "contexts/files/file_contexts", tree)


def _furnish(tree: Path) -> None:
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "usr/bin/secrun").chmod(0o755)
    # What libvirt's daemon, which is not there, would bring.
    lab.tool("chroot", tree, "useradd", "--system", "--user-group", "--no-create-home", LIBVIRT_USER)
    units = tree / "etc/systemd/system"
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    for name in ("secrun-test.service", "secrun-shell.service"):
        (wants / name).symlink_to(f"../{name}")


def _needed(name: str, extra: str = "") -> Iterator[str]:
    """Name the Python packages that this one needs to run, and those that they need."""
    for row in importlib.metadata.requires(name) or ():
        wanted = Requirement(row)
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            yield wanted.name
            yield from _needed(wanted.name)


def payload(checkout: Path, guest: Path, target: Path) -> Path:
    """Write a tar of what is tested: secrun as its wheel, its packages, an image, the guest's folder."""
    with tempfile.TemporaryDirectory(prefix="payload-") as scratch:
        top = Path(scratch)
        packages = top / "usr/local/lib/python3.11/dist-packages"
        offline = ["--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
        lab.tool(sys.executable, "-m", "pip", "install", "-qq", *offline, "--target", packages, checkout)
        for name, place in SHIPPED.items():
            (top / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(packages / "secrun/systemd" / name, top / place)
        for name in set(_needed("secrun", "tpm")):
            for file in importlib.metadata.distribution(name).files or ():
                source = Path(file.locate())
                if ".." not in file.parts and source.is_file():
                    (packages / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, packages / file)
        work = top / GUEST_FOLDER
        shutil.copytree(guest, work / guest.name, ignore=shutil.ignore_patterns("__pycache__"))
        busybox_image(work / "images", "busybox")
        system_image(work / "system", "system")
        (work / "programs").mkdir()
        answer.compiled(work / "programs")
        with tarfile.open(target, "w") as tar:
            tar.add(top, arcname=".", filter=_as_root)
    return target


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    if member.name == ".":
        member.mode = 0o755
    return member


def disk_copy(machine: Machine, target: Path) -> Path:
    """Copy the disk for boots that shall see what the last one wrote."""
    lab.tool("cp", "--sparse=always", "--reflink=auto", machine.disk, target)
    return target


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What one boot has: a disk, which is written to, the tar of what is tested, its TPM, words for it."""

    disk: Path
    payload: Path
    tpm: Swtpm
    words: Iterable[str]


def boot(machine: Machine, given: Boot, folder: Path) -> list[dict[str, object]]:
    """Run the machine until its power goes; return what the guest reported, one object a line.

    Raises RuntimeError with the end of the console when the guest did not come to its end.
    """
    folder.mkdir()
    console, results = folder / "console.log", folder / "results.jsonl"
    argv = _command(machine, given, f"file:{console}", f"file:{results}")
    given.tpm.start_as_chip()
    watched = qmp.Watched(folder / "qmp.sock")
    try:
        with watched:
            done = subprocess.run(
                [*argv, *watched.words],
                timeout=DEADLINE_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
        end = f"exit status {done.returncode}: {done.stderr.decode(errors='replace')}"
    except subprocess.TimeoutExpired:
        end = f"stopped after {DEADLINE_SECONDS} s"
    finally:
        given.tpm.stop()
    lines = results.read_text(errors="replace").splitlines() if results.exists() else []
    reports = [json.loads(line) for line in lines if line.startswith("{")]
    if not reports or reports[-1].get("name") != "end":
        said = console.read_text(errors="replace")[-6000:] if console.exists() else ""
        raise RuntimeError(
            f"the machine did not finish ({end}); QEMU told of {watched.events}; its console:\n{said}"
        )
    return reports[:-1]


def shell(machine: Machine, given: Boot) -> None:
    """Boot the machine with its console on this terminal, where root is logged in, until it is off."""
    given.tpm.start_as_chip()
    try:
        subprocess.run(_command(machine, given, "mon:stdio"), check=False)
    finally:
        given.tpm.stop()


def _command(machine: Machine, given: Boot, *serials: str) -> list[str]:
    """Return QEMU's command line; the first serial line is the console."""
    kernel = ["root=/dev/vda", "rw", "console=ttyS0", "panic=-1", "quiet", "systemd.show_status=false"]
    # Emulated on a busy host, the timer's interrupts come too late for the kernel's check of them.
    kernel.append("no_timer_check")
    # No denial may be lost, neither before auditd runs nor in a burst.
    kernel += ["security=selinux", "selinux=1", "enforcing=1", "audit=1", "audit_backlog_limit=8192"]
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        # Emulated, the system management mode does not come back from a sleep.
        *("-machine", "q35,smm=off", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"),
        *("-m", str(MEMORY_MIB), "-kernel", str(machine.kernel), "-initrd", str(machine.initrd)),
        *("-append", " ".join([*kernel, *given.words])),
        *("-drive", f"file={given.disk},format=raw,if=virtio,cache=unsafe"),
        *("-drive", f"file={given.payload},format=raw,if=virtio,readonly=on"),
        *("-chardev", f"socket,id=chip,path={given.tpm.control}"),
        *("-tpmdev", "emulator,id=tpm0,chardev=chip", "-device", "tpm-crb,tpmdev=tpm0"),
        *(word for serial in serials for word in ("-serial", serial)),
    ]
