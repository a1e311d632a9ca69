"""The SELinux contexts of one machine: of its emulator, its helpers, and all that it opens. Pure."""

from secrun.record import record
from secrun.stage1.labels import Assigned
from secrun_policies.labels import OWN_BRIDGE, OWN_MACHINE_FILE, OWN_SHARE, level_of, with_level


@record
class Contexts:
    """All carry the pod's pair of categories; empty where the kernel has no label for machines."""

    emulator: str = ""
    """Of QEMU and of the software TPM beside it, which is as hostile once its guest is."""
    files: str = ""
    """Of what these two open: images, sockets, the TPM's state."""
    share: str = ""
    """Of the daemons of shared folders."""
    bridge: str = ""
    """Of the bridge from the moment that it hears the guest."""


def of_emulator(emulator: str) -> Contexts:
    """Return the contexts that go with an emulator's."""
    level = level_of(emulator)
    if not level:
        return Contexts()
    return Contexts(
        emulator=emulator,
        files=with_level(OWN_MACHINE_FILE, level),
        share=with_level(OWN_SHARE, level),
        bridge=with_level(OWN_BRIDGE, level),
    )


def of(label: Assigned | None) -> Contexts:
    """Return the contexts of a pod that starts."""
    return Contexts() if label is None else of_emulator(label.process)
