"""What the tests of the waiter and the client share: the host's side, and a terminal with a person."""

import contextlib
import fcntl
import os
import pty
import select
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from host import agent_kit
from host.agent_kit import (
    PATIENCE,
    Running,
    built_agent,
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


@contextlib.contextmanager
def hosted(top: Path) -> Iterator[Host]:
    """A host whose processes and sockets end with the test."""
    made = Host(top)
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


def pending_signals(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))


def readable(fd: int) -> int:
    buffer = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, buffer)
    return int(struct.unpack("i", buffer)[0])


def idle(pid: int) -> bool:
    """Whether a process used no CPU for a while: it waits for somebody."""
    before = cpu_ticks(pid)
    time.sleep(0.3)
    return cpu_ticks(pid) == before


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@dataclass
class Terminal:
    """A terminal of a person: `ours` is what they see and type."""

    ours: int
    theirs: int

    def settings(self) -> list[object]:
        return list(termios.tcgetattr(self.theirs))

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.theirs)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def restore(self, settings: list[object]) -> None:
        termios.tcsetattr(self.theirs, termios.TCSANOW, settings)

    def until(self, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            assert select.select([self.ours], [], [], PATIENCE)[0], seen
            seen += os.read(self.ours, 4096)
        return seen


@contextlib.contextmanager
def opened_terminal() -> Iterator[Terminal]:
    """A terminal of 24 lines and 80 columns."""
    ours, theirs = pty.openpty()
    made = Terminal(ours, theirs)
    window_size(theirs, 24, 80)
    yield made
    for fd in (made.ours, theirs):
        with contextlib.suppress(OSError):
            os.close(fd)
