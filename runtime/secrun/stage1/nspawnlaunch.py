"""Start one pod with systemd-nspawn: everything that only a start needs.

All mounts are made in a mount namespace of the pod's own host processes: when the last of them dies,
however it dies, no mount is left.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from secrun import checkpoint
from secrun.digest import Digest
from secrun.errors import HostError
from secrun.image import rootfs
from secrun.stage1 import cgroups, hostside, imagestore, places, units
from secrun.stage1.contract import Launch, PodOnDisk
from secrun.stage1.imagebuild import FLAVOUR
from secrun.stage1.imagemount import mount_image
from secrun.stage1.imagestore import BuiltImage
from secrun.stage1.manifest import Network, PodManifest, Volume
from secrun.stage1.nspawn import PROGRAM
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.uidrange import SIZE
from secrun.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, Syscalls

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
        controllers = sorted({name for app in manifest.apps for name in app.limits.controllers})
        host = hostside.take(files, manifest, controllers, undo)
        attach = hostside.writable(files, manifest, host.uid_base, undo)
        self._enter_private_mounts(host.hierarchy)
        checkpoint.reached("mount-namespace")
        self._mount_images(pod, files)
        checkpoint.reached("images-mounted")
        return Launch(
            argv=command_line(manifest, files, host.uid_base),
            attach_fd=attach,
            cgroup_procs_fd=host.procs_fd,
            cgroup_kill_fd=host.kill_fd,
            held_fds=(host.guard_fd,),
            filter_fd=self._filter(files, manifest, undo),
        )

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
        hostside.private_mounts(call, hierarchy)
        # nspawn leaves a propagation folder per machine here; on a tmpfs of the pod's own nothing stays.
        _NSPAWN_RUN.mkdir(parents=True, exist_ok=True)
        call.mount("tmpfs", str(_NSPAWN_RUN), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700,size=1m")

    def _mount_images(self, pod: PodOnDisk, files: PodFiles) -> None:
        self._mount_stage1(imagestore.load(pod.layout, FLAVOUR, pod.manifest.stage1), files)
        for app in pod.manifest.apps:
            image = hostside.load_rootfs(pod.layout, pod.manifest, app)
            rootfs.verify_file(image)
            target = files.image_mount(app.name)
            target.mkdir(parents=True, exist_ok=True)
            mount_image(self._syscalls, image.path, target, MS_NOSUID)

    def _mount_stage1(self, image: BuiltImage, files: PodFiles) -> None:
        imagestore.verify(image)
        files.stage1_mount.mkdir(parents=True, exist_ok=True)
        mount_image(self._syscalls, image.path, files.stage1_mount)
