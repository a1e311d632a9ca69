"""How systemd is asked for a pod's scope: one D-Bus call, and an answer that is not believed blindly."""

import os
import select
import signal
import socket
import struct
from pathlib import Path

import pytest

from secrun.errors import HostError
from secrun.stage1 import systemdscope

UNIT = "secrun-0a1b.scope"


class Reader:
    """Reads what D-Bus marshals, by the specification's rules."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def align(self, size: int) -> None:
        pad = -self.at % size
        assert self.data[self.at : self.at + pad] == bytes(pad)
        self.at += pad

    def take(self, size: int) -> bytes:
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        self.align(4)
        return struct.unpack("<I", self.take(4))[0]

    def value(self, kind: str) -> object:
        if kind in ("u", "b"):
            return self.number()
        if kind in ("s", "o", "g"):
            size = self.take(1)[0] if kind == "g" else self.number()
            text = self.take(size).decode()
            assert self.take(1) == b"\0"
            return text
        if kind == "v":
            return self.value(self.value("g"))
        assert kind[0] in "a(", kind
        if kind[0] == "(":
            self.align(8)
            return tuple(self.value(item) for item in members(kind[1:-1]))
        size = self.number()
        self.align(8 if kind[1] == "(" else 4)
        end, items = self.at + size, []
        while self.at < end:
            items.append(self.value(kind[1:]))
        assert self.at == end
        return items


def members(signature: str) -> list[str]:
    """Split a signature into whole types."""
    found, depth, begin = [], 0, 0
    for index, char in enumerate(signature):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth == 0 and char != "a":
            found.append(signature[begin : index + 1])
            begin = index + 1
    return found


def test_the_call_says_what_systemd_reads():
    message = systemdscope.start_call(UNIT, "secrun pod 0a1b", 4711)
    assert message[:4] == b"l\x01\x00\x01"
    head = Reader(message)
    head.at = 4
    body_size, _ = head.number(), head.number()
    fields = _fields(head)
    assert fields == {
        1: "/org/freedesktop/systemd1",
        2: "org.freedesktop.systemd1.Manager",
        3: "StartTransientUnit",
        6: "org.freedesktop.systemd1",
        8: "ssa(sv)a(sa(sv))",
    }
    head.align(8)
    body = Reader(message[head.at :])
    assert len(body.data) == body_size
    unit, mode, properties, others = (body.value(kind) for kind in members(fields[8]))
    assert (unit, mode, others) == (UNIT, "fail", [])
    assert dict(properties) == {
        "Description": "secrun pod 0a1b",
        "Slice": "machine.slice",
        "CollectMode": "inactive-or-failed",
        "DelegateControllers": ["cpu", "io", "memory", "pids"],
        "PIDs": [4711],
    }
    assert body.at == body_size


def _fields(head: Reader) -> dict[int, object]:
    size = head.number()
    head.align(8)
    end, found = head.at + size, {}
    while head.at < end:
        head.align(8)
        code = head.take(1)[0]
        found[code] = head.value("v")
    assert head.at == end
    return found


def message(kind: int, body: bytes = b"", fields: bytes = b"") -> bytes:
    head = struct.pack("<BBBBIII", ord("l"), kind, 0, 1, len(body), 7, len(fields))
    return head + fields + bytes(-len(fields) % 8) + body


def text(said: str) -> bytes:
    return struct.pack("<I", len(said)) + said.encode() + b"\0"


def answered(*answers: bytes) -> bytes:
    """Ask a manager that says this; return what it was sent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"".join(answers))
        theirs.shutdown(socket.SHUT_WR)
        systemdscope._ask(ours, b"CALL")
        return theirs.recv(4096)


def test_it_authenticates_and_waits_for_the_answer_to_its_call():
    signal_first = message(4, b"x" * 5, b"y" * 3)
    sent = answered(b"OK 0123\r\n", signal_first, message(2, text("/job/1")))
    user = str(os.geteuid()).encode().hex().encode()
    assert sent == b"\0AUTH EXTERNAL " + user + b"\r\nBEGIN\r\nCALL"


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ((b"REJECTED\r\n",), "does not know"),
        ((b"OK 1\r\n", message(3, text("Unit exists."))), "makes no scope: Unit exists"),
        ((b"OK 1\r\n",), "closed"),
        ((b"OK 1",), "closed"),
        ((b"x" * 70000,), "no end"),
        ((b"OK 1\r\n", b"B" + message(2)[1:]), "byte order"),
        ((b"OK 1\r\n", struct.pack("<BBBBIII", ord("l"), 2, 0, 1, 1 << 30, 7, 0)), "byte order and size"),
        ((b"OK 1\r\n", message(2, text("job"))[:-2]), "closed"),
    ],
)
def test_what_is_no_answer_is_an_error(answers: tuple[bytes, ...], said: str):
    with pytest.raises(HostError, match=said) as caught:
        answered(*answers)
    assert caught.value.code == "host-systemd"


def test_a_placeholder_goes_when_the_group_has_a_process(tmp_path: Path):
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    placeholder = systemdscope.Placeholder()
    assert os.waitpid(placeholder.pid, os.WNOHANG) == (0, 0)
    placeholder.release(tmp_path)
    assert os.waitpid(placeholder.pid, 0) == (placeholder.pid, 0)


def test_a_placeholder_goes_when_it_is_not_needed():
    placeholder = systemdscope.Placeholder()
    placeholder.end()
    assert os.waitpid(placeholder.pid, 0) == (placeholder.pid, 0)


@pytest.mark.parametrize("when", ["released", "waiting"])
def test_a_placeholder_goes_with_whoever_made_it(tmp_path: Path, when: str):
    (tmp_path / "cgroup.events").write_text("populated 0\n")
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        placeholder = systemdscope.Placeholder()
        if when == "released":
            placeholder.release(tmp_path)
        os.write(write_fd, f"{placeholder.pid}\n".encode())
        signal.pause()
    number = int(os.read(read_fd, 20))
    watched = os.pidfd_open(number)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert select.select([watched], [], [], 60)[0]
    for fd in (read_fd, write_fd, watched):
        os.close(fd)
