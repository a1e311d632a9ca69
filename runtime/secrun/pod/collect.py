"""Garbage collection: whatever a dead secrun left behind, in any state, is cleaned here."""

import os
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum

from secrun import checkpoint
from secrun.errors import HostError, NetworkError, SecrunError, StateError
from secrun.files import DISK_FULL, write_atomic
from secrun.measure.measuring import Measuring
from secrun.paths import Layout
from secrun.pod import exits
from secrun.pod.account import account
from secrun.pod.networks import release_network, remove_idle_bridge
from secrun.pod.removal import delete, drop_written
from secrun.pod.states import Folder, Found, LockedPod, State, lock, walk
from secrun.record import record, replace
from secrun.stage1 import flavours
from secrun.stage1.manifest import PodManifest
from secrun.stage1.podfiles import PodFiles

_UNMEASURED_HINT = (
    "see secrun doctor; with --attest=off the pod goes, and the log will say what it was not told"
)


class Action(StrEnum):
    """What gc did to a pod."""

    MARKED = "marked"
    DELETED = "deleted"
    KEPT = "kept"
    FAILED = "failed"


@record
class Outcome:
    """What gc did to one pod, and why if it could not."""

    uuid: str
    action: Action
    detail: str = ""


@record
class GcPlan:
    """How eager gc is; seconds."""

    grace_seconds: float
    expire_prepared_seconds: float
    mark_only: bool = False

    def due(self, age: float) -> bool:
        """Tell whether an exited pod of this age goes now."""
        return not self.mark_only and age >= self.grace_seconds


@record
class Conclusion:
    """How a pod ended, and why its end could not be measured yet; empty if it is, or need not be."""

    exit: exits.PodExit
    unmeasured: str
    held: str = ""
    """Why its networks could not be left yet."""


def conclude(pod: LockedPod, stage1_status: int, measuring: Measuring) -> Conclusion:
    """Write and measure the exit of a pod whose stage1 is gone, free what it held; idempotent."""
    files = PodFiles(pod.path)
    manifest = files.read_manifest()
    held = _free(pod)
    checkpoint.reached("cleaned-up")
    result = exits.read(files) or _store_exit(files, manifest, stage1_status)
    codes = {app.name: app.code for app in result.apps}
    unmeasured = measuring.ended(
        files, pod.uuid, result.code, codes, account=lambda: account(files, manifest, result)
    )
    return Conclusion(exit=result, unmeasured=unmeasured, held=held)


def _free(pod: LockedPod) -> str:
    """Free what the pod holds on the host; a network that cannot be left must not hide how the pod ended."""
    try:
        flavour_cleanup(pod)
    except NetworkError as error:
        return error.message
    return ""


def _store_exit(files: PodFiles, manifest: PodManifest, stage1_status: int) -> exits.PodExit:
    result = exits.collect(files, manifest, stage1_status, time.time_ns())
    try:
        write_atomic(files.exit, result.to_bytes())
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        # A full disk must keep nobody from learning the code, nor gc from making room.
        return replace(
            result, error=f"{result.error} the exit record is not stored: {error.strerror}".strip()
        )
    checkpoint.reached("exit-written")
    return result


def _age(pod: LockedPod) -> float:
    """Return the seconds since the pod's folder last changed, at least 0."""
    return max(0.0, time.time() - pod.path.stat().st_mtime)


def _mark(pod: LockedPod, plan: GcPlan, measuring: Measuring) -> None:
    """Bring an abandoned pod into one of the two garbage states; its mtime is the mark."""
    if pod.folder is Folder.RUN:
        concluded = conclude(pod, exits.KILLED, measuring)
        if concluded.unmeasured and plan.due(_age(pod)):
            # What the apps wrote may be what fills the disk that log and records need.
            drop_written(pod.path)
            concluded = conclude(pod, exits.KILLED, measuring)
        if concluded.unmeasured:
            # It stays an exited pod: what a verifier is not told yet must not go.
            raise HostError(concluded.unmeasured, hint=_UNMEASURED_HINT, code="host-measure")
        if concluded.held:
            raise NetworkError(concluded.held, code="network-release")
        pod.move(Folder.EXITED_GARBAGE)
    else:
        pod.move(Folder.GARBAGE)
    _touch(pod)
    checkpoint.reached("marked")


def _touch(pod: LockedPod) -> None:
    os.utime(pod.path)


def _sweep_one(pod: LockedPod, plan: GcPlan, measuring: Measuring) -> Outcome:
    marked = False
    expired = pod.folder is Folder.PREPARED and _age(pod) >= plan.expire_prepared_seconds
    if pod.folder is Folder.PREPARED and not expired:
        return Outcome(uuid=pod.uuid, action=Action.KEPT, detail="prepared")
    if pod.folder not in (Folder.GARBAGE, Folder.EXITED_GARBAGE):
        _mark(pod, plan, measuring)
        marked = True
    if plan.mark_only:
        return Outcome(uuid=pod.uuid, action=Action.MARKED if marked else Action.KEPT)
    if pod.folder is Folder.EXITED_GARBAGE and not plan.due(_age(pod)):
        return Outcome(uuid=pod.uuid, action=Action.MARKED if marked else Action.KEPT, detail="grace period")
    flavour_cleanup(pod)
    measuring.removed(PodFiles(pod.path), pod.uuid)
    delete(pod)
    return Outcome(uuid=pod.uuid, action=Action.DELETED)


def flavour_cleanup(pod: LockedPod) -> None:
    """Free host resources of a pod in any state; a pod that names no flavour never had any of a flavour's.

    Raises NetworkError if a network cannot be left.
    """
    written = PodFiles(pod.path).read_flavour()
    if written is not None:
        flavours.recall(written).cleanup(pod.uuid)
    release_network(pod)


def sweep(layout: Layout, plan: GcPlan, measuring: Measuring) -> Iterator[Outcome]:
    """Mark and delete every pod that nobody works on; yields what was done to each."""
    for found in list(walk(layout)):
        pod = lock(found, layout)
        if pod is None:
            continue
        with pod:
            try:
                yield _sweep_one(pod, plan, measuring)
            except (SecrunError, OSError) as error:
                # One damaged pod must not keep the others from being cleaned.
                yield Outcome(uuid=found.uuid, action=Action.FAILED, detail=str(error))


def remove(found: Found, layout: Layout, measuring: Measuring) -> None:
    """Remove one pod that is not running; raises StateError if it is, HostError if its end is unmeasured."""
    pod = lock(found, layout)
    if pod is None:
        raise StateError(
            f"pod {found.uuid} is {State.RUNNING if found.folder is Folder.RUN else found.state}",
            hint="stop it first: secrun stop",
            code="state-running",
        )
    with pod:
        if pod.folder is Folder.RUN:
            concluded = conclude(pod, exits.KILLED, measuring)
            if concluded.unmeasured:
                raise HostError(concluded.unmeasured, hint=_UNMEASURED_HINT, code="host-measure")
        flavour_cleanup(pod)
        measuring.removed(PodFiles(pod.path), pod.uuid)
        delete(pod)


def purge_store(layout: Layout) -> None:
    """Remove unfinished work of dead processes, and what no image and no pod needs any more."""
    from secrun.image import rootfs
    from secrun.image.store import ImageStore
    from secrun.pod.view import images_in_use, stage1_in_use
    from secrun.stage1 import imageview
    from secrun.stage1.imagestore import remove_unused

    rootfs.purge_stale(layout)
    if layout.images.exists():
        store = ImageStore(layout)
        store.purge_stale()
        try:
            with store.sole_use(blocking=False):
                store.collect(in_use=images_in_use(layout))
        except StateError as error:
            # Somebody fetches or prepares a pod: what looks unused may be theirs, and the next gc will see.
            if error.code != "state-locked":
                raise
    remove_unused(layout, stage1_in_use(layout))
    imageview.remove_stale(layout)


def collect_networks(layout: Layout) -> Sequence[str]:
    """Remove what networks left behind that belongs to no pod; return what could not be done."""
    from secrun.pod.networklook import collect

    failed = [*collect(layout)]
    remove_idle_bridge(layout)
    return failed
