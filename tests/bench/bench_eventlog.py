"""What measuring costs: a record in the log and in a software TPM, and whether that grows with the log."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from report import Row

from secrun_attest import celjson
from secrun_attest.directtpm import DirectTpm
from secrun_attest.logfile import EventLog
from secrun_attest.record import Event, Operation, make_record, parse_event_data
from support.swtpm import Swtpm

LONG = 10_000
# One log for each, in PCRs that nothing else uses.
SHORT_PCR, MANY_PCR, LONG_PCR = 15, 14, 8
FIELDS = {"pod": "11111111-2222-4333-8444-555555555555", "manifest": "sha256:" + "ab" * 32}


def eventlog(base: Path, rounds: int) -> tuple[list[Row], list[tuple[str, str]]]:
    """Return the rows; `base` is on the disk that logs are to be on."""
    with _swtpm(base / "eventlog") as tcti:
        folder = base / "eventlog"
        _fill(folder / "long", tcti)
        one, several, long, disk = _in_turn(
            max(rounds * 10, 100),
            lambda: _append(folder / "short", tcti, SHORT_PCR),
            lambda: _append(folder / "many", tcti, MANY_PCR, 4),
            lambda: _append(folder / "long", tcti, LONG_PCR),
            lambda: _sync(folder / "line"),
        )
    growth = statistics.median(b / a for a, b in zip(one, long, strict=True))
    return [
        _row("extend + log append, one record of a process that just started", one, disk),
        _row("extend + log append per record, four under one hold", [each / 4 for each in several], disk),
        Row(
            what=f"the first of these, {LONG:,} records before it",
            ours=_ms(long),
            theirs=_ms(one),
            value=growth,
            unit="x",
            budget=1.2,
            against=f"at most {len(one) + 1} before it",
        ),
    ], []


def _row(what: str, ours: Sequence[float], disk: Sequence[float]) -> Row:
    return Row(
        what=what,
        ours=_ms(ours),
        theirs=_ms(disk),
        value=statistics.median(ours) * 1000,
        unit="ms",
        budget=2,
        against="write and fdatasync of 1 KB",
    )


def _ms(samples: Sequence[float]) -> str:
    return f"{statistics.median(samples) * 1000:.2f} ms"


def _in_turn(runs: int, *contenders: Callable[[], None]) -> tuple[list[float], ...]:
    """Return the seconds that each took, all in the same minutes; the first run only warms caches."""
    samples = tuple([] for _ in contenders)
    for _ in range(runs + 1):
        for work, taken in zip(contenders, samples, strict=True):
            begin = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begin)
    return tuple(taken[1:] for taken in samples)


@contextmanager
def _swtpm(folder: Path):
    folder.mkdir()
    tpm = Swtpm(folder / "swtpm")
    tpm.start()
    try:
        yield tpm.tcti
    finally:
        tpm.stop()


def _append(folder: Path, tcti: str, pcr: int, count: int = 1) -> None:
    with closing(DirectTpm(tcti)) as tpm:
        EventLog(folder, tpm, pcr, opening={}).append_many([(Operation.POD_START, FIELDS)] * count)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"x" * 1024)
    os.fdatasync(fd)
    os.close(fd)


def _fill(folder: Path, tcti: str) -> None:
    """Bring a log to LONG records without waiting for the disk."""
    with closing(DirectTpm(tcti)) as tpm:
        log = EventLog(folder, tpm, LONG_PCR, opening={})
        (last,) = log.recover()
        epoch = parse_event_data(last.event_data).epoch
        (path,) = folder.glob("*.cel")
        with path.open("ab") as stream:
            for seq in range(last.recnum + 1, LONG):
                event = Event(operation=Operation.POD_START, seq=seq, epoch=epoch, t=0, fields=FIELDS)
                record = make_record(event, pcr=LONG_PCR, banks=last.digests)
                stream.write(celjson.line(record))
                tpm.extend(LONG_PCR, record.digests)
        if len(log.recover()) != LONG:
            raise RuntimeError("the log was not filled")
