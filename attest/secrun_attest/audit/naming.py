"""Names what somebody did to the records of a segment: their hashes are compared with its leaves."""

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from secrun_attest.audit import merkle
from secrun_attest.audit.chain import Records
from secrun_attest.audit.report import Fault
from secrun_attest.audit.walk import parse_record
from secrun_attest.errors import FormatError

# More lines than records and these were inserted; how many exactly does not matter.
_SPARE = 1000


def named(lines: Iterable[bytes], leaves: Iterable[bytes], part: Records) -> tuple[Fault, str] | None:
    """Return what makes `lines` others than the records with the hashes `leaves`; None if they are those."""
    hashes = [_hash(line) for line in islice(lines, part.count + _SPARE)]
    wanted = [*leaves]
    if hashes == wanted:
        return None
    found, expected = Counter(hashes), Counter(wanted)
    missing, extra = (expected - found).total(), (found - expected).total()
    if missing and extra and missing == extra:
        return Fault.CHANGED, f"{missing} of {part.count} records are others"
    if missing > extra:
        return Fault.REMOVED, f"{missing - extra} of {part.count} records are not there"
    if extra > missing:
        return Fault.INSERTED, f"{extra - missing} records stand among the {part.count} that were signed"
    return Fault.REORDERED, f"the {part.count} records stand in another order"


def _hash(line: bytes) -> bytes:
    try:
        return merkle.leaf_hash(parse_record(line).event_data)
    except FormatError:
        return b""


def named_by_order(lines: Iterable[bytes], part: Records) -> tuple[Fault, str] | None:
    """Return what the records' own numbers tell, for leaves that were made to fit; None if all is well."""
    seen: list[int] = []
    for line in islice(lines, part.count + _SPARE):
        try:
            record = parse_record(line)
        except FormatError as error:
            return Fault.CHANGED, error.message
        if not record.matches():
            return Fault.CHANGED, f"a digest of record {record.recnum} is not that of its event"
        seen.append(record.recnum)
    wanted = list(range(part.first, part.first + part.count))
    if seen == wanted:
        return None
    if sorted(seen) == wanted:
        return Fault.REORDERED, "the records' own numbers are in another order"
    if len(set(seen)) < len(seen):
        return Fault.INSERTED, "two records have the same number"
    return Fault.REMOVED, "the records' own numbers have a gap"
