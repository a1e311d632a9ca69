"""The pod's control group: made, limited, killed and removed on the host (cgroup v2, cgroups(7))."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from secrun.errors import HostError
from secrun.locks import is_missing
from secrun.record import row

PARENT = "secrun"
SLICE = "machine.slice"
"""Where systemd keeps what runs in containers and machines (systemd.special(7))."""
_BOOTED = Path("/run/systemd/system")
_V2_ROOT = Path("/sys/fs/cgroup")
_MOUNTINFO = Path("/proc/self/mountinfo")
# The kernel needs a moment between the last exit and an empty cgroup.
_EMPTY_DEADLINE_SECONDS = 10.0


def find_v2(mountinfo: str) -> Path | None:
    """Return where cgroup2 is mounted, from the text of /proc/PID/mountinfo; pure.

    The place systemd uses wins: in a pod's mount namespace it covers the host's other mount.
    """
    mounts: list[Path] = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        if tail.startswith("cgroup2 "):
            mounts.append(Path(head.split(" ")[4].replace("\\040", " ")))
    if _V2_ROOT in mounts:
        return _V2_ROOT
    return mounts[0] if mounts else None


def systemd_manages() -> bool:
    """Tell whether systemd is this host's manager (sd_booted(3))."""
    return _BOOTED.is_dir()


def scope_name(uuid: str) -> str:
    """Return the name of a pod's scope unit."""
    return f"secrun-{uuid}.scope"


@row
class Hierarchy:
    """The host's cgroup2 mount, and whether a pod needs a view of its own."""

    mount: Path

    @property
    def pure(self) -> bool:
        """Tell whether cgroup2 lies where systemd expects it; else nspawn needs a private mount."""
        return self.mount == _V2_ROOT

    def pod(self, uuid: str) -> Path:
        """Return the pod's group: in its scope, if it has one."""
        scope = self.mount / SLICE / scope_name(uuid)
        return scope / "pod" if scope.is_dir() else self.mount / PARENT / uuid

    def controllers(self) -> frozenset[str]:
        """Return what the kernel offers at the root of the hierarchy."""
        return frozenset((self.mount / "cgroup.controllers").read_text().split())


def host() -> Hierarchy:
    """Return the host's cgroup2 hierarchy; raises HostError if there is none."""
    mount = find_v2(_MOUNTINFO.read_text())
    if mount is None:
        raise HostError(
            "cgroup2 is not mounted",
            hint="boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            code="host-cgroup2",
        )
    return Hierarchy(mount)


def _enable(group: Path, controllers: Sequence[str]) -> None:
    if controllers:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def create(hierarchy: Hierarchy, uuid: str, controllers: Sequence[str]) -> Path:
    """Make the pod's group with `controllers` available to its children; raises HostError or OSError."""
    if hierarchy.pure and systemd_manages():
        return _create_in_scope(hierarchy, uuid, controllers)
    group = hierarchy.mount / PARENT / uuid
    group.parent.mkdir(exist_ok=True)
    _enable(hierarchy.mount, controllers)
    _enable(group.parent, controllers)
    group.mkdir()
    return group


def _create_in_scope(hierarchy: Hierarchy, uuid: str, controllers: Sequence[str]) -> Path:
    from secrun.stage1 import systemdscope  # only where systemd is PID 1

    scope, placeholder = systemdscope.start(hierarchy.mount, uuid)
    _enable(scope, controllers)
    group = scope / "pod"
    group.mkdir()
    placeholder.release(group)
    return group


def _groups_below(group: Path) -> list[Path]:
    """Return `group` and all groups below it, children first."""
    found = [Path(base) for base, _, _ in os.walk(group, topdown=False)]
    return found or [group]


def destroy(group: Path) -> None:
    """Kill everything in `group` and remove it; fine if it is already gone.

    Raises HostError if processes survive SIGKILL for the deadline (they hang in the kernel).
    """
    try:
        (group / "cgroup.kill").write_text("1")
    except OSError as error:
        if is_missing(error):
            return
        raise
    deadline = time.monotonic() + _EMPTY_DEADLINE_SECONDS
    while True:
        try:
            for member in _groups_below(group):
                member.rmdir()
        except OSError as error:
            if is_missing(error):
                return
            if time.monotonic() > deadline:
                raise HostError(
                    f"cgroup {group} does not become empty", hint="see cgroup.procs in it"
                ) from error
            time.sleep(0.005)
            continue
        return
