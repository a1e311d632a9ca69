"""Examine the host: what would keep pods from running, and what works in a lesser way."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from secrun import selinux
from secrun.errors import HostError, NetworkError, SecrunError
from secrun.image import account
from secrun.launch import BASE_ENVIRONMENT
from secrun.measure import identity, software
from secrun.measure.settings import AUTO, DEVICE, SOFTWARE, AttestSettings, Mode
from secrun.network import builtin, configs
from secrun.network.configs import Places
from secrun.paths import Layout
from secrun.record import replace
from secrun.selinux import Mode as SelinuxMode
from secrun.stage1 import cgroups, devicemapper, flavours, labels
from secrun.stage1.agent import agent_path
from secrun.stage1.contract import Problem
from secrun.syscalls import LinuxSyscalls
from secrun_attest.tpm import TpmKind
from secrun_policies.labels import LabelKind, LabelRequest

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


def _selinux() -> list[Problem]:
    """Tell whether pods get labels, and what they would get."""
    mode = selinux.mode()
    if mode is SelinuxMode.OFF:
        text = "is off: nothing but namespaces, capabilities and filters lies between pods"
        return [Problem(subject="SELinux", text=text, hint="boot with security=selinux", fatal=False)]
    try:
        label = labels.decide(LabelKind.CONTAINER, LabelRequest())
    except SecrunError as error:
        return [Problem(subject="SELinux", text=error.message, hint=error.hint)]
    if label is None:
        text = "is permissive, and its policy has no type for pods: they run without labels"
        return [Problem(subject="SELinux", text=text, hint="secrun policy install selinux", fatal=False)]
    if mode is SelinuxMode.PERMISSIVE:
        text = f"is permissive: pods run as {label.process}, and nothing holds them to it"
        return [Problem(subject="SELinux", text=text, hint="setenforce 1", fatal=False)]
    return []


def _verity() -> list[Problem]:
    """Tell how images are checked."""
    if devicemapper.CONTROL.exists():
        return []
    text = (
        "is missing: images are read and checked whole before each start, not block by block while they run"
    )
    return [Problem(subject=str(devicemapper.CONTROL), text=text, hint="modprobe dm-verity", fatal=False)]


def _fetching() -> list[Problem]:
    """Tell what keeps root from fetching: it lets a process without rights do it, or does not do it."""
    problems = []
    try:
        account.fetching()
    except HostError as error:
        problems.append(
            Problem(subject="user secrun", text=error.message, hint=error.hint, fatal=False),
        )
    if not LinuxSyscalls().landlock_abi():
        text = "is missing: root fetches nothing from registries"
        hint = "boot with landlock in lsm= (CONFIG_SECURITY_LANDLOCK)"
        problems.append(Problem(subject="Landlock", text=text, hint=hint, fatal=False))
    return problems


def _existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists: what is missing will be made."""
    return next(item for item in (path, *path.parents) if item.exists())


def _flavours(wanted: str) -> list[Problem]:
    """Return what the flavour `wanted` lacks, and as notes what the others do; raises UsageError."""
    problems = list(flavours.load(wanted).probe())
    for name in (flavours.BUILT_IN, *flavours.others()):
        if name != wanted:
            problems += [
                replace(item, subject=f"--stage1={name}: {item.subject}", fatal=False)
                for item in flavours.load(name).probe()
            ]
    return problems


def examine(layout: Layout, settings: AttestSettings, places: Places, flavour: str) -> Sequence[Problem]:
    """Return every problem found; no problem means that pods run with all that secrun offers.

    What pods of another flavour than `flavour` would lack is not fatal.
    """
    problems = _flavours(flavour)
    if os.geteuid() != 0:
        problems.append(
            Problem(subject="user", text="is not root: pods cannot be started", hint="use sudo", fatal=False)
        )
    elif not os.access(_existing(layout.root), os.W_OK):
        problems.append(Problem(subject=str(layout.root), text="cannot be written"))
    notes = (
        *_cgroup_notes(),
        *_selinux(),
        *_verity(),
        *_trust(),
        *_fetching(),
        *_networks(places),
        *_tpm(layout, settings),
    )
    return [*problems, *_agent(), *notes]
