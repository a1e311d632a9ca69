"""A guest's interfaces: one for each of the pod's networks, alike in all that the network sees of them."""

from collections.abc import Iterator, Sequence

from secrun.errors import HostError
from secrun.record import record
from secrun.stage1.contract import PodOnDisk
from secrun.stage1.manifest import PodManifest
from secrun_kvm import framefilter
from secrun_kvm.place import Root, tap_name
from secrun_kvm.spec import Nic


@record
class Joined:
    """One interface: what the machine has of it, and what the guest makes of that.

    Addresses have their prefix lengths; a route is a destination and a gateway, which may be empty.
    """

    name: str
    nic: Nic
    addresses: tuple[str, ...]
    routes: tuple[tuple[str, str], ...]


def count(manifest: PodManifest) -> int:
    """Return how many interfaces a pod's machine has; pure."""
    return 0 if manifest.connection is None else len(manifest.connection.attachments)


def _check_station(network: str, mac: str) -> None:
    """Raise HostError unless an interface has a hardware address of its own, as Ethernet has."""
    if int(mac[:2], 16) & 1 or not mac.strip("0:"):
        raise HostError(
            f"network {network} gives an interface without a hardware address, which a guest cannot have",
            hint="use --stage1=nspawn for this network",
            code="host-tap",
        )


def joined(pod: PodOnDisk) -> tuple[Joined, ...]:
    """Wait for the pod's networks and return its interfaces; raises NetworkError or HostError."""
    if pod.network is None:
        return ()
    found: list[Joined] = []
    for index, item in enumerate(pod.network.state().joined):
        if item.link is None or item.result is None:
            raise HostError(f"network {item.config.name} has not been joined", code="host-tap")
        _check_station(item.config.name, item.link.mac)
        own = item.result.inside(item.runtime.interface)
        gateways = {":" in address.gateway: address.gateway for address in reversed(own) if address.gateway}
        routes = [
            (route.destination, route.gateway or gateways.get(":" in route.destination, ""))
            for route in item.result.routes
        ]
        nic = Nic(tap=tap_name(index), mac=item.link.mac, mtu=item.link.mtu)
        addresses = tuple(address.cidr for address in own)
        found.append(Joined(name=item.link.name, nic=nic, addresses=addresses, routes=tuple(routes)))
    return tuple(found)


def _lines(item: Joined) -> Iterator[str]:
    yield f"link {item.name} {item.nic.mac} {item.nic.mtu}"
    for address in item.addresses:
        yield f"address {address}"
    for destination, gateway in item.routes:
        yield f"route {destination} {gateway or '-'}"


def write(root: Root, interfaces: Sequence[Joined]) -> None:
    """Write what the guest is told, and what may pass between its interfaces and the host's."""
    root.network.write_text(table(interfaces))
    for index, item in enumerate(interfaces):
        mac, own = item.nic.mac, [address.partition("/")[0] for address in item.addresses]
        try:
            root.outgoing(index).write_bytes(framefilter.outgoing(mac, own))
        except ValueError as error:
            text = f"interface {item.name} has more addresses than can be kept to: {error}"
            raise HostError(text, code="host-tap") from error
        root.incoming(index).write_bytes(framefilter.incoming(mac))


def table(interfaces: Sequence[Joined]) -> str:
    """Return the table that the guest is told (docs/agent-protocol.md); pure."""
    lines = ["secrun-network 1", *(line for item in interfaces for line in _lines(item))]
    return "".join(f"{line}\n" for line in lines)
