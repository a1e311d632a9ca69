"""The evidence bundle: what a host sends for one nonce, as data that has the right shape and nothing more.

Nothing here is verified. The header is what the TPM signs through extraData; all else is bound by it, by the
quote's PCR digest, or by digests inside measured records.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from secrun_attest import jcs
from secrun_attest.errors import FormatError
from secrun_attest.fields import (
    FieldError,
    Fields,
    as_base64,
    as_hex,
    as_integer,
    as_list,
    as_text,
    parse_json,
    to_base64,
)
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_COUNT, MAX_EVENT_DATA, MAX_PCR, MAX_RECORDS
from secrun_attest.record import DIGEST_SIZES, Bank, Epoch
from secrun_attest.sentlog import MARK, Cut, LogRecord, cut_records, digests_of
from secrun_attest.tpm import TpmKind

VERSION = 1
# A host with the largest log allowed sends about 400 MB; verifiers ask for pieces long before.
MAX_EVIDENCE = 64 << 20
MAX_BANKS = 4
MAX_PCRS = MAX_PCR + 1
MAX_CONTENTS = 10_000
MAX_CHAIN = 8
NONCE_SIZES = (32,)

BINDING = b"secrun-quote-v1\0"

BANKS = {bank.value: bank for bank in Bank}
DIGESTS = {bank.value: (bank, (DIGEST_SIZES[bank],)) for bank in Bank}
RECORD_KEYS = frozenset({"recnum", "pcr", "digests", "content_type", "content"})
CONTENT_KEYS = frozenset({"event_type", "event_data"})
DIGEST_KEYS = frozenset({"hashAlg", "digest"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the quote binds beside the PCRs: whose log it is, how long it was, and for whom it is meant.

    It is made before the quote. Other processes may measure meanwhile, so `log_count` and `log_sha256` are
    of the records when the quote was asked for, and more may have been sent: all that the quoted PCR
    covers.
    """

    host: str
    epoch: Epoch
    log_count: int
    log_sha256: bytes
    firmware_log_sha256: bytes | None
    channel_key: str | None
    audience: str
    tpm: TpmKind

    def canonical(self) -> bytes:
        """Return the header as RFC 8785 JSON."""
        return jcs.encode(_header_json(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A parsed bundle; TPM structures are still bytes."""

    header: Header
    nonce: bytes
    ak_pub: bytes
    quote: bytes
    signature: bytes
    pcr_values: tuple[tuple[str, tuple[tuple[int, bytes], ...]], ...]
    log_from: int
    base_pcr: tuple[tuple[Bank, bytes], ...]
    records: Sequence[LogRecord]
    firmware_log: bytes | None = None
    contents: tuple[tuple[bytes, bytes], ...] = ()
    ek_chain: tuple[bytes, ...] = field(default=())
    agent: str = ""


def binding(nonce: bytes, header: Header) -> bytes:
    """Return the 32 bytes that go into the quote as extraData: nonce and header, and what they are for."""
    return hashlib.sha256(BINDING + nonce + hashlib.sha256(header.canonical()).digest()).digest()


def log_digest(records: Sequence[LogRecord], *, count: int | None = None) -> bytes:
    """Return the digest of the first `count` records, or of all: SHA-256 over their SHA-256 digests."""
    return hashlib.sha256(b"".join(digests_of(records, Bank.SHA256)[:count])).digest()


def parse_evidence(data: bytes) -> Evidence:
    """Parse a bundle; raises FormatError if it is too large, not strict JSON, or not of this version."""
    cut = cut_records(data) if len(data) <= MAX_EVIDENCE else None
    if cut is not None:
        with suppress(FormatError):  # the whole of it says better what is wrong
            return _evidence(cut.rest, cut)
    return parse_as_json(data)


def parse_as_json(data: bytes) -> Evidence:
    """Parse as `parse_evidence` does, without its short cut: it decides what is taken and what is said."""
    return _evidence(data, None)


def _evidence(data: bytes, cut: Cut | None) -> Evidence:
    fields = Fields(parse_json(data, what="evidence", limit=MAX_EVIDENCE), "evidence")
    if (version := fields.integer("v")) != VERSION:
        raise FieldError(f"evidence has version {version}, this verifier reads {VERSION}")
    log = fields.object("log")
    if (form := log.text("format")) != "cel-json":
        raise FieldError(f"evidence.log.format is {form[:80]!r}, expected 'cel-json'")
    evidence = Evidence(
        header=_header(fields.object("header")),
        nonce=fields.hex("nonce", sizes=NONCE_SIZES),
        ak_pub=fields.base64("ak_pub"),
        quote=fields.base64("quote"),
        signature=fields.base64("signature"),
        pcr_values=_pcr_values(fields.mapping("pcr_values", limit=MAX_BANKS)),
        log_from=log.integer("from", limit=MAX_RECORDS),
        base_pcr=tuple(banks(log.mapping("base_pcr", limit=MAX_BANKS), "evidence.log.base_pcr").items()),
        records=_records(log, cut),
        firmware_log=fields.base64("firmware_log") if fields.has("firmware_log") else None,
        contents=_contents(fields.mapping("contents", limit=MAX_CONTENTS)),
        ek_chain=tuple(
            as_base64(item, "evidence.ek_chain") for item in fields.items("ek_chain", limit=MAX_CHAIN)
        )
        if fields.has("ek_chain")
        else (),
        agent=fields.text("agent", limit=200) if fields.has("agent") else "",
    )
    log.done()
    fields.done()
    return evidence


def _header(fields: Fields) -> Header:
    epoch = fields.object("epoch")
    header = Header(
        host=fields.text("host", limit=255),
        epoch=Epoch(
            reset=epoch.integer("reset", limit=MAX_COUNT),
            restart=epoch.integer("restart", limit=MAX_COUNT),
            boot_id=epoch.text("boot_id", limit=64),
        ),
        log_count=fields.integer("log_count", limit=MAX_RECORDS),
        log_sha256=fields.hex("log_sha256", sizes=(32,)),
        firmware_log_sha256=fields.hex("firmware_log_sha256", sizes=(32,))
        if fields.has("firmware_log_sha256")
        else None,
        channel_key=fields.text("channel_key", limit=128) if fields.has("channel_key") else None,
        audience=fields.text("audience", limit=255),
        tpm=_tpm_kind(fields.text("tpm", limit=20)),
    )
    epoch.done()
    fields.done()
    return header


def _tpm_kind(name: str) -> TpmKind:
    if name not in set(TpmKind):
        raise FieldError(f"evidence.header.tpm is {name!r}, expected {' or '.join(TpmKind)}")
    return TpmKind(name)


def banks(value: JsonObject, what: str) -> dict[Bank, bytes]:
    """Return a digest per bank out of an object of hex strings; raises FieldError."""
    named = ((_bank(name, what), text) for name, text in value.items())
    return {bank: as_hex(text, what, sizes=(DIGEST_SIZES[bank],)) for bank, text in named}


def _bank(name: str, what: str) -> Bank:
    if name not in BANKS:
        raise FieldError(f"{what} names the bank {name[:40]!r}, which is not known")
    return BANKS[name]


def _pcr_values(value: JsonObject) -> tuple[tuple[str, tuple[tuple[int, bytes], ...]], ...]:
    what = "evidence.pcr_values"
    result = []
    for bank, values in value.items():
        size = DIGEST_SIZES[_bank(bank, what)]
        if not isinstance(values, dict) or len(values) > MAX_PCRS:
            raise FieldError(f"{what}.{bank} is not an object of at most {MAX_PCRS} values")
        found = tuple((_index(key), as_hex(text, what, sizes=(size,))) for key, text in values.items())
        result.append((bank, found))
    return tuple(result)


def _index(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 2 and str(int(key)) == key):
        raise FieldError(f"{key[:20]!r} is not the number of a PCR")
    return as_integer(int(key), "number of a PCR", limit=MAX_PCR)


def _records(log: Fields, cut: Cut | None) -> Sequence[LogRecord]:
    if cut is None:
        return tuple(_record(item) for item in log.items("records", limit=MAX_RECORDS))
    if log.take("records") != MARK:
        raise FieldError("the records that were read are not those of the log")
    return cut.records


def _record(value: JsonValue) -> LogRecord:
    # One look at the keys instead of one per member: there may be a hundred thousand records.
    if not isinstance(value, dict) or value.keys() != RECORD_KEYS:
        raise FieldError(f"a record does not have exactly the members {', '.join(sorted(RECORD_KEYS))}")
    content = value["content"]
    if not isinstance(content, dict) or content.keys() != CONTENT_KEYS:
        raise FieldError("the content of a record is not event_type and event_data")
    data = as_hex(content["event_data"], "event_data")
    if len(data) > MAX_EVENT_DATA:
        raise FieldError(f"a record has {len(data)} bytes, the limit is {MAX_EVENT_DATA}")
    return LogRecord(
        recnum=as_integer(value["recnum"], "recnum", limit=MAX_RECORDS),
        pcr=as_integer(value["pcr"], "pcr", limit=MAX_PCR),
        digests=tuple(_bank_digest(item) for item in as_list(value["digests"], "digests", limit=MAX_BANKS)),
        content_type=as_text(value["content_type"], "content_type", limit=40),
        event_type=as_text(content["event_type"], "event_type", limit=40),
        data=data,
    )


def _bank_digest(item: JsonValue) -> tuple[Bank, bytes]:
    if not isinstance(item, dict) or item.keys() != DIGEST_KEYS:
        raise FieldError("a digest of a record is not hashAlg and digest")
    name = item["hashAlg"]
    known = DIGESTS.get(name) if isinstance(name, str) else None
    if known is None:
        raise FieldError("a record has a digest of an unknown bank")
    return known[0], as_hex(item["digest"], "digest", sizes=known[1])


def _contents(value: JsonObject) -> tuple[tuple[bytes, bytes], ...]:
    what = "evidence.contents"
    return tuple((as_hex(key, what, sizes=(32,)), as_base64(item, what)) for key, item in value.items())


def _header_json(header: Header) -> JsonObject:
    epoch = header.epoch
    firmware = header.firmware_log_sha256
    return {
        "host": header.host,
        "epoch": {"reset": epoch.reset, "restart": epoch.restart, "boot_id": epoch.boot_id},
        "log_count": header.log_count,
        "log_sha256": header.log_sha256.hex(),
        "firmware_log_sha256": None if firmware is None else firmware.hex(),
        "channel_key": header.channel_key,
        "audience": header.audience,
        "tpm": header.tpm.value,
    }


def record_json(record: LogRecord) -> JsonObject:
    """Return one record in CEL-JSON."""
    return {
        "recnum": record.recnum,
        "pcr": record.pcr,
        "digests": [{"hashAlg": bank, "digest": digest.hex()} for bank, digest in record.digests],
        "content_type": record.content_type,
        "content": {"event_type": record.event_type, "event_data": record.data.hex()},
    }


def build_evidence(evidence: Evidence) -> bytes:
    """Return the bundle as JSON that `parse_evidence` reads back to an equal value."""
    document: JsonObject = {
        "v": VERSION,
        "header": _header_json(evidence.header),
        "nonce": evidence.nonce.hex(),
        "ak_pub": to_base64(evidence.ak_pub),
        "quote": to_base64(evidence.quote),
        "signature": to_base64(evidence.signature),
        "pcr_values": {
            bank: {str(index): value.hex() for index, value in values}
            for bank, values in evidence.pcr_values
        },
        "log": {
            "format": "cel-json",
            "from": evidence.log_from,
            "base_pcr": {bank: value.hex() for bank, value in evidence.base_pcr},
            "records": [record_json(record) for record in evidence.records],
        },
        "firmware_log": None if evidence.firmware_log is None else to_base64(evidence.firmware_log),
        "contents": {digest.hex(): to_base64(data) for digest, data in evidence.contents},
        "ek_chain": [to_base64(item) for item in evidence.ek_chain],
        "agent": evidence.agent,
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
