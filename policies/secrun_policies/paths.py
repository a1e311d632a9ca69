"""The kernel's files that an app must not see or not write: Podman's and rkt's lists united."""

import re
from typing import NamedTuple

from secrun_policies.errors import PolicyError

UNMASK_ALL = "ALL"
# 64 paths are more than both lists hold.
MAX_PATHS = 64

# Each line names what the file gives away or controls.
MASKED = (
    "/proc/acpi",  # firmware controls
    "/proc/asound",  # sound devices of the host
    "/proc/config.gz",  # how the kernel was built: a map for exploits
    "/proc/interrupts",  # keystroke timing
    "/proc/kallsyms",  # kernel addresses
    "/proc/kcore",  # physical memory
    "/proc/keys",  # keyrings of every user
    "/proc/kmem",
    "/proc/latency_stats",
    "/proc/mem",
    "/proc/sched_debug",  # all processes of the host
    "/proc/scsi",  # device removal (CVE-2017-16539)
    "/proc/timer_list",  # all processes of the host
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",  # power side channel (CVE-2020-8694)
    "/sys/firmware",  # ACPI tables, EFI variables
    "/sys/fs/bpf",  # rkt masks all of /sys/fs; the cgroup below it has to stay readable
    "/sys/fs/pstore",
    "/sys/fs/selinux",
    "/sys/hypervisor",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
    "/sys/module",  # loaded modules and their parameters
    "/sys/power",  # suspend and hibernate
)

READ_ONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/sys/block",
    "/sys/bus",
    "/sys/class",
    "/sys/dev",
    "/sys/devices",
    "/sys/kernel",
)

_PATH = re.compile(r"(?:/[^/\0]{1,255}){1,16}\Z")


class Hidden(NamedTuple):
    """What an app must not see, what it must not write, and what was opened of the lists."""

    masked: tuple[str, ...]
    read_only: tuple[str, ...]
    opened: tuple[str, ...]


def _checked(path: str, what: str) -> str:
    if not _PATH.match(path) or "/../" in f"{path}/" or "/./" in f"{path}/":
        raise PolicyError(f"{what}={path[:80]!r} is not an absolute path", code="policy-path")
    return path


def hide(mask: tuple[str, ...], unmask: tuple[str, ...]) -> Hidden:
    """Return the lists with `mask` added and `unmask` (paths, patterns of paths, or ALL) taken out.

    Raises PolicyError for what is no path, and for something to unmask that is on neither list.
    """
    from secrun_policies.rules import glob

    if len(mask) + len(unmask) > MAX_PATHS:
        raise PolicyError(f"more than {MAX_PATHS} paths to mask and unmask", code="policy-path")
    opened = set[str]()
    for pattern in unmask:
        found = {path for path in (*MASKED, *READ_ONLY) if pattern == UNMASK_ALL or glob(pattern, path)}
        if not found:
            raise PolicyError(
                f"unmask={pattern[:80]!r}: nothing of that name is masked or read-only",
                hint="docs/confinement.md lists what is",
                code="policy-path",
            )
        opened |= found
    added = tuple(sorted({_checked(path, "mask") for path in mask} - set(MASKED)))
    if both := sorted(set(mask) & opened):
        raise PolicyError(f"{', '.join(both)} is both masked and unmasked", code="policy-path")
    return Hidden(
        masked=tuple(path for path in MASKED if path not in opened) + added,
        read_only=tuple(path for path in READ_ONLY if path not in opened),
        opened=(UNMASK_ALL,) if UNMASK_ALL in unmask else tuple(sorted(opened)),
    )
