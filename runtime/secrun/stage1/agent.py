"""Where secrun-agent is: the one static program of our own that runs inside every stage1."""

from pathlib import Path

import secrun
from secrun.errors import HostError

INSTALLED = Path("/usr/lib/secrun/secrun-agent")


def agent_path() -> Path:
    """Return the agent: the one built beside this package, else the one installed by a distribution.

    Raises HostError if there is none.
    """
    beside = Path(secrun.__file__).resolve().parent / "_agent" / "secrun-agent"
    for candidate in (beside, INSTALLED):
        if candidate.is_file():
            return candidate
    raise HostError(
        f"secrun-agent is neither at {beside} nor at {INSTALLED}",
        hint="run make setup in a source checkout, or install the secrun package",
        code="host-agent",
    )
