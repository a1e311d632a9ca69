"""From a verb's options to what a pod's network should be."""

from secrun.cli.table import Arguments, Context
from secrun.network import request
from secrun.network.configs import Places, places
from secrun.network.request import NetworkRequest
from secrun.pod.request import duration
from secrun.record import replace


def network_places(context: Context) -> Places:
    """Return the folders of the settings, or the usual ones."""
    settings = context.settings
    return places(
        settings["network.config"].value,
        settings["network.plugins"].value,
        duration(settings["network.timeout"].value),
    )


def network_request(args: Arguments) -> NetworkRequest:
    """Parse every option that concerns the network; raises UsageError."""
    ports = tuple(port for text in args.many("publish") for port in request.publish(text))
    request.check_ports(ports)
    entries, host_hosts = request.hosts(args.many("add_host"), args.many("hosts_entry"))
    return replace(
        request.networks(args.many("net")),
        ports=ports,
        named_ports=tuple(request.named_port(text) for text in args.many("port")),
        dns=request.dns(args.many("dns"), args.many("dns_search"), args.many("dns_opt")),
        hosts=entries,
        host_hosts=host_hosts,
    )
