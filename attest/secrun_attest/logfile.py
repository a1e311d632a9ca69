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
from secrun_attest.errors import (
    AttestError,
    BrokenEpochError,
    FormatError,
    LogError,
    TpmError,
    TpmTransportError,
)
from secrun_attest.history import BASELINE_FIELD, RESTART_FIELD, History, baseline_json, runtime_of
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_RECORDS, MAX_RUNTIME
from secrun_attest.logstore import LogFile
from secrun_attest.record import Bank, Epoch, Event, Operation, Record, make_record
from secrun_attest.replay import extend_all, zeros
from secrun_attest.tpm import Tpm, TpmClock

BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"

# Their place and fields follow from log and TPM; elsewhere they would make the log one that cannot be.
_OWN = (Operation.LOG_OPEN, Operation.RESUME)

_NEW_EPOCH = "find out what else extends this PCR, then reboot the host: a new boot epoch begins a new log"


def host_boot_id() -> str:
    """Return the kernel's id of this boot."""
    with open(BOOT_ID_FILE, encoding="utf-8") as stream:
        return stream.read().strip()


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


EventFields = Mapping[str, JsonValue]


@frozen.record
class Runtime:
    """What runs pods: `fingerprint` is a short text that costs little and changes when its files do.

    `fields` returns those of RuntimeUpgrade, `runtime` with its `digest` among them. It is called only when
    the fingerprint is not the one that the log was last written under. Raises FormatError if that is empty
    or longer than MAX_RUNTIME.
    """

    fingerprint: str
    fields: Callable[[], EventFields]

    def __post_init__(self) -> None:
        if not 0 < len(self.fingerprint) <= MAX_RUNTIME or not self.fingerprint.isascii():
            got = f"the runtime's fingerprint is {self.fingerprint[:40]!r}"
            raise FormatError(f"{got}, expected 1 to {MAX_RUNTIME} ASCII characters", code="event-field")


class Hold:
    """The log of the present epoch while its lock is held: nobody comes between a question and an append."""

    __slots__ = ("_append", "_failed", "_history")

    def __init__(
        self, history: Callable[[], History], append: Callable[[Operation, EventFields], Record]
    ) -> None:
        self._history = history
        self._append = append
        self._failed = False

    def append(self, operation: Operation, fields: EventFields) -> Record:
        """Write and extend one record; when this returns, the event is measured.

        Raises as EventLog.append does, and LogError once an append of this hold has failed: only the next
        recovery can tell where the log ends.
        """
        if operation in _OWN:
            raise FormatError(f"{operation} is the log's own to write", code="event-operation")
        if self._failed:
            raise LogError(
                "an append failed while the log was held",
                hint="let the lock go and begin again",
                code="log-hold",
            )
        self._failed = True
        record = self._append(operation, fields)
        self._failed = False
        return record

    def admitted(self, manifest: str, tree: str) -> bool:
        """Tell whether this epoch's log has an ImageAdmit of these digests, as far as its head remembers.

        Also false if MAX_ADMITTED others came after it: admit the image again then, which does no harm.
        """
        return self._history().admitted(manifest, tree)

    @property
    def epoch(self) -> Epoch:
        """The boot epoch that the log was opened in."""
        return self._history().epoch

    @property
    def count(self) -> int:
        """How many records the log has."""
        return self._history().count

    @property
    def runtime(self) -> str:
        """The digest of the runtime that the log names last; empty if it names none."""
        return self._history().runtime


class EventLog:
    """Appends records to the log of the present boot epoch and extends them into the PCR.

    `opening` holds the fields of LogOpen (the baseline is added), or makes them when a log is opened. With
    `runtime`, RuntimeUpgrade comes before any other record once the runtime is another. `baseline` is what
    the PCR holds before the first record where other logs explain a value that is not zero. Every process
    that extends the PCR must use the same `directory`: its lock puts records and extends in one order.
    """

    def __init__(
        self,
        directory: Path,
        tpm: Tpm,
        pcr: int,
        *,
        opening: EventFields | Callable[[], EventFields],
        runtime: Runtime | None = None,
        baseline: Mapping[Bank, bytes] | None = None,
        boot_id: Callable[[], str] = host_boot_id,
        now: Callable[[], int] = _milliseconds,
    ) -> None:
        self._directory = directory
        self._tpm = tpm
        self._pcr = pcr
        self._opening = opening
        self._runtime = runtime
        self._baseline = baseline
        self._boot_id = boot_id
        self._now = now

    def recover(self) -> tuple[Record, ...]:
        """Bring log and PCR to agree, open the log of a new epoch; return the records, all extended.

        Reads the whole log. Raises BrokenEpochError if the PCR holds what the log does not explain, LogError
        if the log cannot be used, TpmError and TpmTransportError.
        """
        with self._recovered(whole=True) as log:
            return tuple(log.kept or ())

    @contextmanager
    def held(self) -> Iterator[Hold]:
        """Recover, then keep the lock for several questions and appends; raises as `recover` does."""
        with self._recovered() as log:
            yield Hold(lambda: _told(log), lambda operation, fields: self._append(log, operation, fields))

    def append(self, operation: Operation, fields: EventFields) -> Record:
        """Recover, then write and extend one record; when this returns, the event is measured.

        Raises as `recover` does, and FormatError for an event that is too large. After an error the event
        counts as not measured, though the next recovery may find that it is.
        """
        with self.held() as hold:
            return hold.append(operation, fields)

    def append_many(self, events: Iterable[tuple[Operation, EventFields]]) -> tuple[Record, ...]:
        """Append several records in one hold of the lock, each with an extend of its own.

        Raises as `append` does; those before the one that failed are measured.
        """
        with self.held() as hold:
            return tuple(hold.append(operation, fields) for operation, fields in events)

    def admitted(self, manifest: str, tree: str) -> bool:
        """Tell what `Hold.admitted` does; raises as `recover` does.

        Where an epoch must not end between the answer and what is built on it, ask a `held` log.
        """
        with self.held() as hold:
            return hold.admitted(manifest, tree)

    def runtime(self) -> str:
        """Return what `Hold.runtime` does; raises as `recover` does."""
        with self.held() as hold:
            return hold.runtime

    def records(self) -> tuple[Record, ...]:
        """Return the whole records of this epoch, without waiting for writers.

        All are read and checked. The last one may not be extended yet: `replay.find_prefix` tells which of
        them a quote covers. Raises LogError if this epoch has no log.
        """
        path = self._find(self._tpm.clock(), self._read_pcr())
        with logstore.opened(path, self._pcr) as log:
            log.kept = []
            log.load()
            return tuple(log.kept)

    @contextmanager
    def _recovered(self, *, whole: bool = False) -> Iterator[LogFile]:
        with logstore.locked(self._directory):
            clock = self._tpm.clock()
            values = self._read_pcr()
            path = self._find(clock, values)
            if logstore.is_marked(path):
                raise BrokenEpochError(f"the boot epoch of {path} is marked as broken", hint=_NEW_EPOCH)
            with logstore.opened(path, self._pcr, create=True) as log:
                if whole:
                    log.kept = []
                    log.load()
                else:
                    _load(log, values, clock)
                log.cut()
                with _head_kept(log):
                    self._agree(log, values)
                    self._begin(log, clock, values)
                    self._upgrade(log)
                    yield log

    def _find(self, clock: TpmClock, values: Mapping[Bank, bytes]) -> Path:
        """Return the epoch's log, which may not exist yet.

        A sleep raises the restart count and may keep the PCR or clear it: if the PCR is still what the log
        before it says, that log goes on.
        """
        exact = logstore.log_path(self._directory, clock.reset, clock.restart)
        if os.path.lexists(exact) or values == self._start(values):
            return exact
        earlier = logstore.earlier_log(self._directory, clock.reset, clock.restart)
        if earlier is None:
            return exact
        with logstore.opened(earlier, self._pcr) as log:
            _load(log, values)
            return earlier if _explains(log.history, values) else exact

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
            self._extend(log, history.before, history.last)
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
            opening = self._opening() if callable(self._opening) else self._opening
            fields = {**opening, BASELINE_FIELD: baseline_json(values)}
            epoch = Epoch(reset=clock.reset, restart=clock.restart, boot_id=self._boot_id())
            self._write(log, epoch, values, Operation.LOG_OPEN, fields)
            log.fingerprint = self._runtime.fingerprint if self._runtime else ""
        elif log.history.restart != clock.restart:
            self._append(log, Operation.RESUME, {RESTART_FIELD: clock.restart})

    def _upgrade(self, log: LogFile) -> None:
        """Write RuntimeUpgrade if what runs pods is not what the log names."""
        if self._runtime is None or self._runtime.fingerprint == log.fingerprint:
            return
        fields = self._runtime.fields()
        if runtime_of(fields) != _told(log).runtime:
            self._append(log, Operation.RUNTIME_UPGRADE, fields)
        log.fingerprint = self._runtime.fingerprint

    def _append(self, log: LogFile, operation: Operation, fields: EventFields) -> Record:
        history = _told(log)
        return self._write(log, history.epoch, history.values, operation, fields)

    def _write(
        self,
        log: LogFile,
        epoch: Epoch,
        before: Mapping[Bank, bytes],
        operation: Operation,
        fields: EventFields,
    ) -> Record:
        count = log.history.count if log.history else 0
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
        count = log.history.count if log.history else 0
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


@contextmanager
def _head_kept(log: LogFile) -> Iterator[None]:
    """Write the log's head in the end if it is another, also after a refusal: that has touched the file."""
    before = (log.size, log.fingerprint)
    try:
        yield
    except AttestError:
        log.save_head()
        raise
    reached("measured")
    if not log.resumed or (log.size, log.fingerprint) != before:
        log.save_head()


def _load(log: LogFile, values: Mapping[Bank, bytes], clock: TpmClock | None = None) -> None:
    """Read what is behind the log's head; all of it, if what that comes to is not what the TPM holds.

    So too if the head knows of another sleep than `clock`: whether Resume is due is not for it to decide.
    """
    if log.resume():
        try:
            log.load()
        except LogError:
            log.forget()
        if _explains(log.history, values) and (clock is None or _told(log).restart == clock.restart):
            return
        log.forget()
    log.load()


def _explains(history: History | None, values: Mapping[Bank, bytes]) -> bool:
    return history is not None and values in (history.values, history.before)


def _told(log: LogFile) -> History:
    if log.history is None:
        raise LogError(f"{log.path} is not open", code="log-none")
    return log.history


def _short(values: Mapping[Bank, bytes]) -> str:
    """Name one bank's value: the strongest, which is the last."""
    bank = max(values, key=lambda bank: len(values[bank]), default=None)
    return "no bank" if bank is None else f"{bank}:{values[bank].hex()}"
