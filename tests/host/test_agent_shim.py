"""The shim with the real crun, as root in namespaces like those of stage1."""

import hashlib
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.agent_kit import (
    ATTACH,
    CREDIT,
    ERROR,
    EXIT,
    LOST,
    MAX_PAYLOAD,
    RESIZE,
    SIGNAL,
    STARTED,
    STATS,
    STATS_REQUEST,
    STDERR,
    STDIN,
    STDOUT,
    STOP,
    WANT_STDERR,
    WANT_STDIN,
    WANT_STDOUT,
    WANT_TTY,
    WINDOW,
    Frames,
    Running,
    Stage,
    built_agent,
    children,
    eventually,
    exit_of,
    joined,
    pack,
    resident_bytes,
)

MEGABYTE = 1 << 20


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    made.listen()
    yield made
    made.close()


def run_to_end(stage: Stage, *argv: str) -> tuple[int, list[tuple[int, bytes]]]:
    process = stage.start(argv)
    frames = stage.foreground().rest()
    return process.wait(), frames


# --- the app's life


def test_output_log_record_and_exit_code(stage: Stage) -> None:
    before = time.time_ns()
    code, frames = run_to_end(stage, "sh", "-c", "echo out; echo err >&2; printf rest; exit 7")
    assert code == 7
    assert frames[0][0] == STARTED
    assert joined(frames, STDOUT) == b"out\nrest"
    assert joined(frames, STDERR) == b"err\n"
    assert exit_of(frames) == (7, 0, "")
    record = stage.record()
    assert (record["code"], record["signal"], record["error"], record["error_code"]) == (7, 0, "", "")
    assert before <= record["started_ns"] <= record["finished_ns"] <= time.time_ns()
    assert struct.unpack("<Q", frames[0][1])[0] == record["started_ns"]
    assert sorted(stage.log()) == [
        ("stderr", "F", b"err"),
        ("stdout", "F", b"out"),
        ("stdout", "P", b"rest"),
    ]


def test_runs_without_a_host_socket(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage")
    assert stage.start(["sh", "-c", "echo hi; exit 3"]).wait() == 3
    assert stage.log() == [("stdout", "F", b"hi")]
    assert stage.record()["code"] == 3


def test_a_socket_that_refuses_is_an_error(stage: Stage) -> None:
    assert stage.listener is not None
    stage.listener.close()
    assert stage.start(["true"]).wait() == 125
    assert "attach.sock" in str(stage.record()["error"])


def test_the_image_is_written_through_the_overlay(stage: Stage) -> None:
    code, _ = run_to_end(stage, "sh", "-c", "echo new > /file; rm /bin/yes")
    assert code == 0
    assert (stage.kept / "upper" / "file").read_text() == "new\n"
    assert (stage.image / "bin" / "yes").is_symlink()


def test_streams_of_an_unprivileged_user_can_be_reopened(stage: Stage) -> None:
    process = stage.start(["sh", "-c", "id -u; echo again > /dev/stdout"], uid=1000)
    frames = stage.foreground().rest()
    assert process.wait() == 0, frames
    assert joined(frames, STDOUT) == b"1000\nagain\n"


def test_without_stdin_the_app_reads_nothing(stage: Stage) -> None:
    _, frames = run_to_end(stage, "sh", "-c", "cat; echo end")
    assert joined(frames, STDOUT) == b"end\n"


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_an_app_that_does_not_handle_it(stage: Stage, number: signal.Signals) -> None:
    process = stage.start(["sleep", "1000"])
    peer = stage.foreground()
    peer.expect(STARTED)
    peer.send(SIGNAL, bytes([number]))
    assert exit_of(peer.rest()) == (128 + number, number, "")
    assert process.wait() == 128 + number
    assert stage.record()["signal"] == number


def test_a_handled_signal_reaches_the_handler(stage: Stage) -> None:
    process = stage.start(
        ["sh", "-c", "trap 'echo caught; exit 9' USR1; echo up; while :; do sleep 0.05; done"]
    )
    peer = stage.foreground()
    peer.until_output(b"up\n")
    peer.send(SIGNAL, bytes([signal.SIGUSR1]))
    frames = peer.rest()
    assert joined(frames, STDOUT) == b"caught\n"
    assert process.wait() == 9


def test_stop_sends_the_stop_signal(stage: Stage) -> None:
    script = "trap 'exit 4' QUIT; echo up; while :; do sleep 0.05; done"
    process = stage.start(["sh", "-c", script], "--stop-signal", str(int(signal.SIGQUIT)))
    peer = stage.foreground()
    peer.until_output(b"up\n")
    os.kill(stage.shim_pid(process), signal.SIGTERM)
    assert process.wait() == 4
    assert exit_of(peer.rest())[0] == 4


def test_stop_frame_sends_the_stop_signal_once(stage: Stage) -> None:
    script = "trap 'echo told' INT; echo up; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.05; done; exit 4"
    process = stage.start(["sh", "-c", script], "--stop-signal", str(int(signal.SIGINT)))
    peer = stage.foreground()
    peer.until_output(b"up\n")
    peer.send(STOP)
    peer.send(STOP)
    frames = peer.rest()
    assert joined(frames, STDOUT) == b"told\n"
    assert process.wait() == 4


def test_stop_kills_what_ignores_it(stage: Stage) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    process = stage.start(["sh", "-c", script], "--stop-timeout", "300")
    peer = stage.foreground()
    peer.until_output(b"up\n")
    begun = time.monotonic()
    os.kill(stage.shim_pid(process), signal.SIGTERM)
    assert process.wait() == 137
    assert 0.3 <= time.monotonic() - begun < 5
    assert stage.record()["signal"] == signal.SIGKILL


def test_stop_before_the_host_has_answered(stage: Stage) -> None:
    process = stage.start(["true"])
    stage.accept()
    os.kill(stage.shim_pid(process), signal.SIGTERM)
    assert process.wait() == 143
    assert "before it started" in str(stage.record()["error"])


def test_stop_is_not_held_up_by_a_host_that_reads_nothing(stage: Stage) -> None:
    process = stage.start(["yes"])
    stage.foreground()
    eventually(lambda: (stage.kept / "log").exists() and (stage.kept / "log").stat().st_size > 100_000)
    os.kill(stage.shim_pid(process), signal.SIGTERM)
    assert process.wait(20) == 143


# --- why an app does not start


def failing_start(stage: Stage, *argv: str) -> dict[str, int | str]:
    code, frames = run_to_end(stage, *argv)
    record = stage.record()
    assert record["code"] == code
    assert exit_of(frames) == (code, 0, record["error"])
    return record


def test_missing_program(stage: Stage) -> None:
    record = failing_start(stage, "nothing-here")
    assert (record["code"], record["error_code"]) == (127, "not-found")
    assert record["error"] == "program nothing-here not found in image"


def test_missing_program_by_path(stage: Stage) -> None:
    assert failing_start(stage, "/opt/none")["error"] == "program /opt/none not found in image"


def test_program_without_execute_permission(stage: Stage) -> None:
    stage.add_program("/bin/plain", b"\x7fELF", mode=0o644)
    record = failing_start(stage, "plain")
    assert (record["code"], record["error_code"]) == (126, "invoke")
    assert record["error"] == "program plain is not executable"


def test_folder_as_program(stage: Stage) -> None:
    record = failing_start(stage, "/bin")
    assert (record["code"], record["error"]) == (126, "program /bin is a folder")


def test_missing_loader(stage: Stage) -> None:
    stage.add_program("/bin/dynamic", Path("/bin/ls").read_bytes())
    record = failing_start(stage, "dynamic")
    assert (record["code"], record["error_code"]) == (127, "not-found")
    assert "loader /lib64/ld-linux-x86-64.so.2 is missing" in str(record["error"])


def test_missing_interpreter(stage: Stage) -> None:
    stage.add_program("/bin/script", b"#! /usr/bin/python9 -u\n")
    record = failing_start(stage, "/bin/script")
    assert record["code"] == 127
    assert "interpreter /usr/bin/python9 is missing" in str(record["error"])


def test_interpreter_whose_loader_is_missing(stage: Stage) -> None:
    stage.add_program("/bin/python9", Path("/bin/ls").read_bytes())
    stage.add_program("/bin/script", b"#!/bin/python9\n")
    error = str(failing_start(stage, "script")["error"])
    assert "/bin/python9" in error
    assert "loader" in error


def test_a_link_out_of_the_image_is_resolved_inside(stage: Stage) -> None:
    # The host's /usr/bin/env exists; the image's does not.
    (stage.image / "bin" / "outside").symlink_to("../../../../../usr/bin/env")
    assert failing_start(stage, "outside")["error"] == "program outside not found in image"


def test_program_in_no_format(stage: Stage) -> None:
    stage.add_program("/bin/noise", b"\x00\x01\x02\x03" * 100)
    record = failing_start(stage, "noise")
    assert (record["code"], record["error_code"]) == (126, "invoke")
    assert "exec format error" in str(record["error"])


def test_a_program_that_itself_exits_127_is_no_failure_of_ours(stage: Stage) -> None:
    code, _ = run_to_end(stage, "sh", "-c", "nothing-here")
    assert code == 127
    assert stage.record()["error"] == ""


def test_broken_bundle_gives_the_words_of_crun(stage: Stage) -> None:
    process = stage.start(["true"], config="{")
    frames = stage.foreground().rest()
    assert process.wait() == 125
    assert exit_of(frames)[2].startswith("crun: ")
    assert stage.record()["error_code"] == "external"


# --- standard input


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


def test_input_and_its_end(stage: Stage) -> None:
    data = os.urandom(3 * MEGABYTE)
    process = stage.start(["sh", "-c", "cat; echo end >&2"], "--stdin")
    frames = feed(stage.foreground(stdin=True), data)
    assert process.wait() == 0
    assert joined(frames, STDOUT) == data
    assert joined(frames, STDERR) == b"end\n"


def test_input_that_the_app_does_not_read_is_not_in_the_way(stage: Stage) -> None:
    process = stage.start(["sh", "-c", "exec 0<&-; echo closed; sleep 1000"], "--stdin")
    peer = stage.foreground(stdin=True)
    peer.until_output(b"closed\n")
    peer.send(STDIN, bytes(WINDOW))
    peer.send(SIGNAL, bytes([signal.SIGTERM]))
    assert exit_of(peer.rest())[1] == signal.SIGTERM
    assert process.wait() == 143


def test_input_beyond_the_window_ends_the_connection(stage: Stage) -> None:
    process = stage.start(["sleep", "1000"], "--stdin")
    peer = stage.foreground(stdin=True)
    peer.expect(STARTED)
    for _ in range(4):
        peer.socket.sendall(pack(STDIN, bytes(MAX_PAYLOAD)))
    frames = peer.rest()
    assert frames[-1][0] == ERROR
    assert stage.connect().socket.fileno() >= 0
    assert process.code is None


def test_input_has_one_owner(stage: Stage) -> None:
    stage.start(["cat"], "--stdin")
    first = stage.foreground(stdin=True)
    first.expect(STARTED)
    second = stage.connect()
    second.send(ATTACH, struct.pack("<BHH", WANT_STDIN, 0, 0))
    assert b"taken" in second.expect(ERROR)
    first.send(STDIN, b"still mine\n")
    assert first.until_output(b"still mine\n")


# --- terminals


def test_terminal_with_size_and_resize(stage: Stage) -> None:
    script = "tty; stty size; trap 'stty size; exit 6' WINCH; echo up; while :; do sleep 0.05; done"
    process = stage.start(["sh", "-c", script], "--terminal")
    peer = stage.foreground(stdin=True, size=(31, 97))
    seen = peer.until_output(b"up\r\n")
    assert b"/dev/pts/0" in seen
    peer.send(RESIZE, struct.pack("<HH", 44, 111))
    frames = peer.rest()
    assert b"44 111\r\n" in joined(frames, STDOUT)
    assert process.wait() == 6
    assert {stream for stream, _, _ in stage.log()} == {"stdout"}


def test_terminal_input_and_interrupt(stage: Stage) -> None:
    process = stage.start(["sh", "-c", "trap 'echo int; exit 5' INT; echo up; cat; cat"], "--terminal")
    peer = stage.foreground(stdin=True, size=(24, 80))
    peer.until_output(b"up\r\n")
    peer.send(STDIN, b"typed\n")
    peer.until_output(b"typed\r\ntyped\r\n")
    peer.send(STDIN, b"\x03")
    frames = peer.rest()
    assert b"int\r\n" in joined(frames, STDOUT)
    assert process.wait() == 5


def test_terminal_end_of_input(stage: Stage) -> None:
    process = stage.start(["sh", "-c", "echo up; cat; echo end"], "--terminal")
    peer = stage.foreground(stdin=True)
    peer.until_output(b"up\r\n")
    peer.send(STDIN)
    assert b"end\r\n" in joined(peer.rest(), STDOUT)
    assert process.wait() == 0


# --- much output


def test_everything_arrives_in_order(stage: Stage) -> None:
    data = os.urandom(50 * MEGABYTE)
    stage.add_program("/data", data, mode=0o644)
    process = stage.start(["sh", "-c", "cat /data & cat /data >&2; wait"])
    peer = stage.foreground()
    digests = {STDOUT: hashlib.sha256(), STDERR: hashlib.sha256()}
    last = 0
    while (frame := peer.receive()) is not None:
        last = frame[0]
        if last in digests:
            digests[last].update(frame[1])
    assert last == EXIT
    assert process.wait() == 0
    wanted = hashlib.sha256(data).hexdigest()
    assert [digest.hexdigest() for digest in digests.values()] == [wanted, wanted]


def test_the_log_is_bounded(stage: Stage) -> None:
    limit = 65_536
    process = stage.start(["sh", "-c", "yes 0123456789 | head -n 50000; echo last"], "--log-max", str(limit))
    stage.foreground().rest()
    assert process.wait() == 0
    sizes = {
        entry.name: entry.stat().st_size for entry in stage.kept.iterdir() if entry.name.startswith("log")
    }
    assert set(sizes) == {"log", "log.1"}
    assert all(0 < size <= limit for size in sizes.values())
    assert stage.log()[-1] == ("stdout", "F", b"last")
    assert set(stage.log("log.1")) == {("stdout", "F", b"0123456789")}


def test_long_lines_are_logged_in_parts(stage: Stage) -> None:
    data = b"x" * 40_000 + b"\n" + b"y" * 16_384 + b"\nz\n"
    stage.add_program("/data", data, mode=0o644)
    code, _ = run_to_end(stage, "cat", "/data")
    assert code == 0
    entries = stage.log()
    assert [(tag, len(text)) for _, tag, text in entries] == [
        ("P", 16_384),
        ("P", 16_384),
        ("F", 7232),
        ("F", 16_384),
        ("F", 1),
    ]


def test_the_foreground_holds_the_app_up(stage: Stage) -> None:
    stage.add_program("/data", bytes(10 * MEGABYTE), mode=0o644)
    process = stage.start(["sh", "-c", "cat /data; echo done > /marker"])
    peer = stage.foreground()
    peer.expect(STARTED)
    watcher = stage.connect()
    watcher.send(ATTACH, struct.pack("<BHH", WANT_STDOUT, 0, 0))
    watcher.expect(STARTED)
    assert drained(watcher) < MEGABYTE
    assert not (stage.kept / "upper" / "marker").exists()
    frames = peer.rest()
    assert len(joined(frames, STDOUT)) == 10 * MEGABYTE
    assert process.wait() == 0


def drained(peer: Frames) -> int:
    """Read until nothing has come for a second; how much output that was."""
    count = 0
    try:
        while (frame := peer.receive(timeout=1)) is not None:
            count += len(frame[1])
    except TimeoutError:
        return count
    raise AssertionError("the peer closed")


def test_a_slow_client_loses_output_and_is_told(stage: Stage) -> None:
    stage.add_program("/data", bytes(10 * MEGABYTE), mode=0o644)
    process = stage.start(["sh", "-c", "echo up; read line; cat /data"], "--stdin")
    peer = stage.foreground(stdin=True)
    peer.until_output(b"up\n")
    slow = stage.connect()
    slow.send(ATTACH, struct.pack("<BHH", WANT_STDOUT, 0, 0))
    slow.expect(STARTED)
    peer.send(STDIN, b"go\n")
    assert len(joined(peer.rest(), STDOUT)) == 10 * MEGABYTE
    frames = slow.rest()
    lost = sum(struct.unpack("<Q", payload)[0] for kind, payload in frames if kind == LOST)
    assert lost > 0
    assert lost + len(joined(frames, STDOUT)) == 10 * MEGABYTE
    assert exit_of(frames) == (0, 0, "")
    assert process.wait() == 0


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
    assert resident_bytes(shim) < 1_500_000
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
