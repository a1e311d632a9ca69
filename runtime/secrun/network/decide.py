"""Decide a pod's network when it is prepared: which configurations, which ports; nothing is changed."""

from collections.abc import Iterator, Sequence

from secrun.errors import NetworkError, UsageError
from secrun.jsonio import JsonObject, JsonValue
from secrun.network import configs
from secrun.network import request as requests
from secrun.network.configs import Places
from secrun.network.conflist import NetworkConfig
from secrun.network.limits import MAX_NETWORKS
from secrun.network.plan import Attachment, Connection, ImagePort, Port, Protocol
from secrun.network.request import NetworkAsked, NetworkRequest
from secrun.paths import Layout
from secrun.stage1.manifest import Network

PORTS = "portMappings"
_LAST_PORT = 65535


def _exposed(name: str, exposed: Sequence[str], named: Sequence[ImagePort]) -> ImagePort:
    """Return the port that an image calls `name`: its own word, `80/tcp`, `80-tcp` as rkt has it, `80`."""
    for port in named:
        if port.name == name:
            return port
    for text in exposed:
        number, _, protocol = text.partition("/")
        protocol = protocol or Protocol.TCP
        known = {f"{number}/{protocol}", f"{number}-{protocol}", *([number] if protocol == "tcp" else [])}
        if name in known and number.isdecimal() and protocol in tuple(Protocol):
            return ImagePort(name=name, port=int(number), count=1, protocol=Protocol(protocol))
    listed = ", ".join([*(port.name for port in named), *(text.replace("/", "-") for text in exposed)])
    raise UsageError(
        f"--port {name[:80]!r}: no image of the pod has a port of this name",
        hint=f"they have: {listed or 'none'}",
        code="usage-network",
    )


def ports_of(
    request: NetworkRequest, exposed: Sequence[str], named: Sequence[ImagePort]
) -> tuple[Port, ...]:
    """Return the ports that are forwarded; raises UsageError for a name that no image has."""
    wanted = [(item, _exposed(item.name, exposed, named)) for item in request.named_ports]
    forwarded = [
        Port(
            host_ip=item.host_ip,
            host_port=item.host_port + offset,
            pod_port=port.port + offset,
            protocol=port.protocol,
        )
        for item, port in wanted
        for offset in range(port.count)
    ]
    if any(port.host_port > _LAST_PORT for port in forwarded):
        raise UsageError(f"--port {request.named_ports[0].name}: the range ends beyond {_LAST_PORT}")
    found = (*request.ports, *forwarded)
    requests.check_ports(found)
    if found and request.mode is not Network.CNI:
        raise UsageError(
            f"-p {found[0]}: a pod with --net={request.mode} has no ports to forward",
            hint="leave out -p, or --net",
            code="usage-network",
        )
    return found


def _asked(request: NetworkRequest, places: Places) -> Iterator[NetworkAsked]:
    """Yield what was named, and with `all` every other network too."""
    yield from request.networks
    named = {item.name for item in request.networks}
    for name in configs.all_names(places.configs) if request.every else ():
        if name not in named:
            yield NetworkAsked(name=name)


def _interfaces(asked: Sequence[NetworkAsked]) -> Iterator[str]:
    """Yield a name for each interface: the one asked for, else the next of eth0, eth1."""
    taken = {item.interface for item in asked}
    free = (name for number in range(2 * len(asked)) if (name := f"eth{number}") not in taken)
    for item in asked:
        yield item.interface or next(free)


def _check_addresses(asked: NetworkAsked, config: NetworkConfig) -> None:
    if len(asked.ips) > 1 and not config.capable("ips"):
        raise NetworkError(
            f"network {config.name} takes one address at most",
            hint="its plugins do not have the capability `ips`",
            code="network-address",
        )


def _attachment(asked: NetworkAsked, config: NetworkConfig, interface: str) -> Attachment:
    return Attachment(
        network=config.name,
        interface=interface,
        source=config.source,
        config=config.digest,
        plugins=config.programs,
        ips=asked.ips,
        mac=asked.mac,
        args=asked.args,
    )


def _attachments(
    request: NetworkRequest, layout: Layout, places: Places, *, ports: bool
) -> tuple[Attachment, ...]:
    asked = list(_asked(request, places))
    if len(asked) > MAX_NETWORKS:
        raise NetworkError(f"a pod joins at most {MAX_NETWORKS} networks, these are {len(asked)}")
    found: list[NetworkConfig] = []
    for item in asked:
        config = configs.find(item.name, layout, places.configs, ports=ports)
        configs.check_plugins(config, places.plugins)
        _check_addresses(item, config)
        found.append(config)
    if ports and not any(config.capable(PORTS) for config in found):
        raise NetworkError(
            f"network {found[0].name} cannot forward ports: none of its plugins has the capability {PORTS}",
            hint="add the plugin `portmap` to its configuration",
            code="network-ports",
        )
    names = _interfaces(asked)
    return tuple(
        _attachment(item, config, name) for item, config, name in zip(asked, found, names, strict=True)
    )


def decide(
    layout: Layout,
    request: NetworkRequest,
    places: Places,
    exposed: Sequence[str],
    named: Sequence[ImagePort] = (),
) -> Connection:
    """Return what the manifest says; raises UsageError, NetworkError, or HostError for a missing plugin.

    `exposed` are the ports that images declare, `named` those that they give a name.
    """
    ports = ports_of(request, exposed, named)
    joins = request.mode is Network.CNI
    return Connection(
        attachments=_attachments(request, layout, places, ports=bool(ports)) if joins else (),
        ports=ports,
        dns=request.dns,
        hosts=request.hosts,
        host_hosts=request.host_hosts,
    )


def _port_mappings(ports: Sequence[Port]) -> list[JsonValue]:
    result: list[JsonValue] = []
    for port in ports:
        item: JsonObject = {
            "hostPort": port.host_port,
            "containerPort": port.pod_port,
            "protocol": str(port.protocol),
        }
        result.append({**item, "hostIP": port.host_ip} if port.host_ip else item)
    return result


def capabilities(
    connection: Connection, attachment: Attachment, config: NetworkConfig, *, ports: bool
) -> JsonObject:
    """Return the values that the network's plugins may take; pure. `ports`: this network forwards them."""
    found: JsonObject = {}
    if ports and connection.ports:
        found[PORTS] = _port_mappings(connection.ports)
    if attachment.ips and config.capable("ips"):
        found["ips"] = list(attachment.ips)
    if attachment.mac and config.capable("mac"):
        found["mac"] = attachment.mac
    if connection.dns.given and config.capable("dns"):
        dns = connection.dns
        found["dns"] = {
            "servers": list(dns.servers),
            "searches": list(dns.search),
            "options": list(dns.options),
        }
    return found


def arguments(attachment: Attachment, config: NetworkConfig) -> str:
    """Return CNI_ARGS; pure. An address goes there where no plugin takes it as a capability."""
    pairs = list(attachment.args)
    if attachment.ips and not config.capable("ips"):
        pairs.append(("IP", attachment.ips[0]))
    if attachment.mac and not config.capable("mac"):
        pairs.append(("MAC", attachment.mac))
    return ";".join(f"{name}={value}" for name, value in (("IgnoreUnknown", "1"), *pairs)) if pairs else ""
