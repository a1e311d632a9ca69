"""The records of one epoch's log, one by one: each has the digests of its bytes, and follows the last."""

from collections.abc import Mapping

from secrun_attest import celjson
from secrun_attest.audit.merkle import HASH_SIZE
from secrun_attest.errors import FormatError
from secrun_attest.events import parse_event
from secrun_attest.history import baseline_of
from secrun_attest.record import Bank, Epoch, Event, Operation, Record
from secrun_attest.replay import extend_all


class Walk:
    """Follows a log; `pcrs` is what the PCR holds after `count` records of `epoch`."""

    __slots__ = ("count", "epoch", "pcr", "pcrs")

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
