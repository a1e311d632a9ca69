"""Reserve the host's ports of a pod: what is taken is an error before anything starts.

The sockets are bound and kept by the pod's waiter for the pod's life, so the kernel itself keeps other
pods and other programs away. They never listen: packets are forwarded before a socket is looked for.
"""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from secrun.errors import NetworkError, SecrunError
from secrun.locks import lock_fd, open_dir
from secrun.network import state
from secrun.network.plan import Port, Protocol
from secrun.paths import Layout
from secrun.record import record

_LOCK = "ports"
_TYPES = {
    Protocol.TCP: (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    Protocol.UDP: (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    Protocol.SCTP: (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
# A host without IPv6 has nothing that could be bound there.
_ABSENT = errno.EAFNOSUPPORT


@record
class Holder:
    """Another pod that has ports."""

    uuid: str
    running: bool
    ports: tuple[Port, ...]


def holders(folder: Path, own: str) -> Iterator[Holder]:
    """Yield the pods below `folder` that hold ports; those that have let go do not count."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name == own:
            continue
        try:
            found = state.read(path)
            running = _running(path)
        except (SecrunError, OSError):
            continue  # a damaged or vanishing pod holds its sockets, if any, by itself
        if found is not None and found.ports and not found.released:
            yield Holder(uuid=path.name, running=running, ports=found.ports)


def _running(path: Path) -> bool:
    fd = open_dir(path)
    try:
        return not lock_fd(fd, shared=True, blocking=False)
    finally:
        os.close(fd)


def _taken(port: Port, others: Sequence[Holder]) -> NetworkError | None:
    for other in others:
        if any(port.overlaps(theirs) for theirs in other.ports):
            hint = "stop that pod, or choose another port"
            return NetworkError(
                f"port {port}: pod {other.uuid} has it",
                hint=hint if other.running else "that pod was killed; secrun gc frees what it held",
                code="network-port-taken",
            )
    return None


def _families(port: Port) -> Iterator[tuple[socket.AddressFamily, str]]:
    if not port.host_ip or ":" not in port.host_ip:
        yield socket.AF_INET, port.host_ip or "0.0.0.0"  # noqa: S104 - what a port without an address means
    if not port.host_ip or ":" in port.host_ip:
        yield socket.AF_INET6, port.host_ip or "::"


def _bound(port: Port, family: socket.AddressFamily, address: str) -> socket.socket | None:
    """Bind a socket that keeps one port; None if the host has no such addresses at all."""
    kind, number = _TYPES[port.protocol]
    try:
        found = socket.socket(family, kind | socket.SOCK_CLOEXEC, number)
    except OSError as error:
        if error.errno == _ABSENT:
            return None
        raise
    try:
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind((address, port.host_port))
    except OSError:
        found.close()
        raise
    return found


def _reserve(port: Port, undo: ExitStack) -> Iterator[int]:
    for family, address in _families(port):
        try:
            found = _bound(port, family, address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and not port.host_ip:
                continue  # IPv6 is switched off
            raise _refused(port, error) from error
        if found is not None:
            undo.callback(found.close)
            yield found.fileno()


def _refused(port: Port, error: OSError) -> NetworkError:
    if error.errno == errno.EADDRINUSE:
        return NetworkError(
            f"port {port}: another program of this host has it",
            hint="ss -tulpn tells which; stop it, or choose another port",
            code="network-port-taken",
        )
    if error.errno == errno.EPROTONOSUPPORT:
        return NetworkError(
            f"port {port}: this host's kernel has no {port.protocol}",
            hint=f"modprobe {port.protocol}, where the kernel has it as a module",
            code="network-port",
        )
    return NetworkError(f"port {port}: {error.strerror}", code="network-port")


def reserve(folder: Path, own: str, ports: Sequence[Port], undo: ExitStack) -> tuple[int, ...]:
    """Reserve ports for the pod `own` of `folder`; return descriptors that keep them.

    Raises NetworkError for a port that is taken. The caller holds `lock_path` until its record is written.
    """
    others = list(holders(folder, own))
    fds: list[int] = []
    for port in ports:
        taken = _taken(port, others)
        if taken is not None:
            raise taken
        fds += _reserve(port, undo)
    return tuple(fds)


def lock_path(layout: Layout) -> Path:
    """Return the lock under which ports are looked up and recorded."""
    return layout.locks / _LOCK
