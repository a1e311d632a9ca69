"""Signatures of the Notary Project: JWS envelopes over a descriptor, checked against trust stores."""

import base64
import binascii
import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.jsonio import JsonObject, parse_object
from secrun.record import record
from secrun.trust import chain, dsse, limits, matching
from secrun.trust.faults import SignatureFaultError
from secrun.trust.signatures import Candidate
from secrun.trust.verdict import Case, Verified

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

ARTIFACT_TYPE = "application/vnd.cncf.notary.signature"
MEDIA_TYPE = "application/jose+json"
_CONTENT = "application/vnd.cncf.notary.payload.v1+json"
_SCHEME = "io.cncf.notary.signingScheme"
_TIME = "io.cncf.notary.signingTime"
_EXPIRY = "io.cncf.notary.expiry"
_CRITICAL = frozenset({_SCHEME, _EXPIRY})
_HEADERS = frozenset({"alg", "cty", "crit", _SCHEME, _TIME, _EXPIRY})
_ANYBODY = "*"
_SUBJECT = "x509.subject:"


@record
class Envelope:
    """A JWS in its flattened JSON form: what is signed, how, by whom."""

    signed: bytes
    algorithm: str
    content: JsonObject
    certificates: tuple["Certificate", ...]
    signature: bytes
    signed_at: float
    expires: float


def _bad(why: str) -> NoReturn:
    dsse.bad(why)


def _unpadded(word: str, what: str) -> bytes:
    """Decode base64url without padding (RFC 7515, 2)."""
    try:
        return base64.b64decode(_padded(word), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        _bad(f"{what} is not base64url")


def _padded(word: str) -> str:
    # What has padding already gets too much of it, which the decoder refuses.
    return word + "=" * (-len(word) % 4 or (4 if "=" in word else 0))


def _inner(data: bytes, what: str) -> JsonObject:
    try:
        return parse_object(data, what=what, limit=limits.MAX_SIGNATURE_BYTES)
    except ImageError as error:
        _bad(error.message)


def _moment(header: JsonObject, name: str) -> float:
    if name not in header:
        return 0.0
    text = dsse.text(header, name)
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        _bad(f"{name} is no time")
    if moment.tzinfo is None:
        _bad(f"{name} has no time zone")
    return moment.timestamp()


def _protected(header: JsonObject) -> None:
    """Refuse what is not understood: a critical header means something that must not be passed over."""
    if unknown := header.keys() - _HEADERS:
        _bad(f"its protected header has unknown members: {', '.join(sorted(unknown))[:100]}")
    critical = header.get("crit")
    if not isinstance(critical, list) or _SCHEME not in critical:
        _bad("it does not mark its signing scheme as critical")
    if not all(item in _CRITICAL for item in critical):
        _bad("it has critical headers that are not understood")
    if _EXPIRY in header and _EXPIRY not in critical:
        _bad("its expiry is not critical")
    if (scheme := dsse.text(header, _SCHEME)) != "notary.x509":
        _bad(f"its signing scheme is {scheme[:60]!r}, expected notary.x509")
    if dsse.text(header, "cty") != _CONTENT:
        _bad(f"its content is not {_CONTENT}")


def parse(data: bytes) -> Envelope:
    """Parse an envelope (notaryproject, signature-envelope-jws.md); raises SignatureFaultError."""
    document = _inner(data, "the envelope")
    protected, payload = dsse.text(document, "protected"), dsse.text(document, "payload")
    header = _inner(_unpadded(protected, "its protected header"), "the protected header")
    _protected(header)
    sent = dsse.member(document, "header").get("x5c")
    if not isinstance(sent, list) or not 0 < len(sent) <= limits.MAX_CERTIFICATES:
        _bad("it comes without certificates")
    certificates = tuple(chain.load_der(dsse.raw({"x5c": item}, "x5c"), "x5c") for item in sent)
    return Envelope(
        signed=f"{protected}.{payload}".encode(),
        algorithm=dsse.text(header, "alg"),
        content=_inner(_unpadded(payload, "its payload"), "the payload"),
        certificates=certificates,
        signature=_unpadded(dsse.text(document, "signature"), "its signature"),
        signed_at=_moment(header, _TIME),
        expires=_moment(header, _EXPIRY),
    )


def _verify_bytes(envelope: Envelope) -> None:
    """Raise SignatureFaultError unless the first certificate's key made the signature (RFC 7518)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

    key = chain.signer_key(envelope.certificates[0])
    kinds = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
    family, size = envelope.algorithm[:2], envelope.algorithm[2:]
    chosen = kinds.get(size)
    try:
        if chosen is not None and family == "PS" and isinstance(key, rsa.RSAPublicKey):
            salted = padding.PSS(mgf=padding.MGF1(chosen), salt_length=chosen.digest_size)
            key.verify(envelope.signature, envelope.signed, salted, chosen)
            return
        if chosen is not None and family == "ES" and isinstance(key, ec.EllipticCurvePublicKey):
            half = (key.curve.key_size + 7) // 8
            if len(envelope.signature) != 2 * half:
                _bad("its signature has the wrong length")
            numbers = (int.from_bytes(envelope.signature[:half]), int.from_bytes(envelope.signature[half:]))
            key.verify(utils.encode_dss_signature(*numbers), envelope.signed, ec.ECDSA(chosen))
            return
    except InvalidSignature as error:
        raise SignatureFaultError("it is not by the key of its certificate") from error
    raise SignatureFaultError(f"its algorithm {envelope.algorithm[:20]!r} does not fit its key")


# X.500 attribute names as trust policies write them, by OID.
_NAMES = {
    "2.5.4.3": "CN",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
}


def _subject(certificate: "Certificate") -> dict[str, str]:
    try:
        return {
            _NAMES.get(item.oid.dotted_string, item.oid.dotted_string): str(item.value)
            for item in certificate.subject
        }
    except ValueError as error:
        raise SignatureFaultError("its certificate has a subject that cannot be read") from error


def parse_identity(text: str) -> dict[str, str]:
    """Parse `x509.subject: C=US, ST=WA, O=acme`; empty for `*`, which is anybody; raises ValueError."""
    if text == _ANYBODY:
        return {}
    if not text.startswith(_SUBJECT):
        raise ValueError(f"{text[:80]!r} is neither '*' nor 'x509.subject: C=..., ST=..., O=...'")
    found: dict[str, str] = {}
    for item in text.removeprefix(_SUBJECT).split(","):
        name, equals, value = item.strip().partition("=")
        if not equals or not name or not value or name in found:
            raise ValueError(f"{text[:80]!r} is not a list of NAME=VALUE")
        found[name] = value
    if not {"C", "ST", "O"} <= found.keys():
        raise ValueError(f"{text[:80]!r} must have C, ST and O")
    return found


def _check_identity(leaf: "Certificate", identities: Sequence[str]) -> str:
    subject = _subject(leaf)
    label = ", ".join(f"{name}={value}" for name, value in subject.items())
    for text in identities:
        wanted = parse_identity(text)
        if all(subject.get(name) == value for name, value in wanted.items()):
            return label
    raise SignatureFaultError(f"it is by {label[:300] or 'nobody'}, not by whom the rule names")


def _target(content: JsonObject) -> Digest:
    if content.keys() != {"targetArtifact"}:
        _bad("its payload is not about one artifact")
    try:
        return Digest.parse(dsse.text(dsse.member(content, "targetArtifact"), "digest"))
    except ImageError as error:
        _bad(error.message)


def verify(
    candidate: Candidate, stores: Sequence["Certificate"], identities: Sequence[str], case: Case
) -> Verified:
    """Hold a signature against a trust store and identities; raises SignatureFaultError.

    Without a timestamp authority the certificates must be good now, as notation's policies demand.
    """
    envelope = parse(candidate.payload)
    leaf = envelope.certificates[0]
    found = chain.verify(leaf, envelope.certificates[1:], stores, at=case.now, purpose=False)
    _verify_bytes(envelope)
    matching.check_digest(_target(envelope.content), case.digests)
    if envelope.expires and envelope.expires <= case.now:
        raise SignatureFaultError("it has expired")
    label = _check_identity(leaf, identities)
    ends = [int(item.not_valid_after_utc.timestamp()) for item in found]
    return Verified(
        kind=str(candidate.kind),
        signer=label,
        reference="",
        digest=candidate.digest,
        signed_at=int(envelope.signed_at),
        expires=min([*ends, int(envelope.expires)] if envelope.expires else ends),
    )
