"""What an app of a pod that has ended left behind, as an image in an OCI archive."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.checkpoint import reached
from secrun.digest import Digest
from secrun.errors import StateError, UsageError
from secrun.image.changed import Base
from secrun.jsonio import JsonObject
from secrun.locks import is_missing, lock_fd, open_dir
from secrun.paths import Layout
from secrun.pod import exits
from secrun.pod.inside import open_path
from secrun.pod.states import Folder, Found, State, find
from secrun.record import record
from secrun.stage1.manifest import AppManifest, PodManifest
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.uidrange import SIZE

if TYPE_CHECKING:
    from typing import BinaryIO

_EXITED = (State.EXITED, State.EXITED_GARBAGE)


@record
class Ended:
    """An app of a pod that has ended."""

    files: PodFiles
    app: AppManifest
    exit: exits.PodExit


@record
class Exported:
    """What was written: the digest of the manifest, and what the caller should know."""

    digest: Digest
    notes: tuple[str, ...]


def _app(found: Found, manifest: PodManifest, name: str | None) -> AppManifest:
    known = ", ".join(app.name for app in manifest.apps)
    if name is None and len(manifest.apps) > 1:
        raise UsageError(f"pod {found.uuid} has several apps", hint=f"name one with --app: {known}")
    app = manifest.apps[0] if name is None else manifest.app(name)
    if app is None:
        raise UsageError(f"pod {found.uuid} has no app {name!r}", hint=f"it has: {known}")
    return app


def _check_kept(found: Found, manifest: PodManifest) -> None:
    """Raise StateError for a pod whose flavour keeps nothing that the host could read."""
    if manifest.machine is None:
        return
    where = (
        "was written to the guest's own disk, a file system that the host's kernel must not parse"
        if manifest.machine.storage_bytes
        else "was in the guest's memory and went with it"
    )
    raise StateError(
        f"pod {found.uuid} ran with --stage1={manifest.flavour}: what its apps changed {where}",
        hint="let the app write to a volume, or run it with --stage1=nspawn",
        code="state-export-flavour",
    )


@contextmanager
def ended(layout: Layout, uuid: str, app: str | None) -> Iterator[Ended]:
    """Yield an app of a pod that has ended, which nobody removes or changes until the end of the block.

    Raises StateError for a pod that has not ended or keeps no changes, UsageError for an app it lacks.
    """
    found = find(layout, uuid)
    with ExitStack() as stack:
        state = _held(found, stack)
        if state not in _EXITED:
            raise StateError(
                f"pod {found.uuid} is {state}, expected exited",
                hint="an app can be exported when its pod has ended: secrun stop",
                code="state-not-exited",
            )
        files = PodFiles(found.path)
        manifest = files.read_manifest()
        _check_kept(found, manifest)
        result = exits.read(files)
        if result is None:
            raise StateError(
                f"how pod {found.uuid} ended is not recorded yet",
                hint="secrun gc --mark-only records it",
                code="state-not-exited",
            )
        yield Ended(files=files, app=_app(found, manifest, app), exit=result)


def _held(found: Found, stack: ExitStack) -> State:
    """Share the pod's lock, as readers do; return the pod's state."""
    if found.folder not in (Folder.RUN, Folder.EXITED_GARBAGE):
        return found.state
    try:
        fd = open_dir(found.path)
    except OSError as error:
        if not is_missing(error):
            raise
        raise StateError(f"pod {found.uuid} has just gone", code="state-not-exited") from error
    stack.callback(os.close, fd)
    if not lock_fd(fd, shared=True, blocking=False):
        return found.state
    return State.EXITED if found.folder is Folder.RUN else State.EXITED_GARBAGE


def _upper(one: Ended) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY
    fd = open_path(one.files.rw, "apps", one.app.name, "upper", flags=flags)
    if fd is None:
        raise StateError(
            f"nothing is kept of app {one.app.name}: it never started, or a full disk made gc give it up",
            hint="see secrun status; the image itself: secrun image export",
            code="state-export-nothing",
        )
    return fd


def _write_layer(one: Ended, path: Path) -> JsonObject:
    """Write what the app changed as a layer to a new file; no right but to read it is involved."""
    from secrun.image import upper
    from secrun.image.rootfs.sandbox import Confined, run_confined
    from secrun.stage1.volumemount import mapping
    from secrun.syscalls import LinuxSyscalls

    calls = LinuxSyscalls()
    base = int(one.files.uid_base.read_text())
    with ExitStack() as stack:
        source = _upper(one)
        stack.callback(os.close, source)
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, out)
        users = stack.enter_context(mapping(calls, base, SIZE))
        job = Confined(
            body=lambda: upper.write_layer(source, out),
            prepare=lambda: None,
            keep_fds=(source, out, users),
            readable=(source,),
            users=users,
        )
        return run_confined(job, calls)


def export(layout: Layout, one: Ended, out: "BinaryIO") -> Exported:
    """Write an OCI archive to `out`: the layers of the app's image, and one with what it changed.

    Raises StateError, ImageError for what a layer cannot say, HostError; forks.
    """
    from secrun.image import changed
    from secrun.image.rootfs.scratch import scratch_folder
    from secrun.image.store import ImageStore, space_errors

    image = one.app.image
    base = Base(manifest=image.manifest, reference=image.reference, ended_ns=one.exit.finished_ns)
    with space_errors(f"the changes of app {one.app.name}"), scratch_folder(layout) as folder:
        layer = folder / "layer.tar"
        answer = _write_layer(one, layer)
        reached("export-layer-written")
        digest = changed.write(ImageStore(layout), base, layer, out)
    return Exported(digest=digest, notes=_notes(one, answer))


def _notes(one: Ended, answer: JsonObject) -> tuple[str, ...]:
    notes = []
    if answer.get("sockets"):
        notes.append(f"{answer['sockets']} sockets are left out: tar has no word for them")
    if next((item.code for item in one.exit.apps if item.name == one.app.name), None) is None:
        notes.append(f"app {one.app.name} did not end by itself: its last writes may be incomplete")
    return tuple(notes)
