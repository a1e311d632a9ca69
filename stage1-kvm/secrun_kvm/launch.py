"""Start one pod as a virtual machine: everything that only a start needs.

All mounts are made in a mount namespace of the pod's own host processes: when the last of them dies,
however it dies, no mount is left.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from secrun import checkpoint, selinux
from secrun.errors import HostError, StateError
from secrun.interpreter import command as interpreter_command
from secrun.launch import run
from secrun.record import replace
from secrun.stage1 import cgroups, hostside, labels, places
from secrun.stage1.agent import agent_path
from secrun.stage1.contract import Launch, PodOnDisk
from secrun.stage1.hostside import HostSide
from secrun.stage1.machine import Accelerator, Machine
from secrun.stage1.manifest import Network, PodManifest
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.units import LOG_MAX_BYTES
from secrun.syscalls import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    Syscalls,
)
from secrun_kvm import accel, machines, nics, podimage, probe
from secrun_kvm.contexts import Contexts, of
from secrun_kvm.domain import domain_xml
from secrun_kvm.guestimage import GuestImage, load_guest, verify_guest
from secrun_kvm.helpers import SWTPM
from secrun_kvm.lvroot import (
    EMULATORS,
    FOLDER_NAME,
    bind_file,
    enter,
    kvm_group,
    make,
    qemu_modules,
    seed,
    settings,
)
from secrun_kvm.place import Root, leave
from secrun_kvm.spec import Architecture, Disk, Model, Share, VmSpec
from secrun_kvm.starter import Plan

_SCRATCH = "scratch.img"
# An emulated guest needs 3 s on a quiet core and ten times that on a crowded host; so does one of a host
# that is emulated itself.
_READY_MILLIS = {Accelerator.KVM: 120_000, Accelerator.TCG: 120_000}


def pod_word(machine: Machine) -> str:
    """Return the last word of the kernel's command line, which binds the pod's own image."""
    return f"secrun.pod={machine.pod_blocks}:{machine.pod_root}"


def machine_of(manifest: PodManifest) -> Machine:
    """Return the machine that was decided; raises StateError if the manifest has none."""
    if manifest.machine is None:
        raise StateError(
            f"pod {manifest.uuid} has no machine", hint="prepare it again", code="state-corrupt"
        )
    return manifest.machine


def bridge_command(
    agent: Path,
    manifest: PodManifest,
    files: PodFiles,
    *,
    root: Root,
    uid: int,
    kill: Path,
    starter: Sequence[str],
    label: str = "",
) -> tuple[str, ...]:
    """Return the command of the machine's supervisor; pure."""
    machine = machine_of(manifest)
    words = [str(agent), "vm"]
    for app in manifest.apps:
        words += ["--app", app.name]
    words += ["--rw", str(files.rw), "--attach", str(files.attach_socket)]
    words += ["--link", str(root.link), "--console", str(root.console)]
    # QEMU's, the pod's first; the supervisor takes the next, so neither can do anything to the other.
    words += ["--uid", str(uid), "--gid", str(uid)]
    words += ["--label", label] if label else []
    words += ["--ready-timeout", str(_READY_MILLIS[machine.accelerator])]
    words += ["--log-max", str(LOG_MAX_BYTES), "--cgroup-kill", str(kill)]
    words += ["--timing", str(files.timing)]
    if manifest.network is Network.CNI:
        etc = files.config / "etc"
        words += ["--network", str(root.network), "--hosts", str(etc / "hosts")]
        words += ["--resolv-conf", str(etc / "resolv.conf")]
    for app in manifest.apps:
        for index, _ in enumerate(app.secrets):
            words += ["--secret", str(files.secrets / places.secret_name(app.name, index))]
    for index, app in enumerate(manifest.apps):
        words += ["--image", f"{podimage.app_serial(index)}={app.name}"]
    return (*words, "--", *starter)


def load_tun() -> None:
    """Make the kernel load its module for taps: where SELinux enforces, what opens them later may not."""
    # What is wrong with it is told by whoever needs it.
    with suppress(OSError):
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))


class KvmLauncher:
    """Takes the steps of a start in order, each through one door to the kernel."""

    def __init__(self, syscalls: Syscalls, architecture: Architecture) -> None:
        self._syscalls = syscalls
        self._architecture = architecture

    def launch(self, pod: PodOnDisk, undo: ExitStack) -> Launch:
        """Lock a uid range, make the cgroup, bring what QEMU may open together in one folder."""
        if nics.count(pod.manifest):
            load_tun()
        files = PodFiles(pod.path)
        manifest = pod.manifest
        machine = machine_of(manifest)
        label = hostside.assign_label(pod, undo)
        contexts = of(label)
        host = hostside.take(files, manifest, _controllers(), undo, label)
        _limit(host, machine)
        attach = hostside.writable(files, manifest, host.uid_base + 1, undo, label)
        hostside.private_mounts(self._syscalls, host.hierarchy)
        checkpoint.reached("mount-namespace")
        undo.callback(leave)
        root = self._make_root(pod, host, machine, contexts)
        checkpoint.reached("machine-folder")
        with selinux.files_as(contexts.files):
            spec, shared = self._fill(pod, host, root, contexts)
            hostside.show_secrets(self._syscalls, pod, None, contexts.files)
            checkpoint.reached("images-mounted")
            # The plugins have been at work beside all this.
            joined = nics.joined(pod)
            spec = replace(spec, nics=tuple(item.nic for item in joined))
            nics.write(root, joined)
            root.domain.write_text(domain_xml(spec))
        checkpoint.reached("machine-written")
        plan = replace(self._plan(machine, host.uid_base, root, shared), label=contexts.emulator)
        if pod.network is not None:
            plan = replace(plan, namespace=pod.network.path, interfaces=tuple(item.name for item in joined))
        return Launch(
            argv=bridge_command(
                agent_path(),
                manifest,
                files,
                root=root,
                uid=host.uid_base,
                # As this mount namespace sees it.
                kill=cgroups.host().pod(manifest.uuid) / "cgroup.kill",
                starter=[*starter_command(labelled=label is not None), *plan.words()],
                label=contexts.bridge,
            ),
            attach_fd=attach,
            cgroup_procs_fd=host.procs_fd,
            cgroup_kill_fd=host.kill_fd,
            held_fds=(
                host.guard_fd,
                *(() if label is None else (label.guard_fd,)),
                *(() if pod.network is None else pod.network.held_fds),
            ),
            label="" if label is None else label.process,
            file_label="" if label is None else label.file,
            runtime_label="" if label is None else label.runtime,
        )

    def _plan(self, machine: Machine, uid: int, root: Root, shares: Sequence[podimage.Shared]) -> Plan:
        modules = qemu_modules(self._architecture)
        tcg = None if modules is None else modules / f"accel-tcg-{self._architecture}.so"
        kvm = machine.accelerator is Accelerator.KVM
        return Plan(
            root=root,
            uid=uid,
            emulator=EMULATORS[self._architecture],
            modules=modules,
            plugins=() if kvm or tcg is None or not tcg.exists() else (tcg,),
            kvm=kvm,
            swtpm=SWTPM if machine.vtpm else None,
            virtiofsd=probe.virtiofsd(),
            shares=tuple((share.tag, share.source) for share in shares),
        )

    def _make_root(self, pod: PodOnDisk, host: HostSide, machine: Machine, contexts: Contexts) -> Root:
        group = kvm_group() if machine.accelerator is Accelerator.KVM else host.uid_base
        root = Root(pod.path / FOLDER_NAME)
        make(root, settings(host.uid_base, group))
        seed(pod.layout, self._architecture, machine.accelerator, root)
        if contexts.files:
            labels.label_tree(root.path, contexts.files)
        return enter(self._syscalls, root, machine.accelerator)

    def _fill(
        self, pod: PodOnDisk, host: HostSide, root: Root, contexts: Contexts
    ) -> tuple[VmSpec, Sequence[podimage.Shared]]:
        """Bind what QEMU opens below `root`; return the machine, and its shared folders."""
        machine = machine_of(pod.manifest)
        guest = _checked_guest(pod, machine)
        with self._shown(pod, guest, root, contexts) as shown:
            bind_file(self._syscalls, shown(guest.kernel), root.kernel)
            bind_file(self._syscalls, shown(guest.initrd), root.initrd)
            disks = self._disks(pod, root, shown)
        if contexts.files:
            labels.label_one(pod.path / podimage.FILE_NAME, contexts.files)
        if machine.storage_bytes:
            disks.append(self._scratch(pod.path, host.uid_base, machine.storage_bytes, root))
        shares = distinct(pod.manifest)
        self._share(shares, root)
        group = kvm_group() if machine.accelerator is Accelerator.KVM else host.uid_base
        spec = VmSpec(
            uuid=pod.manifest.uuid,
            architecture=self._architecture,
            accelerator=machine.accelerator,
            model=Model(machine.model),
            vcpus=machine.vcpus,
            memory_bytes=machine.memory_bytes,
            kernel=root.kernel,
            initrd=root.initrd,
            command_line=f"{machine.command_line} {pod_word(machine)}",
            disks=tuple(disks),
            link=root.link,
            console=root.console,
            emulator=EMULATORS[self._architecture],
            uid=host.uid_base,
            gid=group,
            shares=tuple(Share(tag=share.tag, socket=root.share_socket(share.tag)) for share in shares),
            tpm=root.tpm_socket if machine.vtpm else None,
            firmware=_firmware(machine),
        )
        return spec, shares

    @contextmanager
    def _shown(
        self, pod: PodOnDisk, guest: GuestImage, root: Root, contexts: Contexts
    ) -> Iterator[Callable[[Path], Path]]:
        """Show files of the store, which all pods share, with the label of this pod; by a mount of them.

        What is bound from it stays when it is taken down.
        """
        if not contexts.files:
            yield lambda path: path
            return
        view = root.images
        view.mkdir()
        lower = ":".join(_escaped(path) for path in (guest.kernel.parent, pod.layout.rootfs))
        data = f'lowerdir={lower},context="{contexts.files}"'
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
        self._syscalls.mount("overlay", str(view), "overlay", flags, data)
        try:
            yield lambda path: view / path.name
        finally:
            self._syscalls.umount(str(view), MNT_DETACH)

    def _disks(self, pod: PodOnDisk, root: Root, shown: Callable[[Path], Path]) -> list[Disk]:
        machine = machine_of(pod.manifest)
        image = pod.path / podimage.FILE_NAME
        if podimage.root_of(image.read_bytes(), machine.pod_blocks) != machine.pod_root:
            raise HostError(
                f"pod {pod.manifest.uuid}: {podimage.FILE_NAME} is not the image that was decided",
                hint="remove the pod and prepare it again",
                code="host-pod-image-changed",
            )
        # QEMU reads it as a user of its own; the folder around it is root's alone.
        image.chmod(0o644)
        paths = {podimage.POD_SERIAL: image}
        for index, app in enumerate(pod.manifest.apps):
            rootfs = hostside.load_rootfs(pod.layout, pod.manifest, app)
            paths[podimage.app_serial(index)] = shown(rootfs.path)
        for serial, path in paths.items():
            bind_file(self._syscalls, path, root.disk(serial))
        return [Disk(serial=serial, path=root.disk(serial)) for serial in paths]

    def _scratch(self, folder: Path, uid: int, size: int, root: Root) -> Disk:
        """Make an empty ext4 disk, sparse, by a process that has no rights beyond that file."""
        path = folder / _SCRATCH
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            os.fchown(fd, uid, uid)
            # No journal: after a crash there is nobody left who would read it.
            options = [
                "-q",
                "-F",
                "-t",
                "ext4",
                "-m",
                "0",
                "-O",
                "^has_journal",
                "-E",
                "root_owner=0:0,nodiscard",
            ]
            run([probe.MKE2FS, *options, f"/proc/self/fd/{fd}"], pass_fds=[fd], user=uid)
        finally:
            os.close(fd)
        target = root.disk(podimage.SCRATCH_SERIAL)
        target.touch(mode=0o600)
        self._syscalls.mount(str(path), str(target), "", MS_BIND)
        return Disk(serial=podimage.SCRATCH_SERIAL, path=target, read_only=False)

    def _share(self, shares: Sequence[podimage.Shared], root: Root) -> None:
        """Bind each shared folder, read-only ones so that no guest could change it."""
        call = self._syscalls
        for share in shares:
            target = root.share(share.tag)
            target.mkdir(mode=0o755)
            if share.is_file:
                # A folder of nothing but the file: read-only itself, whatever the file is.
                (target / podimage.SHARED_FILE).touch(mode=0o600)
                call.mount(str(target), str(target), "", MS_BIND)
                call.seal_mounts(str(target), read_only=True)
                target /= podimage.SHARED_FILE
            call.mount(share.source, str(target), "", MS_BIND | MS_REC)
            call.seal_mounts(str(target), read_only=share.read_only)


def distinct(manifest: PodManifest) -> tuple[podimage.Shared, ...]:
    """Return the shared folders and files of a pod, each once."""
    return tuple(dict.fromkeys(volume.share for volume in podimage.volumes(manifest.apps)))


def _escaped(path: Path) -> str:
    """Return a path as an option of overlayfs takes it."""
    return re.sub(r"([\\:,])", r"\\\1", str(path))


def starter_command(*, labelled: bool = False) -> tuple[str, ...]:
    """Return the command that starts a machine, without its arguments."""
    folders = [probe.binding(), selinux.binding_folder() if labelled else None]
    found = dict.fromkeys(folder for folder in folders if folder is not None)
    return interpreter_command("secrun_kvm.starter", more=tuple(found))


def _firmware(machine: Machine) -> Path | None:
    """Return the firmware; only QEMU's own choice starts a TPM and leaves a log of what it measured."""
    return probe.FIRMWARE if machine.model == Model.Q35 and not machine.vtpm else None


def _checked_guest(pod: PodOnDisk, machine: Machine) -> GuestImage:
    """Return the guest's image; raises HostError unless it is the one that was decided, byte for byte."""
    guest = load_guest(pod.layout, pod.manifest.stage1)
    verify_guest(pod.layout, pod.manifest.stage1)
    if (guest.kernel_digest, guest.initrd_digest) != (machine.kernel, machine.initrd):
        raise HostError(
            f"pod {pod.manifest.uuid}: kernel or initramfs are not those that were decided",
            hint="remove the pod and prepare it again",
            code="host-guest-changed",
        )
    return guest


def _controllers() -> list[str]:
    """Return what the machine as a whole is limited by, where the host's cgroup2 has it."""
    return sorted({"memory", "pids"} & cgroups.host().controllers())


def _limit(host: HostSide, machine: Machine) -> None:
    """Limit all of the pod's processes on the host: a guest limits its apps, this limits QEMU."""
    memory = machine.memory_bytes + machines.HOST_BYTES[machine.accelerator]
    limits = {"memory.max": memory, "memory.swap.max": 0, "pids.max": machines.HOST_PIDS + machine.vcpus}
    for name, value in limits.items():
        path = host.group / name
        if path.exists():
            path.write_text(str(value))


def this_architecture() -> Architecture:
    """Return the host's; raises HostError if guests are not supported on it."""
    found = accel.architecture()
    if found is None:
        raise HostError(
            f"pods in a virtual machine are for {' and '.join(Architecture)}, this is {os.uname().machine}",
            code="host-architecture",
        )
    return found
