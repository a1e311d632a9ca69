"""The end of a pod's life: executed in place of the waiter, with the pod's lock inherited."""

from collections.abc import Sequence
from pathlib import Path

from secrun.paths import Layout
from secrun.pod import exits
from secrun.pod.collect import conclude
from secrun.pod.removal import delete
from secrun.pod.states import Folder, adopt
from secrun.syscalls import MNT_DETACH, LinuxSyscalls


def finish(layout: Layout, uuid: str, *, lock_fd: int, stage1_status: int, remove: bool) -> exits.PodExit:
    """Record how the pod ended, free what it held on the host and remove it if asked."""
    with adopt(layout, uuid, Folder.RUN, lock_fd) as pod:
        result = conclude(pod, stage1_status)
        if remove:
            _unmount_below(pod.path)
            delete(pod)
    return result


def _unmount_below(path: Path) -> None:
    """Unmount what lies below the pod's folder: this process is still in the pod's own mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]
    inside = [target for target in targets if target.startswith(f"{path}/")]
    if inside:
        call = LinuxSyscalls()
        for target in reversed(inside):
            call.umount(target, MNT_DETACH)


def complaints(result: exits.PodExit) -> Sequence[str]:
    """Return what an operator must be told about the end of a pod, one line each; pure."""
    lines = [f"app {app.name}: {app.error}" for app in result.apps if app.error]
    if result.error:
        lines.append(result.error)
    return lines
