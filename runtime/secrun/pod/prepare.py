"""Prepare a pod: everything that can be decided and written before anything starts."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secrun import checkpoint
from secrun.digest import Digest
from secrun.errors import HostError
from secrun.files import write_atomic
from secrun.image import rootfs
from secrun.image.fetch import StoredImage, ensure_image
from secrun.image.rootfs import RootfsImage
from secrun.jsonio import canonical
from secrun.paths import Layout
from secrun.pod import confine, process, request
from secrun.pod.removal import delete
from secrun.pod.request import AppRequest, PodRequest
from secrun.pod.states import Folder, LockedPod, create, new_uuid
from secrun.stage1 import bundle, flavours, units
from secrun.stage1.contract import Flavour
from secrun.stage1.manifest import AppManifest, ImageIdentity, Network, PodManifest
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.uidrange import SIZE as POD_IDS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolved:
    """An app whose image is stored, admitted and rendered."""

    name: str
    request: AppRequest
    image: StoredImage
    rootfs: RootfsImage


def _resolve(layout: Layout, pod: PodRequest, names: Sequence[str]) -> tuple[_Resolved, ...]:
    """Fetch, admit and render every image; raises before anything of the pod exists."""
    result: list[_Resolved] = []
    for name, app in zip(names, pod.apps, strict=True):
        image = ensure_image(layout, app.image, pod.fetch)
        rendered = rootfs.ensure(layout, image.layers)
        if rendered.max_id >= POD_IDS:
            raise HostError(
                f"{app.image} has files of id {rendered.max_id}, a pod has the ids 0 to {POD_IDS - 1}",
                hint="rebuild the image with smaller owners",
                code="image-owner",
            )
        result.append(_Resolved(name=name, request=app, image=image, rootfs=rendered))
    return tuple(result)


def _app(resolved: _Resolved, pod: PodRequest, hostname: str) -> tuple[AppManifest, bytes]:
    """Return the manifest entry and the OCI config.json of one app; pure but for the confinement."""
    app, config = resolved.request, resolved.image.config
    bundle.check_volumes(app.volumes)
    proc = process.resolve(app, config, resolved.rootfs, hostname)
    confined = confine.app(resolved.name, app, proc, pod.network)
    oci = canonical(
        bundle.runtime_config(
            app=resolved.name,
            process=proc,
            network=pod.network,
            read_only=app.read_only,
            volumes=app.volumes,
            process_confinement=confined.process,
            linux_confinement=confined.linux,
        )
    )
    env = dict(word.split("=", 1) for word in proc.env)
    manifest = AppManifest(
        name=resolved.name,
        image=ImageIdentity(
            reference=resolved.image.reference,
            manifest=resolved.image.manifest_digest,
            config=resolved.image.config_digest,
            rootfs=resolved.rootfs.key,
            tree=resolved.rootfs.tree_digest,
            verity_root=resolved.rootfs.verity_root,
        ),
        args=proc.args,
        env_names=tuple(sorted(env)),
        search_path=env.get("PATH", ""),
        cwd=proc.cwd,
        uid=proc.uid,
        gid=proc.gid,
        groups=proc.groups,
        read_only=app.read_only,
        terminal=app.terminal,
        stdin=app.stdin,
        stop_signal=request.stop_signal(config.stop_signal),
        stop_timeout_seconds=app.stop_timeout_seconds,
        volumes=app.volumes,
        limits=app.limits,
        capabilities=confined.capabilities,
        relaxations=confined.relaxations,
        bundle=Digest.of(oci),
    )
    return manifest, oci


def _etc_files(hostname: str, network: Network) -> dict[str, bytes]:
    """Return what apps see at /etc/hostname, /etc/hosts and /etc/resolv.conf."""
    hosts = f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n".encode()
    resolv = b"# this pod has no network\n"
    if network is Network.HOST:
        resolv = Path("/etc/resolv.conf").read_bytes()
        hosts += b"\n" + Path("/etc/hosts").read_bytes()
    return {"hostname": f"{hostname}\n".encode(), "hosts": hosts, "resolv.conf": resolv}


def _write_config(files: PodFiles, manifest: PodManifest, bundles: dict[str, bytes]) -> None:
    """Write what the pod sees at /pod; world readable there, but behind a 0700 folder on the host."""
    contents = {f"units/{name}": text.encode() for name, text in units.render(manifest).items()}
    contents |= {f"apps/{name}/config.json": data for name, data in bundles.items()}
    contents |= {
        f"etc/{name}": data for name, data in _etc_files(manifest.hostname, manifest.network).items()
    }
    for name, data in contents.items():
        path = files.config / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)


def _check(flavour: Flavour, manifest: PodManifest) -> None:
    for problem in flavour.refuse(manifest):
        raise HostError(f"{problem.subject} {problem.text}", hint=problem.hint, code="host-refused")


def _relaxations(pod: PodRequest, outer: Sequence[str], images: Sequence[StoredImage]) -> tuple[str, ...]:
    found = set(outer)
    if any(image.admission.bypass for image in images):
        found.add("insecure-image")
    return tuple(sorted(found))


@contextmanager
def prepared(layout: Layout, pod: PodRequest) -> Iterator[LockedPod]:
    """Prepare a pod and yield it in state `prepared`, still locked.

    If anything fails, before or inside the `with`, while the pod is not yet started, it is removed.
    """
    names = request.check_pod(pod)
    uuid = new_uuid()
    if pod.uuid_file is not None:
        write_atomic(pod.uuid_file, f"{uuid}\n".encode())
    flavour = flavours.load(pod.flavour)
    hostname = request.host_name(pod.hostname or f"secrun-{uuid}")
    resolved = _resolve(layout, pod, names)
    checkpoint.reached("images-resolved")
    stage1 = flavour.ensure_image(layout)
    outer = confine.pod(pod.network)
    apps = [_app(item, pod, hostname) for item in resolved]
    manifest = PodManifest(
        uuid=uuid,
        hostname=hostname,
        network=pod.network,
        flavour=flavour.name,
        stage1=stage1,
        created_ns=time.time_ns(),
        relaxations=_relaxations(pod, outer.relaxations, [item.image for item in resolved]),
        outer_arguments=outer.nspawn_arguments,
        apps=tuple(app for app, _ in apps),
    )
    _check(flavour, manifest)
    with create(layout, uuid) as locked:
        checkpoint.reached("preparing")
        try:
            files = PodFiles(locked.path)
            files.flavour.write_text(f"{flavour.name}\n")
            _write_config(files, manifest, {app.name: oci for app, oci in apps})
            checkpoint.reached("config-written")
            write_atomic(files.manifest, manifest.to_bytes())
            checkpoint.reached("manifest-written")
            locked.move(Folder.PREPARED)
            checkpoint.reached("prepared")
            yield locked
        except BaseException:
            if locked.folder is not Folder.RUN:
                delete(locked)
            raise
