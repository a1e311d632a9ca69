"""What the nspawn flavour needs of a host, and what is missing of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from secrun.stage1 import cgroups
from secrun.stage1.contract import Problem
from secrun.stage1.imagemount import mounts_files

_FILE_SYSTEMS = ("erofs", "overlay")
_LOOP_CONTROL = Path("/dev/loop-control")


def missing_file_systems(filesystems: str, aliases: str) -> list[str]:
    """Name what is neither in /proc/filesystems nor a module by its alias in modules.alias; pure.

    The kernel loads the module `fs-NAME` by itself when NAME is mounted (request_module of get_fs_type).
    """
    loadable = {line.split()[1] for line in aliases.splitlines() if line.startswith("alias fs-")}
    known = filesystems.split()
    return [name for name in _FILE_SYSTEMS if name not in known and f"fs-{name}" not in loadable]


def _loadable_modules() -> str:
    """Return the aliases of the modules that this kernel may load; none if it has or may load none."""
    try:
        if Path("/proc/sys/kernel/modules_disabled").read_text().strip() == "1":
            return ""
        return Path("/lib/modules", os.uname().release, "modules.alias").read_text()
    except FileNotFoundError:
        return ""


def _mounting() -> Sequence[Problem]:
    found = [
        Problem(
            subject=name,
            text="is not a file system of this kernel, nor a module that it could load",
            hint=f"modprobe {name} tells why",
        )
        for name in missing_file_systems(Path("/proc/filesystems").read_text(), _loadable_modules())
    ]
    if not mounts_files(os.uname().release) and not _LOOP_CONTROL.exists():
        text = "is missing: this kernel mounts images by loop devices only"
        found.append(Problem(subject=str(_LOOP_CONTROL), text=text, hint="modprobe loop"))
    return found


def problems(program: str) -> Sequence[Problem]:
    """Return what keeps pods from running by `program`, systemd-nspawn."""
    found: list[Problem] = []
    if not os.access(program, os.X_OK):
        found.append(Problem(subject=program, text="is not installed", hint="apt install systemd-container"))
    found += _mounting()
    if not Path("/proc/self/ns/user").exists():
        found.append(Problem(subject="user namespaces", text="are not built into this kernel"))
    if cgroups.find_v2(Path("/proc/self/mountinfo").read_text()) is None:
        found.append(Problem(subject="cgroup2", text="is not mounted"))
    return found
