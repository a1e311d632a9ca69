"""The waiter against a stand-in of stage1: its life, its being stopped, readiness."""

import contextlib
import os
import select
import signal
import socket
import time

import pytest

from host.agent_host import (
    APP,
    Host,
    go,
    pending_signals,
)
from host.agent_kit import (
    PATIENCE,
    Running,
    built_agent,
    children,
    eventually,
    resident_bytes,
)

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
    process = host.wait(["spawn", "1000", "exit", "0"])
    assert process.wait() == 0
    # It is still there, and nobody waited for it.
    os.kill(int(host.stage1_said().split()[1]), signal.SIGKILL)


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


def test_marks_tell_when_apps_start_and_end_and_when_stage1_ends(host: Host) -> None:
    marks = host.top / "marks"
    marks.write_text("host before 1\n")
    fd = os.open(marks, os.O_WRONLY | os.O_APPEND)
    before = time.monotonic_ns()
    steps = ["connect", "a", "recv", "81", "started", "ended", "0"]
    host.wait(steps, "--timing-fd", str(fd), fds=[fd]).wait()
    os.close(fd)
    rows = [line.split(" ") for line in marks.read_text().splitlines()]
    assert [(side, name) for side, name, _ in rows[1:]] == [
        ("host", "started:a"),
        ("host", "ended:a"),
        ("host", "stage1-ended"),
    ]
    times = [before, *(int(ns) for *_, ns in rows[1:]), time.monotonic_ns()]
    assert times == sorted(times)


def test_failed_when_stage1_ends_first(host: Host) -> None:
    read, write = os.pipe()
    process = host.wait(["exit", "1"], "--ready-fd", str(write), fds=[write])
    os.close(write)
    assert os.read(read, 100) == b"failed\n"
    assert os.read(read, 100) == b""
    process.wait()
    os.close(read)


def test_the_service_manager_is_told_when_every_app_has_started_and_when_the_pod_stops(host: Host) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    steps = ["connect", "a", "recv", "81", "started", "forever"]
    process = host.wait(steps, "--notify-fd", str(theirs.fileno()), fds=[theirs.fileno()])
    theirs.close()
    ours.settimeout(60)
    assert ours.recv(100) == b"READY=1\n"
    host.control(b"T")
    assert ours.recv(100) == b"STOPPING=1\n"
    host.control(b"K")
    process.wait()
    ours.close()
