"""Compile what a pod asks for and what its host can enforce into what will be enforced.

Pure: facts in, confinement out. Defaults are strict; everything weaker is a named relaxation that is
listed, digested with the rest, and so measured.
"""

import hashlib
from enum import StrEnum
from typing import NamedTuple

from secrun_policies import capabilities, outer, paths, sysctls
from secrun_policies.errors import PolicyError, near
from secrun_policies.jsonvalue import JsonObject, canonical
from secrun_policies.oci import linux_fields, process_fields, seccomp_section
from secrun_policies.outer import NetworkMode
from secrun_policies.seccomp import DEFAULT_PROFILE, MACHINES, SeccompProfile
from secrun_policies.seccomp_resolve import SeccompFilter, is_open, resolve

# getrlimit(2); what crun accepts.
RLIMITS = frozenset({
    "RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS",
    "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
})  # fmt: skip
UNLIMITED = (1 << 64) - 1


class RelaxationKind(StrEnum):
    """The ways in which an app can be confined less than by default."""

    CAPABILITY = "capability"
    SECCOMP_UNCONFINED = "seccomp-unconfined"
    SECCOMP_PROFILE = "seccomp-profile"
    UNMASKED_PATHS = "unmasked-paths"
    NEW_PRIVILEGES = "new-privileges"
    CORE_DUMPS = "core-dumps"
    SYSCTL = "sysctl"
    DEVICE = "device"
    CONTROL_GROUP = "control-group"
    PRIVILEGED = "privileged"


class Relaxation(NamedTuple):
    """One named weakening: its kind, what it concerns, and what it opens, in words."""

    kind: RelaxationKind
    subject: str
    reason: str


class Rlimit(NamedTuple):
    """One resource limit; UNLIMITED stands for RLIM_INFINITY."""

    name: str
    soft: int
    hard: int


class AppFacts(NamedTuple):
    """What one app asks for.

    `seccomp` is the profile to use, None for no filter at all. `unmasked_paths` gives the app the kernel's
    files as they are, `unmask` some of them; `new_privileges` lets setuid programs and file capabilities
    work. `privileged` only names what the other fields add up to. With `control_group` it may divide one of
    its own.
    """

    name: str
    seccomp: SeccompProfile | None
    uid: int = 0
    gid: int = 0
    read_only: bool = False
    terminal: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    unmasked_paths: bool = False
    new_privileges: bool = False
    rlimits: tuple[Rlimit, ...] = ()
    mask: tuple[str, ...] = ()
    unmask: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    oom_score_adj: int | None = None
    devices: tuple[str, ...] = ()
    privileged: bool = False
    control_group: bool = False


class PodFacts(NamedTuple):
    """What the pod's apps share, and the apps.

    `reference` is what filters are compared with: one that lets no more through is no relaxation. Without it
    every profile that is not called `default` is one. With a kernel of its own a pod may do to its network
    what it likes.
    """

    network: NetworkMode
    apps: tuple[AppFacts, ...]
    reference: SeccompProfile | None = None
    own_kernel: bool = False


class HostFacts(NamedTuple):
    """What the host can enforce: uname(2) machine and kernel, its highest capability, seccomp filters."""

    architecture: str
    kernel: tuple[int, int]
    last_capability: int
    seccomp: bool


class Confinement(NamedTuple):
    """The policy of one app as the runtime enforces it; `digest` covers every other field."""

    app: str
    capabilities: capabilities.Granted
    no_new_privileges: bool
    seccomp: SeccompFilter | None
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]
    rlimits: tuple[Rlimit, ...]
    relaxations: tuple[Relaxation, ...]
    digest: str
    sysctls: tuple[tuple[str, str], ...] = ()
    oom_score_adj: int | None = None


class PodConfinement(NamedTuple):
    """The policy of a pod: its apps' and the outer one around them all.

    `outer_filter` belongs on the process that executes systemd-nspawn, together with `nspawn_environment`;
    None leaves the filter to nspawn: an app without the default profile may need what the default refuses.
    """

    apps: tuple[Confinement, ...]
    outer_filter: SeccompFilter | None
    nspawn_environment: tuple[tuple[str, str], ...]
    nspawn_arguments: tuple[str, ...]
    relaxations: tuple[Relaxation, ...]
    digest: str


def _digest(value: JsonObject) -> str:
    return f"sha256:{hashlib.sha256(canonical(value)).hexdigest()}"


def _relaxation_objects(relaxations: tuple[Relaxation, ...]) -> list[JsonObject]:
    return [
        {"kind": item.kind.value, "subject": item.subject, "reason": item.reason} for item in relaxations
    ]


def _rlimits(app: AppFacts) -> tuple[Rlimit, ...]:
    """Return the limits to set: those asked for, and no core files (they hold the app's secrets)."""
    names = [limit.name for limit in app.rlimits]
    for limit in app.rlimits:
        if limit.name not in RLIMITS:
            raise PolicyError(
                f"app {app.name}: unknown limit {limit.name[:80]!r}",
                hint=near(limit.name, RLIMITS) or "getrlimit(2) lists them",
                code="policy-rlimit",
            )
        if names.count(limit.name) > 1:
            raise PolicyError(f"app {app.name}: {limit.name} is given twice", code="policy-rlimit")
        if not 0 <= limit.soft <= limit.hard <= UNLIMITED:
            raise PolicyError(
                f"app {app.name}: {limit.name} is {limit.soft}:{limit.hard}, expected 0 <= soft <= hard",
                code="policy-rlimit",
            )
    default = () if "RLIMIT_CORE" in names else (Rlimit(name="RLIMIT_CORE", soft=0, hard=0),)
    return tuple(sorted((*app.rlimits, *default)))


# What each kind opens, in words; those that depend on more are written where they are found.
_REASONS = {
    RelaxationKind.CAPABILITY: "a capability beyond the default set",
    RelaxationKind.SECCOMP_UNCONFINED: "the app has no system call filter; only the pod's stays",
    RelaxationKind.SECCOMP_PROFILE: "the app's own filter lets through more than the default one",
    RelaxationKind.UNMASKED_PATHS: "the app sees and may write the kernel's files in /proc and /sys",
    RelaxationKind.NEW_PRIVILEGES: "setuid programs and file capabilities work",
    RelaxationKind.CORE_DUMPS: "the app may write core files",
    RelaxationKind.SYSCTL: "the pod's kernel settings are not the kernel's defaults",
    RelaxationKind.DEVICE: "the app may open a device of the host",
    RelaxationKind.CONTROL_GROUP: "the app divides a control group of its own, below its limits",
    RelaxationKind.PRIVILEGED: "the app is confined by the pod alone",
}


def _relaxations(
    app: AppFacts, granted: capabilities.Granted, opened: tuple[str, ...], *, widened: bool
) -> tuple[Relaxation, ...]:
    kinds = RelaxationKind
    unmasked = (app.name,) if paths.UNMASK_ALL in opened else opened
    core = any(limit.name == "RLIMIT_CORE" and limit.hard > 0 for limit in app.rlimits)
    found = [
        *((kinds.CAPABILITY, name) for name in granted.added),
        *((kinds.SECCOMP_UNCONFINED, app.name) for _ in (1,) if app.seccomp is None),
        *((kinds.SECCOMP_PROFILE, app.seccomp.name) for _ in (1,) if widened and app.seccomp),
        *((kinds.UNMASKED_PATHS, path) for path in unmasked),
        *((kinds.NEW_PRIVILEGES, app.name) for _ in (1,) if app.new_privileges),
        *((kinds.CORE_DUMPS, app.name) for _ in (1,) if core),
        *((kinds.SYSCTL, f"{name}={value}") for name, value in app.sysctls),
        *((kinds.DEVICE, path) for path in app.devices),
        *((kinds.CONTROL_GROUP, app.name) for _ in (1,) if app.control_group),
        *((kinds.PRIVILEGED, app.name) for _ in (1,) if app.privileged),
    ]
    return tuple(
        sorted(Relaxation(kind=kind, subject=subject, reason=_REASONS[kind]) for kind, subject in found)
    )


def _filter(app: AppFacts, granted: capabilities.Granted, host: HostFacts) -> SeccompFilter | None:
    if app.seccomp is None:
        return None
    if not host.seccomp:
        raise PolicyError(
            f"app {app.name} needs a system call filter, and this kernel has none",
            hint="boot a kernel with CONFIG_SECCOMP_FILTER, or ask for seccomp=unconfined",
            code="policy-host",
        )
    return _resolved(app.seccomp, granted, host)


def _resolved(profile: SeccompProfile, granted: capabilities.Granted, host: HostFacts) -> SeccompFilter:
    if (table := MACHINES.get(host.architecture)) is None:
        raise PolicyError(
            f"no seccomp profile for {host.architecture}, only for {', '.join(sorted(MACHINES))}",
            code="policy-host",
        )
    return resolve(profile, caps=frozenset(granted.bounding), table=table, kernel=host.kernel)


def _widened(
    pod: PodFacts,
    app: AppFacts,
    filter_: SeccompFilter | None,
    granted: capabilities.Granted,
    host: HostFacts,
) -> bool:
    """Tell whether an app's filter lets through what the default one for the same capabilities does not."""
    if filter_ is None or app.seccomp is None or app.seccomp.name == DEFAULT_PROFILE:
        return False
    if pod.reference is None:
        return True
    from secrun_policies.seccomp_compare import wider

    return bool(wider(filter_, _resolved(pod.reference, granted, host)))


def _oom_score(app: AppFacts) -> int | None:
    score = app.oom_score_adj
    if score is not None and not -1000 <= score <= 1000:
        raise PolicyError(
            f"app {app.name}: oom_score_adj {score} is not between -1000 and 1000", code="policy-oom"
        )
    return score


def compile_app(pod: PodFacts, app: AppFacts, host: HostFacts) -> Confinement:
    """Return the confinement of one app of `pod`; raises PolicyError if it cannot be enforced on `host`."""
    if app not in pod.apps:
        raise PolicyError(f"app {app.name} is not part of the pod", code="policy-app")
    known = capabilities.of_host(host.last_capability)
    withheld = frozenset[str]() if pod.own_kernel else outer.WITHHELD[pod.network]
    granted = capabilities.grant(app.cap_add, app.cap_drop, uid=app.uid, known=known, withheld=withheld)
    seccomp = _filter(app, granted, host)
    rlimits = _rlimits(app)
    hidden = paths.hide(app.mask, (paths.UNMASK_ALL,) if app.unmasked_paths else app.unmask)
    widened = _widened(pod, app, seccomp, granted, host)
    relaxations = _relaxations(app, granted, hidden.opened, widened=widened)
    score = _oom_score(app)
    settings = sysctls.check(app.sysctls, own_network=pod.network is not NetworkMode.HOST)
    fields: JsonObject = {
        "app": app.name,
        "process": process_fields(
            granted, no_new_privileges=not app.new_privileges, rlimits=rlimits, oom_score_adj=score
        ),
        "linux": linux_fields(seccomp, hidden.masked, hidden.read_only, settings),
        "devices": list(app.devices),
        "relaxations": [dict(item) for item in _relaxation_objects(relaxations)],
    }
    return Confinement(
        app=app.name,
        capabilities=granted,
        no_new_privileges=not app.new_privileges,
        seccomp=seccomp,
        masked_paths=hidden.masked,
        readonly_paths=hidden.read_only,
        rlimits=rlimits,
        relaxations=relaxations,
        digest=_digest(fields),
        sysctls=settings,
        oom_score_adj=score,
    )


def compile_pod(pod: PodFacts, host: HostFacts) -> PodConfinement:
    """Return the confinement of a whole pod; raises PolicyError if any app's cannot be enforced."""
    names = [app.name for app in pod.apps]
    if len(set(names)) != len(names):
        raise PolicyError("two apps of the pod have one name", code="policy-app")
    sysctls.agree([app.sysctls for app in pod.apps])
    apps = tuple(compile_app(pod, app, host) for app in pod.apps)
    known = capabilities.of_host(host.last_capability)
    granted = frozenset(name for app in apps for name in app.capabilities.bounding)
    needed = outer.capabilities_of_pod(pod.network, granted) & known
    arguments = outer.nspawn_arguments(
        needed=needed,
        known=known,
        filters=tuple(app.seccomp for app in apps),
        no_new_privileges=all(app.no_new_privileges for app in apps),
    )
    outer_filter = _outer_filter(pod, host, apps, needed)
    fields: JsonObject = {
        "apps": {app.app: app.digest for app in apps},
        "nspawn": list(arguments),
        "filter": seccomp_section(outer_filter) if outer_filter else None,
    }
    return PodConfinement(
        apps=apps,
        outer_filter=outer_filter,
        nspawn_environment=(("SYSTEMD_SECCOMP", "0"),) if outer_filter else (),
        nspawn_arguments=arguments,
        relaxations=tuple(item for app in apps for item in app.relaxations),
        digest=_digest(fields),
    )


def _outer_filter(
    pod: PodFacts, host: HostFacts, apps: tuple[Confinement, ...], needed: frozenset[str]
) -> SeccompFilter | None:
    """Return the pod's own filter where every app has one that refuses what it does not name."""
    profile = pod.reference or (pod.apps[0].seccomp if pod.apps else None)
    if profile is None or profile.name != DEFAULT_PROFILE:
        return None
    filters = tuple(app.seccomp for app in apps)
    if any(filter_ is None or is_open(filter_) for filter_ in filters):
        return None
    if pod.reference is None and any(app.seccomp != profile for app in pod.apps):
        return None
    result = outer.pod_filter(
        profile, needed=needed, filters=filters, table=MACHINES[host.architecture], kernel=host.kernel
    )
    if all(app.seccomp == profile for app in pod.apps):
        return result
    from secrun_policies.seccomp_compare import opened_for

    for filter_ in filters:
        result = result if filter_ is None else opened_for(result, filter_)
    return result
