"""The end of a pod's life: executed in place of the waiter, with the pod's lock inherited."""

from collections.abc import Callable, Sequence

from secrun.measure.measuring import Measuring
from secrun.measure.settings import AttestSettings
from secrun.paths import Layout
from secrun.pod import exits
from secrun.pod.collect import conclude
from secrun.pod.removal import delete, unmount_below
from secrun.pod.states import Folder, adopt
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
) -> exits.PodExit:
    """Record and measure how the pod ended, free what it held on the host and remove it if asked.

    A pod whose end cannot be measured is kept: `secrun gc` measures and removes it.
    """
    # Whether a pod is measured was decided when it started; its marker tells.
    measuring = Measuring(layout, AttestSettings(), warn)
    with adopt(layout, uuid, Folder.RUN, lock_fd) as pod:
        concluded = conclude(pod, stage1_status, measuring)
        result = concluded.exit
        if concluded.unmeasured or concluded.held:
            words = (result.error, concluded.unmeasured, concluded.held)
            return replace(result, error=" ".join(word for word in words if word))
        if remove:
            unmount_below(pod.path)
            measuring.removed(PodFiles(pod.path), uuid)
            delete(pod)
    return result


def complaints(result: exits.PodExit) -> Sequence[str]:
    """Return what an operator must be told about the end of a pod, one line each; pure."""
    lines = [f"app {app.name}: {app.error}" for app in result.apps if app.error]
    if result.error:
        lines.append(result.error)
    return lines
