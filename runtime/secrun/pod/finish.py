"""The end of a pod's life: executed in place of the waiter, with the pod's lock inherited."""

import os
import time
from collections.abc import Callable, Sequence

from secrun.errors import StateError
from secrun.files import DISK_FULL
from secrun.measure.measuring import Measuring
from secrun.measure.settings import AttestSettings
from secrun.paths import Layout
from secrun.pod import exits, readback
from secrun.pod import timing as marks
from secrun.pod.collect import conclude
from secrun.pod.removal import delete, unmount_below
from secrun.pod.states import Folder, LockedPod, adopt
from secrun.record import replace
from secrun.stage1.podfiles import PodFiles


def finish(
    layout: Layout,
    uuid: str,
    *,
    lock_fd: int,
    stage1_status: int,
    remove: bool,
    warn: Callable[[str], None],
    timing: Callable[[str], None] | None = None,
) -> exits.PodExit:
    """Record and measure how the pod ended, free what it held on the host and remove it if asked.

    A pod whose end cannot be measured is kept: `secrun gc` measures and removes it. `timing` is given the
    lines that tell when each step of the pod was reached.
    """
    # Whether a pod is measured was decided when it started; its marker tells.
    measuring = Measuring(layout, AttestSettings(), warn)
    with adopt(layout, uuid, Folder.RUN, lock_fd) as pod:
        for line in _read_back(PodFiles(pod.path)):
            warn(f"warning: {line}")
        concluded = conclude(pod, stage1_status, measuring)
        result = concluded.exit
        _note_end(pod, timing)
        if concluded.unmeasured or concluded.held:
            words = (result.error, concluded.unmeasured, concluded.held)
            return replace(result, error=" ".join(word for word in words if word))
        if remove:
            unmount_below(pod.path)
            measuring.removed(PodFiles(pod.path), uuid)
            delete(pod)
    return result


def _note_end(pod: LockedPod, tell: Callable[[str], None] | None) -> None:
    files = PodFiles(pod.path)
    try:
        os.close(marks.append(files, [("concluded", time.monotonic_ns())]))
    except OSError as error:
        # Marks are no reason to keep a pod from its end on a full disk.
        if error.errno not in DISK_FULL:
            raise
    if tell is None:
        return
    try:
        for line in marks.table(marks.read(files)):
            tell(line)
    except StateError as error:
        tell(f"no timing: {error.message}")


def _read_back(files: PodFiles) -> Sequence[str]:
    """Return what to tell of apps that ran less confined than compiled; of strict pods it is the error."""
    try:
        return readback.warnings(files) if not files.read_manifest().strict_read_back else ()
    except StateError as error:
        return (error.message,)


def complaints(result: exits.PodExit) -> Sequence[str]:
    """Return what an operator must be told about the end of a pod, one line each; pure."""
    lines = [f"app {app.name}: {app.error}" for app in result.apps if app.error]
    if result.error:
        lines.append(result.error)
    return lines
