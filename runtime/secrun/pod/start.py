"""Start a prepared pod: this process, or a fork of it, becomes the pod's waiter."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from secrun import checkpoint, selinux
from secrun.errors import DeniedError, HostError, StateError
from secrun.files import write_atomic
from secrun.measure.measuring import Measuring
from secrun.network.configs import Places
from secrun.pod import detachkeys, exits, podconfig, policy, readback, timing
from secrun.pod.account import account
from secrun.pod.networks import holds_network
from secrun.pod.removal import delete, unmount_below
from secrun.pod.sockets import FIRST
from secrun.pod.states import Folder, LockedPod
from secrun.record import field, record, replace
from secrun.stage1 import cgroups, flavours, waiter
from secrun.stage1.agent import agent_path
from secrun.stage1.contract import Launch, PodOnDisk
from secrun.stage1.manifest import Network, PodManifest
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.secret import Disclosed
from secrun.stage1.uidrange import SIZE as POD_IDS

if TYPE_CHECKING:
    from secrun.network.connect import Connected

_READY = b"ready\n"


@record
class StartOptions:
    """How a pod is run, beyond what its manifest says."""

    finish: Callable[[LockedPod], tuple[str, ...]]
    """Returns the command that concludes the pod; it inherits the pod's lock."""
    measuring: Measuring
    detach: bool = False
    detach_keys: bytes = b""
    """What a terminal sends that is to be detached; without them it stays until the pod's end."""
    remove: bool = False
    places: Places = field(default_factory=Places)
    """Where configurations and plugins of networks are."""
    sockets: int = 0
    """How many sockets of the caller's there are, from descriptor 3 on."""
    launched: Callable[[PodFiles], None] | None = None
    """Called when all is in place and nothing runs yet."""


@record
class _Caller:
    """Descriptors by which the pod's own process speaks with the one that the caller waits for."""

    ready_fd: int | None = None
    front_fd: int | None = None


def _stdio(manifest: PodManifest, options: StartOptions, front_fd: int | None) -> waiter.Stdio:
    if options.detach:
        return waiter.Stdio(foreground=False)
    first = manifest.apps[0]
    if first.terminal and not os.isatty(0):
        raise HostError(
            "-t needs a terminal on standard input", hint="leave out -t", code="host-no-terminal"
        )
    return waiter.Stdio(
        foreground=True,
        stdin_app=first.name if first.stdin else None,
        tty=first.terminal,
        front_fd=front_fd,
        detach_keys=tuple(detachkeys.words(options.detach_keys)) if front_fd is not None else (),
    )


def _sockets(manifest: PodManifest, options: StartOptions) -> tuple[int, ...]:
    """Return the descriptors of the caller's sockets; raises HostError unless they are as prepared."""
    wanted = manifest.apps[0].sockets
    if options.sockets != wanted:
        raise HostError(
            f"pod {manifest.uuid} was prepared for {wanted} sockets of its caller's, got {options.sockets}",
            hint=f"--preserve-fds={wanted} where it is prepared and started, or as many in the socket unit",
            code="host-sockets",
        )
    return tuple(range(FIRST, FIRST + wanted))


def _supervise(pod: LockedPod, options: StartOptions, caller: _Caller) -> NoReturn:
    """Start stage1 and become its waiter; raises, with everything undone, if that fails."""
    files = PodFiles(pod.path)
    manifest = files.read_manifest()
    podconfig.check(files, manifest)
    try:
        policy.hold_again(pod.layout, manifest)
    except DeniedError as error:
        options.measuring.denied(pod.uuid, error, what="policy")
        raise
    stdio = _stdio(manifest, options, caller.front_fd)
    secrets = _secrets(manifest)
    sockets = _sockets(manifest, options)
    flavour = flavours.load(manifest.flavour)
    agent = agent_path()
    pod.move(Folder.RUN)
    files = PodFiles(pod.path)
    with ExitStack() as undo:
        undo.push(lambda _kind, error, _trace: _abandon(pod, options, error))
        checkpoint.reached("run-folder")
        write_atomic(files.started, f"{time.time_ns()} {os.getpid()}\n".encode(), durable=False)
        network = _connect(pod, manifest, options.places, undo)
        on_disk = PodOnDisk(
            layout=pod.layout, path=pod.path, manifest=manifest, network=network, secrets=secrets
        )
        launch = flavour.launch(on_disk, undo)
        with selinux.sockets_as(launch.runtime_label):
            control = files.listen(files.control_socket)
        undo.callback(control.close)
        log_fd = os.open(files.stage1_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, log_fd)
        if launch.file_label:
            selinux.label_fd(log_fd, launch.file_label)
        if options.launched is not None:
            options.launched(files)
        read_back = _read_back(files, manifest, launch, undo)
        manager = None if options.detach else waiter.service_manager(os.environ)
        if manager is not None:
            undo.callback(manager.close)
        plan = waiter.WaiterPlan(
            agent=agent,
            apps=tuple(app.name for app in manifest.apps),
            launch=launch,
            control_fd=control.fileno(),
            log_fd=log_fd,
            lock_fd=pod.fd,
            stdio=stdio,
            stop_timeout_seconds=max(app.stop_timeout_seconds for app in manifest.apps) + 5,
            finish=options.finish(pod),
            ready_fd=caller.ready_fd,
            notify_fd=None if manager is None else manager.fileno(),
            read_back_fds=read_back,
            socket_app=manifest.apps[0].name if sockets else None,
            socket_fds=sockets,
        )
        # Everything that runs is in place and checked, nothing of it runs yet.
        answered = None if network is None else network.state().digest
        options.measuring.starting(
            files,
            manifest,
            account=lambda: account(files, manifest, None),
            label=launch.label,
            network=answered,
        )
        checkpoint.reached("before-waiter")
        plan = replace(plan, timing_fd=timing.append(files, checkpoint.marks or ()))
        if options.detach:
            _silence()
        waiter.replace_process(plan)
    raise AssertionError("unreachable: the waiter replaces this process")


def _secrets(manifest: PodManifest) -> Disclosed:
    """Read the pod's secrets; a pod of which one is missing stays prepared."""
    if not any(app.secrets for app in manifest.apps):
        return Disclosed()
    from secrun.pod.secrets import read

    return read(manifest, os.environ)


def _connect(pod: LockedPod, manifest: PodManifest, places: Places, undo: ExitStack) -> "Connected | None":
    """Make the pod's network namespace and join its networks, before anything else of it is on the host."""
    if manifest.network is not Network.CNI or manifest.connection is None:
        return None
    from secrun.network.connect import Target, connect
    from secrun.syscalls import LinuxSyscalls

    target = Target(
        layout=pod.layout,
        path=pod.path,
        etc=podconfig.etc_folder(PodFiles(pod.path)),
        uuid=pod.uuid,
        hostname=manifest.hostname,
        connection=manifest.connection,
    )
    return connect(LinuxSyscalls(), target, places, undo)


def _read_back(files: PodFiles, manifest: PodManifest, launch: Launch, undo: ExitStack) -> tuple[int, int]:
    """Write what the kernel has to enforce, open where the waiter writes what it does.

    The apps of a machine are processes of the guest's kernel, which the host cannot ask: it takes the
    guest's word.
    """
    if manifest.machine is None:
        base = int(files.uid_base.read_text())
        hierarchy = cgroups.host()
        group = f"/{hierarchy.pod(manifest.uuid).relative_to(hierarchy.mount)}/"
        kernel = readback.host(uid_base=base, ids=POD_IDS, group=group, label=launch.label)
    else:
        kernel = readback.guest()
    expected = readback.expectation(manifest, kernel)
    files.expected.write_bytes(expected)
    found = []
    for path, flags in (
        (files.expected, os.O_RDONLY),
        (files.enforced, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        found.append(os.open(path, flags | os.O_CLOEXEC, 0o600))
        undo.callback(os.close, found[-1])
    return found[0], found[1]


def _silence() -> None:
    """Let go of the caller's standard streams: whoever waits for their end must not wait for the pod."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _abandon(pod: LockedPod, options: StartOptions, error: BaseException | None) -> None:
    """Keep why a pod could not start, or with --rm nothing at all once its end is measured."""
    files = PodFiles(pod.path)
    result = _record_failure(files, error)
    codes = {app.name: app.code for app in result.apps}
    unmeasured = options.measuring.ended(
        files, pod.uuid, result.code, codes, account=lambda: account(files, files.read_manifest(), result)
    )
    if options.remove and not unmeasured and not holds_network(pod):
        unmount_below(pod.path)
        options.measuring.removed(files, pod.uuid)
        delete(pod)


def _record_failure(files: PodFiles, error: BaseException | None) -> exits.PodExit:
    """Keep why a pod could not start, so that its exited state explains itself."""
    result = exits.PodExit(
        code=exits.RUNTIME_FAILED,
        finished_ns=time.time_ns(),
        error=str(error),
        apps=tuple(exits.AppExit(name=app.name, code=None) for app in files.read_manifest().apps),
    )
    write_atomic(files.exit, result.to_bytes())
    return result


def start(pod: LockedPod, options: StartOptions) -> int:
    """Run a prepared pod.

    In the foreground this does not return: the waiter ends with the pod's exit code. Detached it returns 0
    once every app has started, or the pod's exit code if it ended before that.
    """
    if pod.folder is not Folder.PREPARED:
        raise StateError(f"pod {pod.uuid} is not prepared", code="state-not-prepared")
    if options.detach:
        return _detach(pod, options)
    if _detachable(PodFiles(pod.path).read_manifest(), options):
        _stand_before(pod, options)
    _supervise(pod, options, _Caller())


def _detachable(manifest: PodManifest, options: StartOptions) -> bool:
    """Whether somebody sits at a terminal who may leave; a service manager's unit is the waiter itself."""
    first = manifest.apps[0]
    attended = first.terminal and first.stdin and os.isatty(0)
    return attended and bool(options.detach_keys) and not os.environ.get("NOTIFY_SOCKET")


def _stand_before(pod: LockedPod, options: StartOptions) -> NoReturn:
    """Let a child be the pod's waiter, and become what can end before it does."""
    import socket

    agent = agent_path()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        # An error unwinds this process to the command line as usual.
        ours.close()
        _supervise(pod, options, _Caller(front_fd=theirs.detach()))
    theirs.close()
    # The pod is the child's from now on; an interrupted caller must not take it back.
    pod.folder = Folder.RUN
    waiter.become_front(agent, child, ours.detach(), pod.uuid)


def _detach(pod: LockedPod, options: StartOptions) -> int:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        # From here on this is the pod's own process; an error unwinds it to the command line as usual.
        os.close(read_fd)
        os.setsid()
        _supervise(pod, options, _Caller(ready_fd=write_fd))
    os.close(write_fd)
    # The pod is the child's from now on; an interrupted caller must not take it back.
    pod.folder = Folder.RUN
    # The child holds the same open file description, hence the same lock.
    with os.fdopen(read_fd, "rb") as stream:
        said = stream.readline()
    if said == _READY:
        return 0
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
