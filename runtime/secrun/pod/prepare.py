"""Prepare a pod: everything that can be decided and written before anything starts."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from secrun import checkpoint, policyfiles
from secrun.digest import Digest
from secrun.errors import DeniedError, HostError, UsageError
from secrun.files import fsync_tree, write_atomic
from secrun.image import rootfs
from secrun.image.fetch import StoredImage, ensure_image
from secrun.image.rootfs import RootfsImage
from secrun.image.store import ImageStore
from secrun.jsonio import canonical
from secrun.measure.measuring import Measuring
from secrun.network import decide as network
from secrun.network import hostfiles, plan
from secrun.network.plan import Connection
from secrun.paths import Layout
from secrun.pod import confine, lifecycle, podconfig, policy, request, sockets, system
from secrun.pod.confine import ConfinedApp
from secrun.pod.process import resolve as resolve_process
from secrun.pod.removal import delete
from secrun.pod.request import AppRequest, PodRequest
from secrun.pod.states import Folder, LockedPod, create, new_uuid
from secrun.record import record, replace
from secrun.stage1 import bundle, flavours, labels
from secrun.stage1.bundle import Extras, Process
from secrun.stage1.contract import Draft, Flavour
from secrun.stage1.lifecycle import Health
from secrun.stage1.manifest import AppManifest, ImageIdentity, Network, PodManifest
from secrun.stage1.podfiles import FILTER_NAME, PodFiles
from secrun.stage1.uidrange import SIZE as POD_IDS
from secrun.stage1.volume import EmptyVolume
from secrun_policies import rules
from secrun_policies.labels import LabelRequest
from secrun_policies.rules import PolicySet


@record
class _Resolved:
    """An app whose image is stored, admitted and rendered."""

    name: str
    request: AppRequest
    image: StoredImage
    rootfs: RootfsImage

    @property
    def empty_volumes(self) -> tuple[EmptyVolume, ...]:
        """The pod's own volumes; those without a name get one of the app's, and no other begins with `_`."""
        return tuple(
            volume if volume.name else replace(volume, name=f"_{self.name}-{index}")
            for index, volume in enumerate(self.request.empty_volumes)
        )

    @property
    def extras(self) -> Extras:
        """What the app sees beside its image."""
        return Extras(
            volumes=self.request.volumes,
            empty_volumes=self.empty_volumes,
            tmpfs=policy.writable_folders(self.request),
            devices=self.request.security.devices,
            secrets=self.request.secrets,
            control_group=system.is_asked(self.request),
        )


def _ensure(layout: Layout, reference: str, pod: PodRequest, measuring: Measuring | None) -> StoredImage:
    """Fetch and admit one image; a refusal is measured, if anything is."""
    try:
        return ensure_image(layout, reference, replace(pod.fetch, stage1=pod.flavour))
    except DeniedError as error:
        if measuring is not None:
            measuring.denied(reference, error)
        raise


def _resolve(
    layout: Layout, pod: PodRequest, names: Sequence[str], measuring: Measuring | None, known: PolicySet
) -> tuple[_Resolved, ...]:
    """Fetch, admit and render every image, give apps their profiles; nothing of the pod exists yet."""
    result: list[_Resolved] = []
    for name, app in zip(names, pod.apps, strict=True):
        image = _ensure(layout, app.image, pod, measuring)
        rendered = rootfs.ensure(layout, image.layers)
        if rendered.max_id >= POD_IDS:
            raise HostError(
                f"{app.image} has files of id {rendered.max_id}, a pod has the ids 0 to {POD_IDS - 1}",
                hint="rebuild the image with smaller owners",
                code="image-owner",
            )
        profile = policy.choose(known, app, image.reference, image.config.labels)
        asked = _appc(layout, pod, name, image, (app, policy.apply(profile, app)))
        asked = system.prepared(asked)
        result.append(_Resolved(name=name, request=asked, image=image, rootfs=rendered))
    return tuple(result)


def _appc(
    layout: Layout, pod: PodRequest, name: str, image: StoredImage, requests: tuple[AppRequest, AppRequest]
) -> AppRequest:
    """Fill in what an app container image asks for, and tell what its user should know.

    `requests` are what was said, and that with the profile's words.
    """
    given, asked = requests
    if not image.is_appc:
        return asked
    from secrun.image.aci import embedded
    from secrun.pod import appc

    manifest = embedded.manifest_of(image.config, image.reference)
    if manifest is None:
        return asked
    if pod.fetch.insecure_isolators:
        manifest = appc.without_isolators(manifest)
    applied = appc.apply(layout, name, manifest, given, asked)
    for note in applied.notes:
        pod.fetch.progress.note(f"{name}: {note}")
    return applied.request


def _bundle(app: _Resolved, process: Process, pod: PodRequest, confined: ConfinedApp) -> bytes:
    """Return the OCI config.json of one app."""
    return canonical(
        bundle.runtime_config(
            app=app.name,
            salt=os.urandom(16).hex(),
            process=process,
            network=pod.net.mode,
            etc=plan.mounted(pod.net.dns),
            read_only=app.request.read_only,
            extras=app.extras,
            vtpm=pod.machine.vtpm,
            process_confinement=confined.process,
            linux_confinement=confined.linux,
        )
    )


def _health(app: _Resolved, process: Process, confined: ConfinedApp) -> tuple[Health, bytes] | None:
    """Decide how an app is checked, and what its agent executes for that."""

    def encoded(command: tuple[str, ...]) -> bytes:
        salt = os.urandom(16).hex()
        return canonical(bundle.check_process(process, command, confined.process, salt))

    image = app.image
    return lifecycle.health(app.request.health, image.config.healthcheck, image.reference, encoded)


def _identity(app: _Resolved) -> ImageIdentity:
    return ImageIdentity(
        reference=app.image.reference,
        manifest=app.image.manifest_digest,
        config=app.image.config_digest,
        rootfs=app.rootfs.key,
        tree=app.rootfs.tree_digest,
        verity_root=app.rootfs.verity_root,
        admission=app.image.admission,
    )


def _app_manifest(
    app: _Resolved, process: Process, confined: ConfinedApp, oci: bytes, health: Health | None
) -> AppManifest:
    env = dict(word.split("=", 1) for word in process.env)
    return AppManifest(
        name=app.name,
        image=_identity(app),
        args=process.args,
        env_names=tuple(sorted(env)),
        search_path=env.get("PATH", ""),
        cwd=process.cwd,
        uid=process.uid,
        gid=process.gid,
        groups=process.groups,
        read_only=app.request.read_only,
        terminal=app.request.terminal,
        stdin=app.request.stdin,
        sockets=len(app.request.sockets),
        stop_signal=system.stop_signal(app.request, app.image.config.stop_signal),
        stop_timeout_seconds=app.request.stop_timeout_seconds,
        volumes=app.request.volumes,
        empty_volumes=app.empty_volumes,
        limits=app.request.limits,
        capabilities=confined.capabilities,
        relaxations=confined.relaxations,
        bundle=Digest.of(oci),
        security=confined.security,
        labels=app.request.labels,
        annotations=app.request.annotations,
        restart=app.request.restart,
        health=health,
        secrets=app.request.secrets,
        systemd=system.is_asked(app.request),
    )


@record
class Plan:
    """A pod that is decided but not yet written."""

    manifest: PodManifest
    config: Mapping[str, bytes]
    files: Mapping[str, bytes]
    """What lies beside the configuration, by name."""


def _decide(
    layout: Layout,
    pod: PodRequest,
    uuid: str,
    apps: Sequence[_Resolved],
    known: PolicySet,
) -> Plan:
    """Turn resolved images and a request into a manifest and what lies on disk."""
    flavour = flavours.load(pod.flavour)
    hostname = request.host_name(pod.hostname or f"secrun-{uuid}")
    processes = {}
    for app in apps:
        bundle.check_targets(app.extras)
        for volume in app.request.volumes:
            labels.check_relabel(volume)
        processes[app.name] = resolve_process(app.request, app.image.config, app.rootfs, hostname)
        system.check(app.request, processes[app.name])
    asked = confine.label([app.request for app in apps])
    connection = _connection(layout, pod, apps)
    stage1 = flavour.ensure_image(layout)
    strict, unread = _read_back(known, apps, guest=stage1.kernel is not None)
    if pod.net.mode is Network.CNI and stage1.kernel is None:
        asked_for = {item for app in apps for item in app.request.security.sysctls}
        connection = replace(connection, settings=tuple(sorted(asked_for)))
    confined = confine.pod(
        pod.net.mode, [(app.name, app.request, processes[app.name]) for app in apps], stage1.kernel
    )
    bundles = {
        app.name: _bundle(
            app,
            bundle.held(processes[app.name]) if strict else processes[app.name],
            pod,
            confined.apps[app.name],
        )
        for app in apps
    }
    checks = {
        app.name: found
        for app in apps
        if (found := _health(app, processes[app.name], confined.apps[app.name])) is not None
    }
    manifest = PodManifest(
        uuid=uuid,
        hostname=hostname,
        network=pod.net.mode,
        flavour=flavour.name,
        stage1=stage1.digest,
        stage1_tree=stage1.tree,
        created_ns=time.time_ns(),
        relaxations=tuple(sorted((*_relaxations(pod, asked, [app.image for app in apps]), *unread))),
        outer_arguments=confined.outer_arguments,
        outer_filter=None if confined.outer_filter is None else Digest.of(confined.outer_filter),
        apps=tuple(
            _app_manifest(
                app,
                processes[app.name],
                confined.apps[app.name],
                bundles[app.name],
                checks[app.name][0] if app.name in checks else None,
            )
            for app in apps
        ),
        policy=Digest.parse(known.digest) if known.digest else None,
        strict_read_back=strict,
        connection=None if connection == Connection() else connection,
    )
    _check(flavour, manifest, pod)
    etc = _etc_files(hostname, pod.net.mode, connection)
    asks = {name: data for name, (_, data) in checks.items()}
    config = podconfig.contents(manifest, bundles, asks, etc, guest=stage1.kernel is not None)
    draft = Draft(layout=layout, manifest=manifest, asked=pod.machine, config=config, label=asked)
    decided = flavour.decide(draft)
    files = dict(decided.files)
    if confined.outer_filter is not None:
        files[FILTER_NAME] = confined.outer_filter
    manifest = replace(manifest, machine=decided.machine, label=decided.label)
    labels.check(manifest.label, manifest.relaxations)
    _check_guest(manifest)
    policy.hold(known, manifest, {app.name: app.image.config.labels for app in apps})
    return Plan(manifest=manifest, config=config, files=files)


def _check_sockets(manifest: PodManifest) -> None:
    """Raise UsageError for sockets of an app that begins before they can come."""
    if manifest.strict_read_back and any(app.sockets for app in manifest.apps):
        raise UsageError(
            "sockets of the caller's cannot be passed to an app that is read back before it begins",
            hint="leave out --profile strict, or publish ports with -p",
            code="usage-sockets",
        )


def _check_guest(manifest: PodManifest) -> None:
    """Raise HostError for what the host's kernel would have to do for a pod that has one of its own."""
    if manifest.machine is not None and any(app.security.devices for app in manifest.apps):
        raise HostError(
            "a device of the host is not in the guest: --device needs --stage1=nspawn", code="host-device"
        )


def _read_back(known: PolicySet, apps: Sequence[_Resolved], *, guest: bool) -> tuple[bool, tuple[str, ...]]:
    """Tell whether the kernel has to prove what it enforces before any app begins, and what is relaxed.

    The host does not see a guest's processes: what is compared there is the guest's own word, by name.
    """
    images = ((app.image.reference, app.image.config.labels) for app in apps)
    strict = rules.demands_strict(known, images) or any(
        app.request.security.strict_read_back for app in apps
    )
    return strict, ("read-back:guest",) if guest and strict else ()


def planned(
    layout: Layout, pod: PodRequest, names: Sequence[str], measuring: Measuring | None, uuid: str
) -> Plan:
    """Decide everything about a pod and write nothing of it; raises what `prepared` does.

    A refusal is measured, unless there is nothing to measure with because nobody means to start the pod.
    """
    known = policyfiles.load()
    flavours.load(pod.flavour)
    resolved = _resolve(layout, pod, names, measuring, known)
    checkpoint.reached("images-resolved")
    try:
        return _decide(layout, pod, uuid, resolved, known)
    except DeniedError as error:
        if measuring is not None:
            measuring.denied(", ".join(app.image.reference for app in resolved), error, what="policy")
        raise


def _connection(layout: Layout, pod: PodRequest, apps: Sequence[_Resolved]) -> Connection:
    """Decide the pod's networks."""
    exposed = [port for app in apps for port in app.image.config.exposed_ports]
    return network.decide(layout, pod.net, pod.places, exposed, _named_ports(pod, apps))


def _named_ports(pod: PodRequest, apps: Sequence[_Resolved]) -> list[plan.ImagePort]:
    """Return the ports that app container images give names, where somebody asks for one by name."""
    if not pod.net.named_ports or not any(app.image.is_appc for app in apps):
        return []
    from secrun.pod import appc

    return [port for app in apps for port in appc.ports_of(app.image.config, app.image.reference)]


def _etc_files(hostname: str, mode: Network, connection: Connection) -> dict[str, bytes]:
    """Return what apps see at /etc/hostname, /etc/hosts and /etc/resolv.conf.

    Where plugins connect the pod, the last two are written anew with their answers when it starts.
    """
    texts = hostfiles.without_plugins(hostname, connection, host=mode is Network.HOST)
    return {"hostname": f"{hostname}\n".encode(), **{name: text.encode() for name, text in texts.items()}}


def _write(files: PodFiles, plan: Plan) -> None:
    podconfig.write(files, plan.config)
    for name, data in plan.files.items():
        (files.path / name).write_bytes(data)


def _check(flavour: Flavour, manifest: PodManifest, pod: PodRequest) -> None:
    for problem in flavour.refuse(manifest, pod.machine):
        raise HostError(f"{problem.subject} {problem.text}", hint=problem.hint, code="host-refused")
    _check_sockets(manifest)


def _relaxations(pod: PodRequest, label: LabelRequest, images: Sequence[StoredImage]) -> tuple[str, ...]:
    """Name what weakens the pod as a whole."""
    found = {"network:host"} if pod.net.mode is Network.HOST else set[str]()
    found.update(label.relaxations)
    if any(app.sockets for app in pod.apps):
        found.add(sockets.RELAXATION)
    if any(image.admission.bypass for image in images):
        found.add("insecure-options:image")
    if any(image.is_appc for image in images):
        named = (("http", pod.fetch.insecure_http), ("isolators", pod.fetch.insecure_isolators))
        found.update(f"insecure-options:{name}" for name, given in named if given)
    return tuple(sorted(found))


@contextmanager
def prepared(
    layout: Layout, pod: PodRequest, measuring: Measuring, *, lasting: bool = False
) -> Iterator[LockedPod]:
    """Prepare and measure a pod and yield it in state `prepared`, still locked.

    A `lasting` one can be started after a loss of power too; of others only what cleaning up needs is left.
    If anything fails, before or inside the `with`, while the pod is not yet started, it is removed.
    """
    names = request.check_pod(pod)
    uuid = new_uuid()
    if pod.uuid_file is not None:
        write_atomic(pod.uuid_file, f"{uuid}\n".encode())
    with ExitStack() as stack:
        # What looks unused goes: until its manifest is written nobody else knows what this pod needs.
        using = stack.enter_context(ExitStack())
        using.enter_context(ImageStore(layout).using())
        plan = planned(layout, pod, names, measuring, uuid)
        locked = stack.enter_context(create(layout, uuid))
        checkpoint.reached("preparing")
        try:
            files = PodFiles(locked.path)
            write_atomic(files.flavour, flavours.note(flavours.load(plan.manifest.flavour)).encode())
            _write(files, plan)
            if lasting:
                fsync_tree(files.path)
            checkpoint.reached("config-written")
            write_atomic(files.manifest, plan.manifest.to_bytes())
            checkpoint.reached("manifest-written")
            using.close()
            locked.move(Folder.PREPARED)
            checkpoint.reached("prepared")
            measuring.prepared(PodFiles(locked.path), plan.manifest)
            yield locked
        except BaseException:
            if locked.folder in (Folder.PREPARING, Folder.PREPARED):
                try:
                    measuring.removed(PodFiles(locked.path), uuid)
                finally:
                    delete(locked)
            raise
