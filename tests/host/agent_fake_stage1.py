"""A stage1 for the waiter's tests: each argument after the attach socket is a step, or the value of one.

Each function of STEPS is a step; several shims may be played, the latest connection is used.
"""

import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

ATTACH = sys.argv[1]
steps = iter(sys.argv[2:])
peers: list[socket.socket] = []


def frame(kind: int, payload: bytes = b"") -> None:
    peers[-1].sendall(struct.pack("<BI", kind, len(payload)) + payload)


def exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = peers[-1].recv(count - len(data))
        if not piece:
            sys.exit(90)
        data += piece
    return data


def receive() -> tuple[int, bytes]:
    kind, length = struct.unpack("<BI", exactly(5))
    return kind, exactly(length)


def connect() -> None:
    peers.append(socket.socket(socket.AF_UNIX))
    peers[-1].connect(ATTACH)


def value() -> str:
    return next(steps)


def greet() -> None:
    connect()
    frame(0x01, struct.pack("<H", 3) + value().encode())


def expect() -> None:
    kind, payload = receive()
    assert kind == int(value(), 16), (kind, payload)


def expect_at_last() -> None:
    """Pass over what comes before, such as the end of the input."""
    wanted = int(value(), 16)
    while receive()[0] != wanted:
        pass


def tell() -> None:
    """Show what came as output of the app."""
    kind, payload = receive()
    frame(0x03, f"<{kind:02x} {payload.hex()}>\n".encode())


def keep() -> None:
    """Write what came to a file."""
    kind, payload = receive()
    Path(value()).write_text(f"{kind:02x} {payload.hex()}\n")


def echo() -> None:
    while (got := receive())[1]:
        frame(0x03, got[1])
        frame(0x05, struct.pack("<I", len(got[1])))


def flood() -> None:
    left, number = int(value()), 0
    while left > 0:
        piece = b"".join(b"%09d\n" % n for n in range(number, number + 1600))[:left]
        number += 1600
        frame(0x03, piece)
        left -= len(piece)


def closed() -> None:
    """Wait until the waiter has ended the connection."""
    peers[-1].settimeout(60)
    try:
        while peers[-1].recv(65536):
            pass
    except ConnectionResetError:
        pass


def many() -> None:
    for _ in range(int(value())):
        connect()
        peers.pop().close()


def ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def until() -> None:
    path = Path(value())
    while not path.exists():
        time.sleep(0.01)


def spawn() -> None:
    seconds = value()
    if (child := os.fork()) == 0:
        os.setsid()
        os.execlp("sleep", "sleep", seconds)
    print("spawned", child, flush=True)


STEPS: dict[str, Callable[[], object]] = {
    "connect": greet,
    "open": connect,
    "send": lambda: peers[-1].sendall(bytes.fromhex(value())),
    "frame": lambda: frame(int(value(), 16), value().encode()),
    "started": lambda: frame(0x02, struct.pack("<Q", 1)),
    "ended": lambda: frame(0x06, bytes([int(value()), 0])),
    "recv": expect,
    "recv-at-last": expect_at_last,
    "tell": tell,
    "keep": keep,
    "echo": echo,
    "flood": flood,
    "closed": closed,
    "close": lambda: peers.pop().close(),
    "many": many,
    "term": lambda: signal.sigwait([signal.SIGTERM]),
    "ignore-term": ignore_term,
    "touch": lambda: Path(value()).touch(),
    "until": until,
    "spawn": spawn,
    "blocked": lambda: print(sorted(BLOCKED), flush=True),
    "print": lambda: print(value(), flush=True),
    "fds": lambda: print("fds", *sorted(os.listdir("/proc/self/fd"), key=int), flush=True),
    "forever": signal.pause,
    "exit": lambda: sys.exit(int(value())),
}

BLOCKED = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
for each in steps:
    STEPS[each]()
