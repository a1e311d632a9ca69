"""Writers of the event log that die by SIGKILL at a named instant, and what must be true after them.

A writer appends up to COUNT records; somewhere among them, chosen by SEED, it dies at POINT (empty: never).
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from secrun_attest import checkpoint
from secrun_attest.logfile import EventLog
from secrun_attest.record import Bank, Operation, parse_event_data
from secrun_attest.replay import replay, zeros
from secrun_attest.tpm import Tpm
from support.eventlog import BOOT_ID

POINTS = ("torn", "logged", "extended", "measured", "head written", "")
WRITERS = 4


def log_of(folder: Path, tpm: Tpm) -> EventLog:
    return EventLog(folder / "measure", tpm, 15, opening={}, boot_id=lambda: BOOT_ID)


def main(folder: Path, tpm: Tpm, point: str, seed: int, count: int) -> None:
    # The first instant belongs to LogOpen in one writer, to a recovery or an append in the others.
    left = random.Random(seed).randrange(1, count)

    def hook(name: str) -> None:
        nonlocal left
        left -= name == point
        if name == point and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.hook = hook
    for number in range(count):
        # As a process that has read nothing: what the head says is all that it has.
        log_of(folder, tpm).append(Operation.POD_START, {"writer": seed, "number": number})


def start(folder: Path, tpm: Callable[[], Tpm], point: str, seed: int, count: int) -> int:
    """Fork a writer; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        main(folder, tpm(), point, seed, count)
        status = 0
    except BaseException:  # noqa: BLE001 - a forked child must never return into the test runner
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def wait_for(pid: int) -> int:
    """Return 0 for a writer that did all its work, or the number of the signal that killed it."""
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a writer failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def check_killed_writers(folder: Path, tpm: Callable[[], Tpm], *, rounds: int, count: int) -> int:
    """Run rounds of concurrent writers of which one lives; return how many records they leave.

    After each round the log replays to the PCR, and at the end it holds all that `append` returned from.
    """
    ends: list[int] = []
    records = ()
    for number in range(rounds):
        pids = [
            start(folder, tpm, POINTS[(number + at) % len(POINTS)], number * WRITERS + at, count)
            for at in range(WRITERS)
        ]
        ends += [wait_for(pid) for pid in pids]
        judge = tpm()
        records = log_of(folder, judge).recover()
        assert replay(records, zeros(Bank)) == judge.read_pcr(15)
    assert len(ends) % len(POINTS) == 0
    assert ends.count(signal.SIGKILL) == (len(POINTS) - 1) * ends.count(0) > 0
    written = [parse_event_data(record.event_data).fields for record in records[1:]]
    for writer in range(WRITERS * rounds):
        numbers = [fields["number"] for fields in written if fields["writer"] == writer]
        # In order, each once, without a gap.
        assert numbers == list(range(len(numbers)))
    return len(records)
