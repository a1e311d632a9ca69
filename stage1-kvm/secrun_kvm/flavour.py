"""The KVM flavour: a guest of its own for every pod, the same stage1, units and bundles inside.

What only a start needs is imported by the start, so that the end of a pod does not load it.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from secrun.stage1 import cgroups

if TYPE_CHECKING:
    from pathlib import Path

    from secrun.paths import Layout
    from secrun.stage1.contract import Decided, Draft, Launch, PodOnDisk, Problem, Stage1Identity
    from secrun.stage1.machine import CommandLine, MachineRequest
    from secrun.stage1.manifest import PodManifest
    from secrun_kvm.guestimage import GuestImage


def _identity(image: "GuestImage") -> "Stage1Identity":
    from secrun.stage1.contract import Stage1Identity

    return Stage1Identity(digest=image.digest, tree=image.reference, kernel=image.release)


class KvmFlavour:
    """Starts pods as virtual machines, by libvirt's embedded QEMU driver."""

    name = "kvm"

    def probe(self) -> "Sequence[Problem]":
        """Tell what this host lacks."""
        from secrun_kvm.probe import problems

        return problems()

    def ensure_image(self, layout: "Layout") -> "Stage1Identity":
        """Build or find the guest's image."""
        from secrun_kvm.guestimage import ensure_guest

        return _identity(ensure_guest(layout))

    def build_image(self, layout: "Layout", kernel: "Path | None") -> "Stage1Identity":
        """Build the guest's image, of another kernel if one is given, and ask QEMU what it can do.

        The image is all that is asked for where machines cannot be started: it is built elsewhere too.
        """
        from secrun_kvm import probe
        from secrun_kvm.guestimage import build_guest

        image = build_guest(layout, kernel)
        if probe.can_start():
            from secrun_kvm.lvroot import warm

            warm(layout)
        return _identity(image)

    def refuse(self, manifest: "PodManifest", asked: "MachineRequest") -> "Sequence[Problem]":
        """Refuse what a machine cannot have, and a machine that this host cannot start."""
        from secrun_kvm.decide import refusals

        return refusals(manifest, asked)

    def decide(self, draft: "Draft") -> "Decided":
        """Decide on the machine and pack the pod's own image."""
        from secrun_kvm.decide import decided

        return decided(draft)

    def command_lines(self) -> "Sequence[CommandLine]":
        """Return what kernels of this architecture are given, by accelerator and machine type."""
        from secrun_kvm.launch import this_architecture
        from secrun_kvm.machines import command_lines

        return command_lines(this_architecture())

    def launch(self, pod: "PodOnDisk", undo: ExitStack) -> "Launch":
        """Lock a uid range, make the cgroup, bring what QEMU may open together in one folder."""
        from secrun.syscalls import LinuxSyscalls
        from secrun_kvm.launch import KvmLauncher, this_architecture

        return KvmLauncher(LinuxSyscalls(), this_architecture()).launch(pod, undo)

    def cleanup(self, uuid: str) -> None:
        """Kill and remove the pod's cgroup; all else ends with the pod's processes or is in its folder.

        In the pod's own mount namespace, nothing of that folder stays a mount point.
        """
        from secrun_kvm.place import leave

        cgroups.destroy(cgroups.host().pod(uuid))
        leave()
