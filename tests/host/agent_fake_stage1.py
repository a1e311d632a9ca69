"""A stage1 for the waiter's tests: reads steps from its arguments and plays them.

Steps: `connect NAME`, `send HEX`, `frame KIND TEXT`, `recv KIND`, `echo`, `flood BYTES`, `close`, `term`, `ignore-term`,
`many COUNT`, `touch PATH`, `spawn SECONDS`, `print TEXT`, `exit CODE`. Several shims: the latest connection is used.
"""

import os
import signal
import socket
import struct
import sys
import time
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


def play(step: str) -> None:
    match step:
        case "connect":
            connect()
            frame(0x01, struct.pack("<H", 1) + next(steps).encode())
        case "open":
            connect()
        case "send":
            peers[-1].sendall(bytes.fromhex(next(steps)))
        case "frame":
            frame(int(next(steps), 16), next(steps).encode())
        case "started":
            frame(0x02, struct.pack("<Q", 1))
        case "ended":
            frame(0x06, bytes([int(next(steps)), 0]))
        case "recv":
            kind, payload = receive()
            assert kind == int(next(steps), 16), (kind, payload)
        case "tell":
            # Shows what came as output of the app.
            kind, payload = receive()
            frame(0x03, f"<{kind:02x} {payload.hex()}>\n".encode())
        case "echo":
            while (got := receive())[1]:
                frame(0x03, got[1])
                frame(0x05, struct.pack("<I", len(got[1])))
        case "flood":
            left = int(next(steps))
            number = 0
            while left > 0:
                piece = b"".join(b"%09d\n" % n for n in range(number, number + 1600))
                number += 1600
                frame(0x03, piece[:left])
                left -= len(piece[:left])
        case "closed":
            # The waiter must have ended the connection.
            peers[-1].settimeout(10)
            try:
                while peers[-1].recv(65536):
                    pass
            except ConnectionResetError:
                pass
        case "close":
            peers.pop().close()
        case "many":
            for _ in range(int(next(steps))):
                connect()
                peers[-1].close()
                peers.pop()
        case "term":
            signal.sigwait([signal.SIGTERM])
        case "ignore-term":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "touch":
            Path(next(steps)).touch()
        case "until":
            path = Path(next(steps))
            while not path.exists():
                time.sleep(0.01)
        case "spawn":
            if os.fork() == 0:
                os.setsid()
                os.execlp("sleep", "sleep", next(steps))
            next(steps)
        case "print":
            print(next(steps), flush=True)
        case "fds":
            print("fds", *sorted(os.listdir("/proc/self/fd"), key=int), flush=True)
        case "forever":
            signal.pause()
        case "exit":
            sys.exit(int(next(steps)))
        case _:
            raise SystemExit(f"unknown step {step}")


signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
for each in steps:
    if each == "ignore-term":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    play(each)
