"""Call plugins: CNI specification 1.1.0, sections 2 and 3."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from secrun import launch
from secrun.errors import ExternalError, HostError, NetworkError
from secrun.jsonio import JsonObject, JsonValue
from secrun.network import result as results
from secrun.network.configs import plugin_path
from secrun.network.conflist import NetworkConfig, Plugin, spelled
from secrun.network.limits import MAX_RESULT_BYTES, PLUGIN_SECONDS
from secrun.network.result import Result
from secrun.record import field, record, replace

# Below 0.4.0 DEL is not told what ADD returned.
_DEL_RESULT_SINCE = "0.4.0"


class Command(StrEnum):
    """What a plugin is asked to do."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    VERSION = "VERSION"


@record
class Runtime:
    """What one attachment is: the container, its namespace and interface, and what the caller wants."""

    container: str
    interface: str
    folders: tuple[str, ...]
    """Where plugins are looked for."""
    seconds: int = PLUGIN_SECONDS
    """How long each call may take."""
    args: str = ""
    """CNI_ARGS, ready to use."""
    capabilities: Mapping[str, JsonValue] = field(default_factory=dict)
    """Values by capability; each plugin gets those that it declares."""


def environment(command: Command, runtime: Runtime, namespace: str) -> dict[str, str]:
    """Return the variables of a call: those of the specification, and what any program needs; pure."""
    found = {
        **launch.BASE_ENVIRONMENT,
        "CNI_COMMAND": str(command),
        "CNI_PATH": ":".join(runtime.folders),
    }
    if command in (Command.VERSION, Command.GC):
        return found
    found |= {"CNI_CONTAINERID": runtime.container, "CNI_IFNAME": runtime.interface}
    # Section 2: optional for DEL, whose namespace may be gone.
    if namespace:
        found["CNI_NETNS"] = namespace
    if runtime.args:
        found["CNI_ARGS"] = runtime.args
    return found


def request(config: NetworkConfig, plugin: Plugin, runtime: Runtime, previous: JsonObject | None) -> bytes:
    """Return what a plugin reads: section 4, deriving execution configuration; pure."""
    wanted: JsonObject = {
        name: value for name, value in runtime.capabilities.items() if name in plugin.capabilities
    }
    document: JsonObject = {
        name: value for name, value in plugin.config.items() if name not in ("capabilities", "runtimeConfig")
    }
    document |= {"cniVersion": config.version, "name": config.name}
    document.pop("cniVersions", None)
    if wanted:
        document["runtimeConfig"] = wanted
    if previous is not None:
        document["prevResult"] = previous
    return spelled(document)


def call(
    command: Command,
    config: NetworkConfig,
    plugin: Plugin,
    *,
    stdin: bytes,
    runtime: Runtime,
    namespace: str,
) -> bytes:
    """Run one plugin and return its answer; raises NetworkError, or HostError if it is not installed."""
    what = f"network {config.name}: {command} by plugin {plugin.type}"
    path = plugin_path(plugin.type, runtime.folders)
    if path is None:
        raise HostError(
            f"{what}: it is in none of {':'.join(runtime.folders)}",
            hint="install containernetworking-plugins",
            code="host-cni-plugin",
        )
    try:
        done = launch.exchange(
            [path],
            stdin=stdin,
            environment=environment(command, runtime, namespace),
            timeout=runtime.seconds,
            limit=MAX_RESULT_BYTES,
        )
    except ExternalError as error:
        raise NetworkError(f"{what}: {error.message}", code="network-plugin") from error
    if done.returncode != 0:
        raise results.failure(done.stdout, done.stderr, what, launch.describe_status(done.returncode))
    return done.stdout


def add_one(
    config: NetworkConfig, plugin: Plugin, runtime: Runtime, namespace: str, previous: Result | None
) -> Result:
    """Add by one plugin of a chain, which gets the result of the one before."""
    given = None if previous is None else dict(previous.document)
    stdin = request(config, plugin, runtime, given)
    what = f"network {config.name}: plugin {plugin.type}"
    answer = call(Command.ADD, config, plugin, stdin=stdin, runtime=runtime, namespace=namespace)
    # Section 4: a chained plugin that has nothing to say hands on what it was given.
    if not answer.strip() and previous is not None:
        return previous
    return results.parse(answer, what)


def delete(
    config: NetworkConfig, runtime: Runtime, namespace: str, previous: Result | None
) -> Sequence[NetworkError | HostError]:
    """Delete by every plugin in reverse; return what failed, for one failure must not stop the others."""
    failed: list[NetworkError | HostError] = []
    given = dict(previous.document) if previous is not None and config.since(_DEL_RESULT_SINCE) else None
    for plugin in reversed(config.plugins):
        try:
            stdin = request(config, plugin, runtime, given)
            call(Command.DEL, config, plugin, stdin=stdin, runtime=runtime, namespace=namespace)
        except (NetworkError, HostError) as error:
            failed.append(error)
    return failed


def check(config: NetworkConfig, runtime: Runtime, namespace: str, previous: Result) -> None:
    """Check by every plugin that the attachment is as it was made; raises NetworkError."""
    for plugin in config.plugins:
        stdin = request(config, plugin, runtime, dict(previous.document))
        call(Command.CHECK, config, plugin, stdin=stdin, runtime=runtime, namespace=namespace)


def versions(config: NetworkConfig, plugin: Plugin, runtime: Runtime) -> frozenset[str]:
    """Ask a plugin which versions of the specification it knows."""
    stdin = spelled({"cniVersion": config.version})
    answer = call(Command.VERSION, config, plugin, stdin=stdin, runtime=runtime, namespace="")
    return results.versions(answer, f"network {config.name}: plugin {plugin.type}")


def collect(
    config: NetworkConfig, runtime: Runtime, valid: Sequence[tuple[str, str]]
) -> Sequence[NetworkError | HostError]:
    """Let plugins that can remove what belongs to no attachment in `valid`: (container, interface)."""
    failed: list[NetworkError | HostError] = []
    kept: list[JsonValue] = [
        {"containerID": container, "ifname": interface} for container, interface in valid
    ]
    for plugin in config.plugins:
        try:
            if config.version not in versions(config, plugin, runtime):
                continue
            document = {**plugin.config, "cni.dev/valid-attachments": kept, "cni.dev/attachments": kept}
            stdin = request(config, replace(plugin, config=document), runtime, None)
            call(Command.GC, config, plugin, stdin=stdin, runtime=runtime, namespace="")
        except (NetworkError, HostError) as error:
            failed.append(error)
    return failed
