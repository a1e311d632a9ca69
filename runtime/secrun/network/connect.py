"""Connect a pod to its networks when it starts, and take everything back when it has ended."""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secrun import checkpoint
from secrun.digest import Digest
from secrun.errors import HostError, NetworkError, SecrunError, StateError
from secrun.files import write_atomic
from secrun.locks import held
from secrun.network import addresses, builtin, cni, configs, decide, hostfiles, namespace, state
from secrun.network.cni import Runtime
from secrun.network.configs import Places
from secrun.network.conflist import NetworkConfig
from secrun.network.hostrules import HostRules
from secrun.network.namespace import Link
from secrun.network.plan import BUILT_IN, Attachment, Connection, DnsMode
from secrun.network.result import Result
from secrun.network.state import Joined, NetworkState
from secrun.network.worker import Worker
from secrun.paths import Layout
from secrun.record import record, replace
from secrun.syscalls import Syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

_BRIDGE_LOCK = "network"


@record
class Target:
    """The pod that is to be connected."""

    layout: Layout
    path: Path
    etc: Path
    """Where the files lie that apps see in /etc."""
    uuid: str
    hostname: str
    connection: Connection


class Connected:
    """A pod's namespace, to be joined while its plugins may still be at work.

    `path` names the namespace for other processes as long as this one lives; `held_fds` stay open for the
    pod's life.
    """

    def __init__(self, fd: int, held_fds: tuple[int, ...], pod: Path, worker: Worker) -> None:
        self.path = namespace.path_of(fd)
        self.held_fds = held_fds
        self._pod = pod
        self._worker = worker

    def state(self) -> NetworkState:
        """Wait for the plugins and return what came of it; raises NetworkError if they failed."""
        self._worker.join()
        found = state.read(self._pod)
        if found is None:
            raise NetworkError("the record of the pod's networks is gone", code="network-release")
        return found


def _load(target: Target, attachment: Attachment, places: Places) -> NetworkConfig:
    """Find the configuration that was decided; raises StateError if it is another by now."""
    ports = bool(target.connection.ports)
    config = configs.find(attachment.network, target.layout, places.configs, ports=ports)
    if config.digest != attachment.config:
        raise StateError(
            f"pod {target.uuid}: network {config.name} was changed since the pod was prepared",
            hint=f"prepare the pod again; the configuration is {config.source}",
            code="state-network",
        )
    configs.check_plugins(config, places.plugins)
    return config


def _plan(target: Target, places: Places) -> tuple[Joined, ...]:
    """Return what has to be joined, with nothing joined yet; ports are forwarded by the first that can."""
    found: list[Joined] = []
    forwarding = False
    for attachment in target.connection.attachments:
        config = _load(target, attachment, places)
        first = not forwarding and config.capable(decide.PORTS)
        forwarding = forwarding or first
        runtime = Runtime(
            container=target.uuid,
            interface=attachment.interface,
            folders=places.plugins,
            seconds=places.plugin_seconds,
            args=decide.arguments(attachment, config),
            capabilities=decide.capabilities(target.connection, attachment, config, ports=first),
        )
        found.append(Joined(config=config, runtime=runtime))
    return tuple(found)


@contextmanager
def _bridge_in_use(layout: Layout) -> "Iterator[None]":
    """Keep gc from removing the built-in network's bridge before the pod's interface is on it."""
    with held(layout.locks / _BRIDGE_LOCK, shared=True):
        yield


class _Joining:
    """Takes a pod's record forward, one answer at a time."""

    def __init__(self, call: Syscalls, target: Target, now: NetworkState, fd: int) -> None:
        self._call = call
        self._target = target
        self._fd = fd
        self.now = now
        # Whoever keeps the namespace: the process that will be the pod's waiter.
        self._owner = os.getpid()

    def _step(self, index: int, item: Joined, *, durable: bool = False) -> Joined:
        self.now = self.now.with_joined(index, item)
        state.write(self._target.path, self.now, durable=durable)
        return item

    def join(self, index: int, attachment: Attachment) -> None:
        """Run one network's chain; raises NetworkError, with the record saying how far it came."""
        item = self.now.joined[index]
        # Leases of the built-in network do not outlive a reboot; of others nobody knows.
        item = self._step(index, replace(item, begun=True), durable=item.config.source != BUILT_IN)
        checkpoint.reached("network-begun")
        path = f"/proc/{self._owner}/fd/{self._fd}"
        for plugin in item.config.plugins:
            answer = cni.add_one(item.config, plugin, item.runtime, path, item.result)
            if answer != item.result:
                item = self._step(index, replace(item, result=answer))
            checkpoint.reached("network-plugin")
        _check_answer(item, attachment)
        (link,) = self._look(item)
        self._step(index, replace(item, link=link))

    def _look(self, item: Joined) -> Sequence[Link]:
        name = item.runtime.interface
        try:
            return namespace.links(self._call, self._fd, (name,))
        except OSError as error:
            raise NetworkError(
                f"network {item.config.name}: its plugins made no interface {name}: {error.strerror}",
                code="network-answer",
            ) from error

    def set_up(self) -> None:
        """Set what was asked for, now that every interface is there."""
        if self._target.connection.settings:
            from secrun.network import settings

            settings.write(self._call, self._fd, self._target.connection.settings)

    def write_files(self) -> None:
        """Write the files of /etc that depend on the answers, and their digests into the record."""
        connection = self._target.connection
        own = [address.partition("/")[0] for item in self.now.joined for address in item.addresses]
        answers = [item.result.dns for item in self.now.joined if item.result is not None]
        host = hostfiles.read_host_file(hostfiles.HOSTS) if connection.host_hosts else ""
        texts = {"hosts": hostfiles.hosts(self._target.hostname, own, connection, host)}
        seen = hostfiles.of_host() if connection.dns.mode is not DnsMode.NONE else hostfiles.NOTHING_SEEN
        texts["resolv.conf"] = hostfiles.resolv_conf(connection.dns, answers, seen)
        for name, text in texts.items():
            write_atomic(self._target.etc / name, text.encode(), durable=False)
        digests = {name: str(Digest.of(text.encode())) for name, text in texts.items()}
        self.now = replace(self.now, files=digests)
        state.write(self._target.path, self.now)
        state.write_brief(self._target.path, self.now)


def _check_answer(item: Joined, attachment: Attachment) -> None:
    """Raise NetworkError unless the pod got what was asked for, addresses and ports."""
    what = f"network {item.config.name}"
    result = item.result or Result()
    own = [address.ip for address in result.inside(item.runtime.interface)]
    for wanted in attachment.ips:
        if wanted not in own:
            raise NetworkError(
                f"{what}: asked for address {wanted}, got {', '.join(own) or 'none'}",
                hint="its plugins take no address by option",
                code="network-address",
            )
    if attachment.mac and attachment.mac not in [link.mac.lower() for link in result.interfaces]:
        raise NetworkError(f"{what}: its plugins did not take the MAC address", code="network-address")
    mappings = item.runtime.capabilities.get(decide.PORTS)
    for mapping in mappings if isinstance(mappings, list) else ():
        host_ip = str(mapping.get("hostIP", "")) if isinstance(mapping, dict) else ""
        if host_ip and not any(addresses.is_v6(ip) == addresses.is_v6(host_ip) for ip in own):
            raise NetworkError(
                f"{what}: a port of {host_ip} cannot lead to a pod with {', '.join(own) or 'no address'}",
                code="network-ports",
            )


def connect(call: Syscalls, target: Target, places: Places, undo: ExitStack) -> Connected:
    """Make the pod's namespace, and begin to join its networks while the caller goes on.

    `undo` takes everything back. Plugins take longer than all that is left to do before stage1 can start.
    """
    joined = _plan(target, places)
    fd = namespace.create(call)
    undo.callback(os.close, fd)
    checkpoint.reached("network-namespace")
    now = NetworkState(
        container=target.uuid,
        folders=places.plugins,
        plugin_seconds=places.plugin_seconds,
        namespace=namespace.identity(fd),
        joined=joined,
        ports=target.connection.ports,
    )
    held_fds = _reserve(target, now, undo)
    undo.callback(_take_back, call, target.path)
    joining = _Joining(call, target, now, fd)
    worker = Worker(lambda: _join_all(joining, target))
    undo.callback(worker.stop)
    return Connected(fd, (fd, *held_fds), target.path, worker)


def _prepare_bridge(layout: Layout) -> None:
    mark = _bridge_mark(layout)
    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.touch()
    _rules(layout).ensure()


def _join_all(joining: _Joining, target: Target) -> None:
    with _bridge_in_use(target.layout):
        if any(attachment.source == BUILT_IN for attachment in target.connection.attachments):
            _prepare_bridge(target.layout)
        for index, attachment in enumerate(target.connection.attachments):
            joining.join(index, attachment)
    joining.set_up()
    joining.write_files()
    checkpoint.reached("network-connected")


def _reserve(target: Target, now: NetworkState, undo: ExitStack) -> tuple[int, ...]:
    """Reserve the pod's ports and write the first record, under one lock if there are ports."""
    if not now.ports:
        return ()
    from secrun.network import ports

    with held(ports.lock_path(target.layout)):
        fds = ports.reserve(target.path.parent, target.uuid, now.ports, undo)
        state.write(target.path, now)
    return fds


def _take_back(call: Syscalls, path: Path) -> None:
    """Release while a start is being undone: its own error counts, and what fails here stays for gc."""
    try:
        release(call, path)
    except SecrunError:
        return


def pending(path: Path) -> bool:
    """Tell whether something of the pod's networks may still be held on the host."""
    found = state.read(path)
    return found is not None and not found.released


def release(call: Syscalls, path: Path) -> None:
    """Take back everything that the pod's networks hold on the host; idempotent, from any process.

    Raises NetworkError if something cannot be taken back: it stays recorded, and can be tried again.
    """
    found = state.read(path)
    if found is None or found.released:
        return
    failed: list[NetworkError | HostError] = []
    for item in reversed(found.joined):
        if item.begun:
            failed += _leave(call, found, item)
    if failed:
        raise NetworkError(
            f"pod {found.container} still holds a network: {failed[0].message}",
            hint=failed[0].hint or "secrun gc tries again",
            code="network-release",
        )
    checkpoint.reached("network-deleted")
    state.write(path, replace(found, released=True))


def _leave(call: Syscalls, found: NetworkState, item: Joined) -> Sequence[NetworkError | HostError]:
    """Delete one attachment in the pod's namespace, in one that stands in for it, or without any."""
    fd = namespace.inherited(found.namespace)
    if fd is not None:
        return cni.delete(item.config, item.runtime, namespace.path_of(fd), item.result)
    if item.result is None or not item.addresses:
        return cni.delete(item.config, item.runtime, "", item.result)
    from secrun.network import stand_in

    with stand_in.made(call, item.runtime.interface, item.result) as path:
        failed = cni.delete(item.config, item.runtime, path, item.result)
        # A deletion that was cut short may have got as far as the rules for this interface, and `bridge`
        # fails where they are gone. It has taken the stand-in's interface now, so it asks for none again.
        return cni.delete(item.config, item.runtime, path, item.result) if failed else ()


def _on_bridge(path: Path) -> bool:
    """Tell whether a pod may be on the built-in network's bridge; a record that is damaged may say so."""
    try:
        found = state.read(path)
    except SecrunError:
        return True
    return (
        found is not None
        and not found.released
        and any(item.begun and item.config.source == BUILT_IN for item in found.joined)
    )


def remove_idle_bridge(layout: Layout, pods: Iterable[Path]) -> bool:
    """Remove the built-in network's bridge, which its plugin leaves behind, if none of `pods` is on it."""
    if not _bridge_mark(layout).exists():
        return False
    own = builtin.subnets(layout)
    try:
        with held(layout.locks / _BRIDGE_LOCK, blocking=False):
            if any(_on_bridge(path) for path in pods):
                return False
            _rules(layout).remove()
            if namespace.exists(own.bridge):
                namespace.set_up(own.bridge, up=False)
                namespace.delete_bridge(own.bridge)
            _bridge_mark(layout).unlink()
    except StateError:
        return False
    return True


def _rules(layout: Layout) -> HostRules:
    return HostRules(builtin.subnets(layout), layout.leases / "rules", v6=builtin.has_v6())


def _bridge_mark(layout: Layout) -> Path:
    """Return the file that says, before it is so, that the host has a bridge and rules of this root."""
    return layout.leases / "bridge"
