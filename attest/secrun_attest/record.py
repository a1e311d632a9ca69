"""One measured event: its bytes, the digest that goes into the PCR, and the record that the log keeps.

Format: docs/event-log.md. The event's bytes are the body of an EV_EVENT_TAG event (TCG PC Client Platform
Firmware Profile 1.05, 10.4.1), so every reader of TCG logs sees the same bytes and the same digest.
"""

import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import lru_cache, partial
from types import MappingProxyType

from secrun_attest import frozen, jcs
from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_COUNT, MAX_EVENT_DATA, MAX_INTEGER, MAX_PCR, MAX_RECORDS

VERSION = 1
DOMAIN = b"secrun.v1"
EVENT_TAG = 0x4141454C
_TAG = struct.Struct("<II")
TAG_SIZE = _TAG.size

# Fields that every event has; an operation's own fields may not use their names.
RESERVED = frozenset({"v", "seq", "epoch", "t"})

# Every event names the epoch of its log; a verifier reads the logs of many hosts in turn.
EPOCH_CACHE = 1024

_BOOT_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


class Bank(StrEnum):
    """A PCR bank that secrun extends, named as tpm2-tools and the TCG CEL specification name it."""

    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


# TPM_ALG_ID, TCG Algorithm Registry 1.32, table 3.
ALGORITHM_IDS = MappingProxyType(
    {Bank.SHA1: 0x0004, Bank.SHA256: 0x000B, Bank.SHA384: 0x000C, Bank.SHA512: 0x000D}
)
BANK_OF_ID = MappingProxyType({number: bank for bank, number in ALGORITHM_IDS.items()})
DIGEST_SIZES = MappingProxyType({Bank.SHA1: 20, Bank.SHA256: 32, Bank.SHA384: 48, Bank.SHA512: 64})

# SHA-1 is no proof of anything; it is extended so that nobody else can write a history into that bank.
_sha1 = partial(hashlib.sha1, usedforsecurity=False)
_HASHES: Mapping[Bank, Callable[[bytes], "hashlib._Hash"]] = MappingProxyType(
    {Bank.SHA1: _sha1, Bank.SHA256: hashlib.sha256, Bank.SHA384: hashlib.sha384, Bank.SHA512: hashlib.sha512}
)


class Operation(StrEnum):
    """What an event says happened."""

    LOG_OPEN = "LogOpen"
    TRUST_CHANGE = "TrustChange"
    POLICY_LOAD = "PolicyLoad"
    RUNTIME_UPGRADE = "RuntimeUpgrade"
    IMAGE_ADMIT = "ImageAdmit"
    POD_PREPARE = "PodPrepare"
    POD_START = "PodStart"
    POD_EXEC = "PodExec"
    POD_EXIT = "PodExit"
    POD_GC = "PodGC"
    DENIED = "Denied"
    UNMEASURED = "Unmeasured"
    RESUME = "Resume"
    CHECKPOINT = "Checkpoint"


_OPERATIONS = MappingProxyType({member.value.encode(): member for member in Operation})


@frozen.record
class Epoch:
    """The life of the TPM that a log belongs to: its counters and the kernel's boot id at LogOpen."""

    reset: int
    restart: int
    boot_id: str

    def __post_init__(self) -> None:
        for name, value in (("reset", self.reset), ("restart", self.restart)):
            _expect_integer(value, f"epoch.{name}", MAX_COUNT)
        if not _BOOT_ID.match(self.boot_id):
            raise FormatError(f"epoch.boot_id is {self.boot_id[:60]!r}, expected a UUID", code="event-epoch")


@frozen.record
class Event:
    """What is measured. `t` is the host's clock in milliseconds since 1970 and proves nothing.

    `seq` is the record's number in its log, inside the hashed bytes. Treat `fields` as read-only.
    """

    operation: Operation
    seq: int
    epoch: Epoch
    t: int
    fields: Mapping[str, JsonValue]

    def __post_init__(self) -> None:
        _expect_integer(self.seq, "seq", MAX_RECORDS - 1)
        _expect_integer(self.t, "t", MAX_INTEGER)
        if not RESERVED.isdisjoint(self.fields):
            taken = min(RESERVED & self.fields.keys())
            raise FormatError(f"field {taken!r} is not the operation's to set", code="event-field")


@frozen.record
class Record:
    """One entry of a log: where it stands, what was extended in each bank, and the event's bytes.

    A record says what a log holds. Whether its digests are those of its bytes is what `matches` tells.
    """

    recnum: int
    pcr: int
    digests: Mapping[Bank, bytes]
    event_data: bytes

    def __post_init__(self) -> None:
        _expect_integer(self.recnum, "recnum", MAX_RECORDS - 1)
        _expect_integer(self.pcr, "pcr", MAX_PCR)
        if not self.digests:
            raise FormatError(f"record {self.recnum} has no digest", code="record-digests")
        for bank, value in self.digests.items():
            if len(value) != DIGEST_SIZES[bank]:
                text = f"{bank} digest of record {self.recnum} has {len(value)} bytes"
                raise FormatError(f"{text}, expected {DIGEST_SIZES[bank]}", code="record-digest-size")
        check_event_size(len(self.event_data))

    def matches(self) -> bool:
        """Tell whether every digest is the digest of the event's bytes."""
        return all(digest(bank, self.event_data) == value for bank, value in self.digests.items())


def _expect_integer(value: object, name: str, highest: int) -> None:
    # bool is an int to Python, not to a reader of JSON.
    if type(value) is not int or not 0 <= value <= highest:
        text = f"{name} is {str(value)[:40]}, expected an integer from 0 to {highest}"
        raise FormatError(text, code="event-integer")


def check_event_size(size: int) -> None:
    """Raise FormatError if an event of `size` bytes is too large."""
    if size > MAX_EVENT_DATA:
        raise FormatError(
            f"event has {size} bytes, the limit is {MAX_EVENT_DATA}",
            hint="put what is big into a file and its digest into the event",
            code="event-size",
        )


def digest(bank: Bank, event_data: bytes) -> bytes:
    """Return what an event extends into `bank`: the hash of all its bytes, tag and size included."""
    return _HASHES[bank](event_data).digest()


def digest_column(bank: Bank, events: Iterable[bytes]) -> list[bytes]:
    """Return the digest in `bank` of each of many events."""
    hash_ = _HASHES[bank]
    return [hash_(event_data).digest() for event_data in events]


def extend_column(bank: Bank, value: bytes, column: Iterable[bytes]) -> bytes:
    """Return what a PCR with `value` becomes by many extends (TPM 2.0 Part 1, 17.4)."""
    hash_ = _HASHES[bank]
    for extended in column:
        value = hash_(value + extended).digest()
    return value


def digests(banks: Iterable[Bank], event_data: bytes) -> dict[Bank, bytes]:
    """Return the digest of an event in each bank."""
    return {bank: digest(bank, event_data) for bank in banks}


def make_record(event: Event, *, pcr: int, banks: Iterable[Bank]) -> Record:
    """Return the record that measures `event`; raises FormatError if the event is too large."""
    data = event_data(event)
    return Record(recnum=event.seq, pcr=pcr, digests=digests(banks, data), event_data=data)


def event_data(event: Event) -> bytes:
    """Return the bytes of `event`: tag and size (little-endian), then `secrun.v1 <Operation> <JSON>`."""
    payload: JsonObject = {
        **event.fields,
        "v": VERSION,
        "seq": event.seq,
        "epoch": epoch_json(event.epoch),
        "t": event.t,
    }
    text = b"%b %b %b" % (DOMAIN, event.operation.encode(), jcs.encode(payload))
    check_event_size(TAG_SIZE + len(text))
    return tag_of(len(text)) + text


def tag_of(size: int) -> bytes:
    """Return what stands before `size` bytes of an event: tag and size, little-endian."""
    return _TAG.pack(EVENT_TAG, size)


def parse_event_data(data: bytes) -> Event:
    """Parse the bytes of an event; raises FormatError unless they are exactly what `event_data` writes."""
    check_event_size(len(data))
    operation, text = _parse_tag(data)
    payload = jcs.parse_canonical(text, what=f"{operation} event", limit=MAX_EVENT_DATA)
    try:
        version, seq, epoch, t = payload.pop("v"), payload.pop("seq"), payload.pop("epoch"), payload.pop("t")
    except KeyError as error:
        raise FormatError(f"{operation} event lacks {error}", code="event-field") from error
    if type(version) is not int or version != VERSION:
        got = f"{operation} event has version {str(version)[:20]}"
        raise FormatError(f"{got}, expected {VERSION}", code="event-version")
    if type(seq) is not int or type(t) is not int:
        raise FormatError(f"seq and t of a {operation} event are not both integers", code="event-integer")
    return Event(operation=operation, seq=seq, epoch=parse_epoch(epoch), t=t, fields=payload)


def _parse_tag(data: bytes) -> tuple[Operation, bytes]:
    if len(data) < TAG_SIZE:
        raise FormatError(f"event has {len(data)} bytes, too few for a tag", code="event-tag")
    tag, size = _TAG.unpack_from(data)
    if tag != EVENT_TAG or size != len(data) - TAG_SIZE:
        raise FormatError(
            f"event has tag {tag:#010x} and size {size}, expected {EVENT_TAG:#010x} and {len(data) - 8}",
            code="event-tag",
        )
    parts = data[TAG_SIZE:].split(b" ", 2)
    if len(parts) != 3 or parts[0] != DOMAIN:
        raise FormatError(f"event does not begin with {DOMAIN.decode()!r}", code="event-domain")
    operation = _OPERATIONS.get(parts[1])
    if operation is None:
        raise FormatError(f"unknown operation {parts[1][:40]!r}", code="event-operation")
    return operation, parts[2]


def epoch_json(epoch: Epoch) -> JsonObject:
    """Return an epoch as events hold it."""
    return {"reset": epoch.reset, "restart": epoch.restart, "boot_id": epoch.boot_id}


def parse_epoch(value: JsonValue) -> Epoch:
    """Parse what `epoch_json` writes; raises FormatError."""
    if not isinstance(value, dict) or value.keys() != {"reset", "restart", "boot_id"}:
        raise FormatError("epoch is not {reset, restart, boot_id}", code="event-epoch")
    reset, restart, boot_id = value["reset"], value["restart"], value["boot_id"]
    if type(reset) is not int or type(restart) is not int or not isinstance(boot_id, str):
        raise FormatError("epoch has a field of another type", code="event-epoch")
    return _epoch(reset, restart, boot_id)


@lru_cache(maxsize=EPOCH_CACHE)
def _epoch(reset: int, restart: int, boot_id: str) -> Epoch:
    return Epoch(reset=reset, restart=restart, boot_id=boot_id)
