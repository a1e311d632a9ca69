"""What a pod's machine is, and what it cannot have."""

import os
from collections.abc import Sequence

from secrun.errors import HostError
from secrun.record import replace
from secrun.stage1 import hostside, labels
from secrun.stage1.contract import Decided, Draft, Problem
from secrun.stage1.machine import Accelerator, Machine, MachineRequest
from secrun.stage1.manifest import Network, PodManifest
from secrun_kvm import accel, machines, nics, podimage, probe
from secrun_kvm.guestimage import load_guest
from secrun_policies.labels import LabelKind

# A socket or a device of the host has no meaning in a guest.
_SHAREABLE = "a folder or a regular file"


def _accelerator(asked: MachineRequest) -> Accelerator | Sequence[Problem]:
    """Return the accelerator for this host, or what is missing for it."""
    where = accel.architecture()
    if where is None:
        return [Problem(subject=os.uname().machine, text="has no guests: they need x86_64 or aarch64")]
    return accel.choose(asked.accelerator, accel.read(where))


def _volumes(manifest: PodManifest) -> list[Problem]:
    sources = {volume.source for app in manifest.apps for volume in app.volumes}
    return [
        Problem(subject=f"volume {source}", text=f"is not {_SHAREABLE}, all that a guest can be given")
        for source in sorted(sources)
        if not (os.path.isdir(source) or os.path.isfile(source))
    ]


def _programs(manifest: PodManifest, asked: MachineRequest) -> list[Problem]:
    """Return what this pod would miss of QEMU, libvirt and their helpers."""
    where = accel.architecture()
    found = [] if where is None else probe.programs(where)
    volumes = any(app.volumes for app in manifest.apps)
    found += probe.helpers(
        volumes=volumes,
        vtpm=asked.vtpm,
        storage=asked.storage_bytes is not None,
        networks=nics.count(manifest) > 0,
    )
    return [replace(item, subject=f"--stage1=kvm: {item.subject}") for item in found]


def refusals(manifest: PodManifest, asked: MachineRequest) -> Sequence[Problem]:
    """Return which parts of a request cannot be honoured, each with what to do instead."""
    found = [*_volumes(manifest), *_programs(manifest, asked)]
    if manifest.network is Network.HOST:
        text = "cannot be given to a pod in a virtual machine: its network is its own"
        found.append(Problem(subject="--net=host", text=text, hint="leave it out, or use --stage1=nspawn"))
    if any(app.sockets for app in manifest.apps):
        text = "of the host's kernel cannot be given to a guest, which has a kernel of its own"
        hint = "publish ports with -p, or use --stage1=nspawn"
        found.append(Problem(subject="--preserve-fds: sockets", text=text, hint=hint))
    for app in manifest.apps:
        if app.limits.cpus or app.limits.memory_nodes:
            text = f"names processors of the host, and app {app.name} runs on those of its machine"
            found.append(Problem(subject="--cpuset-cpus, --cpuset-mems", text=text, hint="use --cpus"))
    accelerator = _accelerator(asked)
    if not isinstance(accelerator, Accelerator):
        found += [replace(item, subject=f"--stage1=kvm: {item.subject}") for item in accelerator]
    return found


def decided(draft: Draft) -> Decided:
    """Return the machine of a pod that is not refused, and its own image."""
    manifest, asked = draft.manifest, draft.asked
    where, accelerator = accel.architecture(), _accelerator(asked)
    if where is None or not isinstance(accelerator, Accelerator):
        raise HostError("this host lost its accelerator", hint="try again", code="host-refused")
    guest = load_guest(draft.layout, manifest.stage1)
    images = [hostside.load_rootfs(draft.layout, manifest, app) for app in manifest.apps]
    storage = asked.storage_bytes or 0
    volumes = podimage.volumes(manifest.apps)
    networks = nics.count(manifest)
    table = podimage.table(
        manifest, images, volumes, scratch=storage > 0, vtpm=asked.vtpm, networks=networks
    )
    image = podimage.packed({**draft.config, podimage.TABLE: table})
    devices = len(images) + 1 + (1 if storage else 0) + len({volume.share for volume in volumes}) + networks
    model = machines.model(where, accelerator, vtpm=asked.vtpm, devices=devices)
    machine = Machine(
        accelerator=accelerator,
        model=str(model),
        vcpus=machines.vcpus(manifest.apps, len(os.sched_getaffinity(0))),
        memory_bytes=machines.memory(manifest.apps),
        storage_bytes=storage,
        vtpm=asked.vtpm,
        kernel=guest.kernel_digest,
        initrd=guest.initrd_digest,
        command_line=machines.command_line(model),
        pod_root=image.root,
        pod_blocks=image.blocks,
    )
    label = labels.decide(LabelKind.MACHINE, draft.label)
    return Decided(machine=machine, label=label, files={podimage.FILE_NAME: image.data})
