"""Signed statements: DSSE envelopes around in-toto statements about images."""

import hashlib
from typing import NoReturn

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.jsonio import JsonObject, JsonValue, parse_object
from secrun.record import record
from secrun.trust import limits
from secrun.trust.faults import SignatureFaultError
from secrun.trust.signatures import base64_of

PAYLOAD_TYPE = "application/vnd.in-toto+json"
# What `cosign sign` states since its version 3: nothing but that it was signed.
SIGN_PREDICATE = "https://sigstore.dev/cosign/sign/v1"
_STATEMENTS = ("https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1")


@record
class Envelope:
    """A DSSE envelope with its one signature."""

    payload_type: str
    payload: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """The bytes that are signed: the pre-authentication encoding of secure-systems-lab/dsse."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(self.payload), self.payload)

    @property
    def payload_sha256(self) -> str:
        """SHA-256 of the payload in hexadecimal digits."""
        return hashlib.sha256(self.payload).hexdigest()


@record
class Statement:
    """What an in-toto statement says: which artifacts (SHA-256 digests) it is about, and which predicate."""

    subjects: frozenset[str]
    predicate_type: str


def bad(why: str) -> NoReturn:
    """Raise SignatureFaultError for a malformed document."""
    raise SignatureFaultError(f"it is malformed: {why}")


def member(source: JsonObject, name: str) -> JsonObject:
    """Return a member that is an object; raises SignatureFaultError."""
    value = source.get(name)
    if not isinstance(value, dict):
        bad(f"{name} is no object")
    return value


def text(source: JsonObject, name: str) -> str:
    """Return a member that is a string; raises SignatureFaultError."""
    value = source.get(name)
    if not isinstance(value, str):
        bad(f"{name} is no string")
    return value


def items(source: JsonObject, name: str, limit: int) -> list[JsonObject]:
    """Return a member that is a list of objects, absent is empty; raises SignatureFaultError."""
    value: JsonValue = source.get(name, [])
    if not isinstance(value, list) or len(value) > limit:
        bad(f"{name} is no list of at most {limit}")
    found = [item for item in value if isinstance(item, dict)]
    if len(found) != len(value):
        bad(f"{name} does not hold objects")
    return found


def raw(source: JsonObject, name: str) -> bytes:
    """Return a member that is base64; raises SignatureFaultError."""
    try:
        return base64_of(text(source, name), name)
    except ImageError as error:
        bad(error.message)


def parse_envelope(source: JsonObject) -> Envelope:
    """Parse an envelope; raises SignatureFaultError. Several signatures would need several verdicts."""
    signatures = items(source, "signatures", limits.MAX_SIGNATURES)
    if len(signatures) != 1:
        bad(f"the envelope has {len(signatures)} signatures, expected one")
    return Envelope(
        payload_type=text(source, "payloadType"),
        payload=raw(source, "payload"),
        signature=raw(signatures[0], "sig"),
    )


def parse_statement(envelope: Envelope) -> Statement:
    """Parse the statement in an envelope; raises SignatureFaultError."""
    if envelope.payload_type != PAYLOAD_TYPE:
        bad(f"the payload is {envelope.payload_type[:60]!r}, expected {PAYLOAD_TYPE!r}")
    try:
        document = parse_object(envelope.payload, what="the statement", limit=limits.MAX_SIGNATURE_BYTES)
    except ImageError as error:
        bad(error.message)
    if text(document, "_type") not in _STATEMENTS:
        bad("the payload is no in-toto statement")
    found: set[str] = set()
    for subject in items(document, "subject", limits.MAX_SUBJECTS):
        value = member(subject, "digest").get("sha256")
        if isinstance(value, str):
            found.add(value)
    return Statement(subjects=frozenset(found), predicate_type=text(document, "predicateType"))


def check_subject(statement: Statement, wanted: frozenset[Digest]) -> None:
    """Raise SignatureFaultError unless the statement is about one of these digests."""
    if not any(item.algorithm == "sha256" and item.hex in statement.subjects for item in wanted):
        known = ", ".join(sorted(statement.subjects)[:3]) or "nothing"
        raise SignatureFaultError(f"it is about {known}, not about {' or '.join(sorted(map(str, wanted)))}")
