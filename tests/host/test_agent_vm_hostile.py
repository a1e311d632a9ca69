"""The bridge against guests that break the protocol, say nothing or too much, and machines that end."""

import os
import signal
import struct
from pathlib import Path

import pytest

from host.agent_host import idle
from host.agent_kit import (
    ATTACH,
    CREDIT,
    ENFORCED,
    ERROR,
    EXIT,
    HELLO,
    STARTED,
    STDOUT,
    WANT_STDOUT,
    WINDOW,
    Frames,
    eventually,
    joined,
    pack,
    resident_bytes,
)
from host.agent_vm_kit import (
    HELLO_LINK,
    HELLO_SHIM,
    KIND_CONTROL,
    L_BYE,
    L_CLOCK,
    L_CLOSE,
    L_CONNECT,
    L_CREDIT,
    L_DATA,
    L_FINISH,
    L_HELLO,
    L_MARK,
    L_NETWORK,
    L_OPEN,
    L_RESEED,
    L_SHUTDOWN,
    Vm,
    closed,
    credit,
    data,
    opened,
)

SMALL = 2_500_000
MARK = pack(L_MARK, bytes(8) + b"x")

FIRST = {
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "huge length": b"\x41\xff\xff\xff\xff",
    "unknown type": pack(0x70),
    "a shim's frame": HELLO_SHIM,
    "the host's frame": pack(L_CLOCK, bytes(8)),
    "other version": pack(L_HELLO, b"\x01\x00"),
    "short hello": pack(L_HELLO, b"\x01"),
    "bye before hello": pack(L_BYE),
    "open before hello": opened(1),
}
LATER = {
    "hello twice": HELLO_LINK,
    "the host's frame": pack(L_SHUTDOWN),
    "the host's networks": pack(L_NETWORK, b"\x01") + pack(L_CONNECT),
    "bad mark": pack(L_MARK, bytes(8) + b"a b"),
    "marks without end": MARK * 65,
    "channel of the host's": opened(2),
    "control channel": opened(1, KIND_CONTROL, b"a"),
    "channel with an app": opened(1, app=b"a"),
    "other kind": opened(1, 3),
    "opened twice": opened(1) * 2,
    "more shims than apps": opened(1) + opened(3),
    "opens without end": b"".join(opened(channel) for channel in range(1, 2001, 2)),
    "data nowhere": data(1, b"x"),
    "credit nowhere": credit(1, 1),
    "close nowhere": closed(1),
    "closed twice": opened(1) + closed(1) * 2,
    "data after close": opened(1) + closed(1) + data(1, b"x"),
    "credit beyond the window": opened(1) + credit(1, 1),
    "data beyond the window": opened(1)
    + data(1, bytes([STDOUT, 0, 0, 1, 0]) + bytes(65_520))
    + data(1, bytes(20)),
    "other app": opened(1) + data(1, pack(HELLO, b"\x03\x00zz")),
    "other version of a shim": opened(1) + data(1, pack(HELLO, b"\x01\x00a")),
    "report without hello": opened(1) + data(1, pack(ENFORCED, b"pid 1\n")),
    "report after the end": opened(1)
    + data(1, HELLO_SHIM + pack(EXIT, b"\0\0") + pack(ENFORCED, b"pid 1\n")),
    "report that is too long": opened(1) + data(1, HELLO_SHIM + pack(ENFORCED, b"pid 1\n" * 1000)),
    "shim without hello": opened(1) + data(1, pack(STDOUT, b"x")),
    "host's frame of a shim": opened(1) + data(1, HELLO_SHIM + pack(ATTACH, bytes(5))),
    "shim's hello twice": opened(1) + data(1, HELLO_SHIM * 2),
    "started twice": opened(1) + data(1, HELLO_SHIM + pack(STARTED, bytes(8)) * 2),
    "after the end": opened(1) + data(1, HELLO_SHIM + pack(EXIT, b"\0\0") + pack(STDOUT, b"x")),
    "after the error": opened(1) + data(1, HELLO_SHIM + pack(ERROR) + pack(EXIT, b"\0\0")),
    "unknown frame of a shim": opened(1) + data(1, HELLO_SHIM + pack(0x70)),
    "huge frame of a shim": opened(1) + data(1, HELLO_SHIM + b"\x03\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("sent", FIRST.values(), ids=FIRST)
def test_a_wrong_beginning_ends_the_guest(vm: Vm, sent: bytes) -> None:
    vm.start()
    vm.guest(sent)
    assert "the guest broke the protocol and was ended: " in vm.fails()


@pytest.mark.parametrize("sent", LATER.values(), ids=LATER)
def test_a_violation_ends_the_guest(vm: Vm, sent: bytes) -> None:
    vm.start()
    waiter = vm.waiter()
    guest = vm.guest()
    guest.socket.sendall(sent)
    assert "the guest broke the protocol and was ended: " in vm.fails()
    frames = waiter.rest()
    assert not {kind for kind, _ in frames} - {HELLO, STARTED, EXIT, ERROR}


def attached(vm: Vm) -> tuple[Frames, Frames]:
    """A guest by hand whose shim has come, and the waiter that has attached to it."""
    guest = vm.guest()
    guest.socket.sendall(opened(1) + data(1, HELLO_SHIM))
    waiter = vm.greeted()
    payload = guest.expect(L_DATA)
    # The waiter's frame, with both outputs asked for.
    assert payload == b"\x01\x00" + pack(ATTACH, struct.pack("<BHH", 3, 0, 0))
    return guest, waiter


def test_the_number_of_a_channel_is_not_used_again_at_once(vm: Vm) -> None:
    vm.start()
    guest, _ = attached(vm)
    numbers = set()
    for _ in range(3):
        client = vm.caller()
        number = guest.expect(L_OPEN)[:2]
        numbers.add(number)
        guest.socket.sendall(pack(L_CLOSE, number))
        assert client.receive() is None
        assert guest.expect(L_CLOSE) == number
    assert len(numbers) == 3


# --- ends


def test_a_whole_life_by_hand(vm: Vm) -> None:
    vm.start("--timing", str(vm.top / "timing"))
    guest = vm.guest(HELLO_LINK + MARK)
    guest.socket.sendall(opened(1) + data(1, HELLO_SHIM))
    waiter = vm.greeted(WANT_STDOUT)
    guest.expect(L_DATA)
    said = pack(STARTED, bytes(8)) + pack(STDOUT, b"out\n") + pack(4, b"err\n") + pack(EXIT, b"\x05\x00")
    # However it is cut.
    guest.socket.sendall(b"".join(data(1, said[at : at + 1]) for at in range(len(said))))
    assert guest.expect(L_CLOSE) == b"\x01\x00"
    assert vm.record()["code"] == 5
    guest.socket.sendall(closed(1) + pack(L_BYE))
    frames = waiter.rest()
    assert [kind for kind, _ in frames] == [STARTED, STDOUT, EXIT]
    vm.kill_machine()
    guest.socket.close()
    assert vm.process.wait() == 0
    marks = [line.split()[:2] for line in (vm.top / "timing").read_text().splitlines()]
    wanted = [["host", "starter"], ["host", "machine"], ["host", "ready"], ["guest", "x"], ["host", "bye"]]
    assert marks[:5] == wanted


def test_a_machine_that_stays_after_bye_is_left_to_the_waiter(vm: Vm) -> None:
    vm.start()
    vm.guest().socket.sendall(pack(L_BYE))
    assert vm.process.wait() == 0
    os.kill(vm.machine(), 0)


def test_a_slow_reader_is_waited_for_after_the_end(vm: Vm) -> None:
    vm.start()
    guest, waiter = attached(vm)
    assert flood(guest, channel=1) >= 7
    guest.socket.sendall(data(1, pack(EXIT, b"\0\0")))
    while guest.receive() != (L_CLOSE, b"\x01\x00"):
        pass
    guest.socket.sendall(closed(1) + pack(L_BYE))
    guest.socket.close()
    vm.connect("console").close()
    vm.kill_machine()
    eventually(lambda: not Path(f"/proc/{vm.machine()}").exists())
    assert idle(vm.process.pid)
    frames = waiter.rest()
    assert frames[-1] == (EXIT, b"\0\0")
    assert len(joined(frames, STDOUT)) > 4 * WINDOW
    assert vm.process.wait() == 0


def test_what_a_machine_said_last_is_read(vm: Vm) -> None:
    vm.start()
    guest, waiter = attached(vm)
    vm.process.signal(signal.SIGSTOP)
    # Credit is due for it, which nobody takes any more.
    guest.socket.sendall(data(1, pack(STDOUT, bytes(16_000))) * 3 + data(1, pack(EXIT, b"\0\0")))
    guest.socket.sendall(pack(L_BYE))
    guest.socket.close()
    vm.kill_machine()
    vm.process.signal(signal.SIGCONT)
    assert waiter.rest()[-1] == (EXIT, b"\0\0")
    assert vm.process.wait() == 0


def test_a_silent_guest(vm: Vm) -> None:
    vm.start(ready=300)
    vm.connect("link")
    vm.connect("console")
    assert vm.fails() == "secrun: the guest was not ready in time"


def test_a_machine_that_never_connects(vm: Vm) -> None:
    vm.start(ready=300)
    assert vm.fails() == "secrun: the guest was not ready in time"


def test_a_guest_that_closes_early(vm: Vm) -> None:
    vm.start()
    guest, waiter = attached(vm)
    guest.socket.sendall(data(1, pack(STARTED, bytes(8)) + pack(STDOUT, b"half a line")))
    guest.socket.close()
    assert vm.fails() == "secrun: the guest cannot be reached any more"
    assert joined(waiter.rest(), STDOUT) == b"half a line"
    assert vm.log() == [("stdout", "P", b"half a line")]
    assert not (vm.top / "rw/apps/a/exit").exists()


def test_a_machine_that_is_killed(vm: Vm) -> None:
    vm.start()
    guest, _ = attached(vm)
    vm.kill_machine()
    guest.socket.close()
    assert vm.fails() == "secrun: QEMU was killed by signal 9"


def helped(vm: Vm, how: str) -> None:
    """Let the helper of a machine end while its guest is there."""
    vm.start(mode=how)
    guest, _ = attached(vm)
    (vm.top / "go").touch()
    assert guest.receive() is None


def test_a_helper_that_is_killed_ends_the_pod_and_is_named(vm: Vm) -> None:
    helped(vm, "kill $$")
    assert vm.fails() == "secrun: virtiofsd of /a b was killed by signal 15"


def test_a_helper_that_fails_ends_the_pod_and_is_named(vm: Vm) -> None:
    helped(vm, "exit 3")
    assert vm.fails() == "secrun: virtiofsd of /a b ended with exit status 3"


def test_a_machine_is_named_when_its_helper_only_followed_it(vm: Vm) -> None:
    """A helper ends in order when QEMU has left it, and may be seen to end first."""
    helped(vm, f"kill -9 $(cat {vm.top}/machine); exit 0")
    assert vm.fails() == "secrun: QEMU was killed by signal 9"


def test_a_guest_is_told_when_its_last_app_has_ended(vm: Vm) -> None:
    vm.start()
    guest, _ = attached(vm)
    guest.socket.sendall(data(1, pack(STARTED, bytes(8)) + pack(EXIT, b"\0\0")))
    assert guest.expect(L_CLOSE) == b"\x01\x00"
    guest.socket.sendall(closed(1))
    assert guest.expect(L_FINISH) == b""


def test_sigterm_before_the_guest_is_there(vm: Vm) -> None:
    vm.start()
    eventually(vm.has_started)
    guest = Frames(vm.connect("link"))
    vm.process.signal(signal.SIGTERM)
    guest.socket.sendall(HELLO_LINK)
    kinds = [guest.receive() for _ in range(4)]
    assert [frame and frame[0] for frame in kinds] == [L_CLOCK, L_RESEED, L_CONNECT, L_SHUTDOWN]
    vm.process.signal(signal.SIGTERM)
    assert "ended at once" in vm.fails()


def test_without_its_waiter_the_pod_ends(vm: Vm) -> None:
    kill = vm.top / "cgroup.kill"
    kill.touch()
    shell = vm.start("--cgroup-kill", str(kill), under=["/bin/sh", "-c", '"$@" & wait', "sh"])
    guest, _ = attached(vm)
    shell.signal(signal.SIGKILL)
    assert guest.receive() is None
    assert kill.read_text() == "1"


# --- starters


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("fail", "ended with exit status 3"),
        ("refuse", ": no such machine type; have another"),
        ("hang", "did not end in time"),
        ("pid", "did not say `pid N`"),
        ("pid 12 13", "did not say `pid N`"),
        ("pid 1", "did not say `pid N`"),
        ("pid -1", "did not say `pid N`"),
        ("x" * 1000, "did not say `pid N`"),
        ("helper 12\npid 12", "did not say `pid N`"),
        ("pid 2", "named process 2, which is not one that runs for the machine"),
        ("pid 999999999", "which is not one that runs for the machine"),
        ("dead", "which is not one that runs for the machine"),
    ],
)
def test_a_start_that_fails(vm: Vm, mode: str, reason: str) -> None:
    vm.start(mode=mode, ready=1000 if mode == "hang" else 10_000)
    said = vm.fails()
    assert said.startswith("secrun: the virtual machine could not be started: ")
    assert reason in said
    if mode == "fail":
        assert "no such machine type" in vm.said()


def test_a_machine_that_ends_at_once(vm: Vm) -> None:
    vm.start(mode="crash")
    # The same, whether it is found ended after its starter or before.
    assert vm.fails() == "secrun: QEMU was killed by signal 9"


def test_what_is_stopped_while_it_starts(vm: Vm) -> None:
    vm.start(mode="hang")
    eventually((vm.qemu / "link").exists)
    eventually(lambda: Path(f"/proc/{vm.process.pid}/task/{vm.process.pid}/children").read_text())
    vm.process.signal(signal.SIGTERM)
    assert "stopped while the virtual machine was being started" in vm.fails()


# --- floods


FRAME = pack(STDOUT, b"x" * 8000)


def flood(guest: Frames, channel: int) -> int:
    """Keep to the credit until no more comes: all to the waiter is full. What is left of it."""
    allowed = WINDOW
    while True:
        if allowed >= len(FRAME) + 100:
            guest.socket.sendall(data(channel, FRAME))
            allowed -= len(FRAME)
            continue
        try:
            told, count = struct.unpack("<HI", guest.expect(L_CREDIT, 1))
        except TimeoutError:
            return allowed
        assert told == channel
        allowed += count


def test_output_that_the_waiter_does_not_read_is_bounded(vm: Vm) -> None:
    vm.apps = ("a", "b")
    vm.start()
    guest = vm.guest()
    guest.socket.sendall(opened(1) + data(1, HELLO_SHIM))
    slow = vm.greeted()
    guest.expect(L_DATA)
    guest.socket.sendall(opened(3) + data(3, pack(HELLO, b"\x03\x00b")))
    quick = vm.greeted(app="b")
    guest.expect(L_DATA)
    flood(guest, channel=1)
    assert resident_bytes(vm.process.pid) < SMALL
    # The other one's way is free.
    guest.socket.sendall(data(3, pack(STDOUT, b"hello\n")))
    assert quick.expect(STDOUT) == b"hello\n"
    # More than that is a violation.
    guest.socket.sendall(data(1, FRAME) * 8)
    assert "more data than was allowed" in vm.fails()
    del slow


def push(peer: Frames, payload: bytes, most: int) -> int:
    """Send again and again until nothing is taken any more; the bytes that were."""
    peer.socket.settimeout(0.5)
    sent = 0
    try:
        while sent < most:
            sent += peer.socket.send(payload)
    except (TimeoutError, BrokenPipeError, ConnectionResetError):
        pass
    return sent


def test_a_guest_that_does_not_read_is_bounded(vm: Vm) -> None:
    vm.start()
    guest, waiter = attached(vm)
    # Signals, until nobody takes them.
    assert push(waiter, pack(0x83, b"\x0f"), 10_000_000) < 2_000_000
    assert resident_bytes(vm.process.pid) < SMALL
    # It gets no credit for what it says then: that would be queued without end too.
    push(guest, data(1, pack(CREDIT, bytes(4)) * 1000), 20_000_000)
    assert "more data than was allowed" in vm.fails()


def test_the_console_is_kept_within_bounds_and_safe_to_show(vm: Vm) -> None:
    vm.start()
    console = vm.connect("console")
    guest, _ = attached(vm)
    console.sendall(b"first\x1b[2J\xff\r\n" + b"0123456789abcde\n" * 20_000)
    console.sendall(b"last\n")
    console.close()
    assert resident_bytes(vm.process.pid) < SMALL
    vm.kill_machine()
    guest.socket.close()
    assert vm.fails() == "secrun: QEMU was killed by signal 9"
    said = vm.said()
    assert said.startswith("first?[2J?\n0123")
    assert "\nlast\n" in said
    assert "bytes of the console left out" in said
    assert 131_072 <= len(said) < 132_000


VERITY = "[    1.5] device-mapper: verity: "
PANIC = "[    1.6] Kernel panic - not syncing: "
CONSOLE = {
    f"{PANIC}Attempted to kill init!": "the guest's kernel panicked: Attempted to kill init!",
    "secrun-stage0: no disk pod came in 10 s": "the guest could not start: no disk pod came in 10 s",
    f"secrun-stage0: 254:32 is disk app-0\n{VERITY}254:32: data block 3 is corrupted\n{PANIC}dm-verity": (
        "the guest refused a corrupted block of image web"
    ),
    f"secrun-stage0: 254:0 is disk pod\n{VERITY}254:0: metadata block 3 is corrupted": (
        "the guest refused a corrupted block of the pod's own image"
    ),
    f"{VERITY}254:0: metadata block 3 is corrupted": "the guest refused a corrupted block of disk 254:0",
    f"{PANIC}System is deadlocked on memory": "the guest ran out of memory",
    "secrun-agent relay: the host has gone": "the guest's relay failed: the host has gone",
    "[ 9.1] Out of memory: Killed process 50 (relay)": "the guest ran out of memory",
}


@pytest.mark.parametrize(("said", "reason"), CONSOLE.items())
def test_the_console_tells_why(vm: Vm, said: str, reason: str) -> None:
    vm.start("--image", "app-0=web")
    console = vm.connect("console")
    console.sendall(said.replace("\n", "\r\n").encode() + b"\r\n")
    console.close()
    vm.connect("link").close()
    eventually(vm.has_started)
    vm.kill_machine()
    assert vm.fails() == f"secrun: {reason}"


def test_a_lost_guest_is_not_waited_for(vm: Vm) -> None:
    vm.start()
    guest, _ = attached(vm)
    vm.connect("console").sendall(b"[ 1.5] Kernel panic - not syncing: stuck\n")
    assert vm.fails() == "secrun: the guest's kernel panicked: stuck"
    assert guest.receive() is None
