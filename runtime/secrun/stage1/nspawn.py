"""The nspawn flavour: systemd as PID 1 in a user namespace, on a shared read-only stage1.

What only a start needs lies in nspawnlaunch, so that the end of a pod does not load it.
"""

import os
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

PROGRAM = "/usr/bin/systemd-nspawn"


class NspawnFlavour:
    """Starts pods with systemd-nspawn."""

    name = "nspawn"

    def probe(self) -> "Sequence[Problem]":
        """Tell what this host lacks."""
        from secrun.stage1.nspawnprobe import problems

        return problems(PROGRAM)

    def ensure_image(self, layout: "Layout") -> "Stage1Identity":
        """Build or find the stage1 image."""
        from secrun.stage1.contract import Stage1Identity
        from secrun.stage1.imagebuild import ensure_stage1

        image = ensure_stage1(layout)
        return Stage1Identity(digest=image.digest, tree=image.manifest.reference)

    def build_image(self, layout: "Layout", kernel: "Path | None") -> "Stage1Identity":
        """There is no kernel to choose."""
        if kernel is not None:
            from secrun.errors import UsageError

            raise UsageError(
                "--kernel is for pods in a virtual machine: those of nspawn run on this host's kernel",
                hint="secrun stage1 build kvm --kernel FILE",
                code="usage-stage1",
            )
        return self.ensure_image(layout)

    def command_lines(self) -> "Sequence[CommandLine]":
        """Return none: pods run on the host's kernel."""
        return ()

    def refuse(self, manifest: "PodManifest", asked: "MachineRequest") -> "Sequence[Problem]":
        """Limits need their controllers in cgroup2, and there is no machine to say anything about."""
        from secrun.stage1.contract import Problem

        offered = cgroups.host().controllers()
        return [
            *(
                Problem(
                    subject=option,
                    text="is for pods in a virtual machine",
                    hint="add --stage1=kvm, or leave it out",
                )
                for option in asked.options
            ),
            *self._missing(manifest, offered),
        ]

    @staticmethod
    def _missing(manifest: "PodManifest", offered: frozenset[str]) -> "Sequence[Problem]":
        from secrun.stage1.contract import Problem

        return [
            Problem(
                subject=f"app {app.name}",
                text=f"asks for a limit that needs the cgroup2 controller {controller!r}, which is missing",
                hint=f"available in cgroup2 on this host: {' '.join(sorted(offered)) or 'none'}",
            )
            for app in manifest.apps
            for controller in app.limits.controllers
            if controller not in offered
        ]

    def decide(self, draft: "Draft") -> "Decided":
        """Only the label is added: what the pod sees at /pod is bound from the host."""
        from secrun.stage1 import labels
        from secrun.stage1.contract import Decided
        from secrun_policies.labels import LabelKind

        return Decided(label=labels.decide(LabelKind.CONTAINER, draft.label))

    def launch(self, pod: "PodOnDisk", undo: ExitStack) -> "Launch":
        """Lock a uid range, make the cgroup, mount the images in a private mount namespace."""
        from secrun.stage1.nspawnlaunch import NspawnLauncher
        from secrun.syscalls import LinuxSyscalls

        return NspawnLauncher(LinuxSyscalls()).launch(pod, undo)

    def cleanup(self, uuid: str) -> None:
        """Kill and remove the pod's cgroup; all else ends with the pod's processes.

        But a start that was killed between two calls may have left a device.
        """
        cgroups.destroy(cgroups.host().pod(uuid))
        if any(name.startswith("dm-") for name in os.listdir("/sys/block")):
            from secrun.stage1.devicemapper import remove_left

            remove_left(uuid)
