"""Start one pod with systemd-nspawn: everything that only a start needs.

All mounts are made in a mount namespace of the pod's own host processes: when the last of them dies,
however it dies, no mount is left.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from secrun import checkpoint
from secrun.digest import Digest
from secrun.errors import HostError
from secrun.image import rootfs
from secrun.stage1 import cgroups, places, units
from secrun.stage1.contract import Launch, PodOnDisk
from secrun.stage1.imagebuild import Stage1Image, load_stage1, verify_stage1
from secrun.stage1.imagemount import mount_image
from secrun.stage1.manifest import Network, PodManifest, Volume
from secrun.stage1.nspawn import PROGRAM
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.uidrange import SIZE, acquire
from secrun.syscalls import (
    CLONE_NEWNS,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_SLAVE,
    Syscalls,
)

# systemd-nspawn's own option joins from inside the pod's user namespace, which has no right to.
_NSENTER = "/usr/bin/nsenter"
_NSPAWN_RUN = Path("/run/systemd/nspawn")


def _bind(source: Path | str, target: str, *, read_only: bool, idmap: bool = True) -> str:
    """Return one bind option; colons and backslashes in paths are escaped (systemd-nspawn(1), --bind=)."""
    option = "--bind-ro" if read_only else "--bind"
    escaped = [str(path).replace("\\", "\\\\").replace(":", "\\:") for path in (source, target)]
    return f"{option}={escaped[0]}:{escaped[1]}" + (":idmap" if idmap else "")


def _volume_binds(app: str, volumes: Sequence[Volume]) -> list[str]:
    return [
        _bind(volume.source, places.volume(app, index), read_only=volume.read_only)
        for index, volume in enumerate(volumes)
    ]


def command_line(manifest: PodManifest, files: PodFiles, uid_base: int) -> tuple[str, ...]:
    """Return the systemd-nspawn command of a pod; pure."""
    words = [PROGRAM, "--quiet", f"--directory={files.stage1_mount}", "--read-only"]
    words += [f"--private-users={uid_base}:{SIZE}", "--private-users-ownership=map"]
    words += [f"--machine=secrun-{manifest.uuid}", f"--uuid={manifest.uuid}"]
    words += [f"--hostname={manifest.hostname}"]
    words += ["--register=no", "--keep-unit", "--console=pipe", "--link-journal=no"]
    words += ["--resolv-conf=off", "--timezone=off"]
    words += list(manifest.outer_arguments)
    # Power off at once: no unit has to be stopped first, systemd-shutdown sends SIGTERM to every process.
    words.append("--kill-signal=SIGRTMIN+14")
    words.append(f"--setenv=SYSTEMD_UNIT_PATH={places.UNITS}")
    if manifest.network is Network.NONE:
        words.append("--private-network")
    words += [f"--tmpfs={target}:mode=755" for target in (places.IMAGES, places.VOLUMES)]
    words.append(_bind(files.config, places.POD, read_only=True))
    words.append(_bind(files.rw, places.RW, read_only=False, idmap=False))
    words.append(_bind(files.host, places.HOST, read_only=True, idmap=False))
    for app in manifest.apps:
        words.append(_bind(files.image_mount(app.name), places.image(app.name), read_only=True))
        words += _volume_binds(app.name, app.volumes)
    words += ["--boot", "--", f"--unit={units.TARGET}"]
    return tuple(words)


class NspawnLauncher:
    """Takes the steps of a start in order, each through one door to the kernel."""

    def __init__(self, syscalls: Syscalls) -> None:
        self._syscalls = syscalls

    def launch(self, pod: PodOnDisk, undo: ExitStack) -> Launch:
        """Lock a uid range, make the cgroup, mount the images in a private mount namespace."""
        files = PodFiles(pod.path)
        manifest = pod.manifest
        uid_range = acquire(manifest.uuid)
        undo.callback(uid_range.guard.close)
        files.write_uid_base(uid_range.base)
        checkpoint.reached("uid-range")
        hierarchy = cgroups.host()
        controllers = sorted({name for app in manifest.apps for name in app.limits.controllers})
        # Looked up again when it is undone: by then the pod's own mounts may cover the host's path.
        undo.callback(lambda: cgroups.destroy(cgroups.host().pod(manifest.uuid)))
        group = cgroups.create(hierarchy, manifest.uuid, controllers)
        checkpoint.reached("cgroup")
        attach = self._rw_and_host(files, manifest, uid_range.base, undo)
        checkpoint.reached("attach-socket")
        procs = os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        undo.callback(os.close, procs)
        kill = os.open(group / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        undo.callback(os.close, kill)
        self._enter_private_mounts(hierarchy)
        checkpoint.reached("mount-namespace")
        self._mount_images(pod, files)
        checkpoint.reached("images-mounted")
        network = pod.network
        inside = () if network is None else (_NSENTER, f"--net={network.path}", "--")
        return Launch(
            argv=(*inside, *command_line(manifest, files, uid_range.base)),
            attach_fd=attach.fileno(),
            cgroup_procs_fd=procs,
            cgroup_kill_fd=kill,
            held_fds=(uid_range.guard.fileno(), *(network.held_fds if network else ())),
            filter_fd=self._filter(files, manifest, undo),
        )

    @staticmethod
    def _rw_and_host(
        files: PodFiles, manifest: PodManifest, uid_base: int, undo: ExitStack
    ) -> socket.socket:
        """Give the pod its writable folder and a socket that it may connect to."""
        files.make_writable(tuple(app.name for app in manifest.apps), uid_base)
        listener = files.listen(files.attach_socket)
        undo.callback(listener.close)
        os.chown(files.attach_socket, uid_base, uid_base)
        return listener

    @staticmethod
    def _filter(files: PodFiles, manifest: PodManifest, undo: ExitStack) -> int | None:
        """Open the pod's filter; raises HostError if it is not the one of the manifest."""
        if manifest.outer_filter is None:
            return None
        try:
            data = files.outer_filter.read_bytes()
        except FileNotFoundError:
            data = b""
        if Digest.of(data) != manifest.outer_filter:
            raise HostError(
                f"pod {manifest.uuid}: {files.outer_filter.name} is not the filter that was decided",
                hint="remove the pod and prepare it again",
                code="host-filter-changed",
            )
        # What was digested is what is loaded: a copy that no path leads to.
        fd = os.memfd_create("filter", os.MFD_CLOEXEC)
        undo.callback(os.close, fd)
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _enter_private_mounts(self, hierarchy: cgroups.Hierarchy) -> None:
        call = self._syscalls
        call.unshare(CLONE_NEWNS)
        # Slave, not private: a volume that the operator unmounts on the host must not be pinned by pods.
        call.mount("", "/", "", MS_REC | MS_SLAVE)
        if not hierarchy.pure:
            flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
            call.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags)
        # nspawn leaves a propagation folder per machine here; on a tmpfs of the pod's own nothing stays.
        _NSPAWN_RUN.mkdir(parents=True, exist_ok=True)
        call.mount("tmpfs", str(_NSPAWN_RUN), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700,size=1m")

    def _mount_images(self, pod: PodOnDisk, files: PodFiles) -> None:
        self._mount_stage1(load_stage1(pod.layout, pod.manifest.stage1), files)
        for app in pod.manifest.apps:
            image = rootfs.load(pod.layout, app.image.rootfs)
            if image is None or image.verity_root != app.image.verity_root:
                raise HostError(
                    f"pod {pod.manifest.uuid}: the rootfs image of app {app.name} is gone or was changed",
                    hint="fetch the image and prepare the pod again",
                    code="image-rootfs-changed",
                )
            rootfs.verify_file(image)
            target = files.image_mount(app.name)
            target.mkdir(parents=True, exist_ok=True)
            mount_image(self._syscalls, image.path, target, MS_NOSUID)

    def _mount_stage1(self, image: Stage1Image, files: PodFiles) -> None:
        verify_stage1(image)
        files.stage1_mount.mkdir(parents=True, exist_ok=True)
        mount_image(self._syscalls, image.path, files.stage1_mount)
