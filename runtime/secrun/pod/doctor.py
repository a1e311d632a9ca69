"""Examine the host: what would keep pods from running, and what works in a lesser way."""

import os
from collections.abc import Sequence
from pathlib import Path

from secrun.errors import HostError
from secrun.paths import Layout
from secrun.stage1 import cgroups, flavours
from secrun.stage1.agent import agent_path
from secrun.stage1.contract import Problem

_LIMIT_CONTROLLERS = ("memory", "cpu", "pids")


def _cgroup_notes() -> list[Problem]:
    try:
        hierarchy = cgroups.host()
    except HostError as error:
        return [Problem(subject="cgroup2", text=error.message, hint=error.hint)]
    missing = [name for name in _LIMIT_CONTROLLERS if name not in hierarchy.controllers()]
    if not missing:
        return []
    return [
        Problem(
            subject="cgroup2",
            text=f"has no controller for {', '.join(missing)}; the limits that need them are refused",
            hint="boot with systemd.unified_cgroup_hierarchy=1",
            fatal=False,
        )
    ]


def _agent() -> list[Problem]:
    try:
        agent_path()
    except HostError as error:
        return [Problem(subject="secrun-agent", text=error.message, hint=error.hint)]
    return []


def _trust() -> list[Problem]:
    places = (Path("/etc/containers/policy.json"), Path("/usr/share/containers/policy.json"))
    if any(path.exists() for path in places):
        return []
    return [
        Problem(
            subject=str(places[0]),
            text="is missing: no image is admitted",
            hint="write a policy, or name one with --policy",
            fatal=False,
        )
    ]


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists: what is missing will be made."""
    return next(item for item in (path, *path.parents) if item.exists())


def examine(layout: Layout) -> Sequence[Problem]:
    """Return every problem found; no problem means that pods run with all that secrun offers."""
    problems = list(flavours.load("nspawn").probe())
    if os.geteuid() != 0:
        problems.append(
            Problem(subject="user", text="is not root: pods cannot be started", hint="use sudo", fatal=False)
        )
    elif not os.access(_existing(layout.root), os.W_OK):
        problems.append(Problem(subject=str(layout.root), text="cannot be written"))
    return [*problems, *_agent(), *_cgroup_notes(), *_trust()]
