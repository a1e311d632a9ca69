"""The client against a stand-in of a shim."""

import os
import signal
import socket
import struct
from dataclasses import dataclass

import pytest

from host.agent_host import Host, Terminal
from host.agent_kit import (
    ERROR,
    EXEC,
    EXIT,
    HELLO,
    LOST,
    PATIENCE,
    RESIZE,
    SIGNAL,
    STDERR,
    STDIN,
    STDOUT,
    WANT_STDIN,
    WANT_TTY,
    Frames,
    Running,
    built_agent,
    eventually,
    exec_payload,
    pack,
    window_size,
)


@dataclass
class Shim:
    """The client under test with a stand-in for its shim."""

    frames: Frames
    process: Running


def client(
    host: Host, request: bytes, *options: str, stdin: int | None = None, stdout: int | None = None
) -> Shim:
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    os.write(write, request)
    os.close(write)
    ours.settimeout(PATIENCE)
    words = [built_agent(), "client", "--conn-fd", str(theirs.fileno()), "--request-fd", str(read), *options]
    out = os.open(host.top / "out", os.O_WRONLY | os.O_CREAT) if stdout is None else stdout
    process = Running(words, stdin=stdin, stdout=out, stderr=out, fds=[theirs.fileno(), read])
    host.running.append(process)
    host.sockets.append(ours)
    theirs.close()
    os.close(read)
    if stdout is None:
        os.close(out)
    frames = Frames(ours)
    frames.send(HELLO, b"\x03\x00a")
    return Shim(frames, process)


def request(flags: int = 0) -> bytes:
    return bytes([EXEC]) + exec_payload(["cmd"], flags=flags)


def test_client_passes_the_request_output_and_code(host: Host) -> None:
    shim = client(host, request())
    assert shim.frames.expect(EXEC) == exec_payload(["cmd"])
    shim.frames.send(STDOUT, b"out\n")
    shim.frames.send(STDERR, b"err\n")
    shim.frames.send(EXIT, b"\x17\x00")
    assert shim.process.wait() == 23
    assert (host.top / "out").read_text() == "out\nerr\n"


def test_client_shows_why_a_command_failed(host: Host) -> None:
    shim = client(host, request())
    shim.frames.expect(EXEC)
    shim.frames.send(EXIT, b"\x7f\x00program \x1b[31mx not found")
    assert shim.process.wait() == 127
    assert (host.top / "out").read_text() == "secrun: program ?[31mx not found\n"


@pytest.mark.parametrize("last", [b"", pack(ERROR, b"the app is not running"), b"\xff\xff\xff\xff\xff"])
def test_client_whose_connection_breaks(host: Host, last: bytes) -> None:
    shim = client(host, request())
    shim.frames.expect(EXEC)
    shim.frames.socket.sendall(last)
    shim.frames.socket.close()
    assert shim.process.wait() == 125
    assert (host.top / "out").read_text().startswith("secrun: ")


def test_client_input_and_signals(host: Host) -> None:
    read, write = os.pipe()
    shim = client(host, request(WANT_STDIN), "--stdin", stdin=read)
    shim.frames.expect(EXEC)
    os.write(write, b"typed")
    assert shim.frames.expect(STDIN) == b"typed"
    shim.process.signal(signal.SIGTERM)
    assert shim.frames.expect(SIGNAL) == bytes([signal.SIGTERM])
    os.close(write)
    assert shim.frames.expect(STDIN) == b""
    shim.frames.send(LOST, struct.pack("<Q", 12))
    shim.frames.send(EXIT, b"\x8f\x0f")
    assert shim.process.wait() == 143
    assert "12 bytes lost" in (host.top / "out").read_text()
    os.close(read)


def test_client_on_a_terminal(host: Host, terminal: Terminal) -> None:
    before = terminal.settings()
    options = ["--tty", "--stdin"]
    wanted = request(WANT_TTY | WANT_STDIN)
    shim = client(host, wanted, *options, stdin=terminal.theirs, stdout=terminal.theirs)
    shim.frames.expect(EXEC)
    eventually(terminal.is_raw)
    os.write(terminal.ours, b"\x03")
    assert shim.frames.expect(STDIN) == b"\x03"
    window_size(terminal.theirs, 10, 20)
    shim.process.signal(signal.SIGWINCH)
    assert shim.frames.expect(RESIZE) == struct.pack("<HH", 10, 20)
    shim.frames.send(EXIT, b"\x00\x00")
    assert shim.process.wait() == 0
    assert terminal.settings() == before


def test_client_ends_when_nobody_reads(host: Host) -> None:
    read, write = os.pipe()
    shim = client(host, request(), stdout=write)
    os.close(write)
    os.close(read)
    shim.frames.expect(EXEC)
    shim.frames.send(STDOUT, b"x")
    assert shim.process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize("wrong", [b"", bytes([SIGNAL, 1]), bytes([EXEC]), bytes([EXEC]) + bytes(70_000)])
def test_client_refuses_wrong_requests(host: Host, wrong: bytes) -> None:
    (host.top / "request").write_bytes(wrong)
    ours, theirs = socket.socketpair()
    host.sockets += [ours, theirs]
    fd = os.open(host.top / "request", os.O_RDONLY)
    words = [built_agent(), "client", "--conn-fd", str(theirs.fileno()), "--request-fd", str(fd)]
    process = Running(words, fds=[theirs.fileno(), fd])
    os.close(fd)
    assert process.wait() == 125
