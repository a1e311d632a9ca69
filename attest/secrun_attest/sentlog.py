"""The records of a bundle: one by one as they were sent, or in columns where nothing of them is unusual.

An honest log is a long list of texts that differ in a number and in hex alone. Such a list is read without
JSON, several times as fast: what its bytes hash to is written down as a record, and must be the text that
was sent, to the last byte. Whatever differs is left to those who read JSON and know what is wrong with it.
"""

import re
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import eq
from typing import TypeAlias, overload

from secrun_attest.limits import MAX_EVENT_DATA, MAX_PCR, MAX_RECORDS
from secrun_attest.record import Bank, digest_column

CONTENT_TYPE = "pcclient_std"
EVENT_TYPE = "EV_EVENT_TAG"

Slice: TypeAlias = "slice[int | None, int | None, int | None]"

_BANKS = {bank.value: bank for bank in Bank}
_OPENING = b'"records":[{"recnum":'
_BETWEEN = '"}},{"recnum":'
_CLOSING = b'"}}]'
# Only to learn what the records should look like: each is compared with all of its text afterwards.
_FIRST = re.compile(r'([0-9]{1,7}),"pcr":([0-9]{1,2}),"digests":\[([^\]]{1,1024})\]')
_ALGORITHM = re.compile(r'"hashAlg":"([a-z0-9]{1,9})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """One record as sent; `digests` by bank in the order sent, `data` the bytes that were digested."""

    recnum: int
    pcr: int
    digests: tuple[tuple[Bank, bytes], ...]
    content_type: str
    event_type: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns(Sequence[LogRecord]):
    """Records of one PCR and the same banks, numbered from `first` without a gap.

    `digests` are those of `data`, bank by bank: no other digest was sent.
    """

    first: int
    pcr: int
    data: Sequence[bytes]
    digests: Mapping[Bank, Sequence[bytes]]

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> LogRecord: ...
    @overload
    def __getitem__(self, index: Slice) -> Sequence[LogRecord]: ...
    def __getitem__(self, index: "int | Slice") -> LogRecord | Sequence[LogRecord]:
        numbers = range(len(self.data))[index]
        if isinstance(numbers, range):
            return tuple(map(self._record, numbers))
        return self._record(numbers)

    def __iter__(self) -> Iterator[LogRecord]:
        return map(self._record, range(len(self.data)))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Columns | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def _record(self, index: int) -> LogRecord:
        return LogRecord(
            recnum=self.first + index,
            pcr=self.pcr,
            digests=tuple((bank, column[index]) for bank, column in self.digests.items()),
            content_type=CONTENT_TYPE,
            event_type=EVENT_TYPE,
            data=self.data[index],
        )


def digests_of(records: Sequence[LogRecord], bank: Bank) -> Sequence[bytes]:
    """Return the digests that records have in `bank`, in order."""
    if isinstance(records, Columns):
        return records.digests.get(bank, ())
    return [digest for record in records for name, digest in record.digests if name == bank]


def events_of(records: Sequence[LogRecord]) -> Iterable[tuple[int, bytes]]:
    """Return number and bytes of each record."""
    if isinstance(records, Columns):
        return enumerate(records.data, records.first)
    return ((record.recnum, record.data) for record in records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A bundle without its records: `rest` has MARK where they were."""

    rest: bytes
    records: Columns


# A text that stands for the records; it is no array, so that nothing else can be taken for it.
MARK = "the records were read already"
_MARK = f'"{MARK}"'.encode()


def cut_records(data: bytes) -> Cut | None:
    """Take the records out of a bundle; None if they have to be read as JSON.

    `rest` is strict JSON of the right form exactly if `data` is, as long as its parsed form has MARK for
    `log.records`: an array that is whole was taken from where a value belongs, and nothing else in `rest`
    reads as MARK.
    """
    begin = data.find(_OPENING)
    end = data.find(_CLOSING, begin)
    if begin < 0 or end < 0:
        return None
    array = begin + _OPENING.index(b"[")
    head, tail = data[:array], data[end + len(_CLOSING) :]
    # With an escape, other bytes could read as MARK too, or this quotation mark be one inside of a text.
    if any(text in part for part in (head, tail) for text in (b"\\", _MARK)):
        return None
    records = _read(data[begin + len(_OPENING) : end])
    return None if records is None else Cut(rest=head + _MARK + tail, records=records)


def _read(data: bytes) -> Columns | None:
    try:
        texts = data.decode("ascii").split(_BETWEEN)
        first, pcr, banks = _shape(texts[0])
        if first + len(texts) > MAX_RECORDS:
            return None
        # Hex of other lengths and letters is found out below: it is not what its bytes are written as.
        events = [unhexlify(text[text.rfind('"') + 1 :]) for text in texts]
    except ValueError:
        return None
    if max(map(len, events)) > MAX_EVENT_DATA:
        return None
    digests = {bank: digest_column(bank, events) for bank in banks}
    hexes = (map(bytes.hex, column) for column in (*digests.values(), events))
    rows = zip(range(first, first + len(texts)), *hexes, strict=True)
    if not all(map(eq, map(_template(pcr, banks).__mod__, rows), texts)):
        return None
    return Columns(first=first, pcr=pcr, data=events, digests=digests)


def _shape(text: str) -> tuple[int, int, tuple[Bank, ...]]:
    """Guess number, PCR and banks of the first record; raises ValueError."""
    match = _FIRST.match(text)
    names = _ALGORITHM.findall(match[3]) if match is not None else []
    if match is None or not names or len(set(names)) < len(names) or not _BANKS.keys() >= set(names):
        raise ValueError("no usual record")
    if (pcr := int(match[2])) > MAX_PCR:
        raise ValueError("no PCR")
    return int(match[1]), pcr, tuple(_BANKS[name] for name in names)


@lru_cache(maxsize=64)
def _template(pcr: int, banks: tuple[Bank, ...]) -> str:
    digests = ",".join(f'{{"hashAlg":"{bank}","digest":"%s"}}' for bank in banks)
    content = f'"content_type":"{CONTENT_TYPE}","content":{{"event_type":"{EVENT_TYPE}","event_data":"%s'
    return f'%d,"pcr":{pcr},"digests":[{digests}],{content}'
