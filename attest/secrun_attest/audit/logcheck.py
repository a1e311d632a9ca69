"""The epochs in a bundle: records that follow each other, quotes that fit them, heads that chain them."""

import hashlib
from collections.abc import Iterator

from secrun_attest.audit.chain import Records
from secrun_attest.audit.entries import Closing, Entry, Pruned, State
from secrun_attest.audit.quotes import QuoteError, check_quote
from secrun_attest.audit.report import Fault, Findings
from secrun_attest.audit.rows import RowDigest, when
from secrun_attest.audit.trail import Projection
from secrun_attest.audit.walk import Walk, chained
from secrun_attest.errors import FormatError
from secrun_attest.events import parse_event
from secrun_attest.record import Event, Operation, Record
from secrun_attest.tpm import TpmKind
from secrun_attest.wire import Clock


class _Log:
    """One epoch's log as far as the bundle has been read. Without `walk` its beginning is not there."""

    __slots__ = ("key", "last", "quoted", "settled", "walk")

    def __init__(self, walk: Walk | None) -> None:
        self.walk = walk
        self.key = ""
        self.last = self.quoted = 0
        self.settled = False

    @property
    def count(self) -> int:
        return self.walk.count if self.walk else 0


class Epochs:
    """Takes what a bundle holds in the order of its leaves, and notes what cannot be."""

    def __init__(self, findings: Findings) -> None:
        self.origin = ""
        self.logs: dict[str, _Log] = {}
        self.keys: set[str] = set()
        self.records = self.quotes = self.pods = 0
        self.software = False
        self.problem = ""
        # Whether every record was read: after one that was not, accounts and rows fit no more.
        self.whole = True
        self._findings = findings
        self._boundaries: dict[int, bytes] = {}
        self._absent: dict[str, tuple[int, int]] = {}
        self._clocks: dict[str, Clock] = {}
        self._rows = RowDigest(0, 0)
        self._projection = Projection()
        self._accounts: Iterator[bytes] = iter(())
        self._name = ""
        self._time = 0
        self._before = self._records_end = 0

    def reading(self, rows: RowDigest, accounts: Iterator[bytes]) -> None:
        """Say where rows go, and where accounts of pods come from, one line for each that is measured."""
        self._rows, self._accounts = rows, accounts

    def boundary(self, size: int, root: bytes) -> None:
        """Say that a segment begins at leaf `size`, and the root up to there."""
        self._boundaries[size] = root

    def absent(self, at: int, part: Records) -> None:
        """Say that the records of a segment are not in the bundle."""
        self._absent.setdefault(part.name, (at, part.count))
        self.logs.setdefault(part.name, _Log(None)).walk = None
        self._records_end = at + part.count

    def lost(self, part: Records) -> None:
        """Say that the records of a log cannot be followed any more."""
        self.logs.setdefault(part.name, _Log(None)).walk = None
        self.whole = False

    def begin(self, at: int, part: Records) -> None:
        """Say that the records of a segment follow, the first being leaf `at`."""
        log = self.logs.get(part.name)
        if log is None:
            log = self.logs[part.name] = _Log(Walk() if part.first == 0 else None)
        elif log.walk is not None and log.walk.count != part.first:
            text = f"log {part.name} goes on at record {part.first}, expected {log.walk.count}"
            self._findings.add(Fault.REMOVED, f"leaf {at}", text)
            log.walk = None
        log.settled = False
        self._name = part.name
        self._before, self._records_end = self._records_end, at + part.count

    def record(self, index: int, record: Record) -> bool:
        """Take the next record; False if it cannot follow, and then `problem` says why."""
        log = self.logs[self._name]
        try:
            event = parse_event(record.event_data) if log.walk is None else log.walk.take(record)
        except FormatError as error:
            self.problem = error.message
            return False
        self.records += 1
        if event.t < self._time:
            text = f"record {event.seq} of log {self._name} is of {when(event.t)}, after {when(self._time)}"
            self._findings.add(Fault.CLOCK, f"leaf {index}", text)
        self._time = event.t
        self._take(index, event, log)
        self._rows.add(self._projection.row(index, event))
        return True

    def _take(self, index: int, event: Event, log: _Log) -> None:
        match event.operation:
            case Operation.LOG_OPEN:
                self._opened(index, event, log)
            case Operation.CHECKPOINT:
                self._anchored(index, event)
            case Operation.POD_START:
                self.pods += 1
                self._account(index, event)
            case Operation.POD_EXIT:
                self._account(index, event)

    def _opened(self, index: int, event: Event, log: _Log) -> None:
        key, tpm = event.fields.get("ak"), event.fields.get("tpm")
        log.key = key if isinstance(key, str) else ""
        self.keys.add(log.key)
        self.software |= isinstance(tpm, dict) and tpm.get("kind") == TpmKind.SOFTWARE.value
        where = f"leaf {index}, LogOpen of {self._name}"
        try:
            before = chained(event)
        except FormatError as error:
            self._findings.add(Fault.EPOCH, where, error.message)
            return
        if before is None:
            self._findings.add(Fault.UNCHAINED, where, "does not name the head of the log before it")
            return
        size, root = before
        if size < min(self._boundaries):
            text = f"follows a log of {size} leaves, the bundle begins with {min(self._boundaries)}"
        elif size > index or self._boundaries.get(size) != root:
            text = f"follows another log of {size} leaves than the bundle has"
        elif self._before > size:
            text = f"follows a log of {size} leaves, the bundle has more records before it"
        else:
            return
        self._findings.add(Fault.EPOCH, where, text)

    def _anchored(self, index: int, event: Event) -> None:
        size, root = event.fields.get("size"), event.fields.get("root")
        if type(size) is not int or size < min(self._boundaries):
            return  # of a part of the log that is not in the bundle
        found = self._boundaries.get(size)
        if size > index or found is None or found.hex() != root:
            text = f"the TPM holds the head of another log of {size} leaves"
            self._findings.add(Fault.FORK, f"leaf {index}, Checkpoint", text)

    def _account(self, index: int, event: Event) -> None:
        digest = event.fields.get("account")
        if digest is None or not self.whole:
            return
        line = next(self._accounts, b"").removesuffix(b"\n")
        if digest != f"sha256:{hashlib.sha256(line).hexdigest()}":
            self._findings.add(
                Fault.ACCOUNT, f"leaf {index}", "the account of the pod is not what was measured"
            )

    def entry(self, at: int, entry: Entry) -> None:
        """Take the next entry."""
        self._rows.add(self._projection.entry(at, entry))
        where = f"leaf {at}, log {entry.name}"
        if isinstance(entry, Pruned):
            self._absent.pop(entry.name, None)
            self._findings.add(Fault.PRUNED, where, f"{entry.count} records were removed: {entry.why}")
            return
        log = self.logs.get(entry.name)
        if log is None:
            return  # of an epoch before the bundle's
        log.settled = entry.state is not State.OPEN
        if entry.state is State.NOT_CLOSED:
            self._findings.add(Fault.NOT_CLOSED, where, self._unclosed(entry.count, log))
        elif entry.state is State.DAMAGED:
            self._findings.add(Fault.DAMAGED, where, f"nothing behind {entry.count} records: {entry.why}")
        if log.walk is None:
            return
        if (entry.count, dict(entry.pcrs)) != (log.walk.count, log.walk.pcrs):
            text = f"says that {entry.count} records give other PCRs than the {log.walk.count} before it"
            self._findings.add(Fault.QUOTE, where, text)
        elif entry.quote is not None or entry.state in (State.CLOSED, State.OPEN):
            self._quoted(where, entry, log)

    @staticmethod
    def _unclosed(count: int, log: _Log) -> str:
        text = "no quote was made when the epoch ended: nothing proves that its last records are there"
        return f"{text}; {log.quoted} of {count} are quoted"

    def _quoted(self, where: str, entry: Closing, log: _Log) -> None:
        if entry.quote is None:
            self._findings.add(Fault.QUOTE, where, f"is {entry.state} without a quote")
            return
        try:
            clock = check_quote(entry, entry.quote, origin=self.origin, key=log.key)
        except QuoteError as error:
            self._findings.add(Fault.QUOTE, where, error.message)
            return
        self.quotes += 1
        log.quoted = entry.count
        last, self._clocks[log.key] = self._clocks.get(log.key), clock
        if last is not None and _went_back(last, clock):
            text = f"the TPM's clock went from {_clock_text(last)} to {_clock_text(clock)}"
            self._findings.add(Fault.QUOTE, where, text)

    def end(self) -> None:
        """Say that nothing follows."""
        for name, (at, count) in self._absent.items():
            text = f"{count} records of log {name} are not in the bundle"
            self._findings.add(Fault.EPOCH, f"leaf {at}", text)
        names = [*self.logs]
        for name in names[:-1]:
            log = self.logs[name]
            if log.walk is not None and not log.settled:
                self._findings.add(Fault.NOT_CLOSED, f"log {name}", self._unclosed(log.count, log))
        if names and (log := self.logs[names[-1]]).walk is not None and not log.settled:
            missing = log.count - log.quoted
            if missing:
                text = f"its last {missing} records are in no quote"
                self._findings.add(Fault.UNQUOTED, f"log {names[-1]}", text)


def _went_back(last: Clock, now: Clock) -> bool:
    if now.reset != last.reset:
        return now.reset < last.reset
    return now.restart < last.restart or (now.safe and last.safe and now.clock < last.clock)


def _clock_text(clock: Clock) -> str:
    return f"reset {clock.reset}, restart {clock.restart}, {clock.clock} ms"
