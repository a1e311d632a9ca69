"""Hand a pod to the confinement compiler and its answer to the rest of stage0."""

from collections.abc import Mapping, Sequence

from secrun.errors import UsageError
from secrun.jsonio import JsonValue
from secrun.pod.request import AppRequest
from secrun.record import record
from secrun.stage1.bundle import Process
from secrun.stage1.manifest import Network
from secrun_policies.confine import AppFacts, Confinement, HostFacts, PodFacts, compile_pod
from secrun_policies.errors import PolicyError
from secrun_policies.host import read_guest, read_host
from secrun_policies.libseccomp import compile_bpf
from secrun_policies.oci import to_oci
from secrun_policies.outer import NetworkMode
from secrun_policies.profiles import default_profile


@record
class ConfinedApp:
    """What the compiler decided for one app, in the words of the OCI runtime configuration."""

    process: Mapping[str, JsonValue]
    linux: Mapping[str, JsonValue]
    capabilities: tuple[str, ...]
    relaxations: tuple[str, ...]


@record
class ConfinedPod:
    """What the compiler decided for a pod."""

    apps: Mapping[str, ConfinedApp]
    outer_arguments: tuple[str, ...]
    outer_filter: bytes | None


def _facts(name: str, request: AppRequest, process: Process) -> AppFacts:
    return AppFacts(
        name=name,
        seccomp=default_profile(),
        uid=process.uid,
        gid=process.gid,
        read_only=request.read_only,
        terminal=request.terminal,
        cap_add=request.cap_add,
        cap_drop=request.cap_drop,
    )


def _confined(app: Confinement) -> ConfinedApp:
    process, linux = to_oci(app)
    return ConfinedApp(
        process=process,
        linux=linux,
        capabilities=app.capabilities.bounding,
        relaxations=tuple(f"{item.kind.value}:{item.subject}" for item in app.relaxations),
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
    facts = PodFacts(
        network=NetworkMode(network.value),
        apps=tuple(_facts(name, request, process) for name, request, process in apps),
    )
    try:
        compiled = compile_pod(facts, _enforcer(guest_kernel))
        outer = compiled.outer_filter if guest_kernel is None else None
        outer_filter = compile_bpf(outer) if outer else None
    except PolicyError as error:
        raise UsageError(error.message, hint=error.hint, code=error.code) from error
    return ConfinedPod(
        apps={app.app: _confined(app) for app in compiled.apps},
        outer_arguments=compiled.nspawn_arguments if guest_kernel is None else (),
        outer_filter=outer_filter,
    )
