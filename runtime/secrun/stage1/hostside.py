"""What every flavour takes on the host for one pod, each with its undo: ids, a control group, mounts."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from secrun import checkpoint, selinux
from secrun.errors import HostError
from secrun.files import write_atomic
from secrun.image import rootfs
from secrun.image.rootfs import RootfsImage
from secrun.launch import run
from secrun.paths import Layout
from secrun.record import row
from secrun.stage1 import cgroups, labels, places
from secrun.stage1.contract import PodOnDisk
from secrun.stage1.labels import Assigned
from secrun.stage1.manifest import AppManifest, PodManifest
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.uidrange import acquire
from secrun.syscalls import CLONE_NEWNS, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, MS_SLAVE, Syscalls


@row
class HostSide:
    """A pod's uid range and control group; the descriptors stay open until the pod's waiter has them."""

    uid_base: int
    guard_fd: int
    hierarchy: cgroups.Hierarchy
    group: Path
    procs_fd: int
    kill_fd: int


def load_overlay() -> None:
    """Load the file system that the pod will need: its label lets a pod make the kernel load nothing."""
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        run(["modprobe", "overlay"])


def assign_label(pod: PodOnDisk, undo: ExitStack) -> Assigned | None:
    """Give the pod categories of its own, where it has a label; raises HostError if it lacks one."""
    manifest = pod.manifest
    labels.check(manifest.label, manifest.relaxations)
    if manifest.label is None:
        return None
    load_overlay()
    label = labels.assign(pod.layout, manifest.uuid, manifest.label)
    if label.runtime:
        labels.own_pod(pod.path)
    undo.callback(os.close, label.guard_fd)
    labels.label_volumes([volume for app in manifest.apps for volume in app.volumes], label)
    return label


def take(
    files: PodFiles,
    manifest: PodManifest,
    controllers: Sequence[str],
    undo: ExitStack,
    label: Assigned | None = None,
) -> HostSide:
    """Lock a uid range and make the pod's control group with `controllers`; raises HostError."""
    with selinux.sockets_as("" if label is None else label.runtime):
        uid_range = acquire(manifest.uuid)
    undo.callback(uid_range.guard.close)
    files.write_uid_base(uid_range.base)
    checkpoint.reached("uid-range")
    hierarchy = cgroups.host()
    # Looked up again when it is undone: by then the pod's own mounts may cover the host's path.
    undo.callback(lambda: cgroups.destroy(cgroups.host().pod(manifest.uuid)))
    group = cgroups.create(hierarchy, manifest.uuid, controllers)
    checkpoint.reached("cgroup")
    procs = os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    undo.callback(os.close, procs)
    kill = os.open(group / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    undo.callback(os.close, kill)
    return HostSide(uid_range.base, uid_range.guard.fileno(), hierarchy, group, procs, kill)


def writable(
    files: PodFiles, manifest: PodManifest, owner: int, undo: ExitStack, label: Assigned | None = None
) -> int:
    """Give the pod its writable folder and a socket that `owner` may connect to; return that socket.

    Both are labelled as the pod's own.
    """
    files.make_writable(tuple(app.name for app in manifest.apps), owner)
    with selinux.sockets_as("" if label is None else label.runtime):
        listener = files.listen(files.attach_socket)
    undo.callback(listener.close)
    os.chown(files.attach_socket, owner, owner)
    if label is not None:
        write_atomic(files.label, f"{label.process}\n".encode(), durable=False)
        for path in (files.config, files.rw, files.host):
            labels.label_tree(path, label.file)
    checkpoint.reached("attach-socket")
    return listener.fileno()


def private_mounts(call: Syscalls, hierarchy: cgroups.Hierarchy) -> None:
    """Leave the host's mount namespace: what is mounted from here on ends with the pod's processes."""
    call.unshare(CLONE_NEWNS)
    # Slave, not private: a volume that the operator unmounts on the host must not be pinned by pods.
    call.mount("", "/", "", MS_REC | MS_SLAVE)
    if not hierarchy.pure:
        call.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def show_secrets(call: Syscalls, pod: PodOnDisk, owner: int | None, label: str = "") -> None:
    """Write the pod's secrets into memory that no disk ever sees, in its private mount namespace.

    A ramfs, as a tmpfs may be swapped. With `owner`, the host's uid of the pod's root, each file belongs to
    whom its app will find it to belong; without, all are root's alone.
    """
    if not pod.secrets.values:
        return
    folder = PodFiles(pod.path).secrets
    folder.mkdir(parents=True, exist_ok=True)
    data = "mode=700" + (f',context="{label}"' if label else "")
    call.mount("ramfs", str(folder), "ramfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, data)
    if owner is not None:
        os.chown(folder, owner, owner)
    for app in pod.manifest.apps:
        for index, secret in enumerate(app.secrets):
            path = folder / places.secret_name(app.name, index)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb", buffering=0) as stream:
                stream.write(pod.secrets.values[app.name, index])
                if owner is not None:
                    os.fchown(fd, owner + secret.uid, owner + secret.gid)
                    os.fchmod(fd, int(secret.mode, 8))
    checkpoint.reached("secrets-shown")


def load_rootfs(layout: Layout, manifest: PodManifest, app: AppManifest) -> RootfsImage:
    """Return an app's image as it is stored, its content unread; raises HostError if it is another now."""
    image = rootfs.load(layout, app.image.rootfs)
    if image is None or image.verity_root != app.image.verity_root:
        raise HostError(
            f"pod {manifest.uuid}: the rootfs image of app {app.name} is gone or was changed",
            hint="fetch the image and prepare the pod again",
            code="image-rootfs-changed",
        )
    return image
