"""Examine the host: what would keep pods from running, and what works in a lesser way."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from secrun.errors import HostError, NetworkError, SecrunError
from secrun.launch import BASE_ENVIRONMENT
from secrun.measure import identity, software
from secrun.measure.settings import AUTO, DEVICE, SOFTWARE, AttestSettings, Mode
from secrun.network import builtin, configs
from secrun.network.configs import Places
from secrun.paths import Layout
from secrun.stage1 import cgroups, flavours
from secrun.stage1.agent import agent_path
from secrun.stage1.contract import Problem
from secrun_attest.tpm import TpmKind

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


def _networks(places: Places) -> list[Problem]:
    """Tell whether pods can join the network that they join by default."""
    try:
        config = configs.find(builtin.NAME, Layout(), places.configs, ports=True)
        configs.check_plugins(config, places.plugins)
    except (NetworkError, HostError) as error:
        hint = error.hint or "mend or remove the file"
        return [Problem(subject="network", text=error.message, hint=hint, fatal=False)]
    return []


def _tpm(layout: Layout, settings: AttestSettings) -> list[Problem]:
    """Tell what a verifier would be told: no TPM, or a program in its place."""
    if settings.mode is Mode.OFF:
        text = "is off: pods run unmeasured, and the log will say so"
        return [Problem(subject="attest", text=text, hint="leave out --attest=off", fatal=False)]
    try:
        known = identity.load(layout)
    except SecrunError as error:
        return [Problem(subject="attest", text=error.message, hint=error.hint)]
    if known is not None and known.kind is TpmKind.HARDWARE:
        return []
    given = settings.tcti not in (AUTO, SOFTWARE)
    if known is None and (given or (settings.tcti == AUTO and DEVICE.exists())):
        return []
    if shutil.which(software.PROGRAM, path=BASE_ENVIRONMENT["PATH"]) is None:
        return [
            Problem(
                subject="TPM",
                text=f"is missing, and {software.PROGRAM} is not installed: no pod can be measured",
                hint=f"install {software.PROGRAM}, or start pods with --attest=off",
                fatal=settings.mode is Mode.REQUIRED,
            )
        ]
    text = "is a program on this host: it proves nothing against root, and evidence says so"
    return [Problem(subject="TPM", text=text, hint="use a host with a TPM 2.0", fatal=False)]


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists: what is missing will be made."""
    return next(item for item in (path, *path.parents) if item.exists())


def examine(layout: Layout, settings: AttestSettings, places: Places) -> Sequence[Problem]:
    """Return every problem found; no problem means that pods run with all that secrun offers."""
    problems = list(flavours.load("nspawn").probe())
    if os.geteuid() != 0:
        problems.append(
            Problem(subject="user", text="is not root: pods cannot be started", hint="use sudo", fatal=False)
        )
    elif not os.access(_existing(layout.root), os.W_OK):
        problems.append(Problem(subject=str(layout.root), text="cannot be written"))
    return [*problems, *_agent(), *_cgroup_notes(), *_trust(), *_networks(places), *_tpm(layout, settings)]
