"""Where our own static programs are that run inside a stage1: the agent, and the init of a guest."""

from pathlib import Path

import secrun
from secrun.errors import HostError

INSTALLED = Path("/usr/lib/secrun")


def _find(name: str) -> Path:
    beside = Path(secrun.__file__).resolve().parent / "_agent" / name
    for candidate in (beside, INSTALLED / name):
        if candidate.is_file():
            return candidate
    raise HostError(
        f"{name} is neither at {beside} nor at {INSTALLED / name}",
        hint="run make setup in a source checkout, or install the secrun package",
        code="host-agent",
    )


def agent_path() -> Path:
    """Return the agent: the one built beside this package, else the one installed by a distribution.

    Raises HostError if there is none.
    """
    return _find("secrun-agent")


def stage0_path() -> Path:
    """Return the init of a KVM guest, found as the agent is; raises HostError if there is none."""
    return _find("secrun-stage0")
