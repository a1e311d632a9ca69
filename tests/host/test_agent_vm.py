"""The bridge, the relay and real shims with the real crun: a pod in a guest is like any other pod."""

import errno
import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from host.agent_kit import (
    EXIT,
    SIGNAL,
    STARTED,
    STDERR,
    STDIN,
    STDOUT,
    STOP,
    WANT_STDERR,
    WANT_STDIN,
    WANT_STDOUT,
    WANT_TTY,
    Stage,
    built_agent,
    eventually,
    exit_of,
    feed,
    joined,
    resident_bytes,
    short_path,
)
from host.agent_vm_kit import OWNER, Guest, Vm

MEGABYTE = 1 << 20
BOTH = WANT_STDOUT | WANT_STDERR


def test_output_log_record_and_exit_code(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sh", "-c", "echo out; echo err >&2; printf rest; exit 7"]})
    frames = vm.greeted().rest()
    guest.power_off()
    assert vm.process.wait() == 0, vm.said()
    assert frames[0][0] == STARTED
    assert joined(frames, STDOUT) == b"out\nrest"
    assert joined(frames, STDERR) == b"err\n"
    assert exit_of(frames) == (7, 0, "")
    record = vm.record()
    assert (record["code"], record["signal"], record["error"], record["error_code"]) == (7, 0, "", "")
    assert struct.unpack("<Q", frames[0][1])[0] == record["started_ns"]
    assert sorted(vm.log()) == [("stderr", "F", b"err"), ("stdout", "F", b"out"), ("stdout", "P", b"rest")]
    assert vm.said() == ""


def test_the_log_is_complete_for_a_waiter_that_wants_no_output(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sh", "-c", "echo out; echo err >&2"]})
    frames = vm.greeted(0).rest()
    assert [kind for kind, _ in frames] == [STARTED, EXIT]
    assert sorted(vm.log()) == [("stderr", "F", b"err"), ("stdout", "F", b"out")]


def test_a_program_that_is_not_there(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["nothing"]})
    assert exit_of(vm.greeted().rest())[0] == 127
    record = vm.record()
    assert (record["code"], record["error_code"], record["started_ns"]) == (127, "not-found", 0)


def test_input_passes_with_its_end(guest: Guest, vm: Vm) -> None:
    sent = os.urandom(3 * MEGABYTE)
    guest.start({"a": ["sh", "-c", "cat; echo end >&2"]}, "--stdin")
    frames = feed(vm.greeted(BOTH | WANT_STDIN), sent)
    assert joined(frames, STDOUT) == sent
    assert joined(frames, STDERR) == b"end\n"


def test_several_apps(guest: Guest, vm: Vm) -> None:
    guest.start({name: ["sh", "-c", f"echo {name}; exit {code}"] for code, name in enumerate("abc", 1)})
    shims = [vm.waiter() for _ in "abc"]
    for shim in shims:
        shim.send(0x81, struct.pack("<BHH", BOTH, 0, 0))
    codes = {joined(frames, STDOUT): exit_of(frames)[0] for frames in (shim.rest() for shim in shims)}
    guest.power_off()
    assert vm.process.wait() == 0, vm.said()
    assert codes == {b"a\n": 1, b"b\n": 2, b"c\n": 3}
    for name, code in zip("abc", (1, 2, 3), strict=True):
        assert vm.record(name)["code"] == code
        assert vm.log(name) == [("stdout", "F", name.encode())]


def test_the_log_is_rotated_within_its_limit(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sh", "-c", "yes 0123456789 | head -n 100000"]}, bridge=("--log-max", "100000"))
    assert exit_of(vm.greeted(0).rest())[0] == 0
    guest.power_off()
    folder = vm.top / "rw/apps/a"
    assert vm.process.wait() == 0
    assert (folder / "log").stat().st_size <= 100_000
    assert 50_000 < (folder / "log.1").stat().st_size <= 100_000
    assert folder.stat().st_uid == (folder / "log.1").stat().st_uid == OWNER + 1


# --- ending it


def test_the_waiter_stops_an_app(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"]})
    shim = vm.greeted()
    shim.until_output(b"up\n")
    shim.send(STOP)
    assert exit_of(shim.rest()) == (9, 0, "")
    guest.power_off()
    assert vm.process.wait() == 0, vm.said()


def test_sigterm_powers_the_guest_off_in_order(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sh", "-c", "echo up; sleep 1000"], "b": ["sleep", "1000"]})
    shims = [vm.waiter(), vm.waiter()]
    for shim in shims:
        shim.send(0x81, struct.pack("<BHH", BOTH, 0, 0))
    for shim in shims:
        while (frame := shim.receive()) and frame[0] != STARTED:
            pass
    vm.process.signal(signal.SIGTERM)
    assert [exit_of(shim.rest())[1] for shim in shims] == [signal.SIGTERM, signal.SIGTERM]
    guest.power_off()
    assert vm.process.wait() == 0, vm.said()
    assert [vm.record(name)["signal"] for name in "ab"] == [signal.SIGTERM, signal.SIGTERM]


def test_a_signal_reaches_the_app(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sleep", "1000"]})
    shim = vm.greeted()
    shim.expect(STARTED)
    shim.send(SIGNAL, bytes([signal.SIGUSR1]))
    assert exit_of(shim.rest())[1] == signal.SIGUSR1


def test_nothing_is_lost_when_the_waiter_is_slow_at_the_end(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sh", "-c", "yes 0123456789 | head -n 200000"]})
    shim = vm.greeted()
    shim.expect(STARTED)
    # Everything between the app and the waiter is full; the pod's end has to wait for it.
    eventually(lambda: len(shim.socket.recv(1 << 20, 0x2)) > 100_000)
    assert joined(shim.rest(), STDOUT) == b"0123456789\n" * 200_000
    guest.power_off()
    assert vm.process.wait() == 0, vm.said()


# --- commands


def test_commands_in_an_app(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sleep", "1000"]})
    vm.greeted().expect(STARTED)
    frames = vm.execute(["sh", "-c", "echo in; echo err >&2; exit 4"]).rest()
    assert (joined(frames, STDOUT), joined(frames, STDERR), exit_of(frames)[0]) == (b"in\n", b"err\n", 4)
    sent = os.urandom(MEGABYTE)
    frames = feed(vm.execute(["cat"], flags=WANT_STDIN), sent)
    assert joined(frames, STDOUT) == sent


def test_a_command_on_a_terminal(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sleep", "1000"]})
    vm.greeted().expect(STARTED)
    client = vm.execute(
        ["sh", "-c", "stty size; read x; echo got $x"], flags=WANT_TTY | WANT_STDIN, size=(33, 99)
    )
    client.until_output(b"33 99\r\n")
    client.send(STDIN, b"word\n")
    client.until_output(b"got word\r\n")
    assert exit_of(client.rest())[0] == 0


def test_five_commands_at_once_with_one_slow_reader(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sleep", "1000"]})
    vm.greeted().expect(STARTED)
    argv = ["sh", "-c", "yes 0123456789 | head -n 100000"]
    slow = vm.execute(argv)
    first = slow.expect(STDOUT)
    quick = [vm.execute(argv) for _ in range(4)]
    for client, before in [*((client, b"") for client in quick), (slow, first)]:
        frames = client.rest()
        assert before + joined(frames, STDOUT) == b"0123456789\n" * 100_000
        assert exit_of(frames)[0] == 0
    assert resident_bytes(vm.process.pid) < 2_500_000


def test_a_client_that_goes_away_hangs_its_command_up(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sleep", "1000"]})
    shim = vm.greeted()
    shim.expect(STARTED)
    client = vm.execute(
        ["sh", "-c", "trap 'echo gone > /proc/1/fd/1; exit' HUP; echo up; while :; do sleep 0.01; done"]
    )
    client.until_output(b"up\n")
    client.socket.close()
    shim.until_output(b"gone\n")


def test_no_client_is_let_in_after_the_app_has_ended(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["true"], "b": ["sleep", "1000"]})
    shims = [vm.waiter(), vm.waiter()]
    for shim in shims:
        shim.send(0x81, struct.pack("<BHH", BOTH, 0, 0))
    eventually((vm.top / "rw/apps/a/exit").exists)

    def refused() -> bool:
        with short_path(vm.top / "rw/apps/a/ctl.sock") as path, socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(path) == errno.ECONNREFUSED

    # The record is there a moment before the door is shut.
    eventually(refused)


# --- the bridge as a process


def test_the_bridge_gives_up_root(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sleep", "1000"]})
    vm.greeted().expect(STARTED)
    lines = Path(f"/proc/{vm.process.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == status["Gid"].split() == [str(OWNER + 1)] * 4
    assert status["Groups"].strip() == ""
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    for name in ("link", "console"):
        facts = (vm.qemu / name).stat()
        assert (facts.st_uid, facts.st_mode & 0o777) == (OWNER, 0o600)


def waiting() -> list[str]:
    """The real waiter's command line, up to what it executes."""
    words = [str(built_agent()), "wait", "--attach-fd", "{attach}", "--app", "a", "--foreground"]
    return [*words, "--finish", "/bin/echo", "--finish", "end", "--"]


def test_under_the_real_waiter(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sh", "-c", "echo out; exit 7"]}, under=waiting())
    guest.power_off()
    assert vm.process.wait() == 0
    assert vm.said() == "out\nend --stage1-status=0\n"
    assert vm.record()["code"] == 7


def test_the_real_waiter_stops_it(guest: Guest, vm: Vm) -> None:
    guest.start({"a": ["sh", "-c", "echo up; sleep 1000"]}, under=waiting())
    eventually(lambda: "up" in vm.said())
    vm.process.signal(signal.SIGTERM)
    guest.power_off()
    assert vm.process.wait() == 0
    assert vm.record()["signal"] == signal.SIGTERM


# --- what a shim does differently in a guest


def test_a_shim_without_a_log_needs_the_host(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage")
    process = stage.start(["true"], "--no-log")
    assert process.wait() == 125
    assert "attach.sock" in str(stage.record()["error"])
    assert not (stage.kept / "log").exists()


def test_a_lingering_shim_ends_when_its_peer_has_closed(stage: Stage) -> None:
    process = stage.start(["echo", "hi"], "--linger")
    peer = stage.foreground()
    assert peer.until_output(b"hi\n")
    peer.expect(EXIT)
    peer.send(SIGNAL, b"\x0f")
    with pytest.raises(TimeoutError):
        process.wait(0.3)
    peer.socket.close()
    assert process.wait() == 0


def test_a_guest_is_told_its_networks_whole_and_in_order(vm: Vm) -> None:
    parts = {1: b"secrun-network 1\n", 2: os.urandom(40_000), 3: b""}
    words = []
    for option, part in (("--network", 1), ("--hosts", 2), ("--resolv-conf", 3)):
        (vm.top / option).write_bytes(parts[part])
        words += [option, str(vm.top / option)]
    vm.start(*words)
    vm.guest(pieces=4)
    told = dict.fromkeys(parts, b"")
    for piece in vm.network:
        told[piece[0]] += piece[1:]
    assert told == parts


def test_more_than_a_guest_takes_of_a_network_is_an_error(vm: Vm) -> None:
    with (vm.top / "hosts").open("wb") as stream:
        stream.truncate(2 * MEGABYTE + 1)
    vm.start("--hosts", str(vm.top / "hosts"))
    assert "hosts: more than 2097152 bytes" in vm.fails()
