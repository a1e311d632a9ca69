"""What a kernel can enforce: this host's, or a guest's."""

import os
import re
from pathlib import Path

from secrun_policies.confine import HostFacts
from secrun_policies.errors import PolicyError

_RELEASE = re.compile(r"([0-9]+)\.([0-9]+)")


# linux/capability.h: the last number of every release since 5.9; CAP_CHECKPOINT_RESTORE.
_LAST_CAPABILITY = 40
_LAST_CAPABILITY_SINCE = (5, 9)


def _release(text: str) -> tuple[int, int]:
    if not (release := _RELEASE.match(text)):
        raise PolicyError(f"cannot read the kernel's version {text[:80]!r}", code="policy-host")
    return int(release[1]), int(release[2])


def read_guest(release: str) -> HostFacts:
    """Return the facts of a guest's kernel by its release (uname(2)), on this host's architecture; pure.

    Raises PolicyError for one that is too old to know them.
    """
    kernel = _release(release)
    if kernel < _LAST_CAPABILITY_SINCE:
        raise PolicyError(
            f"the guest's kernel {release[:80]} is older than 5.9",
            hint="use a newer one",
            code="policy-host",
        )
    return HostFacts(
        architecture=os.uname().machine, kernel=kernel, last_capability=_LAST_CAPABILITY, seccomp=True
    )


def read_host(proc: Path = Path("/proc")) -> HostFacts:
    """Read the facts of the running kernel; raises PolicyError if it does not say them."""
    system = os.uname()
    kernel = _release(system.release)
    try:
        last = int((proc / "sys/kernel/cap_last_cap").read_bytes())
    except (OSError, ValueError) as error:
        raise PolicyError("cannot read the kernel's highest capability", code="policy-host") from error
    return HostFacts(
        architecture=system.machine,
        kernel=kernel,
        last_capability=last,
        seccomp=(proc / "sys/kernel/seccomp/actions_avail").exists(),
    )
