"""The network that needs no configuration: a bridge and addresses of both families.

The way out is in `hostrules`.
"""

from pathlib import Path

from secrun.digest import Digest
from secrun.jsonio import JsonObject, JsonValue
from secrun.network.conflist import NetworkConfig, from_document
from secrun.network.plan import BUILT_IN
from secrun.paths import DEFAULT_RUN_ROOT, Layout
from secrun.record import record

NAME = "default"
_VERSION = "1.0.0"
_IPV6_SWITCH = Path("/proc/sys/net/ipv6")


@record
class Subnets:
    """The bridge of the built-in network and the addresses behind it."""

    bridge: str = "secrun0"
    v4: str = "10.62.0.0/16"
    v6: str = "fd9c:51b2:7e3a:62::/64"
    """RFC 4193: a random global ID, drawn once."""


def subnets(layout: Layout) -> Subnets:
    """Return the bridge of a run root; pure. Each has its own, as it has its own leases."""
    if layout.run_root == DEFAULT_RUN_ROOT:
        return Subnets()
    mark = Digest.of(bytes(layout.run_root)).hex
    high, low = int(mark[:2], 16), int(mark[2:4], 16)
    return Subnets(
        bridge=f"secrun-{mark[:8]}",
        v4=f"10.{128 + high % 64}.{low}.0/24",
        v6=f"fd9c:51b2:7e3a:{mark[:4]}::/64",
    )


def has_v6() -> bool:
    """Tell whether this host's kernel has IPv6."""
    return _IPV6_SWITCH.exists()


def _bridge(layout: Layout, *, v6: bool) -> JsonObject:
    """Return the plugin that makes the bridge; leases need not survive a reboot, nor does any pod."""
    own = subnets(layout)
    ranges: list[JsonValue] = [[{"subnet": own.v4}]]
    routes: list[JsonValue] = [{"dst": "0.0.0.0/0"}]
    if v6:
        ranges.append([{"subnet": own.v6}])
        routes.append({"dst": "::/0"})
    return {
        "type": "bridge",
        "bridge": own.bridge,
        "isGateway": True,
        "hairpinMode": True,
        "capabilities": {"ips": True, "mac": True},
        "ipam": {
            "type": "host-local",
            "dataDir": str(layout.leases),
            "ranges": ranges,
            "routes": routes,
        },
    }


def default_network(layout: Layout, *, ports: bool) -> NetworkConfig:
    """Return the built-in network; the plugin for ports is part of it only where ports are asked for."""
    plugins: list[JsonValue] = [_bridge(layout, v6=has_v6())]
    if ports:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    return from_document({"cniVersion": _VERSION, "name": NAME, "plugins": plugins}, BUILT_IN)
