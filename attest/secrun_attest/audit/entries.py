"""Leaves of an audit log that are no records of an event log: how an epoch ended, and what was given up.

The leaf of a record is its event's bytes; that of an entry is `secrun.audit.v1 <Kind> <RFC 8785 JSON>`.
"""

import base64
import hashlib
from collections.abc import Mapping
from enum import StrEnum

from secrun_attest import frozen, jcs
from secrun_attest.errors import FormatError
from secrun_attest.evidence import banks
from secrun_attest.fields import Fields, parse_json
from secrun_attest.jcs import JsonObject
from secrun_attest.limits import MAX_COUNT, MAX_INTEGER, MAX_PCR, MAX_RECORDS
from secrun_attest.record import Bank, Epoch, epoch_json, parse_epoch

DOMAIN = b"secrun.audit.v1"
BINDING = b"secrun-audit-quote-v1\0"
# A quote, its signature and key, and PCRs in four banks.
MAX_ENTRY = 16 * 1024
MAX_WHY = 1000


class EntryError(FormatError):
    """Bytes that claim to be an entry of an audit log are not one."""

    code = "audit-entry"


class State(StrEnum):
    """How things stand with the log of an epoch."""

    CLOSED = "closed"
    """Quoted in the end; nothing followed that is not quoted."""
    OPEN = "open"
    """Quoted while it goes on."""
    NOT_CLOSED = "not-closed"
    """It ended without a quote: nothing proves that its last records are there."""
    DAMAGED = "damaged"
    """The rest of its file cannot be read: `why` tells."""


@frozen.record
class Quotation:
    """A quote of the log's own PCR: public key, TPMS_ATTEST, TPMT_SIGNATURE and the bank that was quoted.

    `asked` is how many records there were when it was asked for: with the epoch that is what it signs.
    """

    key: bytes
    attest: bytes
    signature: bytes
    bank: Bank
    asked: int


@frozen.record
class Closing:
    """How the log `name` of `epoch` stood after `count` records, `pcrs` being what they come to.

    `t` is the host's clock in milliseconds.
    """

    state: State
    name: str
    epoch: Epoch
    count: int
    pcr: int
    pcrs: Mapping[Bank, bytes]
    t: int
    why: str = ""
    quote: Quotation | None = None


@frozen.record
class Pruned:
    """The records of the log `name` were removed by a rule of retention; their hashes stay."""

    name: str
    epoch: Epoch
    count: int
    t: int
    why: str


Entry = Closing | Pruned


def binding(origin: str, epoch: Epoch, state: State, asked: int) -> bytes:
    """Return the 32 bytes that a closing's quote is made over."""
    said = jcs.encode({"origin": origin, "epoch": epoch_json(epoch), "state": state.value, "asked": asked})
    return hashlib.sha256(BINDING + said).digest()


def encode(entry: Entry) -> bytes:
    """Return the leaf of an entry."""
    kind = type(entry).__name__.encode()
    return b"%b %b %b" % (DOMAIN, kind, jcs.encode(_json(entry)))


def _json(entry: Entry) -> JsonObject:
    shared: JsonObject = {
        "v": 1,
        "log": entry.name,
        "epoch": epoch_json(entry.epoch),
        "count": entry.count,
        "t": entry.t,
        "why": entry.why,
    }
    if isinstance(entry, Pruned):
        return shared
    quote = entry.quote
    return {
        **shared,
        "state": entry.state.value,
        "pcr": entry.pcr,
        "pcrs": {bank.value: value.hex() for bank, value in entry.pcrs.items()},
        "quote": None if quote is None else _quote_json(quote),
    }


def _quote_json(quote: Quotation) -> JsonObject:
    return {
        "key": base64.b64encode(quote.key).decode(),
        "attest": base64.b64encode(quote.attest).decode(),
        "signature": base64.b64encode(quote.signature).decode(),
        "bank": quote.bank.value,
        "asked": quote.asked,
    }


def parse(data: bytes) -> Entry:
    """Parse the leaf of an entry; raises FormatError unless it is exactly what `encode` writes."""
    if len(data) > MAX_ENTRY:
        raise EntryError(f"an entry has {len(data)} bytes, the limit is {MAX_ENTRY}")
    domain, _, rest = data.partition(b" ")
    kind, _, text = rest.partition(b" ")
    if domain != DOMAIN or kind not in (b"Closing", b"Pruned"):
        raise EntryError(f"an entry begins with {data[:40]!r}")
    fields = Fields(parse_json(text, what="entry", limit=MAX_ENTRY), "entry")
    if (version := fields.integer("v")) != 1:
        raise EntryError(f"an entry has version {version}, expected 1")
    found = _closing(fields) if kind == b"Closing" else _pruned(fields)
    fields.done()
    if encode(found) != data:
        raise EntryError("an entry is not canonical")
    return found


def _pruned(fields: Fields) -> Pruned:
    return Pruned(
        name=fields.text("log", limit=40),
        epoch=parse_epoch(fields.take("epoch")),
        count=fields.integer("count", limit=MAX_RECORDS),
        t=fields.integer("t", limit=MAX_INTEGER),
        why=fields.text("why", limit=MAX_WHY),
    )


def _closing(fields: Fields) -> Closing:
    state = fields.text("state", limit=40)
    if state not in set(State):
        raise EntryError(f"a closing says {state!r}, expected one of {', '.join(State)}")
    return Closing(
        state=State(state),
        name=fields.text("log", limit=40),
        epoch=parse_epoch(fields.take("epoch")),
        count=fields.integer("count", limit=MAX_RECORDS),
        pcr=fields.integer("pcr", limit=MAX_PCR),
        pcrs=banks(fields.mapping("pcrs", limit=len(Bank)), "closing.pcrs"),
        t=fields.integer("t", limit=MAX_INTEGER),
        why=fields.text("why", limit=MAX_WHY),
        quote=_quote(fields.object("quote")) if fields.has("quote") else None,
    )


def _quote(fields: Fields) -> Quotation:
    bank = fields.text("bank", limit=20)
    if bank not in set(Bank):
        raise EntryError(f"a closing quotes the bank {bank!r}, which is not known")
    quote = Quotation(
        key=fields.base64("key"),
        attest=fields.base64("attest"),
        signature=fields.base64("signature"),
        bank=Bank(bank),
        asked=fields.integer("asked", limit=MAX_RECORDS),
    )
    fields.done()
    return quote


# resetCount and restartCount, with a dash between.
MAX_LOG_NAME = 2 * len(str(MAX_COUNT)) + 1
