"""What a virtual machine consists of: pure data between the decision and libvirt.

Everything that starts a machine takes it from here, so another way to start one (a copy of a running
template, for instance) needs no other description: disks have fixed serial numbers, and nothing but the
places of files, sockets and ids differs between two pods of one image and size.
"""

from enum import StrEnum
from pathlib import Path

from secrun.record import record
from secrun.stage1.machine import Accelerator


class Architecture(StrEnum):
    """Processors that guests run on, as uname(2) calls them."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class Model(StrEnum):
    """QEMU's machine types, without a version."""

    Q35 = "q35"
    MICROVM = "microvm"
    VIRT = "virt"


@record
class Disk:
    """A raw disk; the guest finds it by its serial number, at most 20 characters."""

    serial: str
    path: Path
    read_only: bool = True


@record
class Share:
    """A host folder that the guest mounts by virtiofs; its tag has at most 36 characters."""

    tag: str
    socket: Path
    """Where its daemon listens."""


@record
class Nic:
    """An interface that continues one of the pod's network namespace; the MTU is in bytes."""

    tap: str
    """The interface of the host that libvirt makes for it."""
    mac: str
    mtu: int


@record
class VmSpec:
    """One machine; sizes in bytes. Every path is one that QEMU can open."""

    uuid: str
    architecture: Architecture
    accelerator: Accelerator
    model: Model
    vcpus: int
    memory_bytes: int
    kernel: Path
    initrd: Path
    command_line: str
    disks: tuple[Disk, ...]
    link: Path
    """The socket of the guest's one line to the host; the host listens."""
    console: Path
    """The socket of the console; the host listens."""
    emulator: Path
    uid: int
    """The user that QEMU runs as."""
    gid: int
    shares: tuple[Share, ...] = ()
    nics: tuple[Nic, ...] = ()
    firmware: Path | None = None
    """What the machine executes first; None: QEMU's own choice."""
    tpm: Path | None = None
    """The socket of the software TPM, if the guest has one."""
