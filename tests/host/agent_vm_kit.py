"""What the tests of the bridge share: the host around it, a guest by hand, and one with relay and shims."""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from host import agent_stage, agent_vm_guest
from host.agent_kit import (
    ATTACH,
    HELLO,
    PATIENCE,
    WANT_STDERR,
    WANT_STDIN,
    WANT_STDOUT,
    Frames,
    Running,
    Stage,
    built_agent,
    eventually,
    exec_payload,
    pack,
    short_path,
)

STARTER = Path(__file__).with_name("agent_fake_starter.py")
# The stand-in of QEMU's user, and root of the stage: so the relay may connect where QEMU may.
OWNER = agent_stage.BASE

L_HELLO, L_MARK, L_BYE = 0x41, 0x42, 0x43
L_CLOCK, L_RESEED, L_SHUTDOWN, L_FINISH, L_NETWORK, L_CONNECT, L_SECRET = range(0x51, 0x58)
L_OPEN, L_DATA, L_CREDIT, L_CLOSE = 0x61, 0x62, 0x63, 0x64
KIND_ATTACH, KIND_CONTROL = 1, 2


def opened(channel: int, kind: int = KIND_ATTACH, app: bytes = b"") -> bytes:
    return pack(L_OPEN, struct.pack("<HB", channel, kind) + app)


def data(channel: int, payload: bytes) -> bytes:
    return pack(L_DATA, struct.pack("<H", channel) + payload)


def credit(channel: int, count: int) -> bytes:
    return pack(L_CREDIT, struct.pack("<HI", channel, count))


def closed(channel: int) -> bytes:
    return pack(L_CLOSE, struct.pack("<H", channel))


HELLO_LINK = pack(L_HELLO, b"\x03\x00")
HELLO_SHIM = pack(HELLO, b"\x03\x00a")


@dataclass
class Vm:
    """A host with one bridge on it."""

    top: Path
    qemu: Path
    """Where QEMU finds its sockets."""
    apps: tuple[str, ...] = ("a",)
    sockets: list[socket.socket] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)
    network: list[bytes] = field(default_factory=list)

    def start(
        self, *options: str, mode: str = "run", under: Sequence[str] = (), ready: int = 10_000
    ) -> Running:
        """Start the bridge; `under` is a program that executes it."""
        self.listener = socket.socket(socket.AF_UNIX)
        self.sockets.append(self.listener)
        self.listener.bind(str(self.top / "attach"))
        self.listener.listen(8)
        self.listener.settimeout(PATIENCE)
        words: list[str | os.PathLike[str]] = [*under, built_agent(), "vm"]
        for app in self.apps:
            words += ["--app", app]
        words += ["--rw", self.top / "rw", "--attach", self.top / "attach"]
        words += ["--link", self.qemu / "link", "--console", self.qemu / "console"]
        words += ["--uid", str(OWNER), "--gid", str(OWNER), "--ready-timeout", str(ready)]
        words += [
            "--log-max",
            "1000000",
            *options,
            "--",
            sys.executable,
            STARTER,
            mode,
            self.top / "machine",
        ]
        log = os.open(self.top / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        # The real waiter inherits the listener.
        fds = [self.listener.fileno()] if "{attach}" in under else []
        words = [str(self.listener.fileno()) if word == "{attach}" else word for word in words]
        self.process = Running(words, stdout=log, stderr=log, fds=fds)
        os.close(log)
        self.running.append(self.process)
        return self.process

    def waiter(self) -> Frames:
        """Be the waiter: the next connection of the bridge."""
        connection, _ = self.listener.accept()
        self.sockets.append(connection)
        return Frames(connection)

    def greeted(self, flags: int = WANT_STDOUT | WANT_STDERR, *, app: str = "a") -> Frames:
        """Be the waiter, and attach to the app that has come."""
        frames = self.waiter()
        assert frames.expect(HELLO) == struct.pack("<H", 3) + app.encode()
        frames.send(ATTACH, struct.pack("<BHH", flags, 0, 0))
        return frames

    def connect(self, name: str) -> socket.socket:
        """Be QEMU: connect to one of the two sockets."""
        client = socket.socket(socket.AF_UNIX)
        self.sockets.append(client)
        client.settimeout(PATIENCE)
        path = self.qemu / name
        eventually(lambda: client.connect_ex(str(path)) == 0)
        return client

    def guest(self, first: bytes = HELLO_LINK, *, pieces: int = 0) -> Frames:
        """Be a guest by hand; with a right HELLO the host's clock and randomness have been taken.

        So have that many pieces of what its networks are.
        """
        frames = Frames(self.connect("link"))
        frames.socket.sendall(first)
        if first.startswith(HELLO_LINK):
            assert len(frames.expect(L_CLOCK)) == 8
            assert len(frames.expect(L_RESEED)) >= 32
            self.network = [frames.expect(L_NETWORK) for _ in range(pieces)]
            assert frames.expect(L_CONNECT) == b""
        return frames

    def caller(self, app: str = "a") -> Frames:
        """Connect to an app's control socket."""
        path = self.top / "rw/apps" / app / "ctl.sock"
        client = socket.socket(socket.AF_UNIX)
        self.sockets.append(client)
        with short_path(path) as short:
            eventually(lambda: client.connect_ex(short) == 0)
        return Frames(client)

    def client(self) -> Frames:
        """Be a client of the app's; the shim's HELLO has been taken."""
        frames = self.caller()
        frames.expect(HELLO)
        return frames

    def execute(self, argv: Sequence[str], *, flags: int = 0, size: tuple[int, int] = (0, 0)) -> Frames:
        frames = self.client()
        frames.send(0x85, exec_payload(argv, flags=flags, size=size))
        return frames

    def machine(self) -> int:
        return int((self.top / "machine").read_text())

    def has_started(self) -> bool:
        """Whether the bridge has given root up, which it does last."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return f"\nUid:\t{OWNER + 1}\t" in status

    def kill_machine(self) -> None:
        os.kill(self.machine(), signal.SIGKILL)

    def said(self) -> str:
        return (self.top / "log").read_text()

    def fails(self) -> str:
        """Wait until the bridge has failed, and return its last line."""
        assert self.process.wait() == 125, self.said()
        return self.said().splitlines()[-1]

    def record(self, app: str = "a") -> dict[str, int | str]:
        text = (self.top / "rw/apps" / app / "exit").read_text()
        value: dict[str, int | str] = json.loads(text)
        assert json.dumps(value, sort_keys=True, separators=(",", ":")) == text
        return value

    def log(self, app: str = "a", name: str = "log") -> list[tuple[str, str, bytes]]:
        """Stream, tag and text of each log entry."""
        lines = (self.top / "rw/apps" / app / name).read_bytes().splitlines()
        fields = [line.split(b" ", 3) for line in lines]
        return [(stream.decode(), tag.decode(), text) for _, stream, tag, text in fields]

    def close(self) -> None:
        for process in self.running:
            process.close()
        for each in self.sockets:
            each.close()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            self.kill_machine()
        shutil.rmtree(self.top)


class Guest:
    """A stage in which the real relay and shims run, joined with a bridge by its link's socket."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.stage = Stage(vm.top / "guest")
        vm.qemu = self.stage.top / "host"

    def start(
        self,
        apps: dict[str, Sequence[str]],
        *options: str,
        bridge: Sequence[str] = (),
        under: Sequence[str] = (),
    ) -> None:
        """Start bridge and guest; `options` are those of every shim."""
        self.vm.apps = tuple(apps)
        self.vm.start(*bridge, under=under)
        shims = []
        for app, argv in apps.items():
            self.stage.app = app
            (self.stage.top / "pod/apps" / app).mkdir(exist_ok=True)
            self.stage.bundle(argv, terminal="--terminal" in options)
            words = ["--app", app, "--lower", "/images/a", "--program", argv[0], "--path", "/bin"]
            shims.append(json.dumps([*words, "--no-log", "--linger", *options]))
        # QEMU's user connects when the machine starts.
        eventually((self.vm.top / "machine").exists)
        shutil.copy(agent_vm_guest.__file__, self.stage.top / "agent/guest.py")
        own(self.stage.top)
        self.vm.connect("console").close()
        words = [sys.executable, agent_stage.__file__, str(self.stage.top)]
        command = ["/usr/bin/python3", "/agent/guest.py", *shims]
        self.process = Running([*words, *command])
        self.vm.running.append(self.process)

    def power_off(self) -> None:
        """QEMU ends when its guest has."""
        self.process.wait()
        self.vm.kill_machine()


def own(top: Path) -> None:
    for folder, folders, files in os.walk(top):
        for name in (".", *folders, *files):
            os.chown(f"{folder}/{name}", OWNER, OWNER, follow_symlinks=False)


@contextlib.contextmanager
def hosted_vm() -> Iterator[Vm]:
    """A host with short paths, for sockets that are connected to by name; everything ends with the test."""
    top = Path(tempfile.mkdtemp(prefix="vm-", dir="/tmp"))
    top.chmod(0o755)
    vm = Vm(top, qemu=top)
    yield vm
    vm.close()


WANT_ALL = WANT_STDOUT | WANT_STDERR | WANT_STDIN
