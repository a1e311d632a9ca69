"""The audit log of this host, step by step: leaves of all records, a head in the TPM, a quote, a last head.

The head is measured before the quote, so the quote covers it; the closing with the quote is a leaf of the
head that is signed last. No lock of the event log is held while the TPM quotes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from secrun_attest import celjson, frozen
from secrun_attest.audit import heads
from secrun_attest.audit.chain import Chain, ChainError, Tail, opened
from secrun_attest.audit.entries import Closing, Quotation, State, binding
from secrun_attest.audit.note import Checkpoint
from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject
from secrun_attest.record import Bank
from secrun_attest.replay import extend_all
from secrun_attest.tss import AttestationKey, Moving, Quoted, Tss

_STRONGEST = (Bank.SHA256, Bank.SHA384, Bank.SHA512)


@frozen.record
class Place:
    """Where the audit log and the event logs lie, and the name that the log signs under if it is new."""

    folder: Path
    logs: Path
    name: str


def previous_of(place: Place, going: str, now: int) -> JsonObject:
    """Return what LogOpen of the log `going` says of all before it: every earlier epoch is in the audit log.

    `now` is in milliseconds; raises ChainError.
    """
    with opened(place.folder, place.logs) as chain:
        chain.sync(going=going, now=now)
        return {"size": chain.size, "root": chain.frontier().root().hex()}


def anchor_of(place: Place, going: str, now: int) -> JsonObject:
    """Sign the head of all records so far and return what Checkpoint says of it.

    The event log must be held, so that every record of it is extended.
    """
    with opened(place.folder, place.logs) as chain:
        chain.sync(going=going, now=now)
        head, _ = heads.sign_head(chain, heads.signer(place.folder, place.name))
        return {"size": head.size, "root": head.root.hex()}


# Quotes one PCR of a bank over 32 bytes; is told what the PCR may have become meanwhile.
Quoter = Callable[[bytes, Bank, Moving], tuple[AttestationKey, Quoted]]


def quoter(tcti: str) -> Quoter:
    """Return what quotes with the TPM at `tcti`."""

    def quote(qualifying: bytes, bank: Bank, moving: Moving) -> tuple[AttestationKey, Quoted]:
        with Tss(tcti) as tss:
            return tss.create_ak(), tss.quote(qualifying, bank, [moving.pcr], moving=moving)

    return quote


def close(place: Place, going: str, *, quote: Quoter, state: State, now: Callable[[], int]) -> Checkpoint:
    """Quote what the log `going` has come to, add the closing and sign the head that covers it.

    Nobody else may close at the same time. Raises ChainError `audit-quote` if the log does not explain the
    quote, TpmError and TpmTransportError.
    """
    with opened(place.folder, place.logs) as chain:
        chain.sync(going=going, now=now())
        key = heads.signer(place.folder, place.name)
        tail = _tail(chain, going)
    origin, bank = key.verifier.name, _bank(tail)
    pcr, asked = tail.records.pcr, tail.count
    moving = Moving(pcr=pcr, values=lambda: _coming(place, going, tail, bank))
    ak, quoted = quote(binding(origin, tail.records.epoch, state, asked), bank, moving)
    value = dict(quoted.pcrs)[pcr]
    with opened(place.folder, place.logs) as chain:
        chain.sync(going=going, now=now(), quoted=(bank, value))
        tail = _tail(chain, going)
        if tail.records.pcrs[bank] != value:
            raise ChainError(
                f"PCR {pcr} is quoted as {bank}:{value.hex()}, which the log does not give",
                hint="another program extends this PCR, or the host slept meanwhile: try again",
                code="audit-quote",
            )
        chain.add(_closing(tail, state, now(), Quotation(
            key=ak.public, attest=quoted.attest, signature=quoted.signature, bank=bank, asked=asked
        )))  # fmt: skip
        return heads.sign_head(chain, key)[0]


def settle(place: Place, now: int) -> Checkpoint:
    """Sign the head of all records where the TPM cannot quote any more: no epoch goes on."""
    with opened(place.folder, place.logs) as chain:
        chain.sync(going="", now=now)
        return heads.sign_head(chain, heads.signer(place.folder, place.name))[0]


def _tail(chain: Chain, name: str) -> Tail:
    found = chain.tails.get(name)
    if found is None:
        raise ChainError(f"the log {name} has no record", code="audit-epoch")
    return found


def _bank(tail: Tail) -> Bank:
    return next((bank for bank in _STRONGEST if bank in tail.records.pcrs), Bank.SHA1)


def _coming(place: Place, going: str, tail: Tail, bank: Bank) -> Iterator[bytes]:
    """Yield what the PCR has held since `tail`, as the log says now."""
    values = dict(tail.records.pcrs)
    with (place.logs / f"{going}.cel").open("rb") as stream:
        stream.seek(tail.records.end)
        for line in stream:
            try:
                values = extend_all(values, celjson.parse_line(line.removesuffix(b"\n")).digests)
            except FormatError:
                return  # it is being written
            yield values[bank]


def _closing(tail: Tail, state: State, now: int, quote: Quotation) -> Closing:
    last = tail.records
    return Closing(
        state=state,
        name=last.name,
        epoch=last.epoch,
        count=tail.count,
        pcr=last.pcr,
        pcrs=last.pcrs,
        t=now,
        quote=quote,
    )
