"""The kernel's files that an app must not see or not write: Podman's and rkt's lists united."""

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
