"""What the kernel says of a process: `/proc/PID/status`, and what an app may have of it."""

# capabilities(7): the numbers of podman's default set, beyond which no app may have anything.
PODMAN = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def status_of(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
