"""What a pod's networks hold on the host: given back when it has ended, however it ended."""

from typing import TYPE_CHECKING

from secrun.paths import Layout
from secrun.pod.states import Folder, LockedPod, folder_path, uuids_in

if TYPE_CHECKING:
    from secrun.network.worker import Worker

# As in secrun.network.state, which is loaded only for pods that have one.
_RECORD = "network.json"


def _was_connected(pod: LockedPod) -> bool:
    """Tell whether there is a record; most of the code for networks is loaded only then."""
    return (pod.path / _RECORD).exists()


def holds_network(pod: LockedPod) -> bool:
    """Tell whether something may still be held."""
    if not _was_connected(pod):
        return False
    from secrun.network.connect import pending

    return pending(pod.path)


def release_network(pod: LockedPod) -> None:
    """Give back addresses, interfaces and rules; idempotent. Raises NetworkError if that fails now."""
    if not _was_connected(pod):
        return
    from secrun.network.connect import release
    from secrun.syscalls import LinuxSyscalls

    release(LinuxSyscalls(), pod.path)


def release_beside(layout: Layout, uuid: str) -> "Worker | None":
    """Begin to give back the networks of a pod whose apps have all ended; this process holds its lock.

    Whoever concludes the pod waits for it, and tries again what failed. None if the pod has none.
    """
    path = folder_path(layout, Folder.RUN, uuid)
    if not (path / _RECORD).exists():
        return None
    from secrun.network.connect import release
    from secrun.network.worker import Worker
    from secrun.syscalls import LinuxSyscalls

    return Worker(lambda: release(LinuxSyscalls(), path))


def remove_idle_bridge(layout: Layout) -> None:
    """Remove what the built-in network leaves behind once no pod is on it."""
    from secrun.network.connect import remove_idle_bridge as remove

    pods = [
        folder_path(layout, folder, uuid)
        for folder in Folder
        for uuid in uuids_in(folder_path(layout, folder))
    ]
    remove(layout, pods)
