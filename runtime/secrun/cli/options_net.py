"""Options and verbs that concern networks."""

from secrun.cli.options_common import FORMAT, NO_LEGEND
from secrun.cli.table import Kind, Option, Positional, Verb

NETWORK_GLOBAL = (
    Option(
        flags=("--net-config",),
        metavar="DIR[:DIR]",
        default="",
        key="network.config",
        help="network configurations; default: net.d in /etc/secrun, /usr/lib/secrun and /etc/cni",
    ),
    Option(
        flags=("--cni-path",),
        metavar="DIR[:DIR]",
        default="",
        key="network.plugins",
        variable="CNI_PATH",
        help="where CNI plugins are; default: /usr/lib/cni and /opt/cni/bin",
    ),
    Option(
        flags=("--net-timeout",),
        metavar="DURATION",
        default="1m",
        key="network.timeout",
        help="how long each call of a CNI plugin may take, 1s to 1h",
    ),
)

NETWORK = (
    Option(
        flags=("--net", "--network"),
        kind=Kind.LIST,
        metavar="none|host|all|NAME[:IP=..,MAC=..]",
        help="networks to join; default is `default`; host: the host's own, a named relaxation",
    ),
    Option(
        flags=("-p", "--publish"),
        kind=Kind.LIST,
        metavar="[IP:]HOST:POD[/PROTOCOL]",
        help="forward a port of the host, or a range; tcp, udp or sctp",
    ),
    Option(
        flags=("--port",),
        kind=Kind.LIST,
        metavar="NAME:[IP:]HOST",
        help="forward a port of the host to one that an image names, e.g. 80-tcp:8080",
    ),
    Option(
        flags=("--dns",),
        kind=Kind.LIST,
        metavar="IP|host|none",
        help="name servers; host: the host's resolv.conf; none: not those of the networks",
    ),
    Option(flags=("--dns-search",), kind=Kind.LIST, metavar="DOMAIN", help="domains to search for names"),
    Option(
        flags=("--dns-opt", "--dns-option"), kind=Kind.LIST, metavar="WORD", help="options of resolv.conf"
    ),
    Option(flags=("--add-host",), kind=Kind.LIST, metavar="NAME:IP", help="add a line to /etc/hosts"),
    Option(
        flags=("--hosts-entry",),
        kind=Kind.LIST,
        metavar="IP=NAME[,NAME]|host",
        help="the same; host: the host's /etc/hosts too",
    ),
)

_NAME = Positional(name="network", help="the network's name")

NETWORK_VERBS = (
    Verb(
        words=("network", "list"),
        summary="List networks that pods can join",
        handler="secrun.cli.network:list_networks",
        options=(FORMAT, NO_LEGEND),
    ),
    Verb(
        words=("network", "inspect"),
        summary="Show a network, and the pods on it",
        handler="secrun.cli.network:inspect",
        positionals=(_NAME,),
        options=(
            FORMAT,
            Option(
                flags=("--check",), kind=Kind.FLAG, help="let the plugins check each running pod (CNI CHECK)"
            ),
        ),
    ),
    Verb(
        words=("network", "rm"),
        summary="Remove a network that no pod is on: its configuration, or the built-in one's bridge",
        handler="secrun.cli.network:remove",
        positionals=(_NAME,),
        needs_root=True,
    ),
)
