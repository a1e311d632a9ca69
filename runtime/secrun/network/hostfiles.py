"""/etc/hosts and /etc/resolv.conf of a pod: which source wins, line by line."""

from collections.abc import Sequence
from pathlib import Path

from secrun.errors import HostError
from secrun.network.limits import MAX_DNS_SEARCH, MAX_DNS_SERVERS, MAX_HOST_FILE_BYTES
from secrun.network.plan import Connection, Dns, DnsMode
from secrun.network.result import Answers
from secrun.record import record

HOSTS = Path("/etc/hosts")
# The second is the servers behind systemd-resolved's stub on loopback, which a pod cannot reach.
RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_NOTHING = "# no name server is known\n"


@record
class Seen:
    """What a resolv.conf of the host says."""

    text: str
    servers: tuple[str, ...]
    search: tuple[str, ...]
    options: tuple[str, ...]


NOTHING_SEEN = Seen(text="", servers=(), search=(), options=())


def read_host_file(path: Path) -> str:
    """Read a file of the host's that goes into a pod; absent means empty. Raises HostError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_HOST_FILE_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", code="host-file") from error
    if len(data) > MAX_HOST_FILE_BYTES:
        raise HostError(f"{path} has more than {MAX_HOST_FILE_BYTES} bytes", code="host-file")
    return data.decode("utf-8", "replace")


def parse_resolv_conf(text: str) -> Seen:
    """Read a resolv.conf(5); pure. As in glibc the last `search` or `domain` counts."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        key, *words = line.split() or [""]
        if key == "nameserver" and words:
            servers.append(words[0])
        elif key in ("search", "domain"):
            search = tuple(words)
        elif key == "options":
            options += words
    return Seen(text=text, servers=tuple(servers), search=search, options=tuple(options))


def _on_loopback(server: str) -> bool:
    return server.startswith("127.") or server == "::1"


def of_host(*, all_servers: bool = False) -> Seen:
    """Return what the host's pods may use: its name servers that are not on its loopback interface.

    `all_servers` is for pods that share that interface.
    """
    for path in RESOLV_CONF:
        seen = parse_resolv_conf(read_host_file(path))
        if all_servers:
            return seen
        reachable = tuple(server for server in seen.servers if not _on_loopback(server))
        if reachable:
            return Seen(text=seen.text, servers=reachable, search=seen.search, options=seen.options)
    return NOTHING_SEEN


def _lines(servers: Sequence[str], search: Sequence[str], options: Sequence[str]) -> str:
    lines = [f"nameserver {server}" for server in servers[:MAX_DNS_SERVERS]]
    if search:
        lines.append(f"search {' '.join(search[:MAX_DNS_SEARCH])}")
    if options:
        lines.append(f"options {' '.join(options)}")
    return "".join(f"{line}\n" for line in lines) or _NOTHING


def _answers(answers: Sequence[Answers]) -> Answers:
    """Return the first answer that names a server, else the first that says anything; pure."""
    said = [item for item in answers if item != Answers()]
    return next((item for item in said if item.servers), said[0] if said else Answers())


def resolv_conf(dns: Dns, answers: Sequence[Answers], host: Seen) -> str:
    """Return resolv.conf: options beat networks, and networks beat the host; pure."""
    if dns.mode is DnsMode.HOST:
        return host.text
    if dns.mode is DnsMode.NONE:
        return _lines(dns.servers, dns.search, dns.options)
    network = _answers(answers)
    if network.servers or dns.servers:
        found = network
    else:
        found = Answers(servers=host.servers, search=network.search or host.search, options=host.options)
    search = found.search or ((found.domain,) if found.domain else ())
    return _lines(dns.servers or found.servers, dns.search or search, dns.options or found.options)


def hosts(hostname: str, addresses: Sequence[str], connection: Connection, host: str) -> str:
    """Return /etc/hosts: given lines first, for the first match counts; pure."""
    lines = [" ".join((entry.address, *entry.names)) for entry in connection.hosts]
    lines += ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {hostname}" for address in addresses or ("127.0.1.1",)]
    own = "".join(f"{line}\n" for line in lines)
    return f"{own}\n{host}" if host else own


def without_plugins(hostname: str, connection: Connection, *, host: bool) -> dict[str, str]:
    """Return both files of a pod that joins no network, or the host's."""
    seen = of_host(all_servers=True) if host or connection.dns.mode is DnsMode.HOST else NOTHING_SEEN
    if host and connection.dns.mode is DnsMode.AUTO and not connection.dns.given:
        resolv = seen.text
    else:
        resolv = resolv_conf(connection.dns, (), seen)
    copied = read_host_file(HOSTS) if host or connection.host_hosts else ""
    return {"hosts": hosts(hostname, (), connection, copied), "resolv.conf": resolv}
