"""A writer of the event log that dies by SIGKILL at a named instant: FOLDER POINT SEED COUNT.

It appends up to COUNT records; somewhere among them, chosen by SEED, it dies at POINT (empty: never).
"""

import os
import random
import signal
import sys
from pathlib import Path

from secrun_attest import checkpoint
from secrun_attest.logfile import EventLog
from secrun_attest.record import Operation
from support.eventlog import BOOT_ID, FileTpm


def main(folder: Path, point: str, seed: int, count: int) -> None:
    # The first instant belongs to LogOpen in one writer, to a recovery or an append in the others.
    left = random.Random(seed).randrange(1, count)

    def hook(name: str) -> None:
        nonlocal left
        left -= name == point
        if name == point and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.hook = hook
    tpm = FileTpm(folder / "tpm")
    for number in range(count):
        # As a process that has read nothing: what the head says is all that it has.
        log = EventLog(folder / "measure", tpm, 15, opening={}, boot_id=lambda: BOOT_ID)
        log.append(Operation.POD_START, {"writer": seed, "number": number})


def start(folder: Path, point: str, seed: int, count: int) -> int:
    """Fork a writer; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        main(folder, point, seed, count)
        status = 0
    except BaseException:  # noqa: BLE001 - a forked child must never return into the test runner
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
