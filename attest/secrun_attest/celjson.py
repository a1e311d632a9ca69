"""Records as TCG Canonical Event Log JSON, one per line: the form that the log itself has on disk."""

import re
from collections.abc import Iterable, Iterator
from functools import cache

from secrun_attest import jcs
from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_LOG_LINE
from secrun_attest.record import DIGEST_SIZES, Bank, Record

CONTENT_TYPE = "pcclient_std"
EVENT_TYPE = "EV_EVENT_TAG"

_BANKS = {bank.value: bank for bank in Bank}
_BANK_NAMES = {bank.encode(): bank for bank in Bank}

# What is canonical has one text, so the lines of a log are a regular language; this reads one several times
# faster than JSON does. Lines that do not match go the long way, which knows what is wrong with them.
_DIGEST = rb'\{"digest":"([0-9a-f]+)","hashAlg":"([0-9a-z]+)"\}'
_ANY_DIGEST = b"|".join(
    b'\\{"digest":"[0-9a-f]{%d}","hashAlg":"%b"\\}' % (2 * size, bank.encode())
    for bank, size in DIGEST_SIZES.items()
)
_LINE = (
    rb'\{"content":\{"event_data":"([0-9a-f]*)","event_type":"EV_EVENT_TAG"\},"content_type":"pcclient_std",'
    rb'"digests":\[((?:%(one)b)(?:,(?:%(one)b))*)\],"pcr":(0|[1-9][0-9]?),"recnum":(0|[1-9][0-9]{0,5})\}\Z'
    % {b"one": _ANY_DIGEST}
)
_HEX_DIGITS = frozenset("0123456789abcdef")


def to_json(record: Record) -> JsonObject:
    """Return `record` as one CEL-JSON object."""
    digests: list[JsonValue] = [
        {"hashAlg": bank.value, "digest": value.hex()} for bank, value in record.digests.items()
    ]
    return {
        "recnum": record.recnum,
        "pcr": record.pcr,
        "digests": digests,
        "content_type": CONTENT_TYPE,
        "content": {"event_type": EVENT_TYPE, "event_data": record.event_data.hex()},
    }


def from_json(value: JsonValue) -> Record:
    """Parse one CEL-JSON object; raises FormatError for anything that `to_json` would not write."""
    recnum, pcr, digests, kind, content = _fields(
        value, ("recnum", "pcr", "digests", "content_type", "content"), "record"
    )
    if type(recnum) is not int or type(pcr) is not int:
        raise FormatError("recnum and pcr of a record are not both integers", code="record-field")
    if kind != CONTENT_TYPE:
        got = f"record {recnum} has content type {str(kind)[:40]!r}"
        raise FormatError(f"{got}, expected {CONTENT_TYPE!r}", code="record-content")
    event_type, event_data = _fields(content, ("event_type", "event_data"), f"content of record {recnum}")
    if event_type != EVENT_TYPE:
        got = f"record {recnum} has event type {str(event_type)[:40]!r}"
        raise FormatError(f"{got}, expected {EVENT_TYPE!r}", code="record-content")
    return Record(
        recnum=recnum, pcr=pcr, digests=_digests(digests, recnum), event_data=_hex(event_data, recnum)
    )


def line(record: Record) -> bytes:
    """Return `record` as one line with its end."""
    return jcs.encode(to_json(record)) + b"\n"


# What stands before the event in each line.
BEFORE_DATA = b'{"content":{"event_data":"'


def tail_of(pcr: int, banks: Iterable[Bank]) -> bytes:
    """Return what `line` writes behind an event, with a place for each digest in hex, and for the recnum."""
    digests = b",".join(b'{"digest":"%%b","hashAlg":"%b"}' % bank.encode() for bank in banks)
    kind = b'","event_type":"%b"},"content_type":"%b",' % (EVENT_TYPE.encode(), CONTENT_TYPE.encode())
    return kind + b'"digests":[%b],"pcr":%d,"recnum":%%d}\n' % (digests, pcr)


def parse_line(data: bytes) -> Record:
    """Parse one line without its end; raises FormatError unless it is exactly what `line` writes."""
    match = _quick().match(data) if len(data) <= MAX_LOG_LINE else None
    if match is not None and len(match[1]) % 2 == 0:
        return _from_match(match)
    return parse_one_line(data)


def parse_one_line(data: bytes) -> Record:
    """Parse as `parse_line` does, for whoever reads no other: that one costs more to begin with."""
    return from_json(jcs.parse_canonical(data, what="line of the log", limit=MAX_LOG_LINE))


@cache
def _quick() -> "re.Pattern[bytes]":
    return re.compile(_LINE)


def _from_match(match: re.Match[bytes]) -> Record:
    event_data, digests, pcr, recnum = match.groups()
    found = {
        _BANK_NAMES[name]: bytes.fromhex(value.decode()) for value, name in re.findall(_DIGEST, digests)
    }
    if len(found) != digests.count(b"{"):
        raise FormatError(f"record {recnum.decode()} has two digests for one bank", code="record-digests")
    data = bytes.fromhex(event_data.decode())
    return Record(recnum=int(recnum), pcr=int(pcr), digests=found, event_data=data)


def parse_lines(data: bytes) -> Iterator[Record]:
    """Parse whole lines and hold recnum to count up by one; raises FormatError.

    A log may be asked for from any record on, so the first recnum is the caller's to judge.
    """
    if data and not data.endswith(b"\n"):
        raise FormatError("the last line of the log has no end", code="record-torn")
    expected = -1
    for text in data.split(b"\n")[:-1]:
        record = parse_line(text)
        check_order(record, expected)
        expected = record.recnum + 1
        yield record


def check_order(record: Record, expected: int) -> None:
    """Raise FormatError unless `record` has the recnum `expected`; -1 expects nothing."""
    if expected not in (-1, record.recnum):
        raise FormatError(f"record {record.recnum} stands where {expected} belongs", code="record-order")


def _fields(value: JsonValue, names: tuple[str, ...], what: str) -> tuple[JsonValue, ...]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise FormatError(f"{what} has not exactly the fields {', '.join(names)}", code="record-field")
    return tuple(value[name] for name in names)


def _digests(value: JsonValue, recnum: int) -> dict[Bank, bytes]:
    if not isinstance(value, list) or not 0 < len(value) <= len(Bank):
        text = f"record {recnum} has not one to {len(Bank)} digests"
        raise FormatError(text, code="record-digests")
    found: dict[Bank, bytes] = {}
    for item in value:
        name, value_hex = _fields(item, ("hashAlg", "digest"), f"digest of record {recnum}")
        bank = _BANKS.get(name) if isinstance(name, str) else None
        if bank is None:
            raise FormatError(f"record {recnum} has unknown bank {str(name)[:20]!r}", code="record-bank")
        if bank in found:
            raise FormatError(f"record {recnum} has two digests for {bank}", code="record-digests")
        if not isinstance(value_hex, str) or len(value_hex) != 2 * DIGEST_SIZES[bank]:
            raise FormatError(
                f"{bank} digest of record {recnum} is not {DIGEST_SIZES[bank]} bytes in hex",
                code="record-digest-size",
            )
        found[bank] = _hex(value_hex, recnum)
    return found


def _hex(value: JsonValue, recnum: int) -> bytes:
    # bytes.fromhex takes capitals and blanks, and then one record would have many texts.
    if not isinstance(value, str) or not _HEX_DIGITS.issuperset(value) or len(value) % 2:
        raise FormatError(f"record {recnum} holds bytes that are not lower-case hex", code="record-hex")
    return bytes.fromhex(value)
