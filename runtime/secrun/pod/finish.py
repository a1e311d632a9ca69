"""The end of a pod's life: executed in place of the waiter, with the pod's lock inherited."""

from collections.abc import Sequence

from secrun.paths import Layout
from secrun.pod import exits
from secrun.pod.collect import conclude
from secrun.pod.removal import delete, unmount_below
from secrun.pod.states import Folder, adopt


def finish(layout: Layout, uuid: str, *, lock_fd: int, stage1_status: int, remove: bool) -> exits.PodExit:
    """Record how the pod ended, free what it held on the host and remove it if asked."""
    with adopt(layout, uuid, Folder.RUN, lock_fd) as pod:
        result = conclude(pod, stage1_status)
        if remove:
            unmount_below(pod.path)
            delete(pod)
    return result


def complaints(result: exits.PodExit) -> Sequence[str]:
    """Return what an operator must be told about the end of a pod, one line each; pure."""
    lines = [f"app {app.name}: {app.error}" for app in result.apps if app.error]
    if result.error:
        lines.append(result.error)
    return lines
