"""The waiter between the apps and its own standard streams and terminal."""

import fcntl
import os
import signal
import socket
import struct
import time

from host.agent_host import APP, Host, Terminal, go, pending_signals, readable
from host.agent_kit import (
    WANT_STDERR,
    WANT_STDIN,
    WANT_STDOUT,
    WINDOW,
    Running,
    children,
    eventually,
    window_size,
)

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


# --- terminals


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
    steps = ["frame", "03", "up\n", "recv-at-last", "87", "touch", str(host.top / "stopped")]
    process = on_terminal(host, terminal, *steps)
    terminal.until(b"up\n")
    os.close(terminal.theirs)
    os.close(terminal.ours)
    process.signal(signal.SIGHUP)
    process.wait()
    assert (host.top / "stopped").exists()
