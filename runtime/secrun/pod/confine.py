"""Hand a pod to the confinement compiler and its answer to the rest of stage0."""

from collections.abc import Mapping, Sequence

from secrun.digest import Digest
from secrun.errors import UsageError
from secrun.jsonio import JsonObject, JsonValue, canonical
from secrun.pod.request import AppRequest
from secrun.pod.system import is_asked
from secrun.record import record
from secrun.stage1 import places
from secrun.stage1.bundle import Process
from secrun.stage1.manifest import Network
from secrun.stage1.security import AppSecurity
from secrun_policies import labels
from secrun_policies.confine import AppFacts, Confinement, HostFacts, PodFacts, compile_pod
from secrun_policies.errors import PolicyError
from secrun_policies.host import read_guest, read_host
from secrun_policies.labels import LabelRequest
from secrun_policies.libseccomp import compile_bpf
from secrun_policies.oci import seccomp_section, to_oci
from secrun_policies.outer import NetworkMode
from secrun_policies.profiles import UNCONFINED, choose, default_profile
from secrun_policies.recorder import asking
from secrun_policies.seccomp import DEFAULT_PROFILE

_ALL = ("all",)


@record
class ConfinedApp:
    """What the compiler decided for one app, in the words of the OCI runtime configuration."""

    process: Mapping[str, JsonValue]
    linux: JsonObject
    capabilities: tuple[str, ...]
    relaxations: tuple[str, ...]
    security: AppSecurity


@record
class ConfinedPod:
    """What the compiler decided for a pod."""

    apps: Mapping[str, ConfinedApp]
    outer_arguments: tuple[str, ...]
    outer_filter: bytes | None


def label(apps: Sequence[AppRequest]) -> LabelRequest:
    """Join what the apps of a pod ask of its one label; raises UsageError if they disagree.

    A privileged app has none, as with podman: what it may touch is not its own.
    """
    try:
        asked = labels.merge(labels.parse_option(word) for app in apps for word in app.security.labels)
        if any(app.security.privileged for app in apps):
            return labels.merge((asked, LabelRequest(disable=True)))
    except PolicyError as error:
        raise UsageError(error.message, hint=error.hint, code=error.code) from error
    return asked


def _facts(name: str, request: AppRequest, process: Process) -> AppFacts:
    asked = request.security
    exactly = asked.capabilities is not None
    add, drop = (asked.capabilities or (), _ALL) if exactly else (asked.cap_add, asked.cap_drop)
    word = UNCONFINED if asked.privileged and asked.seccomp is None else asked.seccomp
    return AppFacts(
        name=name,
        seccomp=choose(word or DEFAULT_PROFILE),
        uid=process.uid,
        gid=process.gid,
        read_only=request.read_only,
        terminal=request.terminal,
        cap_add=_ALL if asked.privileged else add,
        cap_drop=drop,
        unmasked_paths=asked.privileged,
        new_privileges=asked.privileged if asked.new_privileges is None else asked.new_privileges,
        rlimits=asked.rlimits,
        mask=asked.mask,
        unmask=asked.unmask,
        sysctls=asked.sysctls,
        oom_score_adj=asked.oom_score_adj,
        devices=tuple(device.source for device in asked.devices),
        privileged=asked.privileged,
        control_group=is_asked(request),
    )


def _confined(app: Confinement, facts: AppFacts, request: AppRequest) -> ConfinedApp:
    process, linux = to_oci(app)
    filter_ = app.seccomp
    if request.security.record and filter_ is not None:
        linux["seccomp"] = asking(seccomp_section(filter_), places.SECCOMP)
    if filter_ is not None and facts.seccomp is not None and facts.seccomp is not default_profile():
        # The shipped default is compiled by the tests; what somebody wrote must not fail in the runtime.
        compile_bpf(filter_)
    return ConfinedApp(
        process=process,
        linux=linux,
        capabilities=app.capabilities.bounding,
        relaxations=tuple(f"{item.kind.value}:{item.subject}" for item in app.relaxations),
        security=AppSecurity(
            profile=request.security.profile or DEFAULT_PROFILE,
            confinement=Digest.parse(app.digest),
            seccomp=facts.seccomp.name if facts.seccomp else UNCONFINED,
            seccomp_digest=None if filter_ is None else Digest.of(canonical(seccomp_section(filter_))),
            no_new_privileges=app.no_new_privileges,
            privileged=facts.privileged,
            devices=request.security.devices,
        ),
    )


def _enforcer(guest_kernel: str | None) -> HostFacts:
    """Return what the kernel under the apps can enforce: this host's, or that of a guest."""
    return read_host() if guest_kernel is None else read_guest(guest_kernel)


def pod(
    network: Network, apps: Sequence[tuple[str, AppRequest, Process]], guest_kernel: str | None = None
) -> ConfinedPod:
    """Compile the confinement of a pod; raises UsageError for what cannot be enforced.

    With a kernel of its own a pod has no outer filter nor arguments: a machine is around it.
    """
    try:
        facts = {name: _facts(name, request, process) for name, request, process in apps}
        asked = PodFacts(
            network=NetworkMode(network.value),
            apps=tuple(facts.values()),
            reference=default_profile(),
            own_kernel=guest_kernel is not None,
        )
        compiled = compile_pod(asked, _enforcer(guest_kernel))
        outer = compiled.outer_filter if guest_kernel is None else None
        outer_filter = compile_bpf(outer) if outer else None
        requests = {name: request for name, request, _ in apps}
        confined = {app.app: _confined(app, facts[app.app], requests[app.app]) for app in compiled.apps}
        for app in confined.values() if network is Network.CNI and guest_kernel is None else ():
            # Its namespace is the host's: it is set from there (secrun.network.settings).
            app.linux.pop("sysctl", None)
    except PolicyError as error:
        raise UsageError(error.message, hint=error.hint, code=error.code) from error
    return ConfinedPod(
        apps=confined,
        outer_arguments=compiled.nspawn_arguments if guest_kernel is None else (),
        outer_filter=outer_filter,
    )
