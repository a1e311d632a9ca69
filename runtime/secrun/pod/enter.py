"""Enter a running app: ask its shim to run a command with everything the app is confined by."""

import json
import struct
from typing import NoReturn

from secrun.errors import StateError, UsageError
from secrun.image import rootfs
from secrun.jsonio import JsonObject, parse_object
from secrun.measure.measuring import Measuring
from secrun.paths import Layout
from secrun.pod import client
from secrun.pod.process import resolve_user
from secrun.pod.request import USUAL_TERMINAL, terminal_size
from secrun.record import record
from secrun.stage1.agent import agent_path
from secrun.stage1.bundle import HOLD, console_size
from secrun.stage1.manifest import AppManifest
from secrun.stage1.podfiles import PodFiles
from secrun.stage1.units import program

_MAX_BUNDLE_BYTES = 16 * 1024 * 1024
# The frame that asks a shim to execute a command, as the agent reads it (docs/agent-protocol.md).
_EXEC = 0x85
_MAX_PAYLOAD = 65536


@record
class EnterRequest:
    """A command to run inside an app."""

    app: str | None
    argv: tuple[str, ...]
    user: str | None
    workdir: str | None
    env: tuple[tuple[str, str], ...]
    streams: client.Streams
    detach: bool = False
    """Leave the command alone once it has started."""


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
    # The sockets are the app's: they do not come with a command.
    known = {
        name: value
        for name, value in known.items()
        if name not in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    }
    known.update(request.env)
    if request.streams.terminal:
        known.setdefault("TERM", "xterm")
    args = [*(HOLD if request.streams.terminal else ()), *request.argv]
    result: JsonObject = {**process, "args": [*args], "terminal": request.streams.terminal}
    result["env"] = [f"{name}={value}" for name, value in sorted(known.items())]
    result.pop("consoleSize", None)
    if request.streams.terminal:
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


def enter(layout: Layout, text: str, request: EnterRequest, measuring: Measuring) -> NoReturn:
    """Run a command inside a running app; this process becomes the agent's client and ends with its code."""
    target = client.running_app(layout, text, request.app)
    client.hold_entry(layout, target, measuring)
    if request.streams.terminal and not request.detach:
        client.need_terminal("-t", "leave out -t")
    document = process_document(target.files, layout, target.app, request)
    agent = agent_path()
    frame = exec_request(document, request)
    connection = client.connect(target)
    measuring.entering(target.files, target.uuid, app=target.app.name, argv=request.argv, user=request.user)
    client.become(agent, connection, frame, client_streams(request))


def client_streams(request: EnterRequest) -> client.Streams:
    """Return what the client joins: nothing of a command that is left alone; pure."""
    return client.Streams(interactive=False, terminal=False) if request.detach else request.streams


def exec_request(process: JsonObject, request: EnterRequest) -> bytes:
    """Return the EXEC frame, type and payload (docs/agent-protocol.md); raises UsageError if too long."""
    environment = process["env"]
    words = environment if isinstance(environment, list) else []
    path = next((word[5:] for word in words if isinstance(word, str) and word.startswith("PATH=")), "")
    streams = request.streams
    flags = client.STDOUT | client.STDERR
    flags |= client.STDIN if streams.interactive else 0
    flags |= client.TTY if streams.terminal else 0
    flags |= client.ALONE if request.detach else 0
    rows, columns = _size() if request.streams.terminal else (0, 0)
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
