"""Named volumes: folders that secrun keeps for pods, until they are removed by name."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from secrun.errors import StateError, UsageError
from secrun.files import write_atomic
from secrun.jsonio import JsonObject
from secrun.locks import held
from secrun.paths import Layout
from secrun.record import record

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
_DATA = "data"
_CREATED = "created"
_LOCK = "volumes"


@record
class NamedVolume:
    """One named volume; times in nanoseconds since the epoch."""

    name: str
    path: Path
    created_ns: int
    pods: tuple[str, ...]
    """Pods that may still use it."""

    def to_json(self) -> JsonObject:
        """Return the documented JSON form (docs/state.md)."""
        return {
            "name": self.name,
            "path": str(self.path),
            "created_ns": self.created_ns,
            "pods": list(self.pods),
        }


def is_name(text: str) -> bool:
    """Tell whether `text` can be a volume's name; a path never is."""
    return _NAME.match(text) is not None


def _checked(name: str) -> str:
    if not is_name(name):
        raise UsageError(
            f"{name[:80]!r} cannot be a volume's name",
            hint="letters, digits, dots, dashes and underscores, at most 128",
            code="usage-volume",
        )
    return name


def _folder(layout: Layout, name: str) -> Path:
    return layout.volumes / _checked(name)


def data_path(layout: Layout, name: str) -> Path:
    """Return the folder that pods see; raises UsageError if there is no such volume."""
    path = _folder(layout, name) / _DATA
    if not path.is_dir():
        raise UsageError(
            f"there is no volume called {name!r}",
            hint=f"secrun volume create {name}; a folder of the host is named by its absolute path",
            code="usage-volume",
        )
    return path


@record
class Owner:
    """Whom a new volume belongs to inside pods, and what others may do with it."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o755


def create(layout: Layout, name: str, owner: Owner) -> Path:
    """Make an empty volume; raises StateError if it exists."""
    folder = _folder(layout, name)
    layout.volumes.mkdir(mode=0o700, parents=True, exist_ok=True)
    with held(layout.locks / _LOCK):
        if folder.exists():
            raise StateError(f"volume {name} exists", hint="secrun volume list", code="state-volume")
        unfinished = folder.with_name(f".{name}.new")
        data = unfinished / _DATA
        data.mkdir(parents=True, exist_ok=True)
        os.chown(data, owner.uid, owner.gid)
        data.chmod(owner.mode)
        write_atomic(unfinished / _CREATED, f"{time.time_ns()}\n".encode())
        os.rename(unfinished, folder)
    return folder / _DATA


def prune(layout: Layout) -> Iterator[str]:
    """Delete every volume that no pod may use, and yield its name."""
    for found in [*volumes(layout)]:
        if not found.pods:
            try:
                remove(layout, found.name)
            except StateError:
                continue  # a pod has come to use it
            yield found.name


def _users(layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield (source of a volume, pod) of every pod that is not garbage."""
    from secrun.pod.states import WHOLE
    from secrun.pod.view import all_pods

    for pod in all_pods(layout):
        if pod.manifest is not None and pod.state in WHOLE:
            yield from ((volume.source, pod.uuid) for app in pod.manifest.apps for volume in app.volumes)


def volumes(layout: Layout) -> Iterator[NamedVolume]:
    """Yield every named volume, by name."""
    users = [*_users(layout)]
    for name in sorted(os.listdir(layout.volumes)) if layout.volumes.is_dir() else ():
        path = layout.volumes / name / _DATA
        if not is_name(name) or not path.is_dir():
            continue
        using = dict.fromkeys(uuid for source, uuid in users if Path(source) == path.resolve())
        created = (layout.volumes / name / _CREATED).read_text()
        yield NamedVolume(name=name, path=path, created_ns=int(created), pods=tuple(using))


def inspect(layout: Layout, name: str) -> NamedVolume:
    """Return one volume; raises UsageError if there is none of this name."""
    data_path(layout, name)
    return next(found for found in volumes(layout) if found.name == name)


def remove(layout: Layout, name: str) -> None:
    """Delete a volume with all it holds; raises StateError while a pod may still use it."""
    from secrun.locks import open_dir
    from secrun.pod.removal import empty_folder

    with held(layout.locks / _LOCK):
        found = inspect(layout, name)
        if found.pods:
            raise StateError(
                f"volume {name} is in use by pod {found.pods[0]}",
                hint="remove the pod first: secrun rm",
                code="state-volume",
            )
        folder = _folder(layout, name)
        gone = folder.with_name(f".{name}.gone")
        os.rename(folder, gone)
        fd = open_dir(gone)
        try:
            empty_folder(fd)
        finally:
            os.close(fd)
        gone.rmdir()
