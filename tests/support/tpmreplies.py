"""A socket that answers like a TPM, in the words of a script: for answers that no honest TPM gives."""

import socket
import struct
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from secrun_attest.record import ALGORITHM_IDS, Bank


def reply(parameters=b"", code=0, tag=0x8001):
    return struct.pack(">HII", tag, 10 + len(parameters), code) + parameters


def clock(reset=3, restart=1, safe=1, now=77):
    return struct.pack(">QQIIB", 99, now, reset, restart, safe)


def selection(banks=tuple(Bank), pcr=15, size=3):
    ids = [bank if isinstance(bank, int) else ALGORITHM_IDS[bank] for bank in banks]
    bits = (1 << pcr).to_bytes(size, "little")
    return struct.pack(">I", len(ids)) + b"".join(struct.pack(">HB", one, size) + bits for one in ids)


def banks(*which, more=0, capability=5):
    return struct.pack(">BI", more, capability) + selection(which or tuple(Bank))


def values(which, selected=None):
    digests = b"".join(struct.pack(">H", len(value)) + value for value in which.values())
    chosen = selection(tuple(which)) if selected is None else selected
    return struct.pack(">I", 5) + chosen + struct.pack(">I", len(which)) + digests


EXTENDED = reply(struct.pack(">I", 0) + b"\0\0\1\0\0", tag=0x8002)
HELLO = reply(clock())


class ScriptedTpm:
    """Answers each connection's commands with the next of `answers`; None hangs up, a function has the line.

    Each connection begins with a question of the client's own, which is answered well.
    """

    def __init__(self, folder: Path, answers: Iterable[bytes | Callable[[socket.socket], None] | None]):
        self.path = folder / "scripted"
        self.tcti = f"swtpm:path={self.path}"
        self.asked: list[bytes] = []
        self._answers = iter(answers)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            with line, suppress(ConnectionError):
                self._talk(line)

    def _talk(self, line: socket.socket) -> None:
        line.recv(4096)
        line.sendall(HELLO)
        while command := line.recv(4096):
            self.asked.append(command)
            answer = next(self._answers, None)
            if answer is None:
                return
            if callable(answer):
                answer(line)
            else:
                line.sendall(answer)
