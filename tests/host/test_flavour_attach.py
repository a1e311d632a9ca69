"""Attaching to apps and detaching from them, whatever isolates the pod."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from support.secrun import Secrun, eventually
from support.terminals import at_a_terminal, expect, killed_in_the_end, resize

DETACH = b"\x10\x11"
# Says which signals it hears.
SPEAK = "trap 'echo int' INT; trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done"


def typed(terminal: int, line: str, answer: str) -> bytes:
    """Type a line and return all that came up to its answer. The terminal shows the line itself too."""
    os.write(terminal, line.encode() + b"\n")
    return expect(terminal, answer.encode())


def until_shown(client: "subprocess.Popen[bytes]", wanted: bytes, say: Callable[[], object]) -> None:
    """Say something again and again until a client shows it: it may not have come to the app yet."""
    assert client.stdout is not None
    os.set_blocking(client.stdout.fileno(), False)
    seen = b""

    def shown() -> bool:
        nonlocal seen
        say()
        seen += client.stdout.read() or b""
        return wanted in seen

    eventually(shown, f"{wanted!r} at the client")
    os.set_blocking(client.stdout.fileno(), True)


def entries(pods: Secrun, uuid: str) -> list[list[str]]:
    """Apps that somebody entered, as it was measured."""
    lines = pods("events", "--format=json", uuid).out.splitlines()
    return [line for line in lines if "PodExec" in line]


def test_a_terminal_is_detached_attached_to_and_shared(pods: Secrun):
    argv = pods.argv("run", "-i", "-t", *pods.pod_options, pods.image, "--", "sh")
    with at_a_terminal(argv, size=(20, 70)) as (terminal, process):
        typed(terminal, "stty size", "20 70")
        # Job control is the shell's own, inside: Ctrl-Z is a byte like any other.
        typed(terminal, "echo be''gin; cat", "begin\r\n")
        typed(terminal, "once", "once\r\nonce")
        os.write(terminal, b"\x1a")
        expect(terminal, b"Stopped")
        typed(terminal, "fg; echo co''de", "cat\r\n")
        typed(terminal, "twice", "twice\r\ntwice")
        os.write(terminal, b"\x04")
        expect(terminal, b"code")
        os.write(terminal, DETACH)
        assert process.wait(60) == 0
        uuid = expect(terminal, b"runs on").decode().split("pod ")[1].split()[0]
    assert pods.status(uuid)["state"] == "running"
    try:
        assert "needs a terminal" in pods("attach", uuid, code=125).err
        with at_a_terminal(pods.argv("attach", uuid), size=(21, 71)) as (terminal, process):
            typed(terminal, "stty size", "21 71")
            resize(terminal, 22, 72)
            process.send_signal(signal.SIGWINCH)
            typed(terminal, "stty size", "22 72")
            with at_a_terminal(pods.argv("attach", uuid)) as (second, refused):
                expect(second, b"somebody else is attached")
                assert refused.wait(60) == 125
            looking = pods.argv("attach", "--no-stdin", "--sig-proxy=false", uuid)
            with killed_in_the_end(looking, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as watcher:
                until_shown(watcher, b"shown", lambda: os.write(terminal, b"echo sh''own\n"))
                watcher.send_signal(signal.SIGTERM)
                assert watcher.wait(60) == 128 + signal.SIGTERM
            # A terminal that goes takes nothing along.
        assert process.wait(60) != 0
        with at_a_terminal(pods.argv("attach", "--detach-keys=ctrl-a", uuid)) as (terminal, process):
            typed(terminal, "echo st''ill", "still")
            os.write(terminal, b"\x01")
            expect(terminal, b"detached")
            assert process.wait(60) == 0
        with at_a_terminal(pods.argv("attach", uuid)) as (terminal, process):
            typed(terminal, "echo la''st", "last")
            os.write(terminal, b"exit 7\n")
            assert process.wait(60) == 7
        assert "exit-code=7" in pods("status", "--wait", uuid).out
        # Whoever could type was measured, whether or not they did; who only looked was not.
        assert len(entries(pods, uuid)) == 4
    finally:
        pods.discard(uuid)


@pytest.fixture(scope="module")
def speaking(pods: Secrun) -> Iterator[str]:
    """The UUID of a pod whose app has no input and says what signals it hears."""
    uuid = pods.detach("sh", "-c", SPEAK)
    yield uuid
    pods.discard(uuid)


def attached(pods: Secrun, *words: str) -> "subprocess.Popen[bytes]":
    argv = pods.argv("attach", *words)
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)


def heard(process: "subprocess.Popen[bytes]", number: int, wanted: bytes) -> None:
    """Send a signal and read on until the app says that it came."""
    process.send_signal(number)
    assert process.stdout is not None
    assert wanted in iter(process.stdout.readline, b"")


def test_a_command_is_left_alone_or_let_go_and_runs_on(pods: Secrun, speaking: str):
    def content(path: str) -> str:
        return pods("enter", speaking, "--", "sh", "-c", f"cat {path} 2>/dev/null; true").out

    pods(
        "enter", "-d", speaking, "--", "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; id -u > /first"
    )
    assert "not found" in pods("enter", "-d", speaking, "--", "nothing", code=127).err
    script = "echo up; while [ ! -e /go ]; do sleep 0.05; done; tty > /second"
    with at_a_terminal(pods.argv("enter", "-i", "-t", speaking, "--", "sh", "-c", script)) as (
        terminal,
        process,
    ):
        expect(terminal, b"up")
        os.write(terminal, DETACH)
        expect(terminal, b"detached")
        assert process.wait(60) == 0
    pods("enter", speaking, "--", "touch", "/go")
    eventually(lambda: content("/first") == "0\n", "the command that was left alone")
    eventually(lambda: content("/second").startswith("/dev/pts/"), "the command that was let go")


def test_who_attaches_follows_and_signals_and_gets_the_code(pods: Secrun, speaking: str):
    with attached(pods, "--sig-proxy=false", speaking) as looking, attached(pods, speaking) as process:
        say = "echo there > /proc/1/fd/1"
        try:
            for each in (looking, process):
                until_shown(each, b"there", lambda: pods("enter", speaking, "--", "sh", "-c", say))
            for number in (signal.SIGINT, signal.SIGTERM):
                looking.send_signal(number)
            assert looking.wait(60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
            assert pods.status(speaking)["state"] == "running"
            heard(process, signal.SIGINT, b"int\n")
            heard(process, signal.SIGTERM, b"bye\n")
            assert process.wait(60) == 4
        finally:
            looking.kill()
            process.kill()
    assert "exit-code=4" in pods("status", "--wait", speaking).out
    assert "is exited, expected running" in pods("attach", speaking, code=125).err
