"""Enter a running app: ask its shim to run a command with everything the app is confined by."""

import json
import os
import socket
import stat
import struct
from pathlib import Path
from typing import NoReturn

from secrun.errors import DeniedError, HostError, StateError, UsageError
from secrun.image import rootfs
from secrun.jsonio import JsonObject, parse_object
from secrun.measure.measuring import Measuring
from secrun.paths import Layout
from secrun.pod import policy
from secrun.pod.inside import open_path
from secrun.pod.process import resolve_user
from secrun.pod.request import USUAL_TERMINAL, terminal_size
from secrun.pod.states import State, find
from secrun.record import record
from secrun.stage1 import waiter
from secrun.stage1.agent import agent_path
from secrun.stage1.bundle import HOLD, console_size
from secrun.stage1.manifest import AppManifest, PodManifest
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.units import program

_MAX_BUNDLE_BYTES = 16 * 1024 * 1024
# The frame that asks a shim to execute a command, as the agent reads it (docs/agent-protocol.md).
_EXEC = 0x85
_STDOUT, _STDERR, _STDIN, _TTY = 1, 2, 4, 8
_MAX_PAYLOAD = 65536


@record
class EnterRequest:
    """A command to run inside an app."""

    app: str | None
    argv: tuple[str, ...]
    user: str | None
    workdir: str | None
    env: tuple[tuple[str, str], ...]
    interactive: bool
    terminal: bool


def _choose(manifest: PodManifest, name: str | None) -> AppManifest:
    if name is None and len(manifest.apps) == 1:
        return manifest.apps[0]
    app = manifest.app(name) if name else None
    if app is None:
        known = ", ".join(item.name for item in manifest.apps)
        what = f"has no app {name!r}" if name else "has several apps"
        raise UsageError(f"pod {manifest.uuid} {what}", hint=f"choose one with --app: {known}")
    return app


def _size() -> tuple[int, int]:
    return terminal_size() or USUAL_TERMINAL


def process_document(files: PodFiles, layout: Layout, app: AppManifest, request: EnterRequest) -> JsonObject:
    """Return the OCI process for a command: the app's own, with other words.

    Capabilities, seccomp, no_new_privs and limits are the app's, byte for byte from its bundle.
    """
    path = files.config / "apps" / app.name / "config.json"
    config = parse_object(path.read_bytes(), what=str(path), limit=_MAX_BUNDLE_BYTES)
    process = config["process"]
    if not isinstance(process, dict):
        raise StateError(f"{path} has no process", code="state-corrupt")
    env = process.get("env")
    known = (
        dict(word.split("=", 1) for word in env if isinstance(word, str)) if isinstance(env, list) else {}
    )
    known.update(request.env)
    if request.terminal:
        known.setdefault("TERM", "xterm")
    args = [*(HOLD if request.terminal else ()), *request.argv]
    result: JsonObject = {**process, "args": [*args], "terminal": request.terminal}
    result["env"] = [f"{name}={value}" for name, value in sorted(known.items())]
    result.pop("consoleSize", None)
    if request.terminal:
        result["consoleSize"] = console_size(_size())
    if request.workdir:
        result["cwd"] = request.workdir
    if request.user:
        image = rootfs.load(layout, app.image.rootfs)
        if image is None:
            raise StateError(f"the rootfs image of app {app.name} is gone", code="image-rootfs-changed")
        user = resolve_user(request.user, image, app.image.reference)
        result["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
    return result


def _connect(files: PodFiles, app: str) -> socket.socket:
    """Connect to an app's shim; the path belongs to the pod, so no part of it may be a link."""
    fd = open_path(files.rw, "apps", app, "ctl.sock", flags=os.O_PATH)
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


def enter(layout: Layout, text: str, request: EnterRequest, measuring: Measuring) -> NoReturn:
    """Run a command inside a running app; this process becomes the agent's client and ends with its code."""
    found = find(layout, text)
    if found.state is not State.RUNNING:
        raise StateError(f"pod {found.uuid} is {found.state}, expected running", code="state-not-running")
    files = PodFiles(found.path)
    manifest = files.read_manifest()
    app = _choose(manifest, request.app)
    try:
        policy.hold_entry(layout, manifest, app.name)
    except DeniedError as error:
        measuring.denied(found.uuid, error, what="enter")
        raise
    if request.terminal and not os.isatty(0):
        raise HostError(
            "-t needs a terminal on standard input", hint="leave out -t", code="host-no-terminal"
        )
    document = process_document(files, layout, app, request)
    agent = agent_path()
    frame = exec_request(document, request)
    connection = _connect(files, app.name)
    measuring.entering(files, found.uuid, app=app.name, argv=request.argv, user=request.user)
    _become_client(agent, connection, frame, request)


def exec_request(process: JsonObject, request: EnterRequest) -> bytes:
    """Return the EXEC frame, type and payload (docs/agent-protocol.md); raises UsageError if too long."""
    environment = process["env"]
    words = environment if isinstance(environment, list) else []
    path = next((word[5:] for word in words if isinstance(word, str) and word.startswith("PATH=")), "")
    flags = _STDOUT | _STDERR | (_STDIN if request.interactive else 0) | (_TTY if request.terminal else 0)
    rows, columns = _size() if request.terminal else (0, 0)
    payload = struct.pack("<BHH", flags, rows, columns)
    cwd = process["cwd"]
    for text in (program(request.argv[0], cwd if isinstance(cwd, str) else "/"), path):
        payload += struct.pack("<H", len(text.encode())) + text.encode()
    payload += json.dumps(process).encode()
    if len(payload) > _MAX_PAYLOAD:
        raise UsageError(
            f"the command and its environment need {len(payload)} bytes, the limit is {_MAX_PAYLOAD}",
            code="usage-command-size",
        )
    return bytes([_EXEC]) + payload


def _become_client(agent: Path, connection: socket.socket, frame: bytes, request: EnterRequest) -> NoReturn:
    """Hand the request over in a memfd: neither words nor environment may show in the process list."""
    memory = os.memfd_create("secrun-request")
    os.write(memory, frame)
    os.lseek(memory, 0, os.SEEK_SET)
    connection_fd = connection.detach()
    words = [str(agent), "client", "--conn-fd", str(connection_fd), "--request-fd", str(memory)]
    words += ["--tty"] if request.terminal else []
    words += ["--stdin"] if request.interactive else []
    os.set_inheritable(connection_fd, True)
    os.set_inheritable(memory, True)
    os.execve(words[0], words, waiter.environment(os.environ, filtered=False))  # noqa: S606 - no shell is involved
