"""A scope unit for each pod, where systemd is PID 1: `systemctl status` shows it, its group is ours.

Delegated, so that systemd leaves alone what is below it (systemd's CGROUP_DELEGATION.md). The manager is
asked by D-Bus on its private socket, which root may use and which is there before any bus is; one method
call needs no library (D-Bus specification, "Message Protocol").
"""

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from secrun.errors import HostError
from secrun.stage1.cgroups import SLICE, scope_name

_PRIVATE = "/run/systemd/private"
# Those that limits of apps need; each that is handed down costs at every fork and switch.
_CONTROLLERS = ("cpu", "io", "memory", "pids")
# What the manager answers to this call has some hundred bytes.
_MAX_REPLY = 64 * 1024
_SECONDS = 30.0
_POLL_SECONDS = 0.001
_METHOD_CALL, _METHOD_RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8


class _Writer:
    """Marshals values, little endian, each aligned from the start of the message part."""

    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, size: int) -> None:
        self.data += bytes(-len(self.data) % size)

    def number(self, value: int) -> None:
        self.align(4)
        self.data += struct.pack("<I", value)

    def text(self, value: str) -> None:
        self.number(len(value.encode()))
        self.data += value.encode() + b"\0"

    def signature(self, value: str) -> None:
        self.data += bytes([len(value)]) + value.encode() + b"\0"

    def array(self, size: int, fill: Callable[[], None]) -> None:
        """Write what `fill` writes as an array of elements aligned to `size`."""
        self.number(0)
        place = len(self.data) - 4
        self.align(size)
        begin = len(self.data)
        fill()
        struct.pack_into("<I", self.data, place, len(self.data) - begin)


def _properties(writer: _Writer, description: str, pid: int) -> None:
    for name, value in (
        ("Description", description),
        ("Slice", SLICE),
        ("CollectMode", "inactive-or-failed"),
    ):
        writer.align(8)
        writer.text(name)
        writer.signature("s")
        writer.text(value)
    writer.align(8)
    writer.text("DelegateControllers")
    writer.signature("as")

    def controllers() -> None:
        for name in _CONTROLLERS:
            writer.text(name)

    writer.array(4, controllers)
    writer.align(8)
    writer.text("PIDs")
    writer.signature("au")
    writer.array(4, lambda: writer.number(pid))


def start_call(unit: str, description: str, pid: int) -> bytes:
    """Return the message that asks for a scope around one process (StartTransientUnit); pure."""
    body = _Writer()
    body.text(unit)
    body.text("fail")
    body.array(8, lambda: _properties(body, description, pid))
    body.array(8, lambda: None)
    head = _Writer()
    head.data += struct.pack("<BBBBII", ord("l"), _METHOD_CALL, 0, 1, len(body.data), 1)
    fields = (
        (_PATH, "o", "/org/freedesktop/systemd1"),
        (_INTERFACE, "s", "org.freedesktop.systemd1.Manager"),
        (_MEMBER, "s", "StartTransientUnit"),
        (_DESTINATION, "s", "org.freedesktop.systemd1"),
    )

    def fill() -> None:
        for code, kind, value in fields:
            head.align(8)
            head.data.append(code)
            head.signature(kind)
            head.text(value)
        head.align(8)
        head.data.append(_SIGNATURE)
        head.signature("g")
        head.signature("ssa(sv)a(sa(sv))")

    head.array(8, fill)
    head.align(8)
    return bytes(head.data + body.data)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise HostError("systemd closed the connection", code="host-systemd")
        data += piece
    return data


def _message(connection: socket.socket) -> tuple[int, bytes]:
    """Return type and body of the next message."""
    order, kind, _, _, body, _, fields = struct.unpack("<BBBBIII", _exactly(connection, 16))
    if order != ord("l") or body > _MAX_REPLY or fields > _MAX_REPLY:
        raise HostError("systemd's answer is no message of its own byte order and size", code="host-systemd")
    _exactly(connection, fields + -fields % 8)
    return kind, _exactly(connection, body)


def _ask(connection: socket.socket, message: bytes) -> None:
    """Authenticate as this user and make one call; raises HostError with what the manager says."""
    user = str(os.geteuid()).encode().hex()
    connection.sendall(f"\0AUTH EXTERNAL {user}\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n"):
        answer += _exactly(connection, 1)
        if len(answer) > _MAX_REPLY:
            raise HostError("systemd's answer has no end", code="host-systemd")
    if not answer.startswith(b"OK "):
        raise HostError(f"systemd does not know this user: {answer[:100]!r}", code="host-systemd")
    connection.sendall(b"BEGIN\r\n" + message)
    while True:
        kind, body = _message(connection)
        if kind == _METHOD_RETURN:
            return
        if kind == _ERROR:
            said = body[4:].split(b"\0")[0].decode("utf-8", "replace")
            raise HostError(f"systemd makes no scope: {said[:300]}", code="host-systemd")


class Placeholder:
    """A child that keeps a scope from being empty until the pod's first process is there.

    It goes with this process too, and is reaped by it or by the waiter that this process becomes.
    """

    def __init__(self) -> None:
        gate, self._word = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._word)
                _stay(gate, os.pidfd_open(parent))
            finally:
                os._exit(0)
        os.close(gate)

    def release(self, group: Path) -> None:
        """Let it go as soon as `group` has a process."""
        os.write(self._word, os.fsencode(group))
        os.close(self._word)

    def end(self) -> None:
        """Let it go now."""
        os.close(self._word)


def _stay(gate: int, parent: int) -> None:
    """Wait for the name of a group, then for a process in it (cgroups(7), cgroup.events), or for an end.

    No parent death signal: the parent is somebody else by then, whom SELinux need not let send one.
    """
    group = os.read(gate, 4096)
    if not group:
        return
    events = os.open(os.path.join(group, b"cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
    poller = select.poll()
    poller.register(events, select.POLLPRI)
    poller.register(parent, select.POLLIN)
    while b"populated 1" not in os.pread(events, 4096, 0):
        if parent in {fd for fd, _ in poller.poll()}:
            return


def _await_start(group: Path, pid: int) -> None:
    """Wait until systemd has put the process into the group; raises HostError if it does not."""
    deadline = time.monotonic() + _SECONDS
    while not _holds(group, pid):
        if time.monotonic() > deadline:
            raise HostError(f"systemd does not start {group.name}", code="host-systemd")
        time.sleep(_POLL_SECONDS)


def _holds(group: Path, pid: int) -> bool:
    try:
        return str(pid) in (group / "cgroup.procs").read_text().split()
    except FileNotFoundError:
        return False


def start(mount: Path, uuid: str) -> tuple[Path, Placeholder]:
    """Make a pod's scope; return its group, in which only a subgroup has a process. Raises HostError."""
    group = mount / SLICE / scope_name(uuid)
    placeholder = Placeholder()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(_PRIVATE)
            _ask(connection, start_call(scope_name(uuid), f"secrun pod {uuid}", placeholder.pid))
        _await_start(group, placeholder.pid)
        # A group with processes cannot share out its controllers; systemd removes both in the end.
        hold = group / "hold"
        hold.mkdir()
        (hold / "cgroup.procs").write_text(str(placeholder.pid))
    except OSError as error:
        placeholder.end()
        raise HostError(f"{_PRIVATE}: {error.strerror or error}", code="host-systemd") from error
    except BaseException:
        placeholder.end()
        raise
    return group, placeholder
