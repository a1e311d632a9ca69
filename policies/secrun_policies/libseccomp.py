"""The rim towards libseccomp: it knows the names, and it compiles what the runtime will load."""

import os
from typing import TYPE_CHECKING

from secrun_policies.errors import PolicyError
from secrun_policies.seccomp import Action, Architecture, Operator, SeccompProfile
from secrun_policies.seccomp_resolve import SeccompFilter

if TYPE_CHECKING:
    from types import ModuleType


def _binding() -> "ModuleType":
    try:
        import seccomp
    except ImportError as error:
        raise PolicyError(
            "python3-seccomp is not installed", hint="apt-get install python3-seccomp", code="policy-host"
        ) from error
    module: ModuleType = seccomp
    return module


def knows(name: str) -> bool:
    """Tell whether the installed libseccomp knows a call of this name, of whatever architecture."""
    seccomp = _binding()
    return bool(seccomp.resolve_syscall(seccomp.Arch(), name) != -1)


def name_of_number(number: int) -> str | None:
    """Return the name of a call in this machine's own table; None if the installed libseccomp has none."""
    seccomp = _binding()
    try:
        name = seccomp.resolve_syscall(seccomp.Arch(), number)
    except ValueError:
        return None
    return name.decode("ascii") if isinstance(name, bytes) else str(name)


def validate_with_libseccomp(profile: SeccompProfile) -> None:
    """Raise PolicyError if the installed libseccomp does not know a syscall that `profile` names.

    A runtime skips unknown names in silence, so a misspelt rule would protect nothing.
    """
    seccomp = _binding()
    native = seccomp.Arch()
    names = {name for rule in profile.rules for name in rule.names}
    if unknown := sorted(name for name in names if seccomp.resolve_syscall(native, name) == -1):
        raise PolicyError(
            f"seccomp profile {profile.name} names unknown syscalls: {', '.join(unknown[:20])}",
            hint="check the spelling; newer calls need a newer libseccomp",
            code="policy-seccomp-syscall",
        )


def compile_bpf(filter_: SeccompFilter) -> bytes:
    """Return the BPF program that libseccomp makes of a filter; raises PolicyError if it refuses.

    This is what the runtime loads: compiling it first turns a failed start into a named error.
    """
    seccomp = _binding()
    table = {Architecture.X86_64: "x86_64", Architecture.AARCH64: "aarch64"}[filter_.architecture]

    def verdict(action: Action, errno: int | None) -> int:
        if action is Action.ERRNO:
            return int(seccomp.ERRNO(1 if errno is None else errno))
        if action is Action.KILL_THREAD:
            return int(seccomp.KILL)
        return int(getattr(seccomp, action.removeprefix("SCMP_ACT_")))

    try:
        program = seccomp.SyscallFilter(verdict(filter_.default_action, filter_.default_errno))
        if int(seccomp.Arch(table)) != int(seccomp.Arch()):
            program.add_arch(seccomp.Arch(table))
            program.remove_arch(seccomp.Arch())
        for rule in filter_.rules:
            arguments = [
                seccomp.Arg(item.argument, _operator(seccomp, item.op), item.value, item.value_two)
                for item in rule.args
            ]
            action = verdict(rule.action, rule.errno)
            for name in rule.names:
                program.add_rule(action, name, *arguments)
        with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as stream:
            program.export_bpf(stream)
            stream.seek(0)
            return stream.read()
    except (RuntimeError, ValueError, OSError) as error:
        raise PolicyError(f"libseccomp refuses the filter: {error}", code="policy-seccomp") from error


def _operator(seccomp: "ModuleType", operator: Operator) -> int:
    return int(getattr(seccomp, operator.removeprefix("SCMP_CMP_")))
