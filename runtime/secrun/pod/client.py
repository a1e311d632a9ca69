"""Reach the shim of a running app, and become the agent's client for it (docs/agent-protocol.md)."""

import os
import socket
import stat
from pathlib import Path
from typing import NoReturn

from secrun.errors import DeniedError, HostError, StateError, UsageError
from secrun.measure.measuring import Measuring
from secrun.paths import Layout
from secrun.pod import detachkeys, policy
from secrun.pod.inside import open_path
from secrun.pod.states import State, find
from secrun.record import record
from secrun.stage1 import waiter
from secrun.stage1.manifest import AppManifest, PodManifest
from secrun.stage1.podfiles import PodFiles

# Flags of ATTACH and EXEC.
STDOUT, STDERR, STDIN, TTY, ALONE = 1, 2, 4, 8, 16


@record
class RunningApp:
    """An app of a pod that runs."""

    uuid: str
    files: PodFiles
    manifest: PodManifest
    app: AppManifest


@record
class Streams:
    """How the caller's streams are joined with the app's or the command's."""

    interactive: bool
    terminal: bool
    detach_keys: bytes = b""
    sig_proxy: bool = True
    """Signals that would end the client are the app's; otherwise they end the client."""


def _choose(manifest: PodManifest, name: str | None) -> AppManifest:
    if name is None and len(manifest.apps) == 1:
        return manifest.apps[0]
    app = manifest.app(name) if name else None
    if app is None:
        known = ", ".join(item.name for item in manifest.apps)
        what = f"has no app {name!r}" if name else "has several apps"
        raise UsageError(f"pod {manifest.uuid} {what}", hint=f"choose one with --app: {known}")
    return app


def running_app(layout: Layout, text: str, app: str | None) -> RunningApp:
    """Find an app of a running pod, the only one if none is named; raises StateError, UsageError."""
    found = find(layout, text)
    if found.state is not State.RUNNING:
        raise StateError(f"pod {found.uuid} is {found.state}, expected running", code="state-not-running")
    files = PodFiles(found.path)
    manifest = files.read_manifest()
    return RunningApp(uuid=found.uuid, files=files, manifest=manifest, app=_choose(manifest, app))


def hold_entry(layout: Layout, target: RunningApp, measuring: Measuring) -> None:
    """Raise DeniedError, measured, if a rule refuses that somebody enters the app."""
    try:
        policy.hold_entry(layout, target.manifest, target.app.name)
    except DeniedError as error:
        measuring.denied(target.uuid, error, what="enter")
        raise


def need_terminal(what: str, hint: str) -> None:
    """Raise HostError if standard input is no terminal."""
    if not os.isatty(0):
        raise HostError(f"{what} needs a terminal on standard input", hint=hint, code="host-no-terminal")


def connect(target: RunningApp) -> socket.socket:
    """Connect to an app's shim; the path belongs to the pod, so no part of it may be a link."""
    app = target.app.name
    fd = open_path(target.files.rw, "apps", app, "ctl.sock", flags=os.O_PATH)
    if fd is None:
        raise StateError(f"app {app} is not ready to be entered", hint="try again", code="state-not-ready")
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise StateError(f"app {app}: its control socket was replaced", code="state-hostile")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(f"/proc/self/fd/{fd}")
        except ConnectionRefusedError as error:
            connection.close()
            raise StateError(f"app {app} has ended", code="state-not-running") from error
        return connection
    finally:
        os.close(fd)


def become(agent: Path, connection: socket.socket, frame: bytes, streams: Streams) -> NoReturn:
    """Become the agent's client for one request: a frame's type and payload.

    It is handed over in a memfd: neither words nor environment may show in the process list.
    """
    memory = os.memfd_create("secrun-request")
    os.write(memory, frame)
    os.lseek(memory, 0, os.SEEK_SET)
    connection_fd = connection.detach()
    words = [str(agent), "client", "--conn-fd", str(connection_fd), "--request-fd", str(memory)]
    words += ["--tty"] if streams.terminal else []
    words += ["--stdin"] if streams.interactive else []
    words += [] if streams.sig_proxy else ["--keep-signals"]
    words += detachkeys.words(streams.detach_keys)
    os.set_inheritable(connection_fd, True)
    os.set_inheritable(memory, True)
    os.execve(words[0], words, waiter.environment(os.environ, filtered=False))  # noqa: S606 - no shell is involved
