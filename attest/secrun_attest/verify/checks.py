"""Checks 2 to 14: the right TPM signed exactly this log, now. Each raises RejectedError with a code."""

import hashlib
import hmac
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from secrun_attest.errors import FormatError
from secrun_attest.evidence import Evidence, binding, log_digest
from secrun_attest.firmware import replay_firmware
from secrun_attest.policy import Policy
from secrun_attest.reader import WireError
from secrun_attest.record import DIGEST_SIZES, Bank, digest, extend_column
from secrun_attest.rejection import Code, RejectedError
from secrun_attest.sentlog import CONTENT_TYPE, EVENT_TYPE, Columns, LogRecord, digests_of
from secrun_attest.verify.session import Enrolment, Session
from secrun_attest.verify.state import State
from secrun_attest.wire import (
    CURVE_NIST_P256,
    GENERATED,
    HASH_NAMES,
    ST_ATTEST_QUOTE,
    Alg,
    Attest,
    Attribute,
    Public,
    Quote,
    Signature,
    name_of,
    parse_public,
    parse_quote_body,
    qualified_name,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

# Without each of these the key may have left the TPM, or sign what the TPM did not make (part 1, 31.4.1).
REQUIRED = (
    Attribute.FIXED_TPM
    | Attribute.FIXED_PARENT
    | Attribute.SENSITIVE_DATA_ORIGIN
    | Attribute.RESTRICTED
    | Attribute.SIGN
)
# Operators of enums cost a microsecond each.
REQUIRED_BITS = REQUIRED.value
STRONG_HASHES = (Alg.SHA256, Alg.SHA384, Alg.SHA512)
# Hosts come back twice a minute with the same key; loading one costs as much as verifying with it.
KEY_CACHE = 4096
RSA_BITS = (2048, 3072, 4096)
# The PCRs that firmware alone extends before the operating system runs.
FIRMWARE_PCRS = range(8)


@lru_cache(maxsize=KEY_CACHE)
def read_public(data: bytes) -> Public:
    """Parse a public area that comes again and again; raises WireError."""
    return parse_public(data)


def check_session(evidence: Evidence, session: Session | None, now: int) -> Session:
    """2: the nonce is ours, in time, and was not answered before."""
    if session is None:
        raise RejectedError(Code.NONCE_UNKNOWN, "there is no session for this evidence")
    if session.used:
        raise RejectedError(Code.NONCE_USED, "the session was answered before")
    if not session.issued <= now < session.expires:
        raise RejectedError(Code.NONCE_EXPIRED, f"the session expired at {session.expires}, now is {now}")
    if not hmac.compare_digest(evidence.nonce, session.nonce):
        raise RejectedError(Code.NONCE_UNKNOWN, "the evidence answers another nonce")
    return session


def check_enrolled(evidence: Evidence, public: Public, enrolment: Enrolment | None) -> Enrolment:
    """3: the host is enrolled and this is its attestation key."""
    if enrolment is None:
        raise RejectedError(Code.AK_UNKNOWN, "the host is not enrolled")
    if evidence.header.host != enrolment.host:
        got = evidence.header.host
        raise RejectedError(Code.AK_UNKNOWN, f"evidence of {got!r}, expected that of {enrolment.host!r}")
    try:
        name = name_of(public)
    except WireError as error:
        raise RejectedError(Code.AK_UNKNOWN, error.message) from error
    if name != enrolment.ak_name:
        expected = enrolment.ak_name.hex()
        raise RejectedError(Code.AK_UNKNOWN, f"the key's Name is {name.hex()}, enrolled is {expected}")
    return enrolment


def check_key(public: Public) -> None:
    """4: a key that only signs what the TPM itself made, of a size and scheme that are allowed."""
    attributes = int(public.attributes)
    if attributes & REQUIRED_BITS != REQUIRED_BITS or attributes & Attribute.DECRYPT.value:
        raise RejectedError(Code.AK_ATTR, f"attributes are {attributes:#010x}: not a restricted signing key")
    if public.type == Alg.ECC:
        good = public.curve == CURVE_NIST_P256 and public.scheme == Alg.ECDSA
    else:
        good = public.bits in RSA_BITS and public.scheme in (Alg.RSASSA, Alg.RSAPSS)
    if not good or public.scheme_hash not in STRONG_HASHES or public.symmetric != Alg.NULL:
        what = f"scheme {public.scheme:#06x} with hash {public.scheme_hash:#06x}"
        raise RejectedError(
            Code.AK_ATTR, f"{what} on curve {public.curve} or {public.bits} bits is not allowed"
        )


def check_signature(public: Public, quote: bytes, signature: Signature) -> None:
    """5: the key signed exactly these bytes, by the scheme that its public area fixes."""
    from cryptography.exceptions import InvalidSignature

    if (signature.scheme, signature.hash) != (public.scheme, public.scheme_hash):
        raise RejectedError(
            Code.SIG, f"signed by scheme {signature.scheme:#06x}, the key's is {public.scheme:#06x}"
        )
    try:
        if public.type == Alg.ECC:
            _verify_ecdsa(public, quote, signature)
        else:
            _verify_rsa(public, quote, signature)
    except InvalidSignature:
        raise RejectedError(Code.SIG, "the signature is not the key's over this quote") from None
    except ValueError as error:
        raise RejectedError(Code.SIG, f"the key or the signature is malformed: {error}") from error


def _hash(alg: int) -> "HashAlgorithm":
    from cryptography.hazmat.primitives import hashes

    if alg == Alg.SHA256:
        return hashes.SHA256()
    return hashes.SHA384() if alg == Alg.SHA384 else hashes.SHA512()


@lru_cache(maxsize=KEY_CACHE)
def _point(x: bytes, y: bytes) -> "EllipticCurvePublicKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
    ).public_key()


def _verify_ecdsa(public: Public, quote: bytes, signature: Signature) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    r, s = (int.from_bytes(part, "big") for part in signature.parts)
    _point(*public.unique).verify(encode_dss_signature(r, s), quote, ec.ECDSA(_hash(signature.hash)))


def _verify_rsa(public: Public, quote: bytes, signature: Signature) -> None:
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    modulus = int.from_bytes(public.unique[0], "big")
    if modulus.bit_length() != public.bits:
        raise ValueError(f"the modulus has {modulus.bit_length()} bits, expected {public.bits}")
    key: RSAPublicKey = rsa.RSAPublicNumbers(public.exponent, modulus).public_key()
    hash_ = _hash(signature.hash)
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if signature.scheme == Alg.RSAPSS:
        scheme = padding.PSS(mgf=padding.MGF1(hash_), salt_length=hash_.digest_size)
    key.verify(signature.parts[0], quote, scheme, hash_)


def check_quote(attest: Attest) -> Quote:
    """6: the TPM made this structure, it is a quote, and it ends where it ends."""
    if attest.magic != GENERATED or attest.type != ST_ATTEST_QUOTE:
        got = f"magic {attest.magic:#010x} and type {attest.type:#06x}"
        raise RejectedError(Code.QUOTE_TYPE, f"{got}, expected {GENERATED:#010x} and {ST_ATTEST_QUOTE:#06x}")
    try:
        return parse_quote_body(attest.body)
    except WireError as error:
        raise RejectedError(Code.QUOTE_TYPE, error.message) from error


def check_signer(attest: Attest, enrolment: Enrolment) -> None:
    """7: the qualified name says under which hierarchy the key is, hence that the counters are plain."""
    parent = enrolment.parent or enrolment.hierarchy.to_bytes(4, "big")
    expected = qualified_name(parent, enrolment.ak_name)
    if attest.signer != expected:
        raise RejectedError(Code.QN, f"the signer is {attest.signer.hex()[:160]}, expected {expected.hex()}")


def check_binding(attest: Attest, evidence: Evidence, session: Session) -> None:
    """8: the quote was made for this nonce and this header, and for us."""
    expected = binding(session.nonce, evidence.header)
    if not hmac.compare_digest(attest.extra, expected):
        got = attest.extra.hex()[:160]
        raise RejectedError(Code.NONCE_BIND, f"extraData is {got}, nonce and header give {expected.hex()}")
    if evidence.header.audience != session.audience:
        got = evidence.header.audience
        raise RejectedError(Code.NONCE_BIND, f"evidence is meant for {got!r}, we are {session.audience!r}")


def check_selection(quote: Quote, policy: Policy) -> None:
    """9: the signed selection is the demanded one: one bank, all demanded PCRs and no others."""
    got = [(HASH_NAMES.get(one.alg, hex(one.alg)), one.pcrs) for one in quote.selections]
    if got != [(policy.bank, policy.selection)]:
        raise RejectedError(
            Code.PCRSEL, f"the quote selects {got}, expected {policy.bank} {policy.selection}"
        )


def check_values(quote: Quote, evidence: Evidence, public: Public, policy: Policy) -> dict[int, bytes]:
    """10: the values sent are those of the selected PCRs, all and no others, and have the quoted digest."""
    if [bank for bank, _ in evidence.pcr_values] != [policy.bank]:
        raise RejectedError(Code.PCRDIGEST, f"PCR values are not of bank {policy.bank} alone")
    values = dict(evidence.pcr_values[0][1])
    if sorted(values) != list(policy.selection):
        raise RejectedError(
            Code.PCRDIGEST, f"values of PCRs {sorted(values)}, selected {list(policy.selection)}"
        )
    found = hashlib.new(
        HASH_NAMES[public.scheme_hash], b"".join(values[index] for index in policy.selection)
    )
    if found.digest() != quote.digest:
        got = found.hexdigest()
        raise RejectedError(
            Code.PCRDIGEST, f"the values' digest is {got}, quoted {quote.digest.hex()[:160]}"
        )
    return values


def check_epoch(attest: Attest, evidence: Evidence, state: State | None) -> State | None:
    """11: time goes forward; return the state to continue from, or None at the first sight of an epoch."""
    clock, epoch = attest.clock, evidence.header.epoch
    if clock.reset != epoch.reset or clock.restart < epoch.restart:
        got = f"reset {clock.reset}, restart {clock.restart}"
        raise RejectedError(
            Code.EPOCH, f"{got} signed; the log is of reset {epoch.reset}, restart {epoch.restart}"
        )
    if state is None:
        return None
    old = state.clock
    if clock.reset < old.reset:
        raise RejectedError(Code.EPOCH, f"resetCount went from {old.reset} back to {clock.reset}")
    if clock.reset > old.reset:
        return None
    if clock.restart < old.restart:
        raise RejectedError(Code.EPOCH, f"restartCount went from {old.restart} back to {clock.restart}")
    if clock.safe and old.safe and clock.clock <= old.clock:
        raise RejectedError(Code.EPOCH, f"the clock went from {old.clock} ms to {clock.clock} ms")
    if (epoch.reset, epoch.restart) == (state.epoch.reset, state.epoch.restart):
        if epoch.boot_id != state.epoch.boot_id:
            raise RejectedError(
                Code.EPOCH, f"boot {epoch.boot_id} in the epoch of boot {state.epoch.boot_id}"
            )
        return state
    if epoch.restart <= old.restart:
        raise RejectedError(
            Code.EPOCH, f"a log opened at restart {epoch.restart}, after restart {old.restart}"
        )
    return None


def check_baseline(
    evidence: Evidence, values: dict[int, bytes], policy: Policy, state: State | None
) -> dict[Bank, bytes]:
    """12: what lay in the PCRs before the log is explained; return the base of the replay by bank."""
    base = dict(evidence.base_pcr)
    if policy.bank not in base:
        raise RejectedError(Code.BASELINE, f"base_pcr has no value of bank {policy.bank}")
    _check_firmware(evidence, values, policy)
    if state is not None:
        if base != dict(state.pcrs):
            raise RejectedError(Code.BASELINE, "base_pcr is not where the last appraisal ended")
        return base
    for bank, value in base.items():
        if value != (expected := _explained(evidence, bank, policy.pcr)):
            got = f"{value.hex()} in bank {bank}"
            raise RejectedError(
                Code.BASELINE, f"PCR {policy.pcr} began as {got}, explained is {expected.hex()}"
            )
    return base


def _check_firmware(evidence: Evidence, values: dict[int, bytes], policy: Policy) -> None:
    log = evidence.firmware_log
    if (None if log is None else hashlib.sha256(log).digest()) != evidence.header.firmware_log_sha256:
        raise RejectedError(Code.BASELINE, "the firmware log is not the one that the header names")
    if log is None:
        return
    replayed = _replayed(log, policy.bank)
    for index in FIRMWARE_PCRS:
        if index in values and values[index] != replayed[index]:
            got = f"{values[index].hex()}, the firmware log gives {replayed[index].hex()}"
            raise RejectedError(Code.BASELINE, f"PCR {index} is {got}")


def _explained(evidence: Evidence, bank: Bank, pcr: int) -> bytes:
    if evidence.firmware_log is None:
        return bytes(DIGEST_SIZES[bank])
    return _replayed(evidence.firmware_log, bank)[pcr]


def _replayed(log: bytes, bank: str) -> tuple[bytes, ...]:
    try:
        return replay_firmware(log, bank)
    except FormatError as error:
        raise RejectedError(Code.BASELINE, error.message) from error


def check_log(evidence: Evidence, policy: Policy, banks: Iterable[Bank], state: State | None) -> None:
    """13: the records begin with those the header counts, in order, each with the digests of its own bytes.

    What follows those of the header was measured while the quote was made: the quoted PCR holds it.
    """
    begin = 0 if state is None else state.recnum
    records, header = evidence.records, evidence.header
    if evidence.log_from != begin or not begin <= header.log_count <= begin + len(records):
        got = f"{len(records)} records from {evidence.log_from}, {header.log_count} counted"
        raise RejectedError(Code.LOG_RECNUM, f"{got}, expected them from {begin}")
    wanted = sorted(banks)
    # Columns have one digest per bank and record, each that of its bytes: they were read by it.
    if not isinstance(records, Columns) or not (
        records.first == begin and records.pcr == policy.pcr and sorted(records.digests) == wanted
    ):
        for recnum, record in enumerate(records, begin):
            _check_record(record, recnum, policy.pcr, wanted)
    if log_digest(records, count=header.log_count - begin) != header.log_sha256:
        raise RejectedError(Code.LOG_DIGEST, "the records are not those that the header names")


def _check_record(record: LogRecord, recnum: int, pcr: int, banks: list[Bank]) -> None:
    if record.recnum != recnum:
        raise RejectedError(Code.LOG_RECNUM, f"record {record.recnum}, expected {recnum}")
    if record.pcr != pcr:
        raise RejectedError(Code.LOG_PCR, f"record {recnum} is of PCR {record.pcr}, expected {pcr}")
    if (record.content_type, record.event_type) != (CONTENT_TYPE, EVENT_TYPE):
        got = f"{record.content_type[:40]!r} {record.event_type[:40]!r}"
        raise RejectedError(Code.LOG_CONTENT, f"record {recnum} holds {got}, expected an {EVENT_TYPE}")
    if sorted([bank for bank, _ in record.digests]) != banks:
        expected = ", ".join(banks)
        raise RejectedError(Code.LOG_BANK, f"record {recnum} has not one digest for each of {expected}")
    for bank, value in record.digests:
        if digest(bank, record.data) != value:
            raise RejectedError(
                Code.LOG_DIGEST, f"the {bank} digest of record {recnum} is not that of its bytes"
            )


def check_replay(
    evidence: Evidence, values: dict[int, bytes], base: dict[Bank, bytes], policy: Policy
) -> dict[Bank, bytes]:
    """14: the records, replayed from the base, give exactly the quoted PCR; return the PCR by bank."""
    result = {
        bank: extend_column(bank, first, digests_of(evidence.records, bank)) for bank, first in base.items()
    }
    if result[policy.bank] != values[policy.pcr]:
        got = f"{values[policy.pcr].hex()}, the log gives {result[policy.bank].hex()}"
        raise RejectedError(Code.REPLAY, f"PCR {policy.pcr} is quoted as {got}")
    return result
