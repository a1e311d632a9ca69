"""What a PCR holds after a list of records."""

from collections.abc import Iterable, Mapping, Sequence

from secrun_attest.errors import FormatError
from secrun_attest.record import DIGEST_SIZES, Bank, Record, digest


def zeros(banks: Iterable[Bank]) -> dict[Bank, bytes]:
    """Return the start value of PCR 0 to 16 and 23 in each bank."""
    return {bank: bytes(DIGEST_SIZES[bank]) for bank in banks}


def extend(value: bytes, extended: bytes, bank: Bank) -> bytes:
    """Return the PCR's value after `extended` (TPM 2.0 Part 1, 17.4: the hash of both)."""
    return digest(bank, value + extended)


def extend_all(values: Mapping[Bank, bytes], digests: Mapping[Bank, bytes]) -> dict[Bank, bytes]:
    """Return the values of every bank after one extend; both must name the same banks."""
    if values.keys() != digests.keys():
        raise FormatError(
            f"digests are for banks {_names(digests)}, expected {_names(values)}", code="record-banks"
        )
    return {bank: extend(value, digests[bank], bank) for bank, value in values.items()}


def replay(records: Iterable[Record], base: Mapping[Bank, bytes]) -> dict[Bank, bytes]:
    """Return what `base` becomes by the records' digests.

    Raises FormatError if a record has not exactly one digest for each bank of `base`. The digests are taken
    as they stand: `Record.matches` tells whether they are those of the event.
    """
    values = dict(base)
    for record in records:
        values = extend_all(values, record.digests)
    return values


def find_prefix(
    records: Sequence[Record], base: Mapping[Bank, bytes], target: Mapping[Bank, bytes], *, first: int
) -> int | None:
    """Return how many records explain `target`: the one n >= `first` whose first n records replay to it.

    `target` may be of fewer banks than `base`, as a quote is. None says that no prefix does. A quote taken
    between two looks at the log (L0 and L1 records) shows one prefix from L0 - 1 to L1, since the log is
    written before the PCR: pass the records of the second look and L0 - 1 (at least 0).
    """
    if not target or not target.keys() <= base.keys():
        raise FormatError(
            f"target is of banks {_names(target)}, the log of {_names(base)}", code="record-banks"
        )
    values = replay(records[:first], base)
    for count in range(first, len(records) + 1):
        if all(values[bank] == value for bank, value in target.items()):
            return count
        if count < len(records):
            values = extend_all(values, records[count].digests)
    return None


def _names(banks: Iterable[Bank]) -> str:
    return "+".join(sorted(banks)) or "none"
