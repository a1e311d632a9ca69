"""The records of one log, held to the rules that every log follows, and what they make of the PCR."""

from collections.abc import Iterable, Mapping

from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.record import DIGEST_SIZES, Bank, Epoch, Event, Operation, Record, parse_event_data
from secrun_attest.replay import extend_all

BASELINE_FIELD = "baseline"
RESTART_FIELD = "restart"


class History:
    """A log from its LogOpen on; `take` adds a record or raises FormatError if it cannot follow.

    `values` is what the PCR holds after all records, `before` after all but the last.
    """

    __slots__ = ("base", "before", "epoch", "pcr", "records", "restart", "values")

    def __init__(self, pcr: int, opening: Record) -> None:
        event = _event_of(opening, pcr, 0)
        if event.operation is not Operation.LOG_OPEN:
            raise FormatError(f"the log begins with {event.operation}, expected LogOpen", code="log-open")
        self.pcr = pcr
        self.epoch: Epoch = event.epoch
        self.restart = event.epoch.restart
        self.base: Mapping[Bank, bytes] = baseline_of(event)
        self.before: Mapping[Bank, bytes] = self.base
        self.values: Mapping[Bank, bytes] = extend_all(self.base, opening.digests)
        self.records = [opening]

    @classmethod
    def of(cls, pcr: int, records: Iterable[Record]) -> "History | None":
        """Return the history that `records` tell; None if there are none."""
        found: History | None = None
        for record in records:
            if found is None:
                found = cls(pcr, record)
            else:
                found.take(record)
        return found

    def take(self, record: Record) -> None:
        """Add the next record."""
        event = _event_of(record, self.pcr, len(self.records))
        if event.operation is Operation.LOG_OPEN:
            raise FormatError(f"record {record.recnum} opens a log that is open", code="log-open")
        if event.epoch != self.epoch:
            raise FormatError(f"record {record.recnum} is of another boot epoch", code="log-epoch")
        self.values, self.before = extend_all(self.values, record.digests), self.values
        self.records.append(record)
        if event.operation is Operation.RESUME:
            self.restart = restart_of(event)


def _event_of(record: Record, pcr: int, recnum: int) -> Event:
    if record.pcr != pcr:
        raise FormatError(f"record {record.recnum} is of PCR {record.pcr}, expected {pcr}", code="log-pcr")
    if not record.matches():
        raise FormatError(f"a digest of record {record.recnum} is not that of its event", code="log-digest")
    event = parse_event_data(record.event_data)
    if not event.seq == record.recnum == recnum:
        got = f"record {record.recnum} says it is {event.seq}"
        raise FormatError(f"{got} and stands at {recnum}", code="log-order")
    return event


def baseline_json(values: Mapping[Bank, bytes]) -> JsonObject:
    """Return PCR values as LogOpen holds them."""
    return {bank.value: value.hex() for bank, value in values.items()}


def baseline_of(event: Event) -> dict[Bank, bytes]:
    """Return the PCR's value at LogOpen in each bank; raises FormatError."""
    value: JsonValue = event.fields.get(BASELINE_FIELD)
    if not isinstance(value, dict) or not value or not value.keys() <= {bank.value for bank in Bank}:
        raise FormatError("LogOpen names no baseline of known banks", code="log-baseline-field")
    return {Bank(name): _value(Bank(name), text) for name, text in value.items()}


def _value(bank: Bank, text: JsonValue) -> bytes:
    try:
        found = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        found = b""
    if len(found) != DIGEST_SIZES[bank] or found.hex() != text:
        raise FormatError(f"baseline of bank {bank} is malformed", code="log-baseline-field")
    return found


def restart_of(event: Event) -> int:
    """Return the TPM's restartCount after the sleep that a Resume event tells of; raises FormatError."""
    value = event.fields.get(RESTART_FIELD)
    if type(value) is not int or value <= event.epoch.restart:
        raise FormatError(f"Resume has restart {str(value)[:20]!r}", code="log-resume")
    return value
