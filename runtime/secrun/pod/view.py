"""What readers are told of pods; works without root where the folders may be read, takes no lock."""

import os
from collections.abc import Iterator
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import ImageError, StateError
from secrun.jsonio import JsonObject
from secrun.locks import is_missing, lock_fd
from secrun.paths import Layout
from secrun.pod import exits
from secrun.pod.states import Folder, Found, State, folder_path, state_of, uuids_in, walk
from secrun.record import record
from secrun.stage1.manifest import FILE_NAME, MAX_MANIFEST_BYTES, Outline, PodManifest
from secrun.stage1.podfiles import STARTED_NAME, PodFiles

STATUS_SCHEMA = "secrun.dev/pod-status/v1"
LIST_SCHEMA = "secrun.dev/pod-list/v1"


# In the other states a pod is being made or being deleted, and may lack anything.
_WHOLE = (State.PREPARED, State.RUNNING, State.EXITED, State.EXITED_GARBAGE)


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
    exit: exits.PodExit | None

    @property
    def created_ns(self) -> int:
        """When the pod was made; 0 if it has no manifest."""
        return self.manifest.created_ns if self.manifest else 0

    def _apps(self) -> list[JsonObject]:
        if self.manifest is None:
            return []
        ended = {app.name: app for app in self.exit.apps} if self.exit else {}
        result: list[JsonObject] = []
        for app in self.manifest.apps:
            end = ended.get(app.name)
            result.append(
                {
                    "name": app.name,
                    "image": app.image.reference,
                    "image_id": str(app.image.manifest),
                    "exit_code": end.code if end else None,
                    "error": end.error if end else "",
                }
            )
        return result

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
            "hostname": self.manifest.hostname if self.manifest else None,
            "network": str(self.manifest.network) if self.manifest else None,
            "stage1": self.manifest.flavour if self.manifest else None,
            "relaxations": list(self.manifest.relaxations) if self.manifest else [],
            "apps": [*self._apps()],
        }


def _numbers(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split() if word.isdecimal()]
    except FileNotFoundError:
        return []


def look(found: Found) -> PodView:
    """Read one pod; damage is told in `problem`, not raised, so that a list shows every pod."""
    files = PodFiles(found.path)
    state = found.state
    manifest: PodManifest | None = None
    end: exits.PodExit | None = None
    problem = ""
    try:
        manifest = files.read_manifest()
        end = exits.read(files)
    except (StateError, ImageError) as error:
        problem = error.message if state in _WHOLE else ""
    started, base = _numbers(files.started), _numbers(files.uid_base)
    return PodView(
        uuid=found.uuid,
        state=state,
        manifest=manifest,
        problem=problem,
        started_ns=started[0] if started else None,
        pid=started[1] if len(started) > 1 and state is State.RUNNING else None,
        uid_base=base[0] if base else None,
        exit=end,
    )


def all_pods(layout: Layout) -> Iterator[PodView]:
    """Yield every pod once, in the state it was seen last, with all that is known of it."""
    seen: dict[str, PodView] = {}
    for found in walk(layout):
        try:
            seen[found.uuid] = look(found)
        except OSError as error:
            if not is_missing(error):
                raise
    yield from seen.values()


@record
class Glance:
    """What a table of pods shows of one; `apps` are (name, image reference, image ID)."""

    uuid: str
    state: State
    problem: str
    created_ns: int
    started_ns: int | None
    apps: tuple[tuple[str, str, str], ...]


def _read_at(folder_fd: int, name: str, limit: int) -> bytes | None:
    """Read a small file of a folder, None if it is missing; a file object would cost twice as much."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder_fd)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, min(limit, os.fstat(fd).st_size + 1))
    finally:
        os.close(fd)


def _glance(uuid: str, folder: Folder, fd: int) -> Glance:
    state = state_of(folder, locked=not lock_fd(fd, shared=True, blocking=False))
    outline, problem = Outline(created_ns=0, apps=()), "the pod has no manifest"
    data = _read_at(fd, FILE_NAME, MAX_MANIFEST_BYTES + 1)
    if data is not None:
        try:
            outline, problem = Outline.from_bytes(data), ""
        except (StateError, ImageError) as error:
            problem = error.message
    started = _read_at(fd, STARTED_NAME, 100)
    return Glance(
        uuid=uuid,
        state=state,
        problem=problem if state in _WHOLE else "",
        created_ns=outline.created_ns,
        started_ns=int(started.split()[0]) if started and started.split()[0].isdigit() else None,
        apps=outline.apps,
    )


def glances(layout: Layout) -> Iterator[Glance]:
    """Yield every pod as a table shows it: a thousand must not take longer than a person notices."""
    seen: dict[str, Glance] = {}
    for folder in Folder:
        base = str(folder_path(layout, folder))
        for uuid in uuids_in(base):
            try:
                fd = os.open(f"{base}/{uuid}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                if not is_missing(error):
                    raise
                continue
            try:
                seen[uuid] = _glance(uuid, folder, fd)
            finally:
                os.close(fd)
    yield from seen.values()


def _manifests_in_use(layout: Layout) -> list[PodManifest]:
    """Return the manifests of pods that may still start or run."""
    live = (State.PREPARED, State.RUNNING, State.PREPARING)
    return [view.manifest for view in all_pods(layout) if view.state in live and view.manifest]


def images_in_use(layout: Layout) -> frozenset[Digest]:
    """Return the manifest digests of the images that pods still need."""
    return frozenset(app.image.manifest for pod in _manifests_in_use(layout) for app in pod.apps)


def stage1_in_use(layout: Layout) -> frozenset[Digest]:
    """Return the stage1 images that pods still need."""
    return frozenset(pod.stage1 for pod in _manifests_in_use(layout))
