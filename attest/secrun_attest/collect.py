"""Evidence of this host for one challenge: the log, a quote that covers it exactly, and what they refer to.

No lock is held while the TPM quotes, so pods start meanwhile. The log is read before and after: it is
written before the PCR is extended, so the quoted value is that of exactly one prefix, and that many
records are sent.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secrun_attest.errors import LogError
from secrun_attest.evidence import (
    NONCE_SIZES,
    Evidence,
    Header,
    binding,
    build_evidence,
    log_digest,
)
from secrun_attest.history import History
from secrun_attest.logfile import EventLog
from secrun_attest.record import Bank, Epoch, Record
from secrun_attest.replay import extend_all, find_prefix, replay
from secrun_attest.sentlog import CONTENT_TYPE, EVENT_TYPE, LogRecord
from secrun_attest.tpm import TpmKind
from secrun_attest.tss import AttestationKey, Moving, Quoted, Tss

# securityfs, where the kernel shows for each of its TPMs what firmware measured into it.
SECURITY: Final = Path("/sys/kernel/security")
_KERNEL_TPM: Final = re.compile(r"device:/dev/tpm(?:rm)?([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where evidence comes from: the TPM, the folder of the event log, and the PCR that it is extended into.

    `baseline` is that of EventLog, for a PCR that firmware used before.
    """

    tcti: str
    directory: Path
    pcr: int
    baseline: Mapping[Bank, bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What a verifier asks for; `since` is the number of records that it has appraised in this epoch."""

    nonce: bytes
    audience: str
    bank: Bank
    pcrs: tuple[int, ...]
    since: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How things stood when the quote was asked for: `records` are all extended."""

    tpm: TpmKind
    epoch: Epoch
    base: Mapping[Bank, bytes]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A quote and the records that it covers: replayed from `asked.base`, they give the quoted PCR."""

    asked: Asked
    key: AttestationKey
    quoted: Quoted
    records: tuple[Record, ...]


def read_firmware_log(tcti: str, security: Path = SECURITY) -> bytes | None:
    """Return what the firmware of this boot measured into the TPM at `tcti`, chip or program alike.

    None for a TPM that is not the kernel's, and where there is no log, as on many clouds.
    """
    kernels = _KERNEL_TPM.fullmatch(tcti)
    if kernels is None:
        return None
    try:
        return (security / f"tpm{kernels[1]}" / "binary_bios_measurements").read_bytes() or None
    except FileNotFoundError:
        return None


def collect(
    source: Source,
    challenge: Challenge,
    *,
    host: str,
    channel_key: str | None = None,
    firmware_log: bytes | None = None,
    contents: Iterable[bytes] = (),
    ek_chain: Iterable[bytes] = (),
    agent: str = "",
    explained: bool = True,
) -> bytes:
    """Return evidence for one challenge.

    `contents` are manifests that were measured, `ek_chain` certificates in DER, `channel_key` is a
    thumbprint, `explained` that of `take`. Raises LogError `log-since` if the log is shorter than the
    verifier says, `log-quote` if it does not explain the quote, and as EventLog.records and Tss.quote do.
    """
    if len(challenge.nonce) not in NONCE_SIZES:
        raise LogError(
            f"the nonce has {len(challenge.nonce)} bytes, expected {NONCE_SIZES[0]}", code="log-nonce"
        )
    since = challenge.since

    def header_of(asked: Asked) -> Header:
        return Header(
            host=host,
            epoch=asked.epoch,
            log_count=len(asked.records),
            log_sha256=log_digest([as_sent(record) for record in asked.records[since:]]),
            firmware_log_sha256=None if firmware_log is None else hashlib.sha256(firmware_log).digest(),
            channel_key=channel_key,
            audience=challenge.audience,
            tpm=asked.tpm,
        )

    def qualify(asked: Asked) -> bytes:
        _check_since(since, len(asked.records))
        return binding(challenge.nonce, header_of(asked))

    taken = take(source, challenge.bank, challenge.pcrs, qualify, explained=explained)
    base = replay(taken.records[:since], taken.asked.base)
    evidence = Evidence(
        header=header_of(taken.asked),
        nonce=challenge.nonce,
        ak_pub=taken.key.public,
        quote=taken.quoted.attest,
        signature=taken.quoted.signature,
        pcr_values=((challenge.bank.value, taken.quoted.pcrs),),
        log_from=since,
        base_pcr=tuple(base.items()),
        records=tuple(as_sent(record) for record in taken.records[since:]),
        firmware_log=firmware_log,
        contents=tuple((hashlib.sha256(data).digest(), data) for data in contents),
        ek_chain=tuple(ek_chain),
        agent=agent,
    )
    return build_evidence(evidence)


def _check_since(since: int, count: int) -> None:
    if since > count:
        raise LogError(
            f"the verifier knows {since} records, this epoch's log has {count}",
            hint="it knows another log: ask it for a challenge for the whole log",
            code="log-since",
        )


def as_sent(record: Record) -> LogRecord:
    """Return a record of the log as evidence shows it."""
    return LogRecord(
        recnum=record.recnum,
        pcr=record.pcr,
        digests=tuple(record.digests.items()),
        content_type=CONTENT_TYPE,
        event_type=EVENT_TYPE,
        data=record.event_data,
    )


def take(
    source: Source,
    bank: Bank,
    pcrs: Iterable[int],
    qualify: Callable[[Asked], bytes],
    *,
    explained: bool = True,
) -> Snapshot:
    """Quote `pcrs` and the runtime's own PCR; `qualify` returns the 32 bytes that the quote is made over.

    Raises LogError `log-quote` if no prefix of the log explains the quoted PCR. With `explained` off the
    whole log is taken then: a verifier refuses it and knows why, which silence does not tell.
    """
    before = read_records(source)
    with Tss(source.tcti) as tss:
        asked = _asked(source, tss, before)
    qualifying = qualify(asked)
    with Tss(source.tcti) as tss:
        key = tss.create_ak()
        moving = Moving(pcr=source.pcr, values=lambda: _values_since(source, asked, bank))
        quoted = tss.quote(qualifying, bank, sorted({*pcrs, source.pcr}), moving=moving)
    after = read_records(source)
    value = {bank: dict(quoted.pcrs)[source.pcr]}
    count = find_prefix(after, asked.base, value, first=len(asked.records))
    if count is None and not explained:
        count = len(after)
    if count is None:
        raise LogError(
            f"PCR {source.pcr} is quoted as {bank}:{value[bank].hex()}, which the log gives after none "
            f"of its records {len(asked.records)} to {len(after)}",
            hint="another program extends this PCR, or the host slept meanwhile: try again",
            code="log-quote",
        )
    return Snapshot(asked=asked, key=key, quoted=quoted, records=after[:count])


def read_records(source: Source) -> tuple[Record, ...]:
    """Return the records of this epoch, whose last may not be extended yet; raises as EventLog.records."""
    with Tss(source.tcti) as tss:
        log = EventLog(source.directory, tss, source.pcr, opening={}, baseline=source.baseline)
        return log.records()


def _values_since(source: Source, asked: Asked, bank: Bank) -> Iterator[bytes]:
    """Yield what the PCR has held since the quote was asked for, as the log says now."""
    value = replay(asked.records, asked.base)
    yield value[bank]
    for record in read_records(source)[len(asked.records) :]:
        value = extend_all(value, record.digests)
        yield value[bank]


def _asked(source: Source, tss: Tss, records: tuple[Record, ...]) -> Asked:
    history = History.of(source.pcr, records[:1])
    if history is None:
        raise LogError(
            f"the log in {source.directory} has no record", hint="nothing was measured yet", code="log-none"
        )
    # The last record may wait for its extend. If the PCR is at neither of these two, it has gone beyond
    # them.
    first = len(records) - 1
    extended = find_prefix(records, history.base, tss.read_pcr(source.pcr), first=first)
    return Asked(
        tpm=tss.facts().kind,
        epoch=history.epoch,
        base=history.base,
        records=records[: len(records) if extended is None else extended],
    )
