"""What a pod's folder knows of its networks: what was asked of the plugins, and what they answered.

Written before the first plugin runs and after every answer, so that whatever was added can be deleted with
what ADD returned: after a crash and after a reboot too. What was decided beforehand is in `plan`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from secrun.digest import Digest
from secrun.fields import Fields
from secrun.files import write_atomic
from secrun.jsonio import JsonObject, JsonValue, canonical
from secrun.network import conflist, result
from secrun.network.cni import Runtime
from secrun.network.conflist import NetworkConfig
from secrun.network.limits import MAX_STATE_BYTES
from secrun.network.namespace import Identity, Link
from secrun.network.plan import Port
from secrun.network.result import Result, Route
from secrun.record import field, record, replace
from secrun.stage1.podfiles import ADDRESSES_NAME

FILE_NAME = "network.json"
SCHEMA = "secrun.dev/pod-network/v1"


@record
class Joined:
    """One network and how far the pod has joined it."""

    config: NetworkConfig
    runtime: Runtime
    begun: bool = False
    """Some plugin may have been run."""
    result: Result | None = None
    """The last answer; None if no plugin has answered."""
    link: Link | None = None
    """The finished interface; None until every plugin has answered."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The pod's addresses with their prefix lengths."""
        if self.result is None:
            return ()
        return tuple(item.cidr for item in self.result.inside(self.runtime.interface))

    def to_json(self) -> JsonObject:
        """Return the stored form."""
        link = self.link
        return {
            "source": self.config.source,
            "config": self.config.document.decode(),
            "interface": self.runtime.interface,
            "args": self.runtime.args,
            "begun": self.begun,
            "capabilities": conflist.spelled(dict(self.runtime.capabilities)).decode(),
            "result": "" if self.result is None else conflist.spelled(dict(self.result.document)).decode(),
            "link": None if link is None else {"mac": link.mac, "mtu": link.mtu},
        }

    @classmethod
    def from_fields(cls, fields: Fields, container: str, folders: tuple[str, ...], seconds: int) -> Self:
        """Parse the stored form; raises StateError or NetworkError."""
        config = conflist.parse(fields.text("config").encode(), fields.text("source"))
        interface, args = fields.text("interface"), fields.text("args")
        capabilities = conflist.parse_document(fields.text("capabilities").encode(), "capabilities")
        begun = fields.flag("begun")
        answer, link = fields.text("result"), fields.optional_object("link")
        found = cls(
            config=config,
            runtime=Runtime(
                container=container,
                interface=interface,
                folders=folders,
                seconds=seconds,
                args=args,
                capabilities=capabilities,
            ),
            begun=begun,
            result=result.parse(answer.encode(), FILE_NAME) if answer else None,
            link=None
            if link is None
            else Link(name=interface, mac=link.text("mac"), mtu=link.integer("mtu")),
        )
        fields.end()
        return found


@record
class Shown:
    """An interface as `secrun status` shows it, also of a pod that has exited."""

    network: str
    interface: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]
    """With their prefix lengths."""

    def to_json(self) -> JsonObject:
        """Return the documented JSON form (docs/state.md)."""
        return {
            "network": self.network,
            "interface": self.interface,
            "mac": self.mac,
            "mtu": self.mtu,
            "addresses": list(self.addresses),
        }


@record
class NetworkState:
    """The networks of one pod."""

    container: str
    folders: tuple[str, ...]
    """Where plugins were looked for: DEL must find the same."""
    plugin_seconds: int
    """How long each call of a plugin may take."""
    namespace: Identity
    joined: tuple[Joined, ...]
    ports: tuple[Port, ...] = ()
    released: bool = False
    """Nothing of it is held on the host any more."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Digests of the files of /etc that depend on the answers."""

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        networks: list[JsonValue] = [item.to_json() for item in self.joined]
        return canonical(
            {
                "schema": SCHEMA,
                "container": self.container,
                "folders": list(self.folders),
                "plugin_seconds": self.plugin_seconds,
                "namespace": self.namespace.to_json(),
                "networks": networks,
                "ports": [port.to_json() for port in self.ports],
                "released": self.released,
                "files": dict(self.files),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse the stored form; raises StateError, ImageError or NetworkError."""
        fields = Fields.document(data, what=FILE_NAME, limit=MAX_STATE_BYTES, schema=SCHEMA)
        container, folders = fields.text("container"), fields.texts("folders")
        seconds = fields.integer("plugin_seconds")
        files = fields.object("files")
        state = cls(
            container=container,
            folders=folders,
            plugin_seconds=seconds,
            namespace=Identity.from_fields(fields.object("namespace")),
            joined=tuple(
                Joined.from_fields(item, container, folders, seconds) for item in fields.objects("networks")
            ),
            ports=tuple(Port.from_fields(item) for item in fields.objects("ports")),
            released=fields.flag("released"),
            files={name: files.text(name) for name in files.names()},
        )
        fields.end()
        return state

    def with_joined(self, index: int, item: Joined) -> "NetworkState":
        """Return a copy in which one network has gone a step further."""
        return replace(self, joined=(*self.joined[:index], item, *self.joined[index + 1 :]))

    @property
    def interfaces(self) -> tuple[Shown, ...]:
        """The pod's interfaces as readers are shown them."""
        return tuple(
            Shown(
                network=item.config.name,
                interface=item.runtime.interface,
                mac="" if item.link is None else item.link.mac,
                mtu=0 if item.link is None else item.link.mtu,
                addresses=item.addresses,
            )
            for item in self.joined
        )

    @property
    def outcome(self) -> JsonObject:
        """What a guest needs to make the same interfaces inside, and what PodStart is the digest of."""
        return {
            "schema": "secrun.dev/pod-interfaces/v1",
            "interfaces": [_outcome(item) for item in self.joined],
            "files": dict(self.files),
        }

    @property
    def digest(self) -> Digest:
        """Digest of the outcome."""
        return Digest.of(canonical(self.outcome))


def _routes(routes: tuple[Route, ...]) -> list[JsonValue]:
    return [{"destination": route.destination, "gateway": route.gateway} for route in routes]


def _outcome(item: Joined) -> JsonObject:
    """Return one interface: name, MAC, MTU, addresses, routes, DNS."""
    found, link = item.result or Result(), item.link
    own: list[JsonValue] = [
        {"address": address.cidr, "gateway": address.gateway}
        for address in found.inside(item.runtime.interface)
    ]
    return {
        "network": item.config.name,
        "name": item.runtime.interface,
        "mac": "" if link is None else link.mac,
        "mtu": 0 if link is None else link.mtu,
        "addresses": own,
        "routes": _routes(found.routes),
        "dns": {
            "servers": list(found.dns.servers),
            "domain": found.dns.domain,
            "search": list(found.dns.search),
            "options": list(found.dns.options),
        },
    }


def path_in(pod: Path) -> Path:
    """Return where the record of a pod lies."""
    return pod / FILE_NAME


def read(pod: Path) -> NetworkState | None:
    """Read a pod's record, None if it has none; raises StateError, ImageError or NetworkError."""
    try:
        with path_in(pod).open("rb") as stream:
            data = stream.read(MAX_STATE_BYTES + 1)
    except FileNotFoundError:
        return None
    return NetworkState.from_bytes(data)


def write(pod: Path, state: NetworkState, *, durable: bool = False) -> None:
    """Store the record; also in brief, for lists of many pods."""
    write_atomic(path_in(pod), state.to_bytes(), mode=0o600, durable=durable)


def write_brief(pod: Path, state: NetworkState) -> None:
    """Keep what a list shows: a line for each interface."""
    lines = [" ".join((item.config.name, item.runtime.interface, *item.addresses)) for item in state.joined]
    write_atomic(pod / ADDRESSES_NAME, "".join(f"{line}\n" for line in lines).encode(), durable=False)
