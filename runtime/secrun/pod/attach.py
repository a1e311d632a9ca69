"""Attach to a running app: its output from now on, and its input if it has one that is free."""

import struct
from typing import NoReturn

from secrun.measure.measuring import Measuring
from secrun.paths import Layout
from secrun.pod import client
from secrun.pod.request import USUAL_TERMINAL, terminal_size
from secrun.record import record
from secrun.stage1.agent import agent_path
from secrun.stage1.manifest import AppManifest

# The frame that asks a shim for the app's streams (docs/agent-protocol.md).
_ATTACH = 0x81


@record
class AttachRequest:
    """What of an app is wanted."""

    app: str | None
    stdin: bool
    """Its input too, if it was started with one."""
    sig_proxy: bool
    detach_keys: bytes


def joined(app: AppManifest, request: AttachRequest) -> client.Streams:
    """Return how the caller's streams are joined with the app's; pure.

    Who only looks keeps a terminal that makes signals of keys.
    """
    interactive = request.stdin and app.stdin
    return client.Streams(
        interactive=interactive,
        terminal=interactive and app.terminal,
        detach_keys=request.detach_keys,
        sig_proxy=request.sig_proxy,
    )


def attach_request(streams: client.Streams, size: tuple[int, int]) -> bytes:
    """Return the ATTACH frame, type and payload; pure. Who only looks leaves the terminal's size alone."""
    flags = client.STDOUT | client.STDERR | (client.STDIN if streams.interactive else 0)
    rows, columns = size if streams.terminal else (0, 0)
    return bytes([_ATTACH]) + struct.pack("<BHH", flags, rows, columns)


def attach(layout: Layout, text: str, request: AttachRequest, measuring: Measuring) -> NoReturn:
    """Attach to an app; this process becomes the agent's client, which ends with the app's code or detached.

    Input is an entry, allowed and measured as a command is: to a shell it may say whatever a command does.
    """
    target = client.running_app(layout, text, request.app)
    streams = joined(target.app, request)
    if streams.interactive:
        client.hold_entry(layout, target, measuring)
    if streams.terminal:
        client.need_terminal(
            f"app {target.app.name} has a terminal: its input", "--no-stdin follows what it says"
        )
    agent = agent_path()
    connection = client.connect(target)
    if streams.interactive:
        measuring.entering(target.files, target.uuid, app=target.app.name, argv=(), user=None)
    client.become(agent, connection, attach_request(streams, terminal_size() or USUAL_TERMINAL), streams)
