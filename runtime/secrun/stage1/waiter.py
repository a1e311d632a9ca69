"""Hand over to the waiter: the agent's binary, which replaces this process (docs/agent-protocol.md)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from secrun.errors import HostError
from secrun.launch import BASE_ENVIRONMENT
from secrun.record import record
from secrun.stage1.contract import Launch

if TYPE_CHECKING:
    import socket

# The finishing process must find the same Python and the same secrun; nothing else is passed on.
_KEPT_VARIABLES = ("TERM", "NO_COLOR", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")


@record
class Stdio:
    """How the apps' standard streams and the caller's are connected."""

    foreground: bool
    stdin_app: str | None = None
    tty: bool = False
    front_fd: int | None = None
    """The link to the caller's process, if that is not the waiter itself: the terminal can be detached."""
    detach_keys: tuple[str, ...] = ()
    """The waiter's option for them."""


@record
class WaiterPlan:
    """Everything the waiter is told."""

    agent: Path
    apps: tuple[str, ...]
    launch: Launch
    control_fd: int
    log_fd: int
    lock_fd: int
    stdio: Stdio
    stop_timeout_seconds: int
    finish: tuple[str, ...]
    ready_fd: int | None = None
    notify_fd: int | None = None
    """The service manager's socket (sd_notify(3)): every app has started, the pod stops."""
    timing_fd: int | None = None
    """Takes the marks of secrun.pod.timing."""
    socket_app: str | None = None
    socket_fds: tuple[int, ...] = ()
    """Sockets of the caller's, and the app that gets them."""
    read_back_fds: tuple[int, int] | None = None
    """What was compiled, to be read, and where the waiter writes what it found."""

    def argv(self) -> list[str]:
        """Return the waiter's command line; pure."""
        launch = self.launch
        words = [str(self.agent), "wait"]
        words += ["--attach-fd", str(launch.attach_fd), "--control-fd", str(self.control_fd)]
        words += ["--cgroup-procs-fd", str(launch.cgroup_procs_fd)]
        words += ["--cgroup-kill-fd", str(launch.cgroup_kill_fd), "--log-fd", str(self.log_fd)]
        words += ["--stop-timeout", str(self.stop_timeout_seconds * 1000)]
        for option, optional in self._optional():
            words += [option, str(optional)]
        for fd in (self.lock_fd, *launch.held_fds):
            words += ["--keep-fd", str(fd)]
        for fd in self.socket_fds:
            words += ["--socket-fd", str(fd)]
        if self.socket_app is not None:
            words += ["--socket-app", self.socket_app]
        for app in self.apps:
            words += ["--app", app]
        if self.stdio.foreground:
            words.append("--foreground")
        if self.stdio.stdin_app is not None:
            words += ["--stdin-app", self.stdio.stdin_app]
        if self.stdio.tty:
            words.append("--tty")
        words += self.stdio.detach_keys
        for word in self.finish:
            words += ["--finish", word]
        words.append("--finish-ahead")
        return [*words, "--", *launch.argv]

    def inherited(self) -> list[int]:
        """Return the descriptors that must survive execve."""
        launch = self.launch
        fds = [launch.attach_fd, launch.cgroup_procs_fd, launch.cgroup_kill_fd, *launch.held_fds]
        fds += [self.control_fd, self.log_fd, self.lock_fd, *self.socket_fds]
        return [*fds, *(fd for _, fd in self._optional())]

    def _optional(self) -> list[tuple[str, int]]:
        """Return the descriptors that not every pod has, with their options."""
        expected, enforced = self.read_back_fds or (None, None)
        found = {
            "--seccomp-fd": self.launch.filter_fd,
            "--expected-fd": expected,
            "--enforced-fd": enforced,
            "--ready-fd": self.ready_fd,
            "--front-fd": self.stdio.front_fd,
            "--notify-fd": self.notify_fd,
            "--timing-fd": self.timing_fd,
        }
        return [(option, fd) for option, fd in found.items() if fd is not None]


def service_manager(caller: Mapping[str, str]) -> "socket.socket | None":
    """Return a socket to the manager whose unit this process is (sd_notify(3)), None if there is none.

    Raises HostError for an address that cannot be reached: a unit of Type=notify would wait for nothing.
    """
    address = caller.get("NOTIFY_SOCKET")
    if not address:
        return None
    import socket

    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        manager.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError as error:
        manager.close()
        raise HostError(f"NOTIFY_SOCKET {address}: {error.strerror}", code="host-notify") from error
    return manager


def environment(caller: Mapping[str, str], *, filtered: bool) -> dict[str, str]:
    """Return the environment of the waiter and all that it starts; pure.

    Under a filter of the pod's own nspawn makes none, which would cost 60 ms.
    """
    kept = {name: caller[name] for name in _KEPT_VARIABLES if name in caller}
    # A pod never shares its cgroup view with the host's hybrid layout.
    nspawn = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"}
    if filtered:
        nspawn["SYSTEMD_SECCOMP"] = "0"
    return {**BASE_ENVIRONMENT, **kept, **nspawn}


def become_front(agent: Path, child: int, link_fd: int, uuid: str) -> NoReturn:
    """Become what the caller waits for while `child` is the waiter: pass on signals, end with it."""
    os.set_inheritable(link_fd, True)
    words = [str(agent), "front", "--child", str(child), "--link-fd", str(link_fd), "--pod", uuid]
    os.execve(words[0], words, environment(os.environ, filtered=False))  # noqa: S606 - no shell is involved


def replace_process(plan: WaiterPlan) -> NoReturn:
    """Become the waiter; raises HostError if its binary cannot be executed."""
    for fd in plan.inherited():
        os.set_inheritable(fd, True)
    argv = plan.argv()
    variables = environment(os.environ, filtered=plan.launch.filter_fd is not None)
    if plan.launch.runtime_label:
        from secrun import selinux

        selinux.execute_as(plan.launch.runtime_label)
    try:
        os.execve(argv[0], argv, variables)  # noqa: S606 - no shell is involved
    except OSError as error:
        hint = "secrun policy install selinux" if plan.launch.runtime_label else "run make setup"
        raise HostError(f"{argv[0]}: {error.strerror}", hint=hint, code="host-agent") from error
