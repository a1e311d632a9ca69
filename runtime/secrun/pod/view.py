"""What readers are told of pods; works without root where the folders may be read, takes no lock."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import ImageError, NetworkError, StateError
from secrun.jsonio import JsonObject
from secrun.locks import is_missing
from secrun.measure import marker
from secrun.measure.marker import Marker
from secrun.paths import Layout
from secrun.pod import exits, lifestate, readback, timing
from secrun.pod.inside import log_lost
from secrun.pod.lifestate import LifeState
from secrun.pod.readback import Enforced
from secrun.pod.states import WHOLE, Found, State, walk
from secrun.record import record
from secrun.stage1.manifest import AppManifest, Network, PodManifest
from secrun.stage1.podfiles import PodFiles

if TYPE_CHECKING:
    from secrun.network.state import Shown

STATUS_SCHEMA = "secrun.dev/pod-status/v1"
LIST_SCHEMA = "secrun.dev/pod-list/v1"


@record
class PodView:
    """One pod as a reader sees it; times in nanoseconds since the epoch, None if not reached."""

    uuid: str
    state: State
    manifest: PodManifest | None
    problem: str
    started_ns: int | None
    pid: int | None
    uid_base: int | None
    label: str | None
    """The SELinux context that the pod was started with; None if it had none."""
    exit: exits.PodExit | None
    log_lost: Mapping[str, int]
    """Of each app whose log lacks something, how many bytes."""
    enforced: Mapping[str, Enforced]
    """What was read of the apps, by name."""
    life: Mapping[str, LifeState]
    """How apps stand that began again or are checked, by name."""
    measured: Marker | None
    """How far the event log knows the pod; None if it ran unmeasured."""
    timing: tuple[timing.Mark, ...]
    networks: "tuple[Shown, ...]"
    """The interfaces that the pod has, or had before it exited."""

    @property
    def created_ns(self) -> int:
        """When the pod was made; 0 if it has no manifest."""
        return self.manifest.created_ns if self.manifest else 0

    @property
    def reported_by(self) -> str:
        """Whose word `enforced` is: of the host's kernel, or of a guest, which may lie once taken over."""
        return "guest" if self.manifest is not None and self.manifest.machine is not None else "host"

    def _apps(self) -> list[JsonObject]:
        if self.manifest is None:
            return []
        ended = {app.name: app for app in self.exit.apps} if self.exit else {}
        result: list[JsonObject] = []
        for app in self.manifest.apps:
            end = ended.get(app.name)
            found = self.enforced.get(app.name)
            result.append(
                {
                    "name": app.name,
                    "image": app.image.reference,
                    "image_id": str(app.image.manifest),
                    "exit_code": end.code if end else None,
                    "error": end.error if end else "",
                    "log_lost_bytes": self.log_lost.get(app.name, 0),
                    "enforced": found.to_json(self.reported_by) if found else None,
                    **_life(app, self.life.get(app.name)),
                }
            )
        return result

    def _ports(self) -> list[str]:
        connection = self.manifest.connection if self.manifest else None
        return [] if connection is None else [str(port) for port in connection.ports]

    def to_json(self) -> JsonObject:
        """Return the documented JSON form (docs/state.md)."""
        return {
            "uuid": self.uuid,
            "state": str(self.state),
            "problem": self.problem,
            "created_ns": self.created_ns or None,
            "started_ns": self.started_ns,
            "finished_ns": self.exit.finished_ns if self.exit else None,
            "exit_code": self.exit.code if self.exit else None,
            "error": self.exit.error if self.exit else "",
            "pid": self.pid,
            "uid_base": self.uid_base,
            "label": self.label,
            "measured": None
            if self.measured is None
            else {
                "epoch": self.measured.epoch,
                "last": self.measured.last,
                "pending": self.measured.pending,
            },
            "hostname": self.manifest.hostname if self.manifest else None,
            "network": str(self.manifest.network) if self.manifest else None,
            "networks": [item.to_json() for item in self.networks],
            "ports": [*self._ports()],
            "stage1": self.manifest.flavour if self.manifest else None,
            "relaxations": list(self.manifest.relaxations) if self.manifest else [],
            "apps": [*self._apps()],
            "timing": [mark.to_json() for mark in self.timing],
        }


def _life(app: AppManifest, found: LifeState | None) -> JsonObject:
    """Return what is known of an app from one run to the next."""
    state = found or LifeState()
    return {
        "restart": {
            "policy": str(app.restart),
            "count": state.restarts,
            "waiting": state.waiting,
            "began_ns": state.began_ns or None,
            "last": None if state.last is None else state.last.to_json(),
        },
        "health": None if state.health is None else state.health.to_json(),
        "problem": state.problem,
    }


def _numbers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split() if word.isdecimal()]
    except FileNotFoundError:
        return []


def _networks(path: Path) -> "tuple[Shown, ...]":
    from secrun.network import state

    found = state.read(path)
    return () if found is None else found.interfaces


def _line(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip() or None
    except FileNotFoundError:
        return None


def look(found: Found) -> PodView:
    """Read one pod; damage is told in `problem`, not raised, so that a list shows every pod."""
    files = PodFiles(found.path)
    state = found.state
    manifest: PodManifest | None = None
    end: exits.PodExit | None = None
    measured: Marker | None = None
    enforced: Mapping[str, Enforced] = {}
    life: Mapping[str, LifeState] = {}
    lost: Mapping[str, int] = {}
    marks: tuple[timing.Mark, ...] = ()
    networks: tuple[Shown, ...] = ()
    problem = ""
    try:
        manifest = files.read_manifest()
        end = exits.read(files)
        enforced = readback.read(files)
        stands = ((app.name, lifestate.read(files, app.name)) for app in manifest.apps)
        life = {name: found for name, found in stands if found is not None}
        measured = marker.read(files)
        lost = {app.name: count for app in manifest.apps if (count := log_lost(files.rw, app.name))}
        if manifest.network is Network.CNI:
            networks = _networks(found.path)
        marks = timing.read(files)
    except (StateError, ImageError, NetworkError) as error:
        problem = error.message if state in WHOLE else ""
    started, base = _numbers(files.started), _numbers(files.uid_base)
    return PodView(
        uuid=found.uuid,
        state=state,
        manifest=manifest,
        problem=problem,
        started_ns=started[0] if started else None,
        pid=started[1] if len(started) > 1 and state is State.RUNNING else None,
        uid_base=base[0] if base else None,
        label=_line(files.label),
        exit=end,
        log_lost=lost,
        enforced=enforced,
        life=life,
        measured=measured,
        networks=networks,
        timing=marks,
    )


def all_pods(layout: Layout, wanted: frozenset[str] | None = None) -> Iterator[PodView]:
    """Yield every pod, or those of the UUIDs `wanted`, once, in the state it was seen last."""
    seen: dict[str, PodView] = {}
    for found in walk(layout):
        if wanted is not None and found.uuid not in wanted:
            continue
        try:
            seen[found.uuid] = look(found)
        except OSError as error:
            if not is_missing(error):
                raise
    yield from seen.values()


_LIVE = (State.PREPARED, State.RUNNING, State.PREPARING)


def _manifests(layout: Layout, states: Sequence[State]) -> list[PodManifest]:
    return [view.manifest for view in all_pods(layout) if view.state in states and view.manifest]


def _images(manifests: Sequence[PodManifest]) -> frozenset[Digest]:
    return frozenset(app.image.manifest for pod in manifests for app in pod.apps)


def images_in_use(layout: Layout) -> frozenset[Digest]:
    """Return the manifest digests of the images of pods that may still start or run."""
    return _images(_manifests(layout, _LIVE))


def images_of_pods(layout: Layout) -> frozenset[Digest]:
    """Return those of all pods that are there: of one that has ended, what it changed can be exported."""
    return _images(_manifests(layout, (*_LIVE, *WHOLE)))


def stage1_in_use(layout: Layout) -> frozenset[Digest]:
    """Return the stage1 images that pods still need."""
    return frozenset(pod.stage1 for pod in _manifests(layout, _LIVE))
