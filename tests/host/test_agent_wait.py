"""The waiter and the client on the host, against stand-ins of stage1 and of shims."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from host import agent_kit
from host.agent_kit import (
    ATTACH,
    CREDIT,
    ERROR,
    EXEC,
    EXIT,
    HELLO,
    LOST,
    PATIENCE,
    RESIZE,
    SIGNAL,
    STARTED,
    STDERR,
    STDIN,
    STDOUT,
    WANT_STDERR,
    WANT_STDIN,
    WANT_STDOUT,
    WANT_TTY,
    WINDOW,
    Frames,
    Running,
    built_agent,
    children,
    eventually,
    exec_payload,
    pack,
    resident_bytes,
    window_size,
)

FAKE = Path(__file__).with_name("agent_fake_stage1.py")
# Executed in the waiter's place: shows its last word, and the descriptors that it was left.
FINISH = "echo finish $1; echo fds $(ls /proc/self/fd)"


@dataclass
class Host:
    """The sockets and files that stage0 would hand to the waiter."""

    top: Path
    running: list[Running] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)

    def listener(self, name: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        self.sockets.append(made)
        with agent_kit.short_path(self.top / name) as short:
            made.bind(short)
        made.listen(64)
        made.settimeout(PATIENCE)
        return made

    def wait(
        self,
        steps: Sequence[str],
        *options: str,
        apps: Sequence[str] = ("a",),
        stdin: int | None = None,
        stdout: int | None = None,
        fds: Sequence[int] = (),
        finish: str = FINISH,
        session: bool = False,
    ) -> Running:
        attach = self.listener("attach")
        control = self.listener("control")
        log = os.open(self.top / "nspawn.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.out = self.top / "out"
        out = os.open(self.out, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if stdout is None else stdout
        words: list[str | os.PathLike[str]] = [built_agent(), "wait"]
        words += [
            "--attach-fd",
            str(attach.fileno()),
            "--control-fd",
            str(control.fileno()),
            "--log-fd",
            str(log),
        ]
        for app in apps:
            words += ["--app", app]
        words += options
        for word in ("/bin/sh", "-c", finish, "finish"):
            words += ["--finish", word]
        words += ["--", sys.executable, FAKE, self.top / "attach", *steps]
        everything = [attach.fileno(), control.fileno(), log, *fds]
        process = Running(words, stdin=stdin, stdout=out, stderr=out, fds=everything, session=session)
        self.running.append(process)
        os.close(log)
        if stdout is None:
            os.close(out)
        return process

    def output(self) -> str:
        return self.out.read_text()

    def stage1_said(self) -> str:
        return (self.top / "nspawn.log").read_text()

    def control(self, word: bytes) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self.sockets.append(client)
        with agent_kit.short_path(self.top / "control") as short:
            client.connect(short)
        client.sendall(word)
        return client


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    # Short names for sockets: the fake stage1 connects by path.
    monkeypatch.chdir(tmp_path)
    made = Host(tmp_path)
    yield made
    for process in made.running:
        process.close()
    for each in made.sockets:
        each.close()


APP = ["connect", "a", "recv", "81", "started"]


def go(host: Host, *steps: str, code: int = 0) -> list[str]:
    """Steps of one app, its end, and the end of stage1."""
    del host
    return [*APP, *steps, "ended", str(code), "close", "exit", "0"]


# --- the life of stage1


def test_finish_gets_the_status_of_stage1(host: Host) -> None:
    process = host.wait(["print", "hello", "exit", "9"])
    assert process.wait() == 0
    assert host.output().splitlines()[0] == "finish --stage1-status=9"
    assert host.stage1_said() == "hello\n"


def test_finish_decides_the_exit_code(host: Host) -> None:
    assert host.wait(["exit", "0"], finish="exit 42").wait() == 42


def test_a_killed_stage1_is_reported_as_a_signal(host: Host) -> None:
    process = host.wait(["forever"])
    child = eventually(lambda: children(process.pid))[0]
    os.kill(child, signal.SIGALRM)
    process.wait()
    assert "--stage1-status=142" in host.output()


def test_finish_that_cannot_be_executed(host: Host) -> None:
    process = Running(
        [
            built_agent(),
            "wait",
            "--attach-fd",
            str(host.listener("attach").fileno()),
            "--finish",
            "/none",
            "--",
            "/bin/true",
        ],
        fds=[host.sockets[0].fileno()],
    )
    assert process.wait() == 125


def test_stage1_that_cannot_be_executed(host: Host) -> None:
    out = os.open(host.top / "out", os.O_WRONLY | os.O_CREAT)
    attach = host.listener("attach").fileno()
    words = ["--attach-fd", str(attach), "--finish", "/bin/echo", "--finish", "end", "--", "/none"]
    assert Running([built_agent(), "wait", *words], stdout=out, stderr=out, fds=[attach]).wait() == 0
    text = (host.top / "out").read_text()
    assert "cannot start stage1" in text
    assert "end --stage1-status=125" in text
    os.close(out)


def test_signals_are_as_usual_for_stage1_and_finish(host: Host) -> None:
    process = host.wait(["blocked", "exit", "0"], finish="grep -E 'Sig(Blk|Ign)' /proc/self/status")
    assert process.wait() == 0
    assert host.stage1_said() == "[]\n"
    blocked, ignored = (int(line.split()[1], 16) for line in host.output().splitlines())
    assert blocked == 0
    assert not ignored >> (signal.SIGPIPE - 1) & 1


def test_descriptors(host: Host) -> None:
    keep = os.open(host.top / "lock", os.O_WRONLY | os.O_CREAT)
    stray = os.open(host.top / "stray", os.O_WRONLY | os.O_CREAT)
    process = host.wait(["fds", "exit", "0"], "--keep-fd", str(keep), fds=[keep, stray])
    assert process.wait() == 0
    # listdir's own descriptor is 3.
    assert host.stage1_said() == "fds 0 1 2 3\n"
    after = next(line for line in host.output().splitlines() if line.startswith("fds")).split()[1:]
    assert str(keep) in after
    assert str(stray) not in after
    assert len(after) == 5
    os.close(keep)
    os.close(stray)


def test_killing_the_waiter_kills_stage1(host: Host) -> None:
    process = host.wait(["forever"])
    child = eventually(lambda: children(process.pid))[0]
    pidfd = os.pidfd_open(child)
    process.signal(signal.SIGKILL)
    process.wait()
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)


def test_stage1_runs_in_the_cgroup_and_is_killed_with_it(host: Host) -> None:
    procs = os.open(host.top / "procs", os.O_RDWR | os.O_CREAT)
    kill = os.open(host.top / "kill", os.O_RDWR | os.O_CREAT)
    options = ["--cgroup-procs-fd", str(procs), "--cgroup-kill-fd", str(kill)]
    process = host.wait(
        ["ignore-term", "touch", str(host.top / "up"), "forever"], *options, fds=[procs, kill]
    )
    eventually((host.top / "up").exists)
    assert (host.top / "procs").read_text() == "0"
    assert (host.top / "kill").read_text() == ""
    host.control(b"K")
    process.wait()
    assert (host.top / "kill").read_text().startswith("1")
    assert "--stage1-status=137" in host.output()
    os.close(procs)
    os.close(kill)


def test_adopted_processes_do_not_hold_the_end_up(host: Host) -> None:
    begun = time.monotonic()
    process = host.wait(["spawn", "5", "exit", "0"])
    assert process.wait() == 0
    assert time.monotonic() - begun < 4.5


def test_memory(host: Host) -> None:
    process = host.wait([*APP, "forever"], "--foreground")
    eventually(lambda: children(process.pid))
    eventually(lambda: os.readlink(f"/proc/{process.pid}/exe").endswith("secrun-agent"))
    assert resident_bytes(process.pid) < 2_000_000


# --- being stopped


def order(host: Host, process: Running, how: str) -> None:
    """Ask for an orderly stop in one of its two ways."""
    if how == "signal":
        process.signal(signal.SIGTERM)
    else:
        host.control(b"T")


@pytest.mark.parametrize("how", ["signal", "control"])
def test_orderly_stop_of_running_apps_goes_to_their_shims(host: Host, how: str) -> None:
    process = host.wait([*APP, "touch", str(host.top / "up"), "recv", "87", "ended", "3", "exit", "3"])
    eventually((host.top / "up").exists)
    order(host, process, how)
    process.wait()
    assert "--stage1-status=3" in host.output()


@pytest.mark.parametrize("how", ["signal", "control"])
def test_orderly_stop_before_every_app_runs_goes_to_stage1(host: Host, how: str) -> None:
    process = host.wait([*APP, "touch", str(host.top / "up"), "term", "exit", "3"], apps=("a", "b"))
    eventually((host.top / "up").exists)
    order(host, process, how)
    process.wait()
    assert "--stage1-status=3" in host.output()


def test_a_control_connection_lasts_as_long_as_the_pod(host: Host) -> None:
    process = host.wait(["touch", str(host.top / "up"), "term", "exit", "0"])
    eventually((host.top / "up").exists)
    assert host.control(b"T").recv(1) == b""
    process.wait()


def test_a_second_term_kills(host: Host) -> None:
    process = host.wait(["ignore-term", "touch", str(host.top / "up"), "forever"])
    eventually((host.top / "up").exists)
    process.signal(signal.SIGTERM)
    # The first has been taken once it is no longer pending.
    eventually(lambda: pending_signals(process.pid) == 0)
    process.signal(signal.SIGTERM)
    process.wait()
    assert "--stage1-status=137" in host.output()


def pending_signals(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))


def test_stop_times_out(host: Host) -> None:
    process = host.wait(["ignore-term", "touch", str(host.top / "up"), "forever"], "--stop-timeout", "200")
    eventually((host.top / "up").exists)
    host.control(b"T")
    process.wait()
    assert "--stage1-status=137" in host.output()


def test_unknown_control_words_are_refused(host: Host) -> None:
    process = host.wait(["touch", str(host.top / "up"), "until", str(host.top / "go"), "exit", "0"])
    eventually((host.top / "up").exists)
    assert host.control(b"X").recv(1) == b""
    for _ in range(50):
        host.control(b"").close()
    (host.top / "go").touch()
    process.wait()
    assert "--stage1-status=0" in host.output()


def test_interrupts_climb(host: Host) -> None:
    steps = [
        *APP,
        "touch",
        str(host.top / "up"),
        "tell",
        "touch",
        str(host.top / "one"),
        "ignore-term",
        "forever",
    ]
    process = host.wait(steps, "--foreground")
    eventually((host.top / "up").exists)
    process.signal(signal.SIGINT)
    eventually((host.top / "one").exists)
    for _ in range(2):
        process.signal(signal.SIGINT)
        with contextlib.suppress(FileNotFoundError):
            eventually(lambda: process.pid and pending_signals(process.pid) == 0)
    process.wait()
    assert "<83 02>" in host.output()
    assert "--stage1-status=137" in host.output()


def test_an_interrupt_before_any_app_stops(host: Host) -> None:
    process = host.wait(["touch", str(host.top / "up"), "term", "exit", "4"])
    eventually((host.top / "up").exists)
    process.signal(signal.SIGINT)
    process.wait()
    assert "--stage1-status=4" in host.output()


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_other_signals_go_to_the_apps(host: Host, number: signal.Signals) -> None:
    process = host.wait(go(host, "touch", str(host.top / "up"), "tell"), "--foreground")
    eventually((host.top / "up").exists)
    process.signal(number)
    process.wait()
    assert f"<83 {number:02x}>" in host.output()


# --- streams


def test_foreground_output(host: Host) -> None:
    process = host.wait(go(host, "frame", "03", "out\n", "frame", "04", "err\n"), "--foreground")
    process.wait()
    assert host.output().startswith("out\nerr\nfinish")


def test_attach_says_what_is_wanted(host: Host) -> None:
    steps = ["connect", "a", "tell", "started", "close", "exit", "0"]
    process = host.wait(steps, "--foreground")
    process.wait()
    flags = WANT_STDOUT | WANT_STDERR
    assert f"<81 {flags:02x}00000000>" in host.output()


def test_a_detached_pod_gets_no_stream(host: Host) -> None:
    process = host.wait([*APP, "frame", "03", "secret", "closed", "exit", "0"])
    process.wait()
    assert host.output().startswith("finish --stage1-status=0")


def test_prefix(host: Host) -> None:
    process = host.wait(go(host, "frame", "03", "one\ntw", "frame", "03", "o\n"), "--foreground", "--prefix")
    process.wait()
    assert host.output().startswith("a | one\na | two\n")


def test_much_output_through_a_pipe(host: Host) -> None:
    read, write = os.pipe()
    size = 100_000_000
    process = host.wait(go(host, "flood", str(size)), "--foreground", stdout=write)
    os.close(write)
    tail, count, number = b"", 0, 0
    while data := os.read(read, 1 << 20):
        lines = (tail + data).split(b"\n")
        tail = lines.pop()
        for line in lines:
            if count < size:
                assert int(line) == number
                number += 1
                count += len(line) + 1
    assert count == size
    assert process.wait() == 0
    os.close(read)


def test_a_full_pipe_does_not_stop_signal_handling(host: Host) -> None:
    read, write = os.pipe()
    process = host.wait([*APP, "flood", "10000000", "exit", "0"], "--foreground", stdout=write)
    os.close(write)
    eventually(lambda: readable(read) > 60_000)
    for _ in range(2):
        process.signal(signal.SIGTERM)
        eventually(lambda: pending_signals(process.pid) == 0)
    eventually(lambda: not children(process.pid))
    # The pipe is still full: one more word gives the output up.
    process.signal(signal.SIGTERM)
    data = b""
    while piece := os.read(read, 65536):
        data += piece
    assert b"finish" in data
    process.wait()
    os.close(read)


def test_a_slow_reader_loses_nothing_at_the_end(host: Host) -> None:
    read, write = os.pipe()
    size = 400_000
    process = host.wait([*APP, "flood", str(size), "ended", "0", "exit", "0"], "--foreground", stdout=write)
    os.close(write)
    got = os.read(read, 65536)
    # Longer than the time that left-over connections get.
    time.sleep(2.5)
    while piece := os.read(read, 65536):
        got += piece
    assert got.index(b"finish") == size
    assert process.wait() == 0
    os.close(read)


def test_a_reader_that_goes_away_does_not_end_the_pod(host: Host) -> None:
    read, write = os.pipe()
    done = host.top / "done"
    process = host.wait(
        go(host, "flood", "1000000", "touch", str(done)), "--foreground", stdout=write, finish="exit 6"
    )
    os.close(write)
    os.close(read)
    assert process.wait() == 6
    assert done.exists()


def test_output_to_a_socket(host: Host) -> None:
    ours, theirs = socket.socketpair()
    process = host.wait(go(host, "flood", "1000000"), "--foreground", stdout=theirs.fileno())
    theirs.close()
    data = b""
    while piece := ours.recv(65536):
        data += piece
    assert data.index(b"finish") == 1_000_000
    assert process.wait() == 0
    ours.close()


def test_input_with_credit_and_end(host: Host) -> None:
    read, write = os.pipe()
    process = host.wait(go(host, "echo"), "--foreground", "--stdin-app", "a", stdin=read)
    os.close(read)
    data = os.urandom(500_000).hex().encode()
    os.write(write, b"x")
    for start in range(0, len(data), 4096):
        os.write(write, data[start : start + 4096])
    os.close(write)
    assert process.wait() == 0
    assert host.output().startswith("x" + data.decode() + "finish")


def test_input_stops_at_the_window(host: Host) -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(write, bytes(200_000))
    go_on = host.top / "go"
    process = host.wait([*APP, "until", str(go_on), "exit", "0"], "--stdin-app", "a", stdin=read)
    unread = WINDOW
    eventually(lambda: readable(read) == 200_000 - unread)
    go_on.touch()
    process.wait()
    os.close(read)
    os.close(write)


def readable(fd: int) -> int:
    buffer = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, buffer)
    return int(struct.unpack("i", buffer)[0])


# --- readiness


def test_ready_when_every_app_has_started(host: Host) -> None:
    read, write = os.pipe()
    first = ["connect", "a", "recv", "81", "started"]
    second = ["connect", "b", "recv", "81", "until", str(host.top / "go"), "started", "forever"]
    process = host.wait([*first, *second], "--ready-fd", str(write), apps=("a", "b"), fds=[write])
    os.close(write)
    assert not select.select([read], [], [], 0.3)[0]
    (host.top / "go").touch()
    assert os.read(read, 100) == b"ready\n"
    assert os.read(read, 100) == b""
    host.control(b"K")
    process.wait()
    os.close(read)


def test_failed_when_stage1_ends_first(host: Host) -> None:
    read, write = os.pipe()
    process = host.wait(["exit", "1"], "--ready-fd", str(write), fds=[write])
    os.close(write)
    assert os.read(read, 100) == b"failed\n"
    assert os.read(read, 100) == b""
    process.wait()
    os.close(read)


# --- hostile pods


HOSTILE = {
    "garbage": "474554202f20485454502f312e310d0a0d0a",
    "huge length": "03ffffffff",
    "unknown type": pack(0x70).hex(),
    "early output": pack(STDOUT, b"early").hex(),
    "host frame": pack(STDIN, b"x").hex(),
    "other version": pack(HELLO, b"\x02\x00a").hex(),
    "other app": pack(HELLO, b"\x01\x00zz").hex(),
    "app in no UTF-8": pack(HELLO, b"\x01\x00\xff").hex(),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_violations_end_the_connection_not_the_pod(host: Host, data: str) -> None:
    process = host.wait(
        ["open", "send", data, "closed", "close", *go(host, "frame", "03", "fine\n")], "--foreground"
    )
    process.wait()
    assert host.output().startswith("fine\nfinish --stage1-status=0")


@pytest.mark.parametrize(
    "data",
    [
        pack(STARTED, bytes(8)),
        pack(CREDIT, struct.pack("<I", WINDOW)),
        pack(CREDIT, b"\xff\xff\xff\xff"),
        pack(HELLO, b"\x01\x00a"),
        pack(EXIT, b"\x00\x00" + b"e" * 5000),
        pack(EXIT, b"\x00\x00") + pack(STDOUT, b"after the end"),
        pack(ATTACH, bytes(5)),
    ],
    ids=[
        "started twice",
        "credit",
        "more credit",
        "hello twice",
        "long text",
        "after the end",
        "host frame",
    ],
)
def test_violations_after_the_greeting(host: Host, data: bytes) -> None:
    process = host.wait([*APP, "send", data.hex(), "closed", "exit", "0"], "--foreground")
    process.wait()
    assert host.output().startswith("finish --stage1-status=0")


def test_an_app_cannot_come_twice(host: Host) -> None:
    process = host.wait([*APP, "close", "connect", "a", "closed", "exit", "0"], "--foreground")
    process.wait()
    assert "--stage1-status=0" in host.output()


def test_silent_connections_do_not_hold_up_the_end(host: Host) -> None:
    process = host.wait(["open", "open", "open", "send", "0105", "exit", "7"])
    process.wait()
    assert "--stage1-status=7" in host.output()


def test_many_connections(host: Host) -> None:
    process = host.wait(["many", "1000", *go(host, "frame", "03", "fine\n")], "--foreground")
    process.wait()
    assert host.output().startswith("fine\n")


def test_connections_are_bounded(host: Host) -> None:
    steps = [*["open"] * 20, "touch", str(host.top / "up"), "forever"]
    process = host.wait(steps, apps=("a", "b"))
    eventually((host.top / "up").exists)
    # Standard streams, signal, the two listeners, copies of 0, 1 and 2, and two connections at most.
    eventually(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) >= 11)
    assert len(os.listdir(f"/proc/{process.pid}/fd")) <= 12
    host.control(b"K")
    process.wait()


def test_a_flood_is_bounded_in_memory(host: Host) -> None:
    read, write = os.pipe()
    process = host.wait([*APP, "flood", "50000000", "exit", "0"], "--foreground", stdout=write)
    os.close(write)
    eventually(lambda: readable(read) > 60_000)
    assert resident_bytes(process.pid) < 2_500_000
    os.close(read)
    process.wait()


# --- terminals


@dataclass
class Terminal:
    """A terminal of a person: `ours` is what they see and type."""

    ours: int
    theirs: int

    def settings(self) -> list[object]:
        return list(termios.tcgetattr(self.theirs))

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.theirs)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def until(self, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            assert select.select([self.ours], [], [], PATIENCE)[0], seen
            seen += os.read(self.ours, 4096)
        return seen


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    made = Terminal(ours, theirs)
    window_size(theirs, 24, 80)
    yield made
    for fd in (made.ours, theirs):
        with contextlib.suppress(OSError):
            os.close(fd)


def on_terminal(host: Host, terminal: Terminal, *steps: str) -> Running:
    return host.wait(
        [*APP, *steps, "exit", "0"],
        "--foreground",
        "--tty",
        "--stdin-app",
        "a",
        stdin=terminal.theirs,
        stdout=terminal.theirs,
    )


def test_terminal_is_raw_and_restored(host: Host, terminal: Terminal) -> None:
    before = terminal.settings()
    process = on_terminal(
        host, terminal, "frame", "03", "up\n", "tell", "tell", "until", str(host.top / "go")
    )
    terminal.until(b"up\n")
    assert terminal.is_raw()
    os.write(terminal.ours, b"\x03")
    assert b"<82 03>" in terminal.until(b">")
    (host.top / "go").touch()
    window_size(terminal.theirs, 50, 100)
    process.signal(signal.SIGWINCH)
    terminal.until(b"finish")
    process.wait()
    assert terminal.settings() == before


def test_terminal_size_goes_to_the_app(host: Host, terminal: Terminal) -> None:
    steps = ["connect", "a", "tell", "started", "frame", "03", "up", "tell", "exit", "0"]
    options = ["--foreground", "--tty", "--stdin-app", "a"]
    process = host.wait(steps, *options, stdin=terminal.theirs, stdout=terminal.theirs)
    flags = WANT_STDOUT | WANT_STDERR | WANT_STDIN
    size = struct.pack("<HH", 24, 80).hex()
    assert f"<81 {flags:02x}{size}>".encode() in terminal.until(b"up")
    window_size(terminal.theirs, 50, 100)
    process.signal(signal.SIGWINCH)
    terminal.until(f"<84 {struct.pack('<HH', 50, 100).hex()}>".encode())
    process.wait()


def test_terminal_is_restored_after_a_kill(host: Host, terminal: Terminal) -> None:
    before = terminal.settings()
    process = on_terminal(host, terminal, "frame", "03", "up\n", "forever")
    terminal.until(b"up\n")
    assert terminal.is_raw()
    host.control(b"K")
    terminal.until(b"137")
    process.wait()
    assert terminal.settings() == before


def test_a_lost_terminal_stops_the_pod(host: Host, terminal: Terminal) -> None:
    steps = ["touch", str(host.top / "up"), "recv", "87", "touch", str(host.top / "stopped")]
    process = on_terminal(host, terminal, *steps)
    eventually((host.top / "up").exists)
    os.close(terminal.theirs)
    os.close(terminal.ours)
    process.signal(signal.SIGHUP)
    process.wait()
    assert (host.top / "stopped").exists()


# --- the client


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
    frames.send(HELLO, b"\x01\x00a")
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
