"""What was decided about a pod's network before it started: part of the manifest, and measured with it.

What came of it (addresses, above all) is known only after the start: see `state`.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Self

from secrun.digest import Digest
from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import field, record

BUILT_IN = "built-in"


class Protocol(StrEnum):
    """What may be forwarded to a pod."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class DnsMode(StrEnum):
    """Where what nobody gave by an option comes from."""

    AUTO = "auto"
    """The networks' answer, else the host's name servers that a pod can reach."""
    HOST = "host"
    """The host's resolv.conf as it is when the pod starts."""
    NONE = "none"
    """Nowhere: networks are not listened to, and without an option the image's own file stays."""


@record
class ImagePort:
    """Ports that an image gives a name: `count` of them, from `port` on."""

    name: str
    port: int
    count: int
    protocol: Protocol


@record
class Attachment:
    """One network that the pod joins, through one interface."""

    network: str
    interface: str
    source: str
    """The configuration file, or BUILT_IN."""
    config: Digest
    """Of the configuration's canonical JSON."""
    plugins: tuple[str, ...]
    ips: tuple[str, ...] = ()
    mac: str = ""
    args: tuple[tuple[str, str], ...] = ()
    """CNI_ARGS that the caller gave."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "network": self.network,
            "interface": self.interface,
            "source": self.source,
            "config": str(self.config),
            "plugins": list(self.plugins),
            "ips": list(self.ips),
            "mac": self.mac,
            "args": [f"{name}={value}" for name, value in self.args],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form; raises StateError."""
        found = cls(
            network=fields.text("network"),
            interface=fields.text("interface"),
            source=fields.text("source"),
            config=Digest.parse(fields.text("config")),
            plugins=fields.texts("plugins"),
            ips=fields.texts("ips"),
            mac=fields.text("mac"),
            args=tuple(_pair(text) for text in fields.texts("args")),
        )
        fields.end()
        return found


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


@record
class Port:
    """One port of the host that leads into the pod; an empty `host_ip` stands for every address."""

    host_ip: str
    host_port: int
    pod_port: int
    protocol: Protocol

    def __str__(self) -> str:
        """Return the spelling of the option."""
        address = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        return f"{address}{':' if address else ''}{self.host_port}:{self.pod_port}/{self.protocol}"

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "host_ip": self.host_ip,
            "host_port": self.host_port,
            "pod_port": self.pod_port,
            "protocol": str(self.protocol),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form; raises StateError."""
        protocol = fields.text("protocol")
        if protocol not in tuple(Protocol):
            fields.unexpected("protocol", protocol, "tcp, udp or sctp")
        port = cls(
            host_ip=fields.text("host_ip"),
            host_port=fields.integer("host_port"),
            pod_port=fields.integer("pod_port"),
            protocol=Protocol(protocol),
        )
        fields.end()
        return port

    def overlaps(self, other: "Port") -> bool:
        """Tell whether both claim one port of one address."""
        same = (self.host_port, self.protocol) == (other.host_port, other.protocol)
        return same and (not self.host_ip or not other.host_ip or self.host_ip == other.host_ip)


@record
class Dns:
    """Lines of resolv.conf(5): what is given beats what the mode finds, line by line."""

    mode: DnsMode = DnsMode.AUTO
    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def given(self) -> bool:
        """Tell whether anything was given."""
        return bool(self.servers or self.search or self.options)

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "mode": str(self.mode),
            "servers": list(self.servers),
            "search": list(self.search),
            "options": list(self.options),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form; raises StateError."""
        mode = fields.text("mode")
        if mode not in tuple(DnsMode):
            fields.unexpected("mode", mode, "auto, host or none")
        dns = cls(
            mode=DnsMode(mode),
            servers=fields.texts("servers"),
            search=fields.texts("search"),
            options=fields.texts("options"),
        )
        fields.end()
        return dns


@record
class HostEntry:
    """One line of /etc/hosts."""

    address: str
    names: tuple[str, ...]


@record
class Connection:
    """Everything about a pod's network that was decided beforehand."""

    attachments: tuple[Attachment, ...] = ()
    ports: tuple[Port, ...] = ()
    dns: Dns = field(default_factory=Dns)
    hosts: tuple[HostEntry, ...] = ()
    host_hosts: bool = False
    """The host's /etc/hosts is part of the pod's."""
    settings: tuple[tuple[str, str], ...] = ()
    """Names and values of sysctl(8) that are set in the pod's namespace when its networks are joined."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "networks": [item.to_json() for item in self.attachments],
            "ports": [item.to_json() for item in self.ports],
            "dns": self.dns.to_json(),
            "hosts": [" ".join((item.address, *item.names)) for item in self.hosts],
            "host_hosts": self.host_hosts,
            "settings": [f"{name}={value}" for name, value in self.settings],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form; raises StateError."""
        found = cls(
            attachments=tuple(Attachment.from_fields(item) for item in fields.objects("networks")),
            ports=tuple(Port.from_fields(item) for item in fields.objects("ports")),
            dns=Dns.from_fields(fields.object("dns")),
            hosts=tuple(_entry(text) for text in fields.texts("hosts")),
            host_hosts=fields.flag("host_hosts"),
            settings=tuple(_pair(text) for text in fields.texts("settings")),
        )
        fields.end()
        return found


def _entry(text: str) -> HostEntry:
    address, *names = text.split(" ")
    return HostEntry(address=address, names=tuple(names))


def mounted(dns: Dns) -> Sequence[str]:
    """Name the files of /etc that an app gets from its pod; the image keeps its own others; pure."""
    bare = dns.mode is DnsMode.NONE and not dns.given
    return ("hostname", "hosts") if bare else ("hostname", "hosts", "resolv.conf")
