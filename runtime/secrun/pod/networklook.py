"""Which pods are on which network, for people and for plugins that check or collect."""

from collections.abc import Iterator

from secrun.errors import HostError, ImageError, NetworkError, StateError
from secrun.jsonio import JsonObject
from secrun.network import cni, state
from secrun.network.state import Joined, NetworkState
from secrun.paths import Layout
from secrun.pod.states import Found, State, walk
from secrun.record import record
from secrun.stage1.podfiles import PodFiles


@record
class Member:
    """A pod that holds an attachment to a network."""

    network: str
    uuid: str
    interface: str
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        """Return a line for people."""
        return f"{self.uuid} {self.interface} {','.join(self.addresses)}"

    def to_json(self) -> JsonObject:
        """Return the JSON form (docs/networking.md)."""
        return {"uuid": self.uuid, "interface": self.interface, "addresses": list(self.addresses)}


_DAMAGED = (StateError, ImageError, NetworkError)


def _held(layout: Layout, *, whole: bool = False) -> Iterator[tuple[Found, NetworkState, Joined]]:
    """Yield each attachment that some pod may hold.

    A damaged record is gc's to complain about, and whoever only looks goes on; whoever takes something
    away asks for the `whole` truth, and gets the error.
    """
    for found in walk(layout):
        try:
            known = state.read(found.path)
        except _DAMAGED:
            if whole:
                raise
            continue
        if known is not None and not known.released:
            yield from ((found, known, item) for item in known.joined if item.begun)


def members(layout: Layout, *, whole: bool = False) -> Iterator[Member]:
    """Yield every attachment; with `whole` a record that cannot be read raises what reading it does."""
    for found, _, item in _held(layout, whole=whole):
        yield Member(
            network=item.config.name,
            uuid=found.uuid,
            interface=item.runtime.interface,
            addresses=item.addresses,
        )


def check(layout: Layout, network: str) -> dict[str, str]:
    """Let plugins check the running pods of a network (CNI CHECK); return what they find, by UUID."""
    failed: dict[str, str] = {}
    for found, known, item in _held(layout):
        if item.config.name != network or found.state is not State.RUNNING or not item.config.checks:
            continue
        words = PodFiles(found.path).started.read_text().split()
        path = f"/proc/{words[1]}/fd/{known.namespace.fd}"
        try:
            if item.result is not None:
                cni.check(item.config, item.runtime, path, item.result)
        except (NetworkError, HostError) as error:
            failed[found.uuid] = error.message
    return failed


def collect(layout: Layout) -> Iterator[str]:
    """Let plugins that can remove what belongs to no pod (CNI GC); yield what they could not do.

    For networks that some pod holds: of others nothing tells which plugins made something. What a damaged
    record may hold must not be taken for nobody's, so then nothing is collected.
    """
    try:
        held = [(known, item) for _, known, item in _held(layout, whole=True) if item.config.collects]
    except _DAMAGED as error:
        yield f"nothing is collected on networks: {error.message}"
        return
    done: set[str] = set()
    for known, item in held:
        if item.config.name in done:
            continue
        done.add(item.config.name)
        valid = [
            (other.container, its.runtime.interface)
            for other, its in held
            if its.config.name == item.config.name
        ]
        runtime = cni.Runtime(container="", interface="", folders=known.folders)
        yield from (error.message for error in cni.collect(item.config, runtime, valid))
