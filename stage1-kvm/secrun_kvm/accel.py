"""Which accelerator a machine gets; emulation is never silent."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from secrun.record import record
from secrun.stage1.contract import Problem
from secrun.stage1.machine import Accelerator, AcceleratorChoice
from secrun_kvm.spec import Architecture

DEVICE = Path("/dev/kvm")
_HINT = "--accel=tcg emulates the processor: ten times slower, and measured as emulation"


@record
class Facts:
    """What this host has of KVM."""

    architecture: Architecture
    flags: frozenset[str]
    """The processor's features as /proc/cpuinfo names them."""
    modules: frozenset[str]
    """Loaded or built into the kernel."""
    device: bool
    """/dev/kvm exists and root can open it."""


def _hardware(facts: Facts) -> list[Problem]:
    """Ask for the processor's own support; on arm64 the device exists only where it is there."""
    if facts.architecture is not Architecture.X86_64:
        return []
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in facts.flags:
            if module in facts.modules:
                return []
            return [Problem(subject=module, text="is not loaded", hint=f"modprobe {module}")]
    return [
        Problem(
            subject="this processor",
            text="shows neither vmx nor svm: it has no hardware virtualisation, or its firmware or"
            " hypervisor hides it",
            hint=_HINT,
        )
    ]


def missing(facts: Facts) -> Sequence[Problem]:
    """Return what this host lacks for KVM; pure.

    A /dev/kvm without vmx or svm runs paravirtual kernels only, so it proves nothing.
    """
    problems = _hardware(facts)
    if not facts.device:
        text = "cannot be opened"
        problems.append(Problem(subject=str(DEVICE), text=text, hint="modprobe kvm_intel or kvm_amd"))
    return problems


def choose(asked: AcceleratorChoice | None, facts: Facts) -> Accelerator | Sequence[Problem]:
    """Return the accelerator, or why there is none; pure."""
    if asked is AcceleratorChoice.TCG:
        return Accelerator.TCG
    return missing(facts) or Accelerator.KVM


def _openable(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def architecture() -> Architecture | None:
    """Return this host's architecture, None if guests are not supported there."""
    machine = os.uname().machine
    return Architecture(machine) if machine in tuple(Architecture) else None


def read(where: Architecture) -> Facts:
    """Read the facts of this host."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    modules = {name for name in ("kvm_intel", "kvm_amd") if Path("/sys/module", name).is_dir()}
    return Facts(
        architecture=where,
        flags=frozenset(found[1].split() if found else ()),
        modules=frozenset(modules),
        device=_openable(DEVICE),
    )
