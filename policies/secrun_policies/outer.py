"""The wall around the whole pod: what systemd-nspawn takes away before PID 1 of the pod runs.

Weaker than an app's own confinement, because systemd, crun and the agent live inside it; an app that gets
out of its own is still in this one.
"""

import errno
from enum import StrEnum

from secrun_policies.seccomp import Action, Architecture, SeccompProfile
from secrun_policies.seccomp_resolve import FlatRule, SeccompFilter, resolve


class NetworkMode(StrEnum):
    """How the pod is connected: an empty network of its own, the host's, or one that plugins made."""

    NONE = "none"
    HOST = "host"
    CNI = "cni"


# A pod's root has no right over a network that belongs to the host's user namespace. One that plugins made
# does, so that no pod changes its addresses, sniffs or forges packets; low ports need no right there.
WITHHELD = {
    NetworkMode.NONE: frozenset[str](),
    NetworkMode.HOST: frozenset({"CAP_NET_BIND_SERVICE"}),
    NetworkMode.CNI: frozenset(
        {"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW"}
    ),
}

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


def capabilities_of_pod(network: NetworkMode, granted: frozenset[str]) -> frozenset[str]:
    """Return what stays with the pod: its machinery's and its apps' capabilities.

    CAP_NET_ADMIN brings up the loopback interface of a network of the pod's own.
    """
    return MACHINERY | granted | ({"CAP_NET_ADMIN"} if network is NetworkMode.NONE else set[str]())


def nspawn_arguments(
    *,
    needed: frozenset[str],
    known: frozenset[str],
    filters: tuple[SeccompFilter | None, ...],
    no_new_privileges: bool,
) -> tuple[str, ...]:
    """Return the options of systemd-nspawn that confine the pod.

    `needed` is what the pod keeps, `known` what the kernel has. The filter is nspawn's own with more
    refused; it is ignored where `pod_filter` takes its place.
    """
    dropped = sorted((NSPAWN_DEFAULT & known) - needed)
    extra = sorted(needed - NSPAWN_DEFAULT)
    denied = _denied(filters)
    result = [f"--drop-capability={','.join(dropped)}"] if dropped else []
    result += [f"--capability={','.join(extra)}"] if extra else []
    result += [f"--system-call-filter=~{' '.join(denied)}"] if denied else []
    result += ["--no-new-privileges=yes"] if no_new_privileges else []
    return tuple(result)


def _denied(filters: tuple[SeccompFilter | None, ...]) -> tuple[str, ...]:
    allowed = _allowed(filters)
    return () if allowed is None else tuple(name for name in DENIED if name not in allowed)


def pod_filter(
    profile: SeccompProfile,
    *,
    needed: frozenset[str],
    filters: tuple[SeccompFilter | None, ...],
    table: Architecture,
    kernel: tuple[int, int],
) -> SeccompFilter:
    """Return the filter around the whole pod: the default profile with what the machinery has to do.

    To be loaded by the process that executes systemd-nspawn, which then makes none (SYSTEMD_SECCOMP=0):
    this one refuses more, closes the compat tables, and costs 1 ms of the start where nspawn's costs 60.
    """
    denied = frozenset(_denied(filters))
    resolved = resolve(profile, caps=needed, table=table, kernel=kernel)
    kept = [
        rule._replace(names=names)
        for rule in resolved.rules
        if (names := tuple(name for name in rule.names if name not in denied))
    ]
    refused = FlatRule(action=Action.ERRNO, errno=errno.EPERM, args=(), names=tuple(sorted(denied)))
    return resolved._replace(rules=(*kept, refused) if denied else tuple(kept))
