"""The verbs that concern networks."""

import os
from collections.abc import Sequence

from secrun.cli.netoptions import network_places
from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.errors import HostError, NetworkError, StateError
from secrun.jsonio import JsonObject
from secrun.network import configs
from secrun.network.configs import Places
from secrun.network.conflist import NetworkConfig
from secrun.network.plan import BUILT_IN
from secrun.pod import networklook, networks
from secrun.pod.networklook import Member

LIST_SCHEMA = "secrun.dev/network-list/v1"
INSPECT_SCHEMA = "secrun.dev/network/v1"


def _problem(config: NetworkConfig, places: Places) -> str:
    try:
        configs.check_plugins(config, places.plugins)
    except HostError as error:
        return error.message
    return ""


def _row(config: NetworkConfig, places: Places, members: Sequence[Member]) -> JsonObject:
    return {
        "name": config.name,
        "source": config.source,
        "version": config.version,
        "plugins": list(config.programs),
        "problem": _problem(config, places),
        "pods": [member.to_json() for member in members if member.network == config.name],
    }


def list_networks(args: Arguments, context: Context) -> int:
    """List every network; a file that cannot be read is told and does not hide the others."""
    places = network_places(context)
    members = tuple(networklook.members(context.layout))
    found, problems = configs.survey(context.layout, places.configs)
    if args.text("format") == "json":
        rows = [_row(config, places, members) for config in found]
        listed = [error.message for error in problems]
        write_json(context, {"schema": LIST_SCHEMA, "networks": rows, "problems": listed})
        return 0
    cells = [
        (
            config.name,
            ",".join(config.programs),
            str(sum(member.network == config.name for member in members)),
            config.source,
        )
        for config in found
    ]
    table(context, ("NAME", "PLUGINS", "PODS", "SOURCE"), cells, legend=not args.flag("no_legend"))
    for error in problems:
        context.warn(error.message)
    return 0


def inspect(args: Arguments, context: Context) -> int:
    """Show one network; with --check exit 125 if a plugin finds a pod that is not as it was made."""
    places = network_places(context)
    config = configs.find(args.required("network"), context.layout, places.configs, ports=True)
    members = [member for member in networklook.members(context.layout) if member.network == config.name]
    failed = networklook.check(context.layout, config.name) if args.flag("check") else {}
    if args.text("format") == "json":
        document = _row(config, places, members)
        write_json(context, {"schema": INSPECT_SCHEMA, **document, "failed": failed})
    else:
        context.out.write(f"name={config.name}\nsource={config.source}\nversion={config.version}\n")
        context.out.write(f"plugins={','.join(config.programs)}\n")
        context.out.write("".join(f"pod={member}\n" for member in members))
        context.out.write(f"config={config.document.decode()}\n")
        context.out.write("".join(f"failed={uuid} {text}\n" for uuid, text in failed.items()))
    return 125 if failed else 0


def remove(args: Arguments, context: Context) -> int:
    """Remove a network: its file, or what the built-in one left on the host."""
    config = configs.find(args.required("network"), context.layout, network_places(context).configs)
    everyone = networklook.members(context.layout, whole=True)
    members = [member for member in everyone if member.network == config.name]
    if members:
        raise StateError(
            f"network {config.name} is in use by pod {members[0].uuid}",
            hint="stop the pod, or collect it with secrun gc",
            code="state-network",
        )
    if config.source == BUILT_IN:
        networks.remove_idle_bridge(context.layout)
    else:
        try:
            os.unlink(config.source)
        except OSError as error:
            raise NetworkError(f"{config.source}: {error.strerror}", code="network-config") from error
    context.out.write(f"{config.name}\n")
    return 0
