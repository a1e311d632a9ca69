"""The systemd units of a pod's stage1; pure text, the same for every flavour (systemd.unit(5))."""

import posixpath
from collections.abc import Sequence

from secrun.stage1 import places
from secrun.stage1.lifecycle import RestartPolicy
from secrun.stage1.manifest import AppManifest, PodManifest
from secrun.stage1.volume import EmptyVolume, Volume

TARGET = "pod.target"
DONE = "pod-done.service"
RELAY = "relay.service"

# 64 MiB per app: a runaway app may fill its log but not the disk (the agent keeps one older part).
LOG_MAX_BYTES = 64 * 1024 * 1024


def app_unit(name: str) -> str:
    """Return the unit name of an app; app names need no escaping by construction."""
    return f"app-{name}.service"


def quote(word: str) -> str:
    """Quote one word for ExecStart= (systemd.service(5), command lines): no expansion may remain."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f'"{escaped}"'


def program(word: str, cwd: str) -> str:
    """Return what the agent looks for when a program cannot be executed: execve(2) resolves from `cwd`."""
    return posixpath.join(cwd, word) if "/" in word else word


def _volumes(app: AppManifest) -> list[str]:
    """Return which volumes the agent makes, and which it fills from the image (docs/agent-protocol.md)."""
    words: list[str] = []
    found: list[tuple[str, Volume | EmptyVolume]] = []
    for empty in app.empty_volumes:
        words += ["--empty", empty.name, empty.mode, str(empty.uid), str(empty.gid)]
        found.append((places.empty_volume(empty.name), empty))
    for index, given in enumerate(app.volumes):
        found.append((places.volume(app.name, index), given))
    for index, secret in enumerate(app.secrets):
        words += ["--place", places.secret(app.name, index), secret.target]
    # What lies in another comes after it.
    for source, volume in sorted(found, key=lambda item: item[1].target):
        words += ["--place", source, volume.target]
        words += ["--fill", source, volume.target] if volume.fill else []
    return words


def _life(app: AppManifest) -> list[str]:
    """Return what brings the app back when it has ended, and what tells how it is."""
    words = ["--restart", str(app.restart)] if app.restart.policy is not RestartPolicy.NO else []
    health = app.health
    if health is not None:
        words += ["--health-program", program(health.command[0], app.cwd)]
        words += ["--health-interval", str(health.interval_ms), "--health-timeout", str(health.timeout_ms)]
        words += ["--health-start-period", str(health.start_period_ms)]
        words += ["--health-retries", str(health.retries), "--health-on-failure", str(health.on_failure)]
    return words


def _shim(app: AppManifest, etc: Sequence[str], *, guest: bool, held: bool) -> str:
    words = [places.AGENT, "shim", "--app", app.name, "--lower", places.image(app.name)]
    words += ["--log-max", str(LOG_MAX_BYTES), "--stop-signal", str(app.stop_signal)]
    words += ["--stop-timeout", str(app.stop_timeout_seconds * 1000)]
    words += ["--program", program(app.args[0], app.cwd), "--path", app.search_path]
    words += _life(app)
    words += _volumes(app)
    for name in etc:
        words += ["--place", f"{places.POD}/etc/{name}", f"/etc/{name}"]
    if held:
        words.append("--hold")
    if app.systemd:
        words.append("--own-group")
    if app.terminal:
        words.append("--terminal")
    if app.stdin:
        words.append("--stdin")
    if app.sockets:
        words += ["--sockets", str(app.sockets)]
    if guest:
        # The host writes it from what comes through the relay.
        words.append("--no-log")
        # Nobody on the host sees the app's processes.
        words.append("--read-back")
    return " ".join(quote(word) for word in words)


def _limits(app: AppManifest) -> list[str]:
    lines: list[str] = []
    if app.limits.memory_bytes is not None:
        lines.append(f"MemoryMax={app.limits.memory_bytes}")
    swap = app.limits.swap_bytes
    if swap is not None or app.limits.memory_bytes is not None:
        lines.append(f"MemorySwapMax={'infinity' if swap == -1 else swap or 0}")
    if app.limits.cpu_millis is not None:
        lines.append(f"CPUQuota={app.limits.cpu_millis / 10:g}%")
    if app.limits.cpu_weight is not None:
        lines.append(f"CPUWeight={app.limits.cpu_weight}")
    if app.limits.io_weight is not None:
        lines.append(f"IOWeight={app.limits.io_weight}")
    if app.limits.memory_low_bytes is not None:
        lines.append(f"MemoryLow={app.limits.memory_low_bytes}")
    if app.limits.cpus:
        lines.append(f"AllowedCPUs={app.limits.cpus}")
    if app.limits.memory_nodes:
        lines.append(f"AllowedMemoryNodes={app.limits.memory_nodes}")
    if app.limits.pids is not None:
        # The shim is one process of the unit; the app may have all that was promised.
        lines.append(f"TasksMax={app.limits.pids + 1}")
    return lines


def _end(*, guest: bool) -> str:
    """Return how the pod's systemd ends it: a machine has nobody to exit to (systemd.unit(5))."""
    return "poweroff-force" if guest else "exit-force"


def _app_unit_text(app: AppManifest, etc: Sequence[str], *, alone: bool, guest: bool, held: bool) -> str:
    end = _end(guest=guest)
    lines = ["[Unit]", f"Description=app {app.name}", "DefaultDependencies=no", f"FailureAction={end}"]
    if alone:
        lines.append(f"SuccessAction={end}")
    if guest:
        lines += [f"Requires={RELAY}", f"After={RELAY}"]
    lines += [
        "",
        "[Service]",
        # oneshot: pod-done.service is ordered after the end of every app, not after its start.
        "Type=oneshot",
        "TimeoutStartSec=infinity",
        f"ExecStart={_shim(app, etc, guest=guest, held=held)}",
        "KillMode=mixed",
        f"TimeoutStopSec={app.stop_timeout_seconds + 2}",
        "StandardInput=null",
        "StandardOutput=null",
        "StandardError=null",
        "Delegate=yes",
        *_limits(app),
        "",
    ]
    return "\n".join(lines)


def _target_text(pod: PodManifest) -> str:
    wants = [app_unit(app.name) for app in pod.apps]
    if len(pod.apps) > 1:
        wants.append(DONE)
    return f"[Unit]\nDescription=secrun pod\nDefaultDependencies=no\nWants={' '.join(wants)}\n"


def manager_text(pod: PodManifest) -> str:
    """Return the pod's systemd-system.conf(5): quiet, and as patient as the slowest app needs."""
    seconds = max(app.stop_timeout_seconds for app in pod.apps) + 2
    return (
        "[Manager]\nLogLevel=err\nShowStatus=no\nDumpCore=no\nCrashShell=no\n"
        "DefaultStandardOutput=null\nDefaultStandardError=null\n"
        f"DefaultTimeoutStopSec={seconds}s\n"
    )


def _done_text(pod: PodManifest, *, guest: bool) -> str:
    after = " ".join(app_unit(app.name) for app in pod.apps)
    return (
        f"[Unit]\nDescription=end of the pod\nDefaultDependencies=no\nSuccessAction={_end(guest=guest)}\n"
        f"After={after}\n\n[Service]\nType=oneshot\n"
    )


def _relay_text() -> str:
    """Return the unit of the guest's end of the line to the host; without it there is no pod."""
    return (
        "[Unit]\nDescription=line to the host\nDefaultDependencies=no\nFailureAction=poweroff-force\n\n"
        f"[Service]\nType=notify\nExecStart={quote(places.AGENT)} relay\nStandardInput=null\n"
        # What it says about the end of everything has nowhere to go but the console.
        "StandardOutput=null\nStandardError=tty\nTTYPath=/dev/console\n"
    )


def render(pod: PodManifest, etc: Sequence[str] = (), *, guest: bool = False) -> dict[str, str]:
    """Return every unit file of the pod by its name; `guest` says that it is a machine of its own.

    `etc` names the files of /etc that apps get from the pod.

    The pod ends with its first failing app (FailureAction) or when all apps have ended well.
    """
    alone = len(pod.apps) == 1
    held = pod.strict_read_back
    files = {
        app_unit(app.name): _app_unit_text(app, etc, alone=alone, guest=guest, held=held) for app in pod.apps
    }
    files[TARGET] = _target_text(pod)
    if not alone:
        files[DONE] = _done_text(pod, guest=guest)
    if guest:
        files[RELAY] = _relay_text()
    return files
