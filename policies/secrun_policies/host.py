"""What this host can enforce, read from the kernel."""

import os
import re
from pathlib import Path

from secrun_policies.confine import HostFacts
from secrun_policies.errors import PolicyError

_RELEASE = re.compile(r"([0-9]+)\.([0-9]+)")


def read_host(proc: Path = Path("/proc")) -> HostFacts:
    """Read the facts of the running kernel; raises PolicyError if it does not say them."""
    system = os.uname()
    if not (release := _RELEASE.match(system.release)):
        raise PolicyError(f"cannot read the kernel's version {system.release!r}", code="policy-host")
    try:
        last = int((proc / "sys/kernel/cap_last_cap").read_bytes())
    except (OSError, ValueError) as error:
        raise PolicyError("cannot read the kernel's highest capability", code="policy-host") from error
    return HostFacts(
        architecture=system.machine,
        kernel=(int(release[1]), int(release[2])),
        last_capability=last,
        seccomp=(proc / "sys/kernel/seccomp/actions_avail").exists(),
    )
