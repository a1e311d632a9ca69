"""Commands beside an app, and peers of a shim that misbehave."""

import contextlib
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.agent_kit import (
    ATTACH,
    ERROR,
    RESIZE,
    SIGNAL,
    STARTED,
    STATS,
    STATS_REQUEST,
    STDERR,
    STDIN,
    STDOUT,
    WANT_STDERR,
    WANT_STDIN,
    WANT_STDOUT,
    WANT_TTY,
    Running,
    Stage,
    built_agent,
    children,
    eventually,
    exit_of,
    feed,
    joined,
    pack,
    resident_bytes,
)

MEGABYTE = 1 << 20


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    """Three endless loops per processor: what is left to chance goes wrong soon."""
    loop = ["sh", "-c", "while :; do :; done"]
    loops = [subprocess.Popen(loop) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for each in loops:
            each.kill()
            each.wait()


# --- commands


def running(stage: Stage) -> None:
    stage.start(["sleep", "1000"])
    stage.foreground().expect(STARTED)


def test_command_with_streams_and_code(stage: Stage) -> None:
    running(stage)
    frames = stage.execute(["sh", "-c", "echo out; echo err >&2; cat /proc/1/comm; exit 5"]).rest()
    assert joined(frames, STDOUT) == b"out\nsleep\n"
    assert joined(frames, STDERR) == b"err\n"
    assert exit_of(frames) == (5, 0, "")
    assert not [entry for entry in stage.log() if b"out" in entry[2]]


def test_command_with_input(stage: Stage) -> None:
    running(stage)
    data = os.urandom(MEGABYTE)
    frames = feed(stage.execute(["cat"], flags=WANT_STDIN), data)
    assert joined(frames, STDOUT) == data
    assert exit_of(frames) == (0, 0, "")


def test_command_on_a_terminal(stage: Stage) -> None:
    running(stage)
    script = "tty; stty size; echo up; read line; stty size; exit 8"
    peer = stage.execute(["sh", "-c", script], flags=WANT_TTY | WANT_STDIN, size=(20, 60))
    assert b"20 60\r\n" in peer.until_output(b"up\r\n")
    peer.send(RESIZE, struct.pack("<HH", 50, 132))
    peer.send(STDIN, b"\n")
    frames = peer.rest()
    assert b"50 132\r\n" in joined(frames, STDOUT)
    assert exit_of(frames)[0] == 8


def test_a_terminal_has_its_size_before_the_command_can_ask(stage: Stage) -> None:
    running(stage)
    with busy_machine():
        for rows in range(20, 45):
            peer = stage.execute(["stty", "size"], flags=WANT_TTY, size=(rows, 60))
            assert joined(peer.rest(), STDOUT) == f"{rows} 60\r\n".encode()


def test_a_command_on_a_terminal_gets_nothing_but_its_terminal(stage: Stage) -> None:
    running(stage)
    # The last descriptor is the one by which ls reads the folder.
    listing = ["sh", "-c", "cd /proc/self/fd; echo *; grep SigIgn /proc/self/status"]
    (stage.image / "bin" / "grep").symlink_to("busybox")
    said = joined(stage.execute(listing, flags=WANT_TTY).rest(), STDOUT).split()
    assert said[:-2] in ([b"0", b"1", b"2"], [b"0", b"1", b"2", b"3"])
    assert int(said[-1], 16) & 1 << signal.SIGPIPE - 1 == 0


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (["nothing-here"], 127, "program nothing-here not found in image"),
        (["/bin/nothing-here"], 127, "program /bin/nothing-here not found in image"),
        (["/bin"], 126, "program /bin is a folder"),
    ],
)
def test_a_command_on_a_terminal_that_cannot_run_says_so_once(
    stage: Stage, argv: list[str], code: int, error: str
) -> None:
    running(stage)
    frames = stage.execute(argv, flags=WANT_TTY).rest()
    assert exit_of(frames) == (code, 0, error)
    assert joined(frames, STDOUT) == b""


def test_a_command_on_a_terminal_in_no_format_is_refused_by_the_kernels_words(stage: Stage) -> None:
    stage.add_program("/bin/odd", b"\x7fELF" + bytes(100))
    running(stage)
    frames = stage.execute(["odd"], flags=WANT_TTY).rest()
    assert exit_of(frames)[0] == 126
    assert "Exec format error" in joined(frames, STDOUT).decode()


def test_several_commands_at_once(stage: Stage) -> None:
    running(stage)
    peers = [
        stage.execute(["sh", "-c", f"read line; echo $line; exit {n}"], flags=WANT_STDIN) for n in range(8)
    ]
    for index in reversed(range(8)):
        peers[index].send(STDIN, f"line {index}\n".encode())
    for index, peer in enumerate(peers):
        frames = peer.rest()
        assert joined(frames, STDOUT) == f"line {index}\n".encode()
        assert exit_of(frames) == (index, 0, "")


def test_command_signal(stage: Stage) -> None:
    running(stage)
    peer = stage.execute(["sh", "-c", "echo up; exec sleep 1000"])
    peer.until_output(b"up\n")
    peer.send(SIGNAL, bytes([signal.SIGTERM]))
    assert exit_of(peer.rest()) == (143, 15, "")


def test_command_that_is_missing(stage: Stage) -> None:
    running(stage)
    frames = stage.execute(["nothing-here"]).rest()
    assert exit_of(frames) == (127, 0, "program nothing-here not found in image")


def test_command_without_loader(stage: Stage) -> None:
    stage.add_program("/bin/dynamic", Path("/bin/ls").read_bytes())
    running(stage)
    code, _, error = exit_of(stage.execute(["dynamic"]).rest())
    assert code == 127
    assert "loader" in error


def test_a_command_ends_with_its_client(stage: Stage) -> None:
    running(stage)
    peer = stage.execute(["sh", "-c", "echo $$; exec sleep 999"])
    peer.until_output(b"\n")
    peer.socket.close()
    check = ["sh", "-c", "! grep -q 99[9] /proc/[0-9]*/cmdline"]
    (stage.image / "bin" / "grep").symlink_to("busybox")
    eventually(lambda: exit_of(stage.execute(check).rest())[0] == 0)


def test_commands_end_with_the_app(stage: Stage) -> None:
    process = stage.start(["sh", "-c", "trap 'exit 2' TERM; echo up; while :; do sleep 0.05; done"])
    peer = stage.foreground()
    peer.until_output(b"up\n")
    command = stage.execute(["sh", "-c", "echo in; sleep 1000"])
    command.until_output(b"in\n")
    peer.send(SIGNAL, bytes([signal.SIGTERM]))
    assert exit_of(command.rest())[1] == signal.SIGKILL
    assert process.wait() == 2


def test_a_slow_command_client_holds_up_only_its_command(stage: Stage) -> None:
    stage.add_program("/data", bytes(5 * MEGABYTE), mode=0o644)
    running(stage)
    slow = stage.execute(["cat", "/data"])
    assert exit_of(stage.execute(["true"]).rest())[0] == 0
    assert len(joined(slow.rest(), STDOUT)) == 5 * MEGABYTE


# --- peers that misbehave


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        pack(0x7F),
        b"\x82\xff\xff\xff\xff",
        pack(ATTACH, b"\x01"),
        pack(ATTACH, b"\xf0\0\0\0\0"),
        pack(STDIN, b"x"),
        pack(SIGNAL, b"\x00"),
        pack(SIGNAL, b"\xff"),
        os.urandom(4096),
    ],
    ids=["http", "type", "length", "short", "flags", "place", "zero", "signal", "random"],
)
def test_violations_end_the_connection_only(stage: Stage, garbage: bytes) -> None:
    running(stage)
    peer = stage.connect()
    peer.socket.sendall(garbage)
    frames = peer.rest()
    assert frames == [] or frames[-1][0] == ERROR
    assert exit_of(stage.execute(["true"]).rest())[0] == 0


def test_half_frames_and_many_connections(stage: Stage) -> None:
    running(stage)
    half = stage.connect()
    half.socket.sendall(pack(STATS_REQUEST)[:3])
    for _ in range(1000):
        peer = stage.connect()
        peer.socket.sendall(pack(STATS_REQUEST)[:2])
        peer.socket.close()
    half.socket.sendall(pack(STATS_REQUEST)[3:])
    assert isinstance(half.expect(STATS), bytes)


def test_stats_and_memory(stage: Stage) -> None:
    process = stage.start(["sleep", "1000"])
    stage.foreground().expect(STARTED)
    peer = stage.connect()
    peer.send(STATS_REQUEST)
    lines = dict(line.split(" ") for line in peer.expect(STATS).decode().splitlines())
    assert all(value.isdigit() for value in lines.values())
    shim = stage.shim_pid(process)
    assert resident_bytes(shim) < 2_000_000
    # crun does not stay: the app is the shim's only child.
    assert len(children(shim)) == 1


def test_second_attach_sees_output_and_end(stage: Stage) -> None:
    process = stage.start(["sh", "-c", "echo up; read line; echo $line; exit 3"], "--stdin")
    peer = stage.foreground(stdin=True)
    peer.until_output(b"up\n")
    second = stage.connect()
    second.send(ATTACH, struct.pack("<BHH", WANT_STDOUT | WANT_STDERR, 0, 0))
    second.expect(STARTED)
    peer.send(STDIN, b"both\n")
    assert joined(peer.rest(), STDOUT) == b"both\n"
    frames = second.rest()
    assert joined(frames, STDOUT) == b"both\n"
    assert exit_of(frames) == (3, 0, "")
    assert process.wait() == 3


@pytest.mark.parametrize(
    "options",
    [["--app", "../x"], ["--app", "a", "--lower", "/a:b"], ["--app", "a", "--log-max", "1"], ["--what"], []],
)
def test_bad_options(options: list[str]) -> None:
    assert Running([built_agent(), "shim", *options]).wait() == 2
