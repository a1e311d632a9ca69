"""The waiter against pods that break the protocol."""

import os
import struct

import pytest

from host.agent_host import APP, Host, go, idle, readable
from host.agent_kit import (
    ATTACH,
    CREDIT,
    ENFORCED,
    EXIT,
    HELLO,
    STARTED,
    STDIN,
    STDOUT,
    WINDOW,
    children,
    eventually,
    pack,
    resident_bytes,
)

HOSTILE = {
    "garbage": "474554202f20485454502f312e310d0a0d0a",
    "huge length": "03ffffffff",
    "unknown type": pack(0x70).hex(),
    "early output": pack(STDOUT, b"early").hex(),
    "host frame": pack(STDIN, b"x").hex(),
    "other version": pack(HELLO, b"\x01\x00a").hex(),
    "report before hello": pack(ENFORCED, b"pid 1\n").hex(),
    "other app": pack(HELLO, b"\x03\x00zz").hex(),
    "app in no UTF-8": pack(HELLO, b"\x03\x00\xff").hex(),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_violations_end_the_connection_not_the_pod(host: Host, data: str) -> None:
    process = host.wait(
        ["open", "send", data, "closed", "close", *go(host, "frame", "03", "fine\n")], "--foreground"
    )
    process.wait()
    assert host.output().startswith("fine\nfinish --stage1-status=0")


@pytest.mark.parametrize(
    "data",
    [
        pack(STARTED, bytes(8)),
        pack(CREDIT, struct.pack("<I", WINDOW)),
        pack(CREDIT, b"\xff\xff\xff\xff"),
        pack(HELLO, b"\x03\x00a"),
        pack(ENFORCED, b"pid 1\n"),
        pack(EXIT, b"\x00\x00" + b"e" * 5000),
        pack(EXIT, b"\x00\x00") + pack(STDOUT, b"after the end"),
        pack(ATTACH, bytes(5)),
    ],
    ids=[
        "started twice",
        "credit",
        "more credit",
        "hello twice",
        "a report that nobody asked for",
        "long text",
        "after the end",
        "host frame",
    ],
)
def test_violations_after_the_greeting(host: Host, data: bytes) -> None:
    process = host.wait([*APP, "send", data.hex(), "closed", "exit", "0"], "--foreground")
    process.wait()
    assert host.output().startswith("finish --stage1-status=0")


def test_an_app_cannot_come_twice(host: Host) -> None:
    process = host.wait([*APP, "close", "connect", "a", "closed", "exit", "0"], "--foreground")
    process.wait()
    assert "--stage1-status=0" in host.output()


def test_silent_connections_do_not_hold_up_the_end(host: Host) -> None:
    process = host.wait(["open", "open", "open", "send", "0105", "exit", "7"])
    process.wait()
    assert "--stage1-status=7" in host.output()


def test_many_connections(host: Host) -> None:
    process = host.wait(["many", "1000", *go(host, "frame", "03", "fine\n")], "--foreground")
    process.wait()
    assert host.output().startswith("fine\n")


def test_connections_are_bounded(host: Host) -> None:
    steps = [*["open"] * 20, "touch", str(host.top / "up"), "forever"]
    process = host.wait(steps, apps=("a", "b"))
    eventually((host.top / "up").exists)
    # Standard streams, signal, the two listeners, copies of 0, 1 and 2, and two connections at most.
    eventually(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) >= 11)
    assert len(os.listdir(f"/proc/{process.pid}/fd")) <= 12
    host.control(b"K")
    process.wait()


def test_a_flood_is_bounded_in_memory(host: Host) -> None:
    read, write = os.pipe()
    process = host.wait([*APP, "flood", "50000000", "exit", "0"], "--foreground", stdout=write)
    os.close(write)
    eventually(lambda: readable(read) > 60_000)
    # The pod's end waits: everything between it and the reader is full.
    eventually(lambda: idle(children(process.pid)[0]))
    assert resident_bytes(process.pid) < 2_500_000
    os.close(read)
    process.wait()
