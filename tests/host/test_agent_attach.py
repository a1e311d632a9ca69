"""Peers that come and go beside a running app: input changes hands, terminals and commands are let go."""

import os
import signal
import socket
import struct
import sys
from pathlib import Path

import pytest

from host.agent_host import APP, Host, Terminal, pending_signals
from host.agent_kit import (
    ALONE,
    ATTACH,
    CREDIT,
    ERROR,
    EXEC,
    EXIT,
    MAX_PAYLOAD,
    PATIENCE,
    RESIZE,
    SIGNAL,
    STARTED,
    STDIN,
    STDOUT,
    WANT_STDERR,
    WANT_STDIN,
    WANT_STDOUT,
    WANT_TTY,
    WINDOW,
    Frames,
    Running,
    Stage,
    built_agent,
    eventually,
    exit_of,
    joined,
)
from host.test_agent_client import client
from host.test_agent_client import request as command

BOTH = WANT_STDOUT | WANT_STDERR
KEYS = "16,17"
# Reads nothing before it is told to.
LATE_CAT = ["sh", "-c", "trap 'exec cat' USR1; echo up; while :; do sleep 0.05; done"]


def attach(flags: int, rows: int = 0, columns: int = 0) -> bytes:
    return struct.pack("<BHH", flags, rows, columns)


def attached(stage: Stage, flags: int) -> Frames:
    peer = stage.connect()
    peer.send(ATTACH, attach(flags))
    peer.expect(STARTED)
    return peer


# --- the shim


def test_who_wants_less_gives_up_input_and_output_and_hears_of_the_end(stage: Stage) -> None:
    stage.start(["cat"], "--stdin")
    first = stage.foreground(stdin=True)
    first.expect(STARTED)
    first.send(ATTACH, attach(0))
    second = attached(stage, BOTH | WANT_STDIN)
    second.send(STDIN, b"mine now\n")
    second.until_output(b"mine now\n")
    second.send(STDIN)
    assert exit_of(second.rest()) == (0, 0, "")
    assert [kind for kind, _ in first.rest()] == [EXIT]


def test_who_wants_more_than_before_breaks_the_protocol(stage: Stage) -> None:
    stage.start(["cat"], "--stdin")
    stage.foreground().expect(STARTED)
    peer = attached(stage, WANT_STDOUT)
    peer.send(ATTACH, attach(WANT_STDOUT | WANT_STDIN))
    assert b"more than before" in peer.expect(ERROR)


def test_nobody_gets_credit_for_what_another_has_sent(stage: Stage) -> None:
    stage.start(LATE_CAT, "--stdin")
    first = stage.foreground(stdin=True)
    first.until_output(b"up\n")
    # The first of it fills the pipe.
    first.send(STDIN, bytes(MAX_PAYLOAD))
    assert first.expect(CREDIT) == struct.pack("<I", MAX_PAYLOAD)
    first.send(STDIN, bytes(MAX_PAYLOAD - 1))
    first.send(ATTACH, attach(0))
    second = attached(stage, BOTH | WANT_STDIN)
    second.send(STDIN, b"second")
    second.send(SIGNAL, bytes([signal.SIGUSR1]))
    seen = b""
    granted: list[bytes] = []
    while not seen.endswith(b"second"):
        frame = second.receive()
        assert frame is not None, granted
        seen += frame[1] if frame[0] == STDOUT else b""
        granted += [frame[1]] if frame[0] == CREDIT else []
    assert len(seen) == 2 * MAX_PAYLOAD - 1 + len(b"second")
    second.send(STDIN)
    granted += [payload for kind, payload in second.rest() if kind == CREDIT]
    assert sum(struct.unpack("<I", each)[0] for each in granted) == len(b"second")


def test_input_of_many_that_the_app_does_not_read_is_bounded(stage: Stage) -> None:
    stage.start(LATE_CAT, "--stdin")
    foreground = stage.foreground()
    foreground.until_output(b"up\n")
    for _ in range(3):
        peer = attached(stage, WANT_STDIN)
        peer.send(STDIN, bytes(WINDOW))
        peer.send(ATTACH, attach(0))
    last = stage.connect()
    last.send(ATTACH, attach(WANT_STDIN))
    assert b"has not read" in last.expect(ERROR)
    foreground.send(SIGNAL, bytes([signal.SIGKILL]))
    foreground.rest()


def test_a_command_that_is_left_alone_says_that_it_runs_and_outlives_its_client(stage: Stage) -> None:
    stage.start(["sleep", "1000"])
    stage.foreground().expect(STARTED)
    script = "echo unheard; while [ ! -e /go ]; do sleep 0.05; done; echo did > /did"
    peer = stage.execute(["sh", "-c", script], flags=ALONE)
    assert [kind for kind, _ in peer.rest()] == [STARTED]
    look = ["sh", "-c", "touch /go; cat /did"]
    (stage.image / "bin" / "touch").symlink_to("busybox")
    eventually(lambda: joined(stage.execute(look).rest(), STDOUT) == b"did\n")
    assert exit_of(stage.execute(["nothing"], flags=ALONE).rest())[0] == 127


@pytest.mark.parametrize("flags", [0, WANT_TTY | WANT_STDIN])
def test_a_command_that_was_let_go_outlives_its_client(stage: Stage, flags: int) -> None:
    stage.start(["sleep", "1000"])
    stage.foreground().expect(STARTED)
    (stage.image / "bin" / "touch").symlink_to("busybox")
    script = "echo up; while [ ! -e /go ]; do sleep 0.05; done; echo did > /did"
    peer = stage.execute(["sh", "-c", script], flags=flags)
    peer.until_output(b"up")
    peer.send(ATTACH, attach(0))
    # What was said before the end is heard.
    peer.socket.shutdown(socket.SHUT_WR)
    assert not joined(peer.rest(), EXIT)
    look = ["sh", "-c", "touch /go; cat /did"]
    eventually(lambda: joined(stage.execute(look).rest(), STDOUT) == b"did\n")


# --- the waiter


def fronted(host: Host, terminal: Terminal, *steps: str) -> tuple[Running, socket.socket]:
    """A waiter on a terminal, and the link to who stands before it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    host.sockets.append(ours)
    process = host.wait(
        [*APP, *steps],
        *("--foreground", "--tty", "--stdin-app", "a"),
        *("--front-fd", str(theirs.fileno()), "--detach-keys", KEYS),
        stdin=terminal.theirs,
        stdout=terminal.theirs,
        fds=[theirs.fileno()],
        finish=f"echo finish $1 > {host.top / 'finish'}",
    )
    theirs.close()
    return process, ours


def test_the_keys_give_the_terminal_back_and_leave_the_pod(host: Host, terminal: Terminal) -> None:
    before = terminal.settings()
    seen = host.top / "seen"
    steps = ["frame", "03", "up\n", "tell", "keep", str(seen), "frame", "03", "unseen\n"]
    process, front = fronted(host, terminal, *steps, "until", str(host.top / "go"), "exit", "0")
    terminal.until(b"up\n")
    os.write(terminal.ours, b"x\x10")
    # The first of the keys is held back: it may be meant for nobody else.
    assert b"<82 78>" in terminal.until(b">")
    os.write(terminal.ours, b"\x11")
    assert front.recv(1) == b"d"
    assert front.recv(1) == b""
    assert terminal.settings() == before
    eventually(seen.exists)
    eventually(lambda: seen.read_text() == f"81 {attach(0).hex()}\n")
    for standard in range(3):
        assert os.readlink(f"/proc/{process.pid}/fd/{standard}") == "/dev/null"
    assert os.getsid(process.pid) == process.pid
    (host.top / "go").touch()
    process.wait()
    assert (host.top / "finish").read_text().startswith("finish --stage1-status")


def test_keys_that_are_others_go_to_the_app(host: Host, terminal: Terminal) -> None:
    _, _ = fronted(host, terminal, "frame", "03", "up\n", "tell", "tell", "exit", "0")
    terminal.until(b"up\n")
    os.write(terminal.ours, b"\x10")
    os.write(terminal.ours, b"\x10y")
    assert b"<82 101079>" in terminal.until(b">").replace(b"<82 10>\n<82 1079>", b"<82 101079>")


def test_signals_of_a_waiter_with_a_front_come_from_the_front(host: Host, terminal: Terminal) -> None:
    process, front = fronted(host, terminal, "frame", "03", "up\n", "tell", "exit", "0")
    terminal.until(b"up\n")
    # As from the terminal: to the whole group, hence to the front too.
    process.signal(signal.SIGUSR1)
    eventually(lambda: pending_signals(process.pid) == 0)
    front.sendall(bytes([signal.SIGUSR2]))
    assert f"<83 {signal.SIGUSR2:02x}>".encode() in terminal.until(b">")
    process.wait()


def test_a_pod_goes_with_the_front(host: Host, terminal: Terminal) -> None:
    process, front = fronted(host, terminal, "frame", "03", "up\n", "forever")
    terminal.until(b"up\n")
    front.close()
    process.wait()
    assert (host.top / "finish").exists()


def test_a_terminal_is_raw_again_when_a_shell_lets_the_job_go_on(host: Host, terminal: Terminal) -> None:
    before = terminal.settings()
    steps = ["frame", "03", "up\n", "until", str(host.top / "go"), "exit", "0"]
    process, _ = fronted(host, terminal, *steps)
    terminal.until(b"up\n")
    terminal.restore(before)
    process.signal(signal.SIGCONT)
    eventually(terminal.is_raw)
    (host.top / "go").touch()
    process.wait()
    assert terminal.settings() == before


# --- the client


def attaching(host: Host, terminal: Terminal, *options: str) -> "tuple[Frames, Running]":
    shim = client(
        host,
        bytes([ATTACH]) + attach(BOTH | WANT_STDIN, 24, 80),
        *("--tty", "--stdin", *options),
        stdin=terminal.theirs,
        stdout=terminal.theirs,
    )
    assert shim.frames.expect(ATTACH) == attach(BOTH | WANT_STDIN, 24, 80)
    # A program that shows something draws it anew.
    assert shim.frames.expect(RESIZE) == struct.pack("<HH", 25, 80)
    assert shim.frames.expect(RESIZE) == struct.pack("<HH", 24, 80)
    eventually(terminal.is_raw)
    return shim.frames, shim.process


def test_the_keys_end_the_client_once_the_shim_knows(host: Host, terminal: Terminal) -> None:
    before = terminal.settings()
    frames, process = attaching(host, terminal, "--detach-keys", KEYS)
    os.write(terminal.ours, b"bye\x10\x11")
    assert frames.expect(STDIN) == b"bye"
    assert frames.expect(ATTACH) == attach(0)
    frames.send(STDOUT, b"unseen")
    assert frames.receive() is None
    assert process.code is None
    frames.socket.close()
    assert process.wait() == 0
    assert b"unseen" not in terminal.until(b"secrun: detached")
    assert terminal.settings() == before


def test_a_command_is_let_go_by_the_same_keys(host: Host, terminal: Terminal) -> None:
    wanted = command(WANT_TTY | WANT_STDIN)
    shim = client(
        host,
        wanted,
        *("--tty", "--stdin", "--detach-keys", "1"),
        stdin=terminal.theirs,
        stdout=terminal.theirs,
    )
    os.write(terminal.ours, b"\x01")
    kinds = [frame[0] for frame in iter(shim.frames.receive, None)]
    assert kinds[1:] == [ATTACH]
    shim.frames.socket.close()
    assert shim.process.wait() == 0


def test_a_terminal_that_goes_ends_only_the_client(host: Host, terminal: Terminal) -> None:
    frames, process = attaching(host, terminal)
    os.close(terminal.theirs)
    os.close(terminal.ours)
    assert process.wait() == 128 + signal.SIGHUP
    assert frames.rest() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_to_the_app_or_end_the_client(host: Host, number: int) -> None:
    looking = bytes([ATTACH]) + attach(BOTH)
    shim = client(host, looking)
    shim.frames.expect(ATTACH)
    shim.process.signal(number)
    assert shim.frames.expect(SIGNAL) == bytes([number])
    shim.frames.send(EXIT, b"\x05\x00")
    assert shim.process.wait() == 5
    (host.top / "out").unlink()
    shim = client(host, looking, "--keep-signals")
    shim.frames.expect(ATTACH)
    shim.process.signal(number)
    assert shim.process.wait() == 128 + number
    assert shim.frames.rest() == []


def test_a_client_of_a_command_left_alone_ends_when_it_runs(host: Host) -> None:
    shim = client(host, command(ALONE))
    shim.frames.expect(EXEC)
    shim.frames.send(STARTED, bytes(8))
    shim.frames.socket.shutdown(socket.SHUT_WR)
    assert shim.process.wait() == 0


# --- the front

# Starts a child as stage0 does, and becomes the front of it.
_FRONT = """
import os, socket, sys
agent, child = sys.argv[1], sys.argv[2:]
ours, theirs = socket.socketpair()
pid = os.fork()
if pid == 0:
    os.dup2(theirs.fileno(), 9)
    os.execv(child[0], child)
theirs.close()
ours.set_inheritable(True)
os.execv(agent, [agent, "front", "--child", str(pid), "--link-fd", str(ours.fileno()), "--pod", "UUID"])
"""


def front(host: Host, script: str) -> Running:
    out = os.open(host.top / "out", os.O_WRONLY | os.O_CREAT)
    child = ["/bin/sh", "-c", f"echo $$ > {host.top / 'child'}; {script}"]
    process = Running(
        [sys.executable, "-c", _FRONT, built_agent(), *child], stdout=out, stderr=out, session=True
    )
    host.running.append(process)
    os.close(out)
    return process


def takes(pid: int, number: int) -> bool:
    """Whether a process has blocked a signal, so as to read it."""
    (line,) = (
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk:")
    )
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize(("script", "code"), [("exit 9", 9), ("kill -KILL $$", 137)])
def test_a_front_ends_as_its_waiter_does(host: Host, script: str, code: int) -> None:
    assert front(host, script).wait() == code


def test_a_front_ends_before_a_waiter_that_has_let_go(host: Host) -> None:
    process = front(host, "printf d >&9; exec sleep 1000")
    assert process.wait() == 0
    assert (host.top / "out").read_text() == "\nsecrun: detached; pod UUID runs on\n"
    os.kill(int((host.top / "child").read_text()), signal.SIGKILL)


def test_a_front_passes_signals_on_and_stops_with_its_waiter(host: Host) -> None:
    script = "head -c 1 <&9 | od -An -tu1; while [ ! -e $0 ]; do sleep 0.05; done; exit 4"
    process = front(host, script.replace("$0", str(host.top / "go")))
    eventually(lambda: takes(process.pid, signal.SIGTERM))
    process.signal(signal.SIGTERM)
    eventually(lambda: (host.top / "out").read_text().split() == [str(int(signal.SIGTERM))])
    child = int((host.top / "child").read_text())
    os.kill(child, signal.SIGSTOP)
    eventually(lambda: state(process.pid) == "T")
    process.signal(signal.SIGCONT)
    eventually(lambda: state(process.pid) != "T" and state(child) != "T")
    (host.top / "go").touch()
    assert process.wait() == 4
