"""What a caller asks of a pod's network, parsed before anything is touched (docs/networking.md)."""

import re
from collections.abc import Iterable, Sequence

from secrun.errors import UsageError
from secrun.network import addresses
from secrun.network.limits import (
    MAX_DNS_OPTIONS,
    MAX_DNS_SEARCH,
    MAX_DNS_SERVERS,
    MAX_HOST_ENTRIES,
    MAX_NETWORKS,
    MAX_PORTS,
)
from secrun.network.plan import Dns, DnsMode, HostEntry, Port, Protocol
from secrun.record import field, record
from secrun.stage1.manifest import Network

DEFAULT = "default"
ALL = "all"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
# CNI_ARGS separates pairs by semicolons.
_ARG = re.compile(r"([A-Za-z][A-Za-z0-9_.-]{0,63})=([^;,=\s\0]{1,256})\Z")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?\Z")
_MAX_PORT = 65535


@record
class NetworkAsked:
    """One network by name, and what the caller wants of it."""

    name: str
    ips: tuple[str, ...] = ()
    mac: str = ""
    interface: str = ""
    args: tuple[tuple[str, str], ...] = ()


@record
class NamedPort:
    """A port that the image names, as `--port NAME:PORT` asks for it."""

    name: str
    host_ip: str
    host_port: int


@record
class NetworkRequest:
    """Everything that options say about the network; empty means that nothing was said."""

    mode: Network = Network.CNI
    networks: tuple[NetworkAsked, ...] = field(default_factory=lambda: (NetworkAsked(name=DEFAULT),))
    every: bool = False
    """Join every network that is configured."""
    ports: tuple[Port, ...] = ()
    named_ports: tuple[NamedPort, ...] = ()
    dns: Dns = field(default_factory=Dns)
    hosts: tuple[HostEntry, ...] = ()
    host_hosts: bool = False


def _bad(option: str, text: str, problem: str, hint: str = "") -> UsageError:
    return UsageError(f"{option} {text[:120]!r}: {problem}", hint=hint, code="usage-network")


def _pairs(text: str, words: str) -> list[tuple[str, str]]:
    """Split `IP=..,MAC=..`; a semicolon separates too, as rkt's users write it."""
    found: list[tuple[str, str]] = []
    for word in re.split(r"[,;]", words):
        match = _ARG.match(word)
        if match is None:
            raise _bad("--net", text, f"{word[:80]!r} is not NAME=VALUE", "--net=default:IP=10.62.0.9")
        found.append((match[1], match[2]))
    return found


def network(text: str) -> NetworkAsked:
    """Parse NAME[:IP=..,MAC=..,INTERFACE=..,KEY=VALUE]; raises UsageError."""
    name, colon, words = text.partition(":")
    if not _NAME.match(name):
        raise _bad("--net", text, f"{name[:80]!r} is not a network's name")
    ips: list[str] = []
    mac = interface = ""
    args: list[tuple[str, str]] = []
    for key, value in _pairs(text, words) if colon else ():
        match key.lower().replace("-", "_"):
            case "ip" | "ip6":
                ips.append(_ip(text, value))
            case "mac":
                mac = _mac(text, value)
            case "interface" | "interface_name":
                interface = _interface(text, value)
            case _:
                args.append((key, value))
    return NetworkAsked(name=name, ips=tuple(ips), mac=mac, interface=interface, args=tuple(args))


def _ip(text: str, value: str) -> str:
    found = addresses.address(value)
    if found is None:
        raise _bad("--net", text, f"{value[:80]!r} is not an IP address")
    return found


def _mac(text: str, value: str) -> str:
    found = addresses.mac(value)
    if found is None:
        raise _bad("--net", text, f"{value[:80]!r} is not a unicast MAC address")
    return found


def _interface(text: str, value: str) -> str:
    if not _INTERFACE.match(value) or value == "lo":
        raise _bad("--net", text, f"{value[:80]!r} is not an interface's name of at most 15 characters")
    return value


def networks(texts: Sequence[str]) -> NetworkRequest:
    """Parse all --net; raises UsageError. Nothing given means the default network."""
    if not texts:
        return NetworkRequest()
    for word, mode in (("none", Network.NONE), ("host", Network.HOST)):
        if word in texts:
            if len(texts) > 1:
                raise _bad("--net", word, "it excludes every other network")
            return NetworkRequest(mode=mode, networks=())
    asked = [network(text) for text in texts if text != ALL]
    names = [item.name for item in asked]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _bad("--net", twice[0], "the network is named twice")
    if len(asked) > MAX_NETWORKS:
        raise _bad("--net", names[-1], f"a pod joins at most {MAX_NETWORKS} networks")
    interfaces = [item.interface for item in asked if item.interface]
    if len(set(interfaces)) < len(interfaces):
        raise _bad("--net", ", ".join(names), "two networks have one interface name")
    return NetworkRequest(networks=tuple(asked), every=ALL in texts)


def _range(option: str, text: str, words: str) -> range:
    match = _RANGE.match(words)
    first = int(match[1]) if match else 0
    last = int(match[2]) if match and match[2] else first
    if match is None or not 1 <= first <= last <= _MAX_PORT:
        raise _bad(option, text, f"{words[:40]!r} is not a port from 1 to {_MAX_PORT}, or a range of them")
    return range(first, last + 1)


def _split_address(option: str, text: str, words: str) -> tuple[str, str]:
    """Split `[HOSTIP:]REST`; an IPv6 address stands in brackets."""
    if words.startswith("["):
        address, bracket, rest = words[1:].partition("]:")
        if not bracket:
            raise _bad(option, text, "after [ADDRESS] a colon and a port are expected")
    elif ":" in words:
        address, _, rest = words.partition(":")
    else:
        return "", words
    found = addresses.address(address)
    if found is None:
        raise _bad(option, text, f"{address[:80]!r} is not an IP address", "write an IPv6 address as [::1]")
    # The unspecified address means what no address means.
    return ("" if found in ("0.0.0.0", "::") else found), rest  # noqa: S104 - as above


def publish(text: str) -> tuple[Port, ...]:
    """Parse [HOSTIP:]HOST[-LAST]:POD[-LAST][/tcp|udp|sctp]; raises UsageError."""
    words, slash, protocol = text.partition("/")
    if slash and protocol not in tuple(Protocol):
        raise _bad("-p", text, f"{protocol[:20]!r} is not tcp, udp or sctp")
    before, colon, inside = words.rpartition(":")
    if not colon or not before:
        raise _bad("-p", text, "expected [HOSTIP:]HOST:POD[/PROTOCOL]", "for example -p 8080:80")
    host_ip, outside = _split_address("-p", text, before)
    ours, theirs = _range("-p", text, outside), _range("-p", text, inside)
    if len(ours) != len(theirs):
        raise _bad("-p", text, f"{len(ours)} ports of the host lead to {len(theirs)} of the pod")
    kind = Protocol(protocol) if slash else Protocol.TCP
    return tuple(
        Port(host_ip=host_ip, host_port=outer, pod_port=inner, protocol=kind)
        for outer, inner in zip(ours, theirs, strict=True)
    )


def named_port(text: str) -> NamedPort:
    """Parse rkt's NAME:[HOSTIP:]PORT; raises UsageError."""
    name, colon, words = text.partition(":")
    if not colon or not name:
        raise _bad("--port", text, "expected NAME:[HOSTIP:]PORT", "for example --port 80-tcp:8080")
    host_ip, outside = _split_address("--port", text, words)
    found = _range("--port", text, outside)
    if len(found) > 1:
        raise _bad("--port", text, "a name stands for one port")
    return NamedPort(name=name, host_ip=host_ip, host_port=found[0])


def check_ports(ports: Sequence[Port]) -> None:
    """Raise UsageError for two mappings of one port, for too many, and for what no rule can do."""
    if len(ports) > MAX_PORTS:
        raise _bad("-p", str(ports[-1]), f"a pod has at most {MAX_PORTS} ports")
    for index, port in enumerate(ports):
        if any(port.overlaps(other) for other in ports[:index]):
            raise _bad("-p", str(port), "the port of the host is given twice")
        if port.host_ip == "::1":
            hint = "127.0.0.1 can be forwarded, and so can every other address of the host"
            raise _bad("-p", str(port), "Linux never routes from ::1 to another interface", hint)


def _checked(option: str, texts: Iterable[str], limit: int) -> tuple[str, ...]:
    found = tuple(texts)
    if len(found) > limit:
        raise _bad(option, found[-1], f"at most {limit} are possible")
    return found


def dns(servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> Dns:
    """Parse --dns, --dns-search and --dns-opt; raises UsageError."""
    mode, listed = DnsMode.AUTO, []
    for text in servers:
        if text in ("host", "none"):
            if mode is not DnsMode.AUTO:
                raise _bad("--dns", text, "host or none is given once")
            mode = DnsMode(text)
        elif (found := addresses.address(text)) is None:
            raise _bad("--dns", text, "it is neither an IP address nor host or none")
        else:
            listed.append(found)
    for text in search:
        if not addresses.is_domain(text):
            raise _bad("--dns-search", text, "it is not a domain")
    for text in options:
        if len(text.split()) != 1 or not text.isprintable():
            raise _bad("--dns-opt", text, "it is not one word")
    result = Dns(
        mode=mode,
        servers=_checked("--dns", listed, MAX_DNS_SERVERS),
        search=_checked("--dns-search", search, MAX_DNS_SEARCH),
        options=_checked("--dns-opt", options, MAX_DNS_OPTIONS),
    )
    if (mode is not DnsMode.AUTO and result.servers) or (mode is DnsMode.HOST and result.given):
        raise _bad("--dns", str(mode), "it excludes other options for name servers")
    return result


def _entry(option: str, text: str, address: str, names: str) -> HostEntry:
    found = addresses.address(address)
    listed = tuple(names.split(","))
    if found is None:
        raise _bad(option, text, f"{address[:80]!r} is not an IP address")
    for name in listed:
        if not addresses.is_domain(name):
            raise _bad(option, text, f"{name[:80]!r} is not a host's name")
    return HostEntry(address=found, names=listed)


def hosts(podman: Sequence[str], rkt: Sequence[str]) -> tuple[tuple[HostEntry, ...], bool]:
    """Parse --add-host NAME:IP and --hosts-entry IP=NAME[,NAME] or `host`; raises UsageError."""
    entries: list[HostEntry] = []
    for text in podman:
        name, colon, address = text.partition(":")
        if not colon:
            raise _bad("--add-host", text, "expected NAME:ADDRESS")
        entries.append(_entry("--add-host", text, address.removeprefix("[").removesuffix("]"), name))
    for text in rkt:
        if text == "host":
            continue
        address, equals, names = text.partition("=")
        if not equals:
            raise _bad("--hosts-entry", text, "expected ADDRESS=NAME[,NAME], or host")
        entries.append(_entry("--hosts-entry", text, address, names))
    return tuple(_checked_entries(entries)), "host" in rkt


def _checked_entries(entries: list[HostEntry]) -> list[HostEntry]:
    if len(entries) > MAX_HOST_ENTRIES:
        raise UsageError(f"a pod has at most {MAX_HOST_ENTRIES} lines of /etc/hosts", code="usage-network")
    return entries
