"""The virtual machine of a pod, for flavours that start one: what is asked for, and what was decided.

What was decided is part of the pod manifest, so the accelerator, the kernel, the initramfs and the command
line are measured with it.
"""

from enum import StrEnum
from typing import Self

from secrun.digest import Digest
from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import record


class Accelerator(StrEnum):
    """What executes the guest's instructions: the processor under KVM, or QEMU's own translator."""

    KVM = "kvm"
    TCG = "tcg"


class AcceleratorChoice(StrEnum):
    """What a caller may ask for; `auto` never means emulation."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


@record
class MachineRequest:
    """What a caller says about the machine; None means that nothing was said."""

    accelerator: AcceleratorChoice | None = None
    storage_bytes: int | None = None
    """Size of a scratch disk for what apps write; without one it is in the guest's memory."""
    vtpm: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Name the options that were given, for a flavour that has no machine."""
        given = (
            ("--accel", self.accelerator is not None),
            ("--storage", self.storage_bytes is not None),
            ("--vtpm", self.vtpm),
        )
        return tuple(name for name, was_given in given if was_given)


@record
class CommandLine:
    """What the kernels of such machines are given, but for the last word, which is each pod's own."""

    accelerator: Accelerator
    model: str
    text: str


@record
class Machine:
    """The machine of one pod; sizes in bytes."""

    accelerator: Accelerator
    model: str
    """QEMU's machine type without a version: `q35`, `microvm` or `virt`."""
    vcpus: int
    memory_bytes: int
    storage_bytes: int
    """Zero if apps write into the guest's memory."""
    vtpm: bool
    kernel: Digest
    initrd: Digest
    command_line: str
    """The kernel's command line without its last word, which binds the pod's own image."""
    pod_root: str
    """The dm-verity root hash of the pod's own image."""
    pod_blocks: int
    """Its blocks of 4,096 bytes before the hash tree."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "accelerator": str(self.accelerator),
            "model": self.model,
            "vcpus": self.vcpus,
            "memory_bytes": self.memory_bytes,
            "storage_bytes": self.storage_bytes,
            "vtpm": self.vtpm,
            "kernel": str(self.kernel),
            "initrd": str(self.initrd),
            "command_line": self.command_line,
            "pod_root": self.pod_root,
            "pod_blocks": self.pod_blocks,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form; raises StateError."""
        accelerator = fields.text("accelerator")
        if accelerator not in tuple(Accelerator):
            fields.unexpected("accelerator", accelerator, "kvm or tcg")
        machine = cls(
            accelerator=Accelerator(accelerator),
            model=fields.text("model"),
            vcpus=fields.integer("vcpus"),
            memory_bytes=fields.integer("memory_bytes"),
            storage_bytes=fields.integer("storage_bytes"),
            vtpm=fields.flag("vtpm"),
            kernel=Digest.parse(fields.text("kernel")),
            initrd=Digest.parse(fields.text("initrd")),
            command_line=fields.text("command_line"),
            pod_root=fields.text("pod_root"),
            pod_blocks=fields.integer("pod_blocks"),
        )
        fields.end()
        return machine
