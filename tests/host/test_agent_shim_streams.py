"""Input, terminals and much output through the shim."""

import contextlib
import hashlib
import os
import signal
import struct

from host.agent_kit import (
    ATTACH,
    ERROR,
    EXIT,
    LOST,
    MAX_PAYLOAD,
    RESIZE,
    SIGNAL,
    STARTED,
    STDERR,
    STDIN,
    STDOUT,
    WANT_STDIN,
    WANT_STDOUT,
    WINDOW,
    Frames,
    Stage,
    exit_of,
    feed,
    joined,
    pack,
    run_to_end,
)

MEGABYTE = 1 << 20


# --- standard input


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
    # The connection may be closed before the last of them is sent.
    with contextlib.suppress(BrokenPipeError):
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
    assert b"somebody else is attached" in second.expect(ERROR)
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
    assert sizes.pop("log.lost") == 21
    assert int((stage.kept / "log.lost").read_text()) == 0
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
