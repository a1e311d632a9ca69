"""Entries of a Rekor log: that a signature was logged, when, and that the entry is about this signature."""

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING

from secrun.errors import ImageError
from secrun.jsonio import JsonObject, JsonValue, canonical, parse_object
from secrun.record import record
from secrun.trust import limits, publickey
from secrun.trust.faults import SignatureFaultError
from secrun_attest.audit import merkle

if TYPE_CHECKING:
    from secrun.trust.publickey import PublicKey


@record
class Logged:
    """What an entry must be about: the signature, its key or certificate (DER), the bytes' SHA-256."""

    signature: bytes
    signer: bytes
    payload_sha256: str


@record
class LogEntry:
    """An entry as it came: `body` is what the log holds, times are seconds since 1970."""

    body: bytes
    integrated_at: int
    log_index: int
    log_id: str
    promise: bytes


def _bad(why: str) -> SignatureFaultError:
    return SignatureFaultError(f"its log entry {why}")


def _bytes(value: JsonValue, what: str) -> bytes:
    if not isinstance(value, str):
        raise _bad(f"has no {what}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"has {what} that is not base64") from error


def _object(value: JsonValue, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise _bad(f"has no {what}")
    return value


def _number(value: JsonValue, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _bad(f"has no {what}")
    return value


def parse_annotation(text: str) -> LogEntry:
    """Parse cosign's annotation dev.sigstore.cosign/bundle; raises SignatureFaultError."""
    try:
        document = parse_object(text.encode(), what="it", limit=limits.MAX_ANNOTATION_BYTES)
    except (ImageError, UnicodeEncodeError) as error:
        raise _bad("is not JSON") from error
    payload = _object(document.get("Payload"), "payload")
    if document.keys() != {"SignedEntryTimestamp", "Payload"} or payload.keys() != {
        "body",
        "integratedTime",
        "logIndex",
        "logID",
    }:
        raise _bad("has missing or unknown members")
    log_id = payload["logID"]
    if not isinstance(log_id, str):
        raise _bad("has no log's ID")
    return LogEntry(
        body=_bytes(payload["body"], "a body"),
        integrated_at=_number(payload["integratedTime"], "time"),
        log_index=_number(payload["logIndex"], "index"),
        log_id=log_id,
        promise=_bytes(document["SignedEntryTimestamp"], "a signed timestamp"),
    )


def check_promise(entry: LogEntry, keys: Sequence["PublicKey"]) -> None:
    """Raise SignatureFaultError unless one of the log's `keys` signed the entry's timestamp.

    Signed is the canonical JSON of body, time, index and log ID (sigstore/rekor, SignedEntryTimestamp).
    """
    signed = canonical(
        {
            "body": base64.b64encode(entry.body).decode(),
            "integratedTime": entry.integrated_at,
            "logID": entry.log_id,
            "logIndex": entry.log_index,
        }
    )
    for key in keys:
        try:
            publickey.verify(key, entry.promise, signed)
        except SignatureFaultError:
            continue
        return
    raise _bad("is not signed by a log of the policy")


def check_body(entry: LogEntry, logged: Logged) -> None:
    """Raise SignatureFaultError unless the entry is about `logged`; kinds hashedrekord and dsse, 0.0.1."""
    try:
        document = parse_object(entry.body, what="it", limit=limits.MAX_SIGNATURE_BYTES)
    except ImageError as error:
        raise _bad("holds no JSON") from error
    spec = _object(document.get("spec"), "spec")
    version = document.get("apiVersion")
    if document.get("kind") == "hashedrekord" and version == "0.0.1":
        _check_hashedrekord(spec, logged)
    elif document.get("kind") == "dsse" and version == "0.0.1":
        _check_dsse(spec, logged)
    else:
        kind = f"{document.get('kind')} {version}"
        raise _bad(f"is of kind {kind[:60]!r}, expected hashedrekord or dsse 0.0.1")


def _same_signer(encoded: bytes, signer: bytes) -> None:
    lines = encoded.decode("ascii", "replace").split("\n")
    inner = "".join(line for line in lines if line and not line.startswith("-----"))
    if _bytes(inner, "a key") != signer:
        raise _bad("is about another key or certificate")


def _check_hashedrekord(spec: JsonObject, logged: Logged) -> None:
    signature = _object(spec.get("signature"), "signature")
    digest = _object(_object(spec.get("data"), "data").get("hash"), "hash")
    if _bytes(signature.get("content"), "a signature") != logged.signature:
        raise _bad("is about another signature")
    _same_signer(_bytes(_object(signature.get("publicKey"), "key").get("content"), "a key"), logged.signer)
    if digest.get("algorithm") != "sha256" or digest.get("value") != logged.payload_sha256:
        raise _bad("is about other bytes")


def _check_dsse(spec: JsonObject, logged: Logged) -> None:
    digest = _object(spec.get("payloadHash"), "hash")
    if digest.get("algorithm") != "sha256" or digest.get("value") != logged.payload_sha256:
        raise _bad("is about other bytes")
    signatures = spec.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise _bad("has not just one signature")
    one = _object(signatures[0], "signature")
    if _bytes(one.get("signature"), "a signature") != logged.signature:
        raise _bad("is about another signature")
    _same_signer(_bytes(one.get("verifier"), "a key"), logged.signer)


def root_of_proof(leaf: bytes, index: int, size: int, hashes: Sequence[bytes]) -> bytes:
    """Return the root hash that a proof of inclusion leads to."""
    try:
        return merkle.root_of_inclusion(merkle.leaf_hash(leaf), index, size, hashes)
    except merkle.ProofError as error:
        raise _bad(error.message) from error


def check_checkpoint(envelope: str, size: int, root: bytes, key: "PublicKey", log_id: bytes) -> None:
    """Raise SignatureFaultError unless the log signed a checkpoint of this size and root.

    The form is a signed note (C2SP signed-note, tlog-checkpoint): text, an empty line, lines of signatures.
    """
    text, gap, signatures = envelope.partition("\n\n")
    lines = text.split("\n")
    if not gap or len(lines) < 3 or not lines[1].isdecimal() or len(lines[1]) > 20:
        raise _bad("has a checkpoint that cannot be read")
    if int(lines[1]) != size or _bytes(lines[2], "a root hash") != root:
        raise _bad("has a checkpoint of another state of the log")
    for line in signatures.splitlines()[: limits.MAX_SIGNATURES]:
        dash, _, rest = line.partition(" ")
        signature = rest.rpartition(" ")[2]
        if dash != "\u2014" or not signature:
            continue
        data = _bytes(signature, "a checkpoint's signature")
        if data[:4] != log_id[:4]:
            continue
        publickey.verify(key, data[4:], f"{text}\n".encode())
        return
    raise _bad("has a checkpoint that its log did not sign")
