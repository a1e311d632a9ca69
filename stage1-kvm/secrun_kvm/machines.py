"""What is fixed about a machine by its type: pure, the same on every host, so that it can be predicted."""

import itertools
from collections.abc import Sequence

from secrun.stage1.machine import Accelerator, CommandLine
from secrun.stage1.manifest import AppManifest
from secrun_kvm.spec import Architecture, Model

MIB = 1 << 20
# What kernel, systemd and agent take, measured at 85 MiB on a PCI machine; the rest is room for page tables.
OVERHEAD_BYTES = 128 * MIB
# All apps without a limit share this.
UNLIMITED_BYTES = 384 * MIB
# Kernel and initramfs do not fit into less.
MIN_BYTES = 128 * MIB
# All apps without a limit share one.
UNLIMITED_MILLIS = 1000
# QEMU itself beside the guest's memory; one that emulates also keeps what it has translated.
HOST_BYTES = {Accelerator.KVM: 160 * MIB, Accelerator.TCG: 256 * MIB}
# Threads of QEMU, its helpers and the bridge, beside one for each virtual processor.
HOST_PIDS = 256
# microvm has 32 places on its bus, some of them taken.
_MICROVM_DEVICES = 24
# Link and entropy.
_FIXED_DEVICES = 2

_COMMON = (
    "quiet",
    "panic=-1",
    "cryptomgr.notests",
    "rcupdate.rcu_expedited=1",
    "module.sig_enforce=1",
    "lockdown=integrity",
)
_X86 = ("console=ttyS0", "reboot=t", "no_timer_check", "noreplace-smp", "i8042.noaux", "8250.nr_uarts=1")
_ARM = ("console=ttyAMA0",)


def memory(apps: Sequence[AppManifest]) -> int:
    """Return the guest's memory in bytes: what is promised to the apps and what the machine needs itself."""
    limits = [app.limits.memory_bytes for app in apps]
    wanted = OVERHEAD_BYTES + sum(limit for limit in limits if limit is not None)
    if None in limits:
        wanted += UNLIMITED_BYTES
    return max(MIN_BYTES, -(-wanted // MIB) * MIB)


def vcpus(apps: Sequence[AppManifest], available: int) -> int:
    """Return the number of virtual processors: what the apps may use, at most what the host has."""
    limits = [app.limits.cpu_millis for app in apps]
    wanted = sum(limit for limit in limits if limit is not None)
    if None in limits:
        wanted += UNLIMITED_MILLIS
    return max(1, min(available, -(-wanted // 1000)))


def model(architecture: Architecture, accelerator: Accelerator, *, vtpm: bool, devices: int) -> Model:
    """Return the machine type of a pod.

    microvm has the fewest devices for a guest to find and to attack. It has no clock that an emulated
    processor's counter could be measured by, no ACPI table for a TPM, and one short bus.
    """
    if architecture is Architecture.AARCH64:
        return Model.VIRT
    small = devices + _FIXED_DEVICES <= _MICROVM_DEVICES
    return Model.MICROVM if accelerator is Accelerator.KVM and small and not vtpm else Model.Q35


def command_lines(architecture: Architecture) -> tuple[CommandLine, ...]:
    """Return every command line that `decide` may choose, for those who predict what is measured."""
    found: dict[tuple[Accelerator, Model], CommandLine] = {}
    for accelerator in Accelerator:
        for vtpm, devices in itertools.product((False, True), (0, _MICROVM_DEVICES)):
            kind = model(architecture, accelerator, vtpm=vtpm, devices=devices)
            line = CommandLine(accelerator=accelerator, model=kind, text=command_line(kind))
            found.setdefault((accelerator, kind), line)
    return tuple(found.values())


def command_line(machine: Model) -> str:
    """Return the kernel's command line of a machine type, without the word that binds the pod's image."""
    return " ".join([*(_ARM if machine is Model.VIRT else _X86), *_COMMON])
