"""The log in the forms that other programs read; the digests are the same in all of them.

Sources: TCG PC Client Platform Firmware Profile 1.05, 10 (tcg); TCG Canonical Event Log Format 1.0 (cel-*);
RFC 7464 (JSON text sequences).
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final

from secrun_attest import celjson, jcs
from secrun_attest.errors import FormatError
from secrun_attest.limits import MAX_LOG, MAX_LOG_LINE, MAX_RECORDS
from secrun_attest.record import (
    ALGORITHM_IDS,
    BANK_OF_ID,
    DIGEST_SIZES,
    Bank,
    Record,
    check_event_size,
    parse_event_data,
)

EV_NO_ACTION: Final = 0x3
EV_EVENT_TAG: Final = 0x6

_SPEC_ID = struct.Struct("<16sIBBBBI")
_SPEC_SIGNATURE: Final = b"Spec ID Event03\0"
# platformClass 0 (client), specification 2.0 errata 0, uintn 2 (64 bit).
_SPEC_FIELDS: Final = (0, 0, 2, 0, 2)
_ALGORITHM = struct.Struct("<HH")
_HEADER = struct.Struct("<II20sI")
_EVENT2 = struct.Struct("<III")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_TLV = struct.Struct(">BI")

# Types of CEL-TLV; inside content of pcclient_std, 0 is the event's type and 1 its data.
_RECNUM, _PCR, _DIGESTS, _PCCLIENT = 0, 1, 3, 5
_CONTENT_TYPE, _CONTENT_DATA = 0, 1


class LogFormat(StrEnum):
    """A form that `export` writes."""

    TCG = "tcg"
    CEL_JSON = "cel-json"
    CEL_JSON_SEQ = "cel-json-seq"
    CEL_TLV = "cel-tlv"
    TEXT = "text"


def export(records: Sequence[Record], form: LogFormat, banks: Sequence[Bank]) -> bytes:
    """Return `records` in `form`; `banks` are those that every record has, as `tcg` declares them."""
    return _WRITERS[form](records, banks)


def _to_tcg(records: Sequence[Record], banks: Sequence[Bank]) -> bytes:
    declared = b"".join(_ALGORITHM.pack(ALGORITHM_IDS[bank], DIGEST_SIZES[bank]) for bank in banks)
    body = _SPEC_ID.pack(_SPEC_SIGNATURE, *_SPEC_FIELDS, len(banks)) + declared + b"\0"
    parts = [_HEADER.pack(0, EV_NO_ACTION, bytes(20), len(body)), body]
    for record in records:
        _check_banks(record.recnum, record.digests, banks)
        parts.append(_EVENT2.pack(record.pcr, EV_EVENT_TAG, len(banks)))
        parts += [_U16.pack(ALGORITHM_IDS[bank]) + record.digests[bank] for bank in banks]
        parts += [_U32.pack(len(record.event_data)), record.event_data]
    return b"".join(parts)


def _check_banks(recnum: int, digests: Mapping[Bank, bytes], banks: Sequence[Bank]) -> None:
    if digests.keys() != set(banks):
        got = f"record {recnum} has digests for {'+'.join(digests)}"
        raise FormatError(f"{got}, expected {'+'.join(banks)}", code="record-banks")


def _to_cel_json(records: Sequence[Record], _banks: Sequence[Bank]) -> bytes:
    return b"[" + b",\n".join(jcs.encode(celjson.to_json(record)) for record in records) + b"]\n"


def _to_cel_json_seq(records: Sequence[Record], _banks: Sequence[Bank]) -> bytes:
    return b"".join(b"\x1e" + celjson.line(record) for record in records)


def _to_cel_tlv(records: Sequence[Record], _banks: Sequence[Bank]) -> bytes:
    return b"".join(_record_tlv(record) for record in records)


def _record_tlv(record: Record) -> bytes:
    digests = b"".join(_tlv(ALGORITHM_IDS[bank], value) for bank, value in record.digests.items())
    content = _tlv(_CONTENT_TYPE, EV_EVENT_TAG.to_bytes(4, "big")) + _tlv(_CONTENT_DATA, record.event_data)
    return (
        _tlv(_RECNUM, record.recnum.to_bytes(8, "big"))
        + _tlv(_PCR, bytes([record.pcr]))
        + _tlv(_DIGESTS, digests)
        + _tlv(_PCCLIENT, content)
    )


def _tlv(kind: int, value: bytes) -> bytes:
    return _TLV.pack(kind, len(value)) + value


def _to_text(records: Sequence[Record], banks: Sequence[Bank]) -> bytes:
    return b"".join(_text_line(record, banks) for record in records)


def _text_line(record: Record, banks: Sequence[Bank]) -> bytes:
    event = parse_event_data(record.event_data)
    digests = " ".join(f"{bank}:{record.digests[bank].hex()}" for bank in banks)
    head = f"{record.recnum} {record.pcr} {digests} {event.operation} "
    # Escaped, so that no name steers the reader's terminal.
    fields = json.dumps(dict(event.fields), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"{head}{fields}\n".encode("ascii")


_WRITERS: Final[Mapping[LogFormat, Callable[[Sequence[Record], Sequence[Bank]], bytes]]] = {
    LogFormat.TCG: _to_tcg,
    LogFormat.CEL_JSON: _to_cel_json,
    LogFormat.CEL_JSON_SEQ: _to_cel_json_seq,
    LogFormat.CEL_TLV: _to_cel_tlv,
    LogFormat.TEXT: _to_text,
}


class _Reader:
    """Takes pieces from the front of `data`; raises FormatError for a piece that is not all there."""

    __slots__ = ("at", "data", "end", "what")

    def __init__(self, data: bytes, what: str) -> None:
        if len(data) > MAX_LOG:
            raise FormatError(f"{what} has {len(data)} bytes, the limit is {MAX_LOG}", code="log-size")
        self.data = data
        self.at = 0
        self.end = len(data)
        self.what = what

    def take(self, size: int) -> bytes:
        if size > self.end - self.at:
            got = f"{self.what} ends at byte {self.end}"
            raise FormatError(f"{got}, a field of {size} bytes begins at {self.at}", code="log-cut")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, layout: struct.Struct) -> int:
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def tlv(self, kind: int) -> bytes:
        """Take the TLV that must be of `kind`."""
        got, size = _TLV.unpack(self.take(_TLV.size))
        if got != kind:
            raise FormatError(f"{self.what} has a field of type {got}, expected {kind}", code="log-field")
        return self.take(size)

    def more(self) -> bool:
        return self.at < self.end


def parse_tcg(data: bytes, *, first: int = 0) -> Iterator[Record]:
    """Parse what `export` writes as `tcg`; records are numbered from `first`, as the form has no numbers.

    Stricter than the TCG's form: EV_EVENT_TAG only, and one digest for each declared bank in their order.
    Raises FormatError.
    """
    reader = _Reader(data, "TCG log")
    banks = _tcg_header(reader)
    recnum = first
    while reader.more():
        pcr, kind, count = _EVENT2.unpack(reader.take(_EVENT2.size))
        if kind != EV_EVENT_TAG or count != len(banks):
            got = f"event {recnum} of the TCG log has type {kind:#x} and {count} digests"
            raise FormatError(f"{got}, expected {EV_EVENT_TAG:#x} and {len(banks)}", code="log-field")
        digests = {}
        for bank in banks:
            if reader.number(_U16) != ALGORITHM_IDS[bank]:
                raise FormatError(f"event {recnum} of the TCG log has another bank", code="record-banks")
            digests[bank] = reader.take(DIGEST_SIZES[bank])
        size = reader.number(_U32)
        check_event_size(size)
        yield Record(recnum=recnum, pcr=pcr, digests=digests, event_data=reader.take(size))
        recnum += 1


def _tcg_header(reader: _Reader) -> list[Bank]:
    pcr, kind, digest, size = _HEADER.unpack(reader.take(_HEADER.size))
    if (pcr, kind, digest) != (0, EV_NO_ACTION, bytes(20)):
        raise FormatError("the TCG log does not begin with EV_NO_ACTION", code="log-header")
    header = _Reader(reader.take(size), "header of the TCG log")
    signature, *fields, count = _SPEC_ID.unpack(header.take(_SPEC_ID.size))
    if signature != _SPEC_SIGNATURE or tuple(fields) != _SPEC_FIELDS or not 0 < count <= len(Bank):
        raise FormatError("the TCG log has no Spec ID header that is known", code="log-header")
    banks: list[Bank] = []
    for _ in range(count):
        number, length = _ALGORITHM.unpack(header.take(_ALGORITHM.size))
        bank = BANK_OF_ID.get(number)
        if bank is None or bank in banks or length != DIGEST_SIZES[bank]:
            raise FormatError(f"the TCG log declares bank {number:#x} of {length} bytes", code="record-bank")
        banks.append(bank)
    if header.take(1) != b"\0" or header.more():
        raise FormatError("the TCG log's header holds vendor data", code="log-header")
    return banks


def parse_cel_tlv(data: bytes) -> Iterator[Record]:
    """Parse CEL-TLV with pcclient_std content; a recnum may have one to eight bytes. Raises FormatError."""
    reader = _Reader(data, "CEL-TLV log")
    expected = -1
    while reader.more():
        number = reader.tlv(_RECNUM)
        if not 0 < len(number) <= 8:
            raise FormatError(f"CEL-TLV log has a recnum of {len(number)} bytes", code="log-field")
        recnum = int.from_bytes(number, "big")
        pcr = reader.tlv(_PCR)
        if len(pcr) != 1:
            raise FormatError(f"CEL-TLV record {recnum} has a PCR of {len(pcr)} bytes", code="log-field")
        digests = _tlv_digests(reader.tlv(_DIGESTS), recnum)
        event_data = _tlv_content(reader.tlv(_PCCLIENT), recnum)
        record = Record(recnum=recnum, pcr=pcr[0], digests=digests, event_data=event_data)
        celjson.check_order(record, expected)
        expected = recnum + 1
        yield record


def _tlv_digests(data: bytes, recnum: int) -> dict[Bank, bytes]:
    reader = _Reader(data, f"digests of CEL-TLV record {recnum}")
    digests: dict[Bank, bytes] = {}
    while reader.more():
        number, size = _TLV.unpack(reader.take(_TLV.size))
        bank = BANK_OF_ID.get(number)
        if bank is None or bank in digests:
            raise FormatError(
                f"CEL-TLV record {recnum} has bank {number:#x}, unknown or twice", code="record-bank"
            )
        digests[bank] = reader.take(size)
    return digests


def _tlv_content(data: bytes, recnum: int) -> bytes:
    reader = _Reader(data, f"content of CEL-TLV record {recnum}")
    kind = reader.tlv(_CONTENT_TYPE)
    if kind != EV_EVENT_TAG.to_bytes(4, "big"):
        raise FormatError(f"CEL-TLV record {recnum} has event type {kind[:8].hex()}", code="record-content")
    event_data = reader.tlv(_CONTENT_DATA)
    if reader.more():
        raise FormatError(f"CEL-TLV record {recnum} has more than an event", code="log-field")
    return event_data


def parse_cel_json_seq(data: bytes) -> Iterator[Record]:
    """Parse a sequence of CEL-JSON records, each behind 0x1E and before a line feed. Raises FormatError."""
    if data and not (data.startswith(b"\x1e") and data.endswith(b"\n")):
        raise FormatError("CEL-JSON sequence is cut", code="log-cut")
    expected = -1
    for text in data.split(b"\x1e")[1:]:
        # The form allows any white space; the log's own form, which parse_lines reads, does not.
        value = jcs.parse(text, what="CEL-JSON record", limit=MAX_LOG_LINE)
        record = celjson.from_json(value)
        celjson.check_order(record, expected)
        expected = record.recnum + 1
        yield record


def parse_cel_json(data: bytes) -> Iterator[Record]:
    """Parse an array of CEL-JSON records. Raises FormatError."""
    values = jcs.parse(data, what="CEL-JSON log", limit=MAX_LOG)
    if not isinstance(values, list) or len(values) > MAX_RECORDS:
        raise FormatError("CEL-JSON log is not an array of records", code="log-field")
    expected = -1
    for value in values:
        record = celjson.from_json(value)
        celjson.check_order(record, expected)
        expected = record.recnum + 1
        yield record
