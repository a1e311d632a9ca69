"""A namespace in place of one that is gone, so that plugins can delete what they made on the host.

The `bridge` plugin takes back its masquerading rules only for the addresses that it finds on the pod's
interface. After a crash or a lost namespace there is none, and its rules would stay for ever. So DEL gets a
namespace with an interface of the same name and addresses. A rare path: it runs ip(8).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from secrun import launch
from secrun.network import namespace
from secrun.network.result import Result
from secrun.syscalls import Syscalls

_IP = "/usr/sbin/ip"
_SECONDS = 30.0


def _commands(interface: str, result: Result) -> Iterator[Sequence[str]]:
    """Yield the ip(8) commands that make the interface; the peer of the pair has any name."""
    yield ("link", "add", "name", interface, "type", "veth", "peer", "name", "stand-in")
    for address in result.inside(interface):
        yield ("address", "add", address.cidr, "dev", interface)


@contextmanager
def made(call: Syscalls, interface: str, result: Result) -> Iterator[str]:
    """Yield the path of a namespace that looks as the pod's did; raises ExternalError or HostError."""
    fd = namespace.create(call)
    try:
        with namespace.entered(call, fd):
            for words in _commands(interface, result):
                launch.run([_IP, *words], timeout=_SECONDS)
        yield namespace.path_of(fd)
    finally:
        os.close(fd)
