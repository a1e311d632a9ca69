"""Start one pod with systemd-nspawn: everything that only a start needs.

All mounts are made in a mount namespace of the pod's own host processes: when the last of them dies,
however it dies, no mount is left.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from secrun import checkpoint
from secrun.digest import Digest
from secrun.errors import HostError
from secrun.image.rootfs import RootfsImage
from secrun.record import record
from secrun.stage1 import devicemapper, hostside, imagestore, labels, places, units
from secrun.stage1.cgroups import Hierarchy
from secrun.stage1.contract import Launch, PodOnDisk
from secrun.stage1.devicemapper import DeviceMapper, VerityTable
from secrun.stage1.imagebuild import FLAVOUR
from secrun.stage1.imagemount import mount_image, mount_rootfs, mount_verified
from secrun.stage1.imagestore import BuiltImage
from secrun.stage1.labels import Assigned
from secrun.stage1.manifest import AppManifest, Network, PodManifest
from secrun.stage1.nspawn import PROGRAM
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.uidrange import SIZE
from secrun.stage1.volume import Volume
from secrun.stage1.volumemount import mount_volumes, point
from secrun.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, Syscalls
from secrun_policies.labels import OWN_RUN

# systemd-nspawn's own option joins from inside the pod's user namespace, which has no right to.
_NSENTER = "/usr/bin/nsenter"
_NSPAWN_RUN = Path("/run/systemd/nspawn")
# On a file system of the pod's own processes, outside the pod's folder.
_VOLUMES = _NSPAWN_RUN / "volumes"


def _bind(source: Path | str, target: str, *, read_only: bool, idmap: bool = True) -> str:
    """Return one bind option; colons and backslashes in paths are escaped (systemd-nspawn(1), --bind=)."""
    option = "--bind-ro" if read_only else "--bind"
    escaped = [str(path).replace("\\", "\\\\").replace(":", "\\:") for path in (source, target)]
    return f"{option}={escaped[0]}:{escaped[1]}" + (":idmap" if idmap else "")


def _volume_binds(app: str, volumes: Sequence[Volume]) -> list[str]:
    return [
        # Their owners are mapped already.
        _bind(
            point(_VOLUMES, app, index),
            places.volume(app, index),
            read_only=volume.read_only,
            idmap=False,
        )
        for index, volume in enumerate(volumes)
    ]


def _labelled(label: Assigned | None) -> list[str]:
    """Return the options that label what runs inside and what nspawn mounts for it."""
    if label is None:
        return []
    words = [f"--selinux-apifs-context={label.file}"]
    return [*words, f"--selinux-context={label.process}"] if label.process else words


def _device_binds(files: PodFiles, app: AppManifest) -> list[str]:
    return [
        _bind(
            files.device_node(app.name, index), places.device(app.name, index), read_only=False, idmap=False
        )
        for index, _ in enumerate(app.security.devices)
    ]


def command_line(
    manifest: PodManifest, files: PodFiles, uid_base: int, label: Assigned | None = None
) -> tuple[str, ...]:
    """Return the systemd-nspawn command of a pod; pure."""
    words = [PROGRAM, "--quiet", f"--directory={files.stage1_mount}", "--read-only"]
    words += [f"--private-users={uid_base}:{SIZE}", "--private-users-ownership=map"]
    words += [f"--machine=secrun-{manifest.uuid}", f"--uuid={manifest.uuid}"]
    words += [f"--hostname={manifest.hostname}"]
    words += ["--register=no", "--keep-unit", "--console=pipe", "--link-journal=no"]
    words += ["--resolv-conf=off", "--timezone=off"]
    words += [*manifest.outer_arguments, *_labelled(label)]
    # Power off at once: no unit has to be stopped first, systemd-shutdown sends SIGTERM to every process.
    words.append("--kill-signal=SIGRTMIN+14")
    words.append(f"--setenv=SYSTEMD_UNIT_PATH={places.UNITS}")
    if manifest.network is Network.NONE:
        words.append("--private-network")
    words += [f"--tmpfs={target}:mode=755" for target in (places.IMAGES, places.VOLUMES)]
    words.append(_bind(files.config, places.POD, read_only=True))
    words.append(_bind(files.rw, places.RW, read_only=False, idmap=False))
    words.append(_bind(files.host, places.HOST, read_only=True, idmap=False))
    if any(app.secrets for app in manifest.apps):
        # Their owners are the pod's already.
        words.append(_bind(files.secrets, places.SECRETS, read_only=True, idmap=False))
    for app in manifest.apps:
        words.append(_bind(files.image_mount(app.name), places.image(app.name), read_only=True))
        words += _volume_binds(app.name, app.volumes)
        words += _device_binds(files, app)
    words += ["--boot", "--", f"--unit={units.TARGET}"]
    return tuple(words)


def _label_group(group: Path, label: Assigned | None) -> None:
    """Make the control group the pod's own; the one that systemd-nspawn puts it into, from the beginning."""
    if label is not None and label.runtime:
        (group / "payload").mkdir()
        labels.label_tree(group, label.file)


class NspawnLauncher:
    """Takes the steps of a start in order, each through one door to the kernel."""

    def __init__(self, syscalls: Syscalls) -> None:
        self._syscalls = syscalls

    def launch(self, pod: PodOnDisk, undo: ExitStack) -> Launch:
        """Lock a uid range, make the cgroup, mount the images in a private mount namespace."""
        files = PodFiles(pod.path)
        manifest = pod.manifest
        label = hostside.assign_label(pod, undo)
        controllers = sorted({name for app in manifest.apps for name in app.limits.controllers})
        host = hostside.take(files, manifest, controllers, undo, label)
        _label_group(host.group, label)
        attach = hostside.writable(files, manifest, host.uid_base, undo, label)
        self._enter_private_mounts(host.hierarchy, "" if label is None else label.runtime)
        checkpoint.reached("mount-namespace")
        self._mount_images(pod, files, "" if label is None else label.file, undo)
        mount_volumes(self._syscalls, manifest.apps, _VOLUMES, host.uid_base, SIZE)
        self._make_devices(manifest, files, host.uid_base, "" if label is None else label.file)
        hostside.show_secrets(self._syscalls, pod, host.uid_base, "" if label is None else label.file)
        checkpoint.reached("images-mounted")
        network = pod.network
        inside = () if network is None else (_NSENTER, f"--net={network.path}", "--")
        return Launch(
            argv=(*inside, *command_line(manifest, files, host.uid_base, label)),
            attach_fd=attach,
            cgroup_procs_fd=host.procs_fd,
            cgroup_kill_fd=host.kill_fd,
            held_fds=(
                host.guard_fd,
                *(() if label is None else (label.guard_fd,)),
                *(() if network is None else network.held_fds),
            ),
            filter_fd=self._filter(files, manifest, undo),
            label="" if label is None else label.process,
            file_label="" if label is None else label.file,
            runtime_label="" if label is None else label.runtime,
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

    def _enter_private_mounts(self, hierarchy: Hierarchy, runtime_label: str) -> None:
        call = self._syscalls
        hostside.private_mounts(call, hierarchy)
        # nspawn leaves a propagation folder per machine here; on a tmpfs of the pod's own nothing stays.
        _NSPAWN_RUN.mkdir(parents=True, exist_ok=True)
        data = "mode=700,size=1m" + (f',context="{OWN_RUN}"' if runtime_label else "")
        call.mount("tmpfs", str(_NSPAWN_RUN), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, data)

    def _make_devices(self, manifest: PodManifest, files: PodFiles, uid_base: int, label: str) -> None:
        """Make nodes of the pod's own for the host's devices, on a mount that only the pod's processes have.

        The host's owner of a node has no name in the pod; whoever is in the app may open what it was given.
        """
        if not any(app.security.devices for app in manifest.apps):
            return
        files.devices.mkdir(parents=True, exist_ok=True)
        data = "mode=700,size=1m" + (f',context="{label}"' if label else "")
        self._syscalls.mount("tmpfs", str(files.devices), "tmpfs", MS_NOSUID | MS_NOEXEC, data)
        for app in manifest.apps:
            for index, device in enumerate(app.security.devices):
                found = Path(device.source).stat()
                kind = stat.S_IFMT(found.st_mode)
                if kind not in (stat.S_IFCHR, stat.S_IFBLK):
                    raise HostError(f"{device.source} is no longer a device", code="host-device")
                node = files.device_node(app.name, index)
                os.mknod(node, kind | 0o600, found.st_rdev)
                node.chmod(0o666)
                os.chown(node, uid_base, uid_base)

    def _mount_images(self, pod: PodOnDisk, files: PodFiles, label: str, undo: ExitStack) -> None:
        """Mount stage1 and every app's image; where the kernel checks blocks, nobody reads them before."""
        mapper = devicemapper.open_mapper()
        if mapper is not None:
            undo.callback(mapper.close)
        mounts = _Mounts(call=self._syscalls, uuid=pod.manifest.uuid, mapper=mapper, label=label)
        mounts.stage1(imagestore.load(pod.layout, FLAVOUR, pod.manifest.stage1), files.stage1_mount)
        for number, app in enumerate(pod.manifest.apps, 1):
            image = hostside.load_rootfs(pod.layout, pod.manifest, app)
            mounts.app(number, image, files.image_mount(app.name))


@record
class _Mounts:
    """Mounts the images of one pod, each checked in one of two ways."""

    call: Syscalls
    uuid: str
    mapper: DeviceMapper | None
    """None where the kernel has no dm-verity: the whole file is read and checked first."""
    label: str

    def stage1(self, image: BuiltImage, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        if self.mapper is None:
            imagestore.verify(image)
            mount_image(self.call, image.path, target, label=self.label)
            return
        known = image.manifest
        verity = VerityTable(data_size=known.data_size, root=known.verity_root, salt=known.verity_salt)
        mount_verified(
            self.call,
            image.path,
            target,
            mapper=self.mapper,
            name=devicemapper.name_of(self.uuid, 0),
            verity=verity,
            label=self.label,
        )

    def app(self, number: int, image: RootfsImage, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        name = devicemapper.name_of(self.uuid, number)
        mount_rootfs(self.call, image, target, MS_NOSUID, mapper=self.mapper, name=name, label=self.label)
