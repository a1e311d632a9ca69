"""Restart apps of a running pod: their shims end and begin them (docs/agent-protocol.md)."""

import socket
import struct
import time

from secrun.errors import StateError
from secrun.paths import Layout
from secrun.pod import client
from secrun.pod.inside import printable
from secrun.pod.states import find
from secrun.stage1.podfiles import PodFiles

_RESTART, _ERROR, _AGAIN = 0x89, 0x07, 0x0C
_HEADER = struct.Struct("<BI")
# The longest text of ERROR; HELLO and AGAIN are shorter.
_MAX_PAYLOAD = 4096
# HELLO, then the answer.
_MAX_FRAMES = 2
# What ending in order takes beyond the app's own time, and starting again on a busy host.
_MARGIN_SECONDS = 30.0


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    """Receive `count` bytes; raises TimeoutError, or EOFError if the shim closes before."""
    data = b""
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _answer(connection: socket.socket, deadline: float) -> tuple[int, bytes]:
    """Return the first frame after HELLO that is an answer; anything else ends the conversation."""
    for _ in range(_MAX_FRAMES):
        kind, length = _HEADER.unpack(_exactly(connection, _HEADER.size, deadline))
        if length > _MAX_PAYLOAD:
            break
        payload = _exactly(connection, length, deadline)
        if kind in (_ERROR, _AGAIN):
            return kind, payload
    raise EOFError


def _one(target: client.RunningApp) -> None:
    app = target.app
    deadline = time.monotonic() + app.stop_timeout_seconds + _MARGIN_SECONDS
    with client.connect(target) as connection:
        try:
            connection.sendall(_HEADER.pack(_RESTART, 0))
            kind, payload = _answer(connection, deadline)
        except TimeoutError as error:
            raise StateError(f"app {app.name} has not begun again in time", code="state-timeout") from error
        except (EOFError, OSError) as error:
            raise StateError(
                f"app {app.name} has not begun again: its pod ends", code="state-not-running"
            ) from error
    if kind == _ERROR:
        text = printable(payload.decode("utf-8", "replace"))
        raise StateError(f"app {app.name} cannot begin again: {text}", code="state-not-running")


def restart(layout: Layout, text: str, app: str | None) -> str:
    """Restart one app, or all of a pod one after the other; returns the pod's UUID.

    Raises StateError for a pod that does not run, and for an app that has ended or ends for good meanwhile.
    """
    manifest = PodFiles(find(layout, text).path).read_manifest()
    for name in [app] if app else [item.name for item in manifest.apps]:
        _one(client.running_app(layout, manifest.uuid, name))
    return manifest.uuid
