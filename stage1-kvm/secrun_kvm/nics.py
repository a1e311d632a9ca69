"""A guest's interfaces: one for each of the pod's networks, alike in all that the network sees of them."""

from collections.abc import Iterator, Sequence

from secrun.errors import HostError
from secrun.record import record
from secrun.stage1.contract import PodOnDisk
from secrun.stage1.manifest import PodManifest
from secrun_kvm.place import tap_name
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


def joined(pod: PodOnDisk) -> tuple[Joined, ...]:
    """Wait for the pod's networks and return its interfaces; raises NetworkError or HostError."""
    if pod.network is None:
        return ()
    found: list[Joined] = []
    for index, item in enumerate(pod.network.state().joined):
        if item.link is None or item.result is None:
            raise HostError(f"network {item.config.name} has not been joined", code="host-tap")
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


def table(interfaces: Sequence[Joined]) -> str:
    """Return the table that the guest is told (docs/agent-protocol.md); pure."""
    lines = ["secrun-network 1", *(line for item in interfaces for line in _lines(item))]
    return "".join(f"{line}\n" for line in lines)
