"""The rules that the records of one log follow, and what they make of the PCR."""

import hashlib
from collections.abc import Iterable, Mapping

from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_ADMITTED, MAX_RUNTIME
from secrun_attest.record import DIGEST_SIZES, Bank, Epoch, Event, Operation, Record, parse_event_data
from secrun_attest.replay import extend_all

BASELINE_FIELD = "baseline"
RESTART_FIELD = "restart"
RUNTIME_FIELD = "runtime"


class History:
    """What a log tells from its LogOpen on; `take` adds a record or raises FormatError if it cannot follow.

    `values` is what the PCR holds after all `count` records, `before` after all but the `last`. `runtime` is
    the digest that LogOpen or the last RuntimeUpgrade names, or empty.
    """

    __slots__ = (
        "_admitted", "base", "before", "count", "epoch", "last", "pcr", "restart", "runtime", "values",
    )  # fmt: skip

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
        self.count = 1
        self.last = opening
        self.runtime = runtime_of(event.fields)
        self._admitted: dict[bytes, None] = {}

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

    @classmethod
    def at(
        cls,
        last: Record,
        *,
        pcr: int,
        epoch: Epoch,
        restart: int,
        base: Mapping[Bank, bytes],
        before: Mapping[Bank, bytes],
        runtime: str,
        admitted: Iterable[bytes],
    ) -> "History":
        """Return a history that was told before, up to `last`.

        Raises FormatError if `last` cannot be a record of it. That it leads from `before` to what the PCR
        holds is for the caller to see, in `values`.
        """
        event = _event_of(last, pcr, last.recnum)
        if event.epoch != epoch:
            raise FormatError(f"record {last.recnum} is of another boot epoch", code="log-epoch")
        found = cls.__new__(cls)
        found.pcr, found.epoch, found.restart = pcr, epoch, restart
        found.base, found.before = base, before
        found.values = extend_all(before, last.digests)
        found.count, found.last = last.recnum + 1, last
        found.runtime = runtime
        found._admitted = dict.fromkeys(admitted)  # noqa: SLF001 - it is our own
        return found

    def take(self, record: Record) -> None:
        """Add the next record."""
        event = _event_of(record, self.pcr, self.count)
        if event.operation is Operation.LOG_OPEN:
            raise FormatError(f"record {record.recnum} opens a log that is open", code="log-open")
        if event.epoch != self.epoch:
            raise FormatError(f"record {record.recnum} is of another boot epoch", code="log-epoch")
        restart = restart_of(event) if event.operation is Operation.RESUME else self.restart
        self.values, self.before = extend_all(self.values, record.digests), self.values
        self.count += 1
        self.last = record
        self.restart = restart
        if event.operation is Operation.IMAGE_ADMIT:
            self._admit(event)
        elif event.operation is Operation.RUNTIME_UPGRADE:
            self.runtime = runtime_of(event.fields)

    def admitted(self, manifest: str, tree: str) -> bool:
        """Tell whether the image of these digests was admitted; false if many others were since.

        Admitting it again does no harm then: a verifier lets the first record stand.
        """
        return _image_key(manifest, tree) in self._admitted

    @property
    def admissions(self) -> tuple[bytes, ...]:
        """The images that `admitted` knows, each as a digest of its digests, the latest last."""
        return tuple(self._admitted)

    def _admit(self, event: Event) -> None:
        manifest, tree = event.fields.get("manifest"), event.fields.get("tree")
        if isinstance(manifest, str) and isinstance(tree, str):
            key = _image_key(manifest, tree)
            self._admitted.pop(key, None)
            self._admitted[key] = None
            if len(self._admitted) > MAX_ADMITTED:
                del self._admitted[next(iter(self._admitted))]


def _image_key(manifest: str, tree: str) -> bytes:
    return hashlib.sha256(f"{manifest}\n{tree}".encode()).digest()


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
    return parse_baseline(event.fields.get(BASELINE_FIELD), "LogOpen")


def parse_baseline(value: JsonValue, what: str) -> dict[Bank, bytes]:
    """Parse what `baseline_json` writes; raises FormatError naming `what`."""
    if not isinstance(value, dict) or not value or not value.keys() <= {bank.value for bank in Bank}:
        raise FormatError(f"{what} names no baseline of known banks", code="log-baseline-field")
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


def runtime_of(fields: Mapping[str, JsonValue]) -> str:
    """Return the digest of the runtime that LogOpen or RuntimeUpgrade names; empty if it names none."""
    value = fields.get(RUNTIME_FIELD)
    found = value.get("digest") if isinstance(value, dict) else value
    return found if isinstance(found, str) and len(found) <= MAX_RUNTIME else ""
