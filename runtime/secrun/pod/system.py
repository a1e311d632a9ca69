"""System containers: an app whose first process is an init that manages services; pure.

What systemd asks of its container is in the Container Interface (systemd.io/CONTAINER_INTERFACE).
"""

from collections.abc import Iterable

from secrun.errors import UsageError
from secrun.pod.request import AppRequest, Systemd
from secrun.pod.request import stop_signal as parse_signal
from secrun.record import replace
from secrun.stage1.bundle import Process
from secrun.stage1.security import Tmpfs
from secrun_policies import capabilities

# podman-run(1), --systemd.
_INITS = ("/sbin/init", "/usr/sbin/init", "/usr/local/sbin/init")
# systemd drops capabilities for its services, which takes this one (capabilities(7)).
_NEEDED = "CAP_SETPCAP"
# Asks systemd to halt in good order (systemd(1), SIGNALS).
_HALT = "SIGRTMIN+3"
# What its own init would mount, if it had the right; the journal lives as long as the pod.
_FOLDERS = (
    Tmpfs(target="/run", size="64m", mode="755"),
    Tmpfs(target="/run/lock", size="5m", mode="1777"),
    Tmpfs(target="/tmp", mode="1777"),  # noqa: S108 - inside the app
    Tmpfs(target="/var/log/journal", size="64m", mode="755"),
)


def is_asked(app: AppRequest) -> bool:
    """Tell whether an app is to be a system container."""
    return app.systemd is not Systemd.FALSE


def check(app: AppRequest, process: Process) -> None:
    """Raise UsageError for a system container whose program is none, or is not its root."""
    if not is_asked(app):
        return
    program = process.args[0]
    if app.systemd is Systemd.TRUE and program not in _INITS and program.rpartition("/")[2] != "systemd":
        raise UsageError(
            f"--systemd=true: {app.image} runs {program[:80]}, which is not known as an init",
            hint=f"known: {', '.join(_INITS)}, and systemd; --systemd=always takes it for one",
            code="usage-systemd",
        )
    if process.uid != 0:
        raise UsageError(
            f"--systemd={app.systemd}: {app.image} runs as user {process.uid}, an init as root",
            hint="--user=0",
            code="usage-systemd",
        )


def prepared(app: AppRequest) -> AppRequest:
    """Give a system container the capability that its init needs, unless it was refused it by name."""
    asked = app.security
    if not is_asked(app) or asked.privileged or asked.capabilities is not None:
        return app
    known = frozenset({_NEEDED})
    if capabilities.parse_set((*asked.cap_add, *asked.cap_drop), known) & known:
        return app
    return replace(app, security=replace(asked, cap_add=(*asked.cap_add, _NEEDED)))


def folders(app: AppRequest, taken: Iterable[str]) -> tuple[Tmpfs, ...]:
    """Return the folders in memory that an init expects, but for what is mounted there anyway."""
    if not is_asked(app):
        return ()
    used = set(taken)
    return tuple(folder for folder in _FOLDERS if folder.target not in used)


def stop_signal(app: AppRequest, of_image: str | None) -> int:
    """Return what ends an app in good order: what was asked for, what its image says, what an init takes."""
    return parse_signal(app.stop_signal or of_image or (_HALT if is_asked(app) else None))
