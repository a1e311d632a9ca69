"""The event log of this host: written first, extended second, under one lock; the PCR decides after a crash.

Protocol and files: docs/event-log.md.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from secrun_attest import frozen, jcs, logstore
from secrun_attest.checkpoint import reached
from secrun_attest.errors import BrokenEpochError, LogError, TpmError, TpmTransportError
from secrun_attest.history import BASELINE_FIELD, RESTART_FIELD, History, baseline_json
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_RECORDS
from secrun_attest.logstore import LogFile
from secrun_attest.record import Bank, Epoch, Event, Operation, Record, make_record
from secrun_attest.replay import extend_all, zeros
from secrun_attest.tpm import Tpm, TpmClock

BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"

_NEW_EPOCH = "find out what else extends this PCR, then reboot the host: a new boot epoch begins a new log"


def host_boot_id() -> str:
    """Return the kernel's id of this boot."""
    with open(BOOT_ID_FILE, encoding="utf-8") as stream:
        return stream.read().strip()


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


@frozen.record
class _Known:
    """What this process has already read of a log, so that an append reads only what others added."""

    path: Path
    inode: tuple[int, int]
    size: int
    history: History

    def is_of(self, clock: TpmClock) -> bool:
        """Tell whether this is the log of the epoch that `clock` shows."""
        return (self.history.epoch.reset, self.history.restart) == (clock.reset, clock.restart)


class EventLog:
    """Appends records to the log of the present boot epoch and extends them into the PCR.

    `opening` holds the fields of LogOpen (the baseline is added); `baseline` is what the PCR holds before
    the first record where other logs explain a value that is not zero. Every process that extends the PCR
    must use the same `directory`: its lock puts records and extends in one order.
    """

    def __init__(
        self,
        directory: Path,
        tpm: Tpm,
        pcr: int,
        *,
        opening: Mapping[str, JsonValue],
        baseline: Mapping[Bank, bytes] | None = None,
        boot_id: Callable[[], str] = host_boot_id,
        now: Callable[[], int] = _milliseconds,
    ) -> None:
        self._directory = directory
        self._tpm = tpm
        self._pcr = pcr
        self._opening = dict(opening)
        self._baseline = baseline
        self._boot_id = boot_id
        self._now = now
        self._known: _Known | None = None

    def recover(self) -> tuple[Record, ...]:
        """Bring log and PCR to agree, open the log of a new epoch; return the records, all extended.

        Raises BrokenEpochError if the PCR holds what the log does not explain, LogError if the log cannot be
        used, TpmError and TpmTransportError.
        """
        with self._recovered() as log:
            return tuple(log.history.records) if log.history else ()

    def append(self, operation: Operation, fields: Mapping[str, JsonValue]) -> Record:
        """Recover, then write and extend one record; when this returns, the event is measured.

        Raises as `recover` does, and FormatError for an event that is too large. After an error the event
        counts as not measured, though the next recovery may find that it is.
        """
        with self._recovered() as log:
            return self._append(log, operation, fields)

    def records(self) -> tuple[Record, ...]:
        """Return the whole records of this epoch, without waiting for writers.

        The last one may not be extended yet: `replay.find_prefix` tells which of them a quote covers. Raises
        LogError if this epoch has no log.
        """
        path = self._find(self._tpm.clock(), self._read_pcr())
        with logstore.opened(path, self._pcr) as log:
            log.load()
            return tuple(log.history.records) if log.history else ()

    @contextmanager
    def _recovered(self) -> Iterator[LogFile]:
        with logstore.locked(self._directory):
            clock = self._tpm.clock()
            values = self._read_pcr()
            path = self._find(clock, values)
            if logstore.is_marked(path):
                raise BrokenEpochError(f"the boot epoch of {path} is marked as broken", hint=_NEW_EPOCH)
            with logstore.opened(path, self._pcr, create=True) as log:
                # Whatever goes wrong below, the next call reads everything again.
                known, self._known = self._known, None
                self._load(log, values, known)
                self._agree(log, values)
                self._begin(log, clock, values)
                yield log
                if log.history is not None:
                    self._known = _Known(
                        path=log.path, inode=_inode(log), size=log.size, history=log.history
                    )

    def _find(self, clock: TpmClock, values: Mapping[Bank, bytes]) -> Path:
        """Return the epoch's log, which may not exist yet.

        A sleep raises the restart count and may keep the PCR or clear it: if the PCR is still what the log
        before it says, that log goes on.
        """
        if self._known is not None and self._known.is_of(clock):
            return self._known.path
        exact = logstore.log_path(self._directory, clock.reset, clock.restart)
        earlier = logstore.earlier_log(self._directory, clock.reset, clock.restart)
        if earlier is None or os.path.lexists(exact) or values == self._start(values):
            return exact
        with logstore.opened(earlier, self._pcr) as log:
            log.load()
            history = log.history
        goes_on = history is not None and values in (history.values, history.before)
        return earlier if goes_on else exact

    def _load(self, log: LogFile, values: Mapping[Bank, bytes], known: _Known | None) -> None:
        if known is not None and known.inode == _inode(log) and known.size <= os.fstat(log.fd).st_size:
            log.size, log.history = known.size, known.history
            try:
                log.load()
            except LogError:
                log.forget()
            if log.history is known.history and known.history.values == values:
                log.cut()
                return
            log.forget()
        log.load()
        log.cut()

    def _agree(self, log: LogFile, values: Mapping[Bank, bytes]) -> None:
        """Make the PCR hold what the log says, which may be one record ahead of it."""
        history = log.history
        if history is None:
            self._check_baseline(values)
        elif values.keys() != history.base.keys():
            raise LogError(
                f"the TPM has banks {'+'.join(values)}, {log.path} was opened with {'+'.join(history.base)}",
                hint="allocate the banks as they were, or reboot: a new boot epoch begins a new log",
                code="log-banks",
            )
        elif values == history.before:
            self._extend(log, history.before, history.records[-1])
        elif values == self._start(values) and history.epoch.boot_id != self._boot_id():
            raise LogError(
                f"{log.path} is of another boot, {history.epoch.boot_id}: its counters have come again",
                hint="the TPM was cleared or exchanged since; move the file out of this folder",
                code="log-stale",
            )
        elif values != history.values:
            raise self._broken(log, history.values, values)

    def _start(self, banks: Iterable[Bank]) -> Mapping[Bank, bytes]:
        return zeros(banks) if self._baseline is None else self._baseline

    def _check_baseline(self, values: Mapping[Bank, bytes]) -> None:
        expected = self._start(values)
        if values != expected:
            raise LogError(
                f"PCR {self._pcr} holds {_short(values)} before the first record of this boot, "
                f"expected {_short(expected)}",
                hint="its log was deleted, or another program uses this PCR: reboot, or choose PCR 8",
                code="log-baseline",
            )

    def _begin(self, log: LogFile, clock: TpmClock, values: Mapping[Bank, bytes]) -> None:
        """Write LogOpen into a new log, Resume after a sleep."""
        if log.history is None:
            opening = {**self._opening, BASELINE_FIELD: baseline_json(values)}
            epoch = Epoch(reset=clock.reset, restart=clock.restart, boot_id=self._boot_id())
            self._write(log, epoch, values, Operation.LOG_OPEN, opening)
        elif log.history.restart != clock.restart:
            self._append(log, Operation.RESUME, {RESTART_FIELD: clock.restart})

    def _append(self, log: LogFile, operation: Operation, fields: Mapping[str, JsonValue]) -> Record:
        history = log.history
        if history is None:
            raise LogError(f"{log.path} is not open", code="log-none")
        return self._write(log, history.epoch, history.values, operation, fields)

    def _write(
        self,
        log: LogFile,
        epoch: Epoch,
        before: Mapping[Bank, bytes],
        operation: Operation,
        fields: Mapping[str, JsonValue],
    ) -> Record:
        count = len(log.history.records) if log.history else 0
        if count >= MAX_RECORDS:
            raise LogError(
                f"{log.path} holds {count} records, the most a log may",
                hint="reboot the host: a new boot epoch begins a new log",
                code="log-full",
            )
        event = Event(operation=operation, seq=count, epoch=epoch, t=self._now(), fields=fields)
        record = make_record(event, pcr=self._pcr, banks=before)
        size = log.put(record)
        reached("logged")
        self._extend(log, before, record)
        log.accept(record, size)
        return record

    def _extend(self, log: LogFile, before: Mapping[Bank, bytes], record: Record) -> None:
        """Extend a record that is on disk; cut it off the log again only if it certainly is not extended."""
        expected = extend_all(before, record.digests)
        try:
            self._tpm.extend(self._pcr, record.digests)
        except TpmError:
            log.cut()
            raise
        except TpmTransportError:
            if self._read_pcr() == before:
                log.cut()
                raise
        reached("extended")
        got = self._read_pcr()
        if got != expected:
            raise self._broken(log, expected, got)

    def _broken(
        self, log: LogFile, expected: Mapping[Bank, bytes], got: Mapping[Bank, bytes]
    ) -> BrokenEpochError:
        count = len(log.history.records) if log.history else 0
        mark: JsonObject = {
            "t": self._now(),
            "records": count,
            "expected": baseline_json(expected),
            "got": baseline_json(got),
        }
        logstore.write_mark(log.path, jcs.encode(mark) + b"\n")
        return BrokenEpochError(
            f"PCR {self._pcr} holds {_short(got)}, expected {_short(expected)} after the {count} records of "
            f"{log.path}",
            hint=_NEW_EPOCH,
        )

    def _read_pcr(self) -> dict[Bank, bytes]:
        values = self._tpm.read_pcr(self._pcr)
        return {bank: values[bank] for bank in Bank if bank in values}


def _inode(log: LogFile) -> tuple[int, int]:
    status = os.fstat(log.fd)
    return status.st_dev, status.st_ino


def _short(values: Mapping[Bank, bytes]) -> str:
    """Name one bank's value: the strongest, which is the last."""
    bank = max(values, key=lambda bank: len(values[bank]), default=None)
    return "no bank" if bank is None else f"{bank}:{values[bank].hex()}"
