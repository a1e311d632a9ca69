"""The wall around the whole pod: what systemd-nspawn takes away before PID 1 of the pod runs.

Weaker than an app's own confinement, because systemd, crun and the agent live inside it; an app that gets
out of its own is still in this one.
"""

from enum import StrEnum

from secrun_policies.seccomp import Action
from secrun_policies.seccomp_resolve import SeccompFilter


class NetworkMode(StrEnum):
    """How the pod is connected: its own empty network, or the host's."""

    NONE = "none"
    HOST = "host"


# systemd-nspawn 252, --capability=: what it leaves without being asked.
NSPAWN_DEFAULT = frozenset({
    "CAP_AUDIT_CONTROL", "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER", "CAP_FSETID", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
    "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_NICE", "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE", "CAP_SYS_TTY_CONFIG",
})  # fmt: skip

# What systemd, crun and the agent need: mounts and namespaces; dropping an app's capabilities; joining the
# namespaces of an app of another user (ptrace(2), PTRACE_MODE_READ); becoming its user.
MACHINERY = frozenset({
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETPCAP",
    "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE",
})  # fmt: skip

# Calls that nspawn lets through or could let through and that nothing of the machinery makes. One is taken
# off the list when some app is allowed to make it.
DENIED = (
    "add_key", "bpf", "delete_module", "finit_module", "init_module", "io_uring_enter", "io_uring_register",
    "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie",
    "migrate_pages", "modify_ldt", "move_pages", "open_by_handle_at", "perf_event_open", "process_madvise",
    "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "request_key", "swapoff", "swapon",
    "userfaultfd", "vmsplice",
)  # fmt: skip


def _allowed(filters: tuple[SeccompFilter | None, ...]) -> frozenset[str] | None:
    """Return every call that some app may make under some condition; None means all of them."""
    result = set[str]()
    for item in filters:
        if item is None or item.default_action in (Action.ALLOW, Action.LOG):
            return None
        result.update(
            name for rule in item.rules if rule.action in (Action.ALLOW, Action.LOG) for name in rule.names
        )
    return frozenset(result)


def nspawn_arguments(
    *,
    network: NetworkMode,
    granted: frozenset[str],
    known: frozenset[str],
    filters: tuple[SeccompFilter | None, ...],
    no_new_privileges: bool,
) -> tuple[str, ...]:
    """Return the options of systemd-nspawn that confine the pod.

    `granted` is what the apps hold together, `known` what the kernel has. CAP_NET_ADMIN brings the loopback
    interface of a network of the pod's own up.
    """
    needed = MACHINERY | granted | ({"CAP_NET_ADMIN"} if network is NetworkMode.NONE else set[str]())
    dropped = sorted((NSPAWN_DEFAULT & known) - needed)
    extra = sorted(needed - NSPAWN_DEFAULT)
    allowed = _allowed(filters)
    denied = [] if allowed is None else [name for name in DENIED if name not in allowed]
    result = [f"--drop-capability={','.join(dropped)}"] if dropped else []
    result += [f"--capability={','.join(extra)}"] if extra else []
    result += [f"--system-call-filter=~{' '.join(denied)}"] if denied else []
    result += ["--no-new-privileges=yes"] if no_new_privileges else []
    return tuple(result)
