"""The records of one epoch's log, one by one: each has the digests of its bytes, and follows the last."""

from binascii import Error, hexlify, unhexlify
from collections.abc import Mapping

from secrun_attest import celjson
from secrun_attest.audit.merkle import HASH_SIZE
from secrun_attest.errors import FormatError
from secrun_attest.events import epoch_of, parse_event, usual
from secrun_attest.history import baseline_of
from secrun_attest.limits import MAX_RECORDS
from secrun_attest.record import Bank, Epoch, Event, Operation, Record, digest
from secrun_attest.replay import extend_all


class Walk:
    """Follows a log; `pcrs` is what the PCR holds after `count` records of `epoch`."""

    __slots__ = ("_banks", "_tail", "count", "epoch", "pcr", "pcrs")

    def __init__(
        self,
        *,
        count: int = 0,
        epoch: Epoch | None = None,
        pcr: int = 0,
        pcrs: Mapping[Bank, bytes] | None = None,
    ) -> None:
        self.count = count
        self.epoch = epoch
        self.pcr = pcr
        self.pcrs: dict[Bank, bytes] = dict(pcrs or {})
        # The banks in the order of the last line, and what stands behind its event.
        self._banks: tuple[Bank, ...] = ()
        self._tail = b""

    def take_line(self, line: bytes) -> bytes:
        """Take the next line of the log, its end included; return its event, raises FormatError.

        A line is written anew from its event where nothing of it is unusual: that it is the same says at
        once that it is canonical, that its digests are those of the event, and where it stands.
        """
        data = self._usual_line(line)
        if data is None:
            record = parse_record(line)
            self.take(record)
            data = record.event_data
            self._banks = tuple(record.digests)
            self._tail = celjson.tail_of(self.pcr, self._banks)
        return data

    def _usual_line(self, line: bytes) -> bytes | None:
        """Take a line of a pod's life that is in its usual form and follows; None says nothing of it."""
        begin = len(celjson.BEFORE_DATA)
        try:
            data = unhexlify(line[begin : line.find(b'"', begin)])
        except Error:
            return None
        if not self._tail or self.count >= MAX_RECORDS or (match := usual(data)) is None:
            return None
        seq, epoch = match.group("seq", "epoch")
        if int(seq) != self.count or ((said := epoch_of(epoch)) is not self.epoch and said != self.epoch):
            return None
        digests = [digest(bank, data) for bank in self._banks]
        expected = self._tail % (*map(hexlify, digests), self.count)
        if line != celjson.BEFORE_DATA + hexlify(data) + expected:
            return None
        values = self.pcrs
        self.pcrs = {
            bank: digest(bank, values[bank] + extended)
            for bank, extended in zip(self._banks, digests, strict=True)
        }
        self.count += 1
        return data

    def take(self, record: Record) -> Event:
        """Take the next record; raises FormatError if it cannot follow."""
        event = parse_event(record.event_data)
        if not event.seq == record.recnum == self.count:
            got = f"record {record.recnum} says it is {event.seq}"
            raise FormatError(f"{got} and stands at {self.count}", code="log-order")
        if (event.operation is Operation.LOG_OPEN) != (self.count == 0):
            raise FormatError(f"record {self.count} is {event.operation}", code="log-open")
        if self.count == 0:
            self.epoch, self.pcr, self.pcrs = event.epoch, record.pcr, baseline_of(event)
        if event.epoch is not self.epoch and event.epoch != self.epoch:
            raise FormatError(f"record {self.count} is of another boot epoch", code="log-epoch")
        if record.pcr != self.pcr:
            got = f"record {self.count} is of PCR {record.pcr}"
            raise FormatError(f"{got}, expected {self.pcr}", code="log-pcr")
        if not record.matches():
            got = f"a digest of record {self.count}"
            raise FormatError(f"{got} is not that of its event", code="log-digest")
        self.pcrs = extend_all(self.pcrs, record.digests)
        self.count += 1
        return event


def parse_record(line: bytes) -> Record:
    """Parse one line of a log, its end included; raises FormatError."""
    if not line.endswith(b"\n"):
        raise FormatError("the last line of the log has no end", code="record-torn")
    return celjson.parse_line(line[:-1])


def chained(event: Event) -> tuple[int, bytes] | None:
    """Return size and root of the audit log when this LogOpen was written; None if it says nothing."""
    value = event.fields.get("previous")
    if value is None:
        return None
    size, root = (value.get("size"), value.get("root")) if isinstance(value, dict) else (None, None)
    try:
        found = bytes.fromhex(root) if isinstance(root, str) else b""
    except ValueError:
        found = b""
    if type(size) is not int or size < 0 or len(found) != HASH_SIZE:
        raise FormatError("LogOpen names no head of an audit log", code="audit-chain")
    return size, found
