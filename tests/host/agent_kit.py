"""What the agent's tests share: its build, its frames in Python, a stage for the shim, running processes."""

import fcntl
import functools
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from host import agent_stage
from secrun import launch

REPOSITORY = Path(__file__).resolve().parents[2]
AGENT_SOURCE = REPOSITORY / "runtime" / "agent"
PATIENCE = 60.0

HELLO, STARTED, STDOUT, STDERR, CREDIT, EXIT, ERROR, STATS, LOST, ENFORCED, STATE, AGAIN = range(1, 13)
ATTACH, STDIN, SIGNAL, RESIZE, EXEC, STATS_REQUEST, STOP, GO, RESTART = range(0x81, 0x8A)
WANT_STDOUT, WANT_STDERR, WANT_STDIN, WANT_TTY, ALONE = 1, 2, 4, 8, 16
WINDOW = MAX_PAYLOAD = 65_536
HOLD = ("/proc/self/fd/3", "hold")


def cargo(*words: str, target: Path) -> None:
    """Run Debian's cargo, whatever stands first in PATH."""
    launch.run(
        ["/usr/bin/cargo", *words, "--offline", "--locked"],
        environment={"PATH": "/usr/bin:/bin", "CARGO_TARGET_DIR": str(target), "HOME": os.environ["HOME"]},
        cwd=AGENT_SOURCE,
        timeout=600,
    )


def target_folder() -> Path:
    """Where cargo builds: CARGO_TARGET_DIR, or a folder of its own for this checkout."""
    if given := os.environ.get("CARGO_TARGET_DIR"):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / f"secrun-agent-{hashlib.sha256(bytes(AGENT_SOURCE)).hexdigest()[:12]}"


@functools.cache
def built_agent() -> Path:
    """Build the agent with its fuzz driver once, and return the program."""
    target = target_folder()
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cargo("build", "--release", "--features", "fuzz", target=target)
    return target / "release" / "secrun-agent"


def pack(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("<BI", kind, len(payload)) + payload


def exec_payload(
    argv: Sequence[str],
    *,
    flags: int = 0,
    size: tuple[int, int] = (0, 0),
    env: Sequence[str] = ("PATH=/bin",),
) -> bytes:
    process = {
        "terminal": bool(flags & WANT_TTY),
        "user": {"uid": 0, "gid": 0},
        "args": [*(HOLD if flags & WANT_TTY else ()), *argv],
        "env": list(env),
        "cwd": "/",
        "noNewPrivileges": True,
    }
    program, path = argv[0].encode(), b"/bin"
    return (
        struct.pack("<BHH", flags, *size)
        + struct.pack("<H", len(program))
        + program
        + struct.pack("<H", len(path))
        + path
        + json.dumps(process).encode()
    )


@dataclass
class Frames:
    """One end of the protocol, written from docs/agent-protocol.md."""

    socket: socket.socket
    buffer: bytearray = field(default_factory=bytearray)

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.socket.sendall(pack(kind, payload))

    def receive(self, timeout: float = PATIENCE) -> tuple[int, bytes] | None:
        """Return the next frame, or None when the peer has closed; raises TimeoutError."""
        self.socket.settimeout(timeout)
        while True:
            if len(self.buffer) >= 5:
                kind, length = struct.unpack_from("<BI", self.buffer)
                if len(self.buffer) >= 5 + length:
                    payload = bytes(self.buffer[5 : 5 + length])
                    del self.buffer[: 5 + length]
                    return kind, payload
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                return None
            if not data:
                assert not self.buffer, "the peer closed inside a frame"
                return None
            self.buffer += data

    def expect(self, kind: int, timeout: float = PATIENCE) -> bytes:
        """Return the payload of the next frame, which must be of this kind."""
        frame = self.receive(timeout)
        assert frame is not None, "the peer closed"
        assert frame[0] == kind, frame
        return frame[1]

    def rest(self) -> list[tuple[int, bytes]]:
        """Every frame up to the peer's end."""
        return list(iter(self.receive, None))

    def until_output(self, wanted: bytes) -> bytes:
        """Read output until it contains `wanted`."""
        seen = b""
        while wanted not in seen:
            frame = self.receive()
            assert frame is not None, seen
            if frame[0] in (STDOUT, STDERR):
                seen += frame[1]
        return seen


def joined(frames: Sequence[tuple[int, bytes]], kind: int) -> bytes:
    return b"".join(payload for each, payload in frames if each == kind)


def exit_of(frames: Sequence[tuple[int, bytes]]) -> tuple[int, int, str]:
    """The code, signal and text of the EXIT frame, which must be the last."""
    assert frames[-1][0] == EXIT, frames[-1]
    payload = frames[-1][1]
    return payload[0], payload[1], payload[2:].decode()


class Running:
    """A started process; killed at the end of its test at the latest."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        fds: Sequence[int] = (),
        session: bool = False,
    ) -> None:
        actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = []
        null = os.open(os.devnull, os.O_RDWR)
        for number, given in enumerate((stdin, stdout, stderr)):
            if given is not None:
                actions.append((os.POSIX_SPAWN_DUP2, given, number))
            elif number == 0:
                actions.append((os.POSIX_SPAWN_DUP2, null, 0))
        # dup2 of a descriptor onto itself clears close-on-exec in the child.
        actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds]
        words = [os.fspath(word) for word in argv]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        self.pid = os.posix_spawn(
            words[0], words, environment, file_actions=actions, setsid=session, setsigmask=()
        )
        os.close(null)
        self.code: int | None = None

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end; negative means killed by that signal. Raises TimeoutError."""
        if self.code is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not select.select([pidfd], [], [], timeout)[0]:
                    raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
            finally:
                os.close(pidfd)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def signal(self, number: int) -> None:
        assert self.code is None
        os.kill(self.pid, number)

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found.append(int(entry))
    return found


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmRSS")


def eventually(condition, timeout: float = PATIENCE):  # type: ignore[no-untyped-def]  # any truthy value
    """Return the first truthy value of `condition`, polled; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)
    return value


def window_size(fd: int, rows: int, cols: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("<HHHH", rows, cols, 0, 0))


class Stage:
    """A pod's folders for one app, and the shim running in them."""

    def __init__(self, top: Path, app: str = "a") -> None:
        self.top, self.app = top, app
        for name in ("pod/apps/" + app, "images/" + app, "rw", "host", "agent"):
            (top / name).mkdir(parents=True)
        self.image = top / "images" / app
        self.kept = top / "rw" / "apps" / app
        shutil.copy(built_agent(), top / "agent" / "secrun-agent")
        (self.image / "bin").mkdir()
        shutil.copy("/bin/busybox", self.image / "bin" / "busybox")
        for name in (
            "sh",
            "cat",
            "sleep",
            "true",
            "echo",
            "stty",
            "tty",
            "id",
            "dd",
            "head",
            "wc",
            "env",
            "yes",
        ):
            (self.image / "bin" / name).symlink_to("busybox")
        self._running: list[Running] = []
        self._sockets: list[socket.socket] = []
        self.listener: socket.socket | None = None

    def add_program(self, path: str, data: bytes, mode: int = 0o755) -> None:
        file = self.image / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode)

    def bundle(self, argv: Sequence[str], *, terminal: bool = False, uid: int = 0) -> None:
        config = {
            "ociVersion": "1.0.0",
            "process": {
                "terminal": terminal,
                "user": {"uid": uid, "gid": uid},
                "args": list(argv),
                "env": ["PATH=/bin"],
                "cwd": "/",
                "noNewPrivileges": True,
            },
            "root": {"path": f"/run/secrun/apps/{self.app}/rootfs", "readonly": False},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {
                    "destination": "/dev",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "mode=755"],
                },
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
                },
            ],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
        }
        (self.top / "pod" / "apps" / self.app / "config.json").write_text(json.dumps(config))

    def listen(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.top / "host" / "attach.sock"))
        (self.top / "host" / "attach.sock").chmod(0o666)
        self.listener.listen(8)
        self.listener.settimeout(PATIENCE)
        self._sockets.append(self.listener)

    def start(self, argv: Sequence[str], *options: str, uid: int = 0, config: str = "") -> Running:
        self.bundle(argv, terminal="--terminal" in options, uid=uid)
        if config:
            (self.top / "pod" / "apps" / self.app / "config.json").write_text(config)
        for folder, folders, files in os.walk(self.top):
            for name in (".", *folders, *files):
                os.chown(f"{folder}/{name}", agent_stage.BASE, agent_stage.BASE, follow_symlinks=False)
        words = ["--app", self.app, "--program", argv[0], "--path", "/bin", *options]
        stage = [sys.executable, agent_stage.__file__, self.top]
        process = Running([*stage, "/agent/secrun-agent", "shim", *words])
        self._running.append(process)
        return process

    def accept(self) -> Frames:
        """Be the host: take the shim's connection and its HELLO."""
        assert self.listener is not None
        connection, _ = self.listener.accept()
        self._sockets.append(connection)
        frames = Frames(connection)
        assert frames.expect(HELLO) == struct.pack("<H", 3) + self.app.encode()
        return frames

    def foreground(self, *, stdin: bool = False, size: tuple[int, int] = (0, 0)) -> Frames:
        frames = self.accept()
        flags = WANT_STDOUT | WANT_STDERR | (WANT_STDIN if stdin else 0)
        frames.send(ATTACH, struct.pack("<BHH", flags, *size))
        return frames

    def connect(self) -> Frames:
        """Be a client of the control socket."""
        path = self.kept / "ctl.sock"
        eventually(path.exists)
        client = socket.socket(socket.AF_UNIX)
        self._sockets.append(client)
        client.settimeout(PATIENCE)
        with short_path(path) as short:
            eventually(lambda: client.connect_ex(short) == 0)
        frames = Frames(client)
        frames.expect(HELLO)
        return frames

    def execute(self, argv: Sequence[str], *, flags: int = 0, size: tuple[int, int] = (0, 0)) -> Frames:
        frames = self.connect()
        frames.send(EXEC, exec_payload(argv, flags=flags, size=size))
        return frames

    def record(self) -> dict[str, int | str]:
        text = (self.kept / "exit").read_text()
        value = json.loads(text)
        assert json.dumps(value, sort_keys=True, separators=(",", ":")) == text
        return value

    def log(self, name: str = "log") -> list[tuple[str, str, bytes]]:
        """Stream, tag and text of each log entry."""
        entries = []
        for line in (self.kept / name).read_bytes().splitlines():
            stamp, stream, tag, text = line.split(b" ", 3)
            assert stamp.endswith(b"Z")
            assert len(stamp) == 30
            entries.append((stream.decode(), tag.decode(), text))
        return entries

    def shim_pid(self, process: Running) -> int:
        """The shim's process id out here: below the stage's namespace and its init."""
        inner = eventually(lambda: children(process.pid))[0]
        init = eventually(lambda: children(inner))[0]
        return eventually(lambda: [pid for pid in children(init) if is_agent(pid)])[0]

    def close(self) -> None:
        for process in self._running:
            process.close()
        for each in self._sockets:
            each.close()


def run_to_end(stage: Stage, *argv: str) -> tuple[int, list[tuple[int, bytes]]]:
    """Run an app in the foreground; its exit status and every frame."""
    process = stage.start(argv)
    frames = stage.foreground().rest()
    return process.wait(), frames


def feed(peer: Frames, data: bytes) -> list[tuple[int, bytes]]:
    """Send input as the credit allows, and return every frame up to the end."""
    credit, seen, ended = WINDOW, [], False
    while True:
        while data and credit:
            piece = data[: min(credit, MAX_PAYLOAD)]
            peer.send(STDIN, piece)
            data, credit = data[len(piece) :], credit - len(piece)
        if not data and not ended:
            peer.send(STDIN)
            ended = True
        frame = peer.receive()
        if frame is None:
            return seen
        if frame[0] == CREDIT:
            credit += struct.unpack("<I", frame[1])[0]
            assert credit <= WINDOW
        seen.append(frame)


def is_agent(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/exe").endswith("secrun-agent")


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for a socket whose path is too long for sockaddr_un."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
