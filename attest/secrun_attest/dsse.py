"""Signed documents: DSSE 1.0 envelopes (secure-systems-lab/dsse) with ECDSA P-256/SHA-256 or Ed25519.

The signature is over the type and the exact bytes of the payload, so nothing has to be parsed, or made
canonical, before it is verified.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from secrun_attest import jcs
from secrun_attest.errors import FormatError
from secrun_attest.fields import FieldError, Fields, as_text, parse_json
from secrun_attest.jcs import JsonValue

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    PublicKey: TypeAlias = EllipticCurvePublicKey | Ed25519PublicKey
    PrivateKey: TypeAlias = EllipticCurvePrivateKey | Ed25519PrivateKey

_PAE = b"DSSEv1 %d %b %d %b"
# An envelope is a document in base64 with a few signatures around it.
MAX_SIGNATURES = 32
MAX_TYPE = 200
MAX_SIGNATURE = 1024
MAX_PEM = 64 << 10
_COORDINATE = 32
_STANDARD = str.maketrans("-_", "+/")


class DsseError(FormatError):
    """An envelope, a key or a signature is not what it should be."""

    code = "dsse"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A public key and its id: SHA-256 of its SubjectPublicKeyInfo, as hex."""

    id: str
    key: "PublicKey"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key and the id of its public one."""

    id: str
    key: "PrivateKey"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """One signature; `key_id` is a hint that nothing protects and only messages show."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload, its type and signatures that nobody has verified."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signed, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: the pre-authentication encoding of type and payload."""
    kind = payload_type.encode()
    return _PAE % (len(kind), kind, len(payload), payload)


def is_envelope(value: JsonValue) -> bool:
    """Tell whether parsed JSON claims to be an envelope."""
    return isinstance(value, dict) and "payloadType" in value


def parse_envelope(data: bytes, *, what: str, limit: int) -> Envelope:
    """Parse an envelope of at most `limit` bytes; raises DsseError.

    Members that are not known are ignored, as DSSE demands: nothing of an envelope but its payload counts.
    """
    try:
        fields = Fields(parse_json(data, what=what, limit=limit), what)
        return Envelope(
            payload_type=fields.text("payloadType", limit=MAX_TYPE),
            payload=_base64(fields.take("payload"), f"{what}.payload", limit=limit),
            signatures=tuple(
                _signed(item, what) for item in fields.items("signatures", limit=MAX_SIGNATURES)
            ),
        )
    except FieldError as error:
        raise DsseError(error.message, hint=error.hint, code="dsse-envelope") from error


def _signed(value: JsonValue, what: str) -> Signed:
    fields = Fields(value, f"{what}.signatures")
    return Signed(
        key_id=fields.text("keyid", limit=MAX_TYPE) if fields.has("keyid") else "",
        signature=_base64(fields.take("sig"), f"{what}.signatures.sig", limit=MAX_SIGNATURE),
    )


def _base64(value: JsonValue, what: str, *, limit: int) -> bytes:
    """Read either alphabet: producers choose, consumers take both (DSSE 1.0, protocol.md)."""
    text = as_text(value, what, limit=2 * limit).translate(_STANDARD)
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError as error:
        raise FieldError(f"{what} is not base64") from error


def verify(envelope: Envelope, payload_type: str, keys: Sequence[TrustedKey]) -> tuple[str, ...]:
    """Return the ids of `keys` that signed `envelope`, at least one; raises DsseError if none did."""
    if envelope.payload_type != payload_type:
        got = envelope.payload_type
        raise DsseError(f"the envelope holds a {got!r}, expected {payload_type!r}", code="dsse-type")
    signed = pae(envelope.payload_type, envelope.payload)
    found = {
        key.id for one in envelope.signatures for key in keys if _is_signed(key.key, one.signature, signed)
    }
    if not found:
        given = ", ".join(one.key_id[:16] or "without a key id" for one in envelope.signatures) or "nobody"
        trusted = ", ".join(key.id[:16] for key in keys) or "none"
        raise DsseError(
            f"no trusted key signed this: signed by {given}; trusted are {trusted}", code="dsse-signature"
        )
    return tuple(sorted(found))


def _is_signed(key: "PublicKey", signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    forms = [signature]
    if not isinstance(key, ed25519.Ed25519PublicKey) and len(signature) == 2 * _COORDINATE:
        # DSSE's own examples join r and s; everybody else writes DER, as we do.
        forms.append(_der(signature))
    for form in forms:
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(form, data)
            else:
                key.verify(form, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return True
    return False


def _der(joined: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    return encode_dss_signature(
        int.from_bytes(joined[:_COORDINATE], "big"), int.from_bytes(joined[_COORDINATE:], "big")
    )


def sign(payload: bytes, payload_type: str, key: SigningKey) -> bytes:
    """Return `payload` in an envelope with one signature, as JSON."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    signed = pae(payload_type, payload)
    if isinstance(key.key, ed25519.Ed25519PrivateKey):
        signature = key.key.sign(signed)
    else:
        signature = key.key.sign(signed, ec.ECDSA(hashes.SHA256()))
    return jcs.encode(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": key.id, "sig": base64.b64encode(signature).decode()}],
        }
    )


def load_public_key(pem: bytes, *, what: str) -> TrustedKey:
    """Read a public key from PEM (SubjectPublicKeyInfo); raises DsseError if it is none that we allow."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_bounded(pem, what))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(what, f"is not a public key in PEM: {str(error)[:120]}") from error
    return _trusted(key, what)


def load_signing_key(pem: bytes, *, what: str) -> SigningKey:
    """Read a private key from PEM without a password; raises DsseError if it is none that we allow."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_bounded(pem, what), password=None)
    except TypeError as error:
        raise _no_key(what, "is protected by a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(what, "is not a private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise _no_key(what, f"is a {type(key).__name__}, expected P-256 or Ed25519")
    return SigningKey(id=_trusted(key.public_key(), what).id, key=key)


def _trusted(key: object, what: str) -> TrustedKey:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise _no_key(what, f"is a {type(key).__name__}, expected P-256 or Ed25519")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name != "secp256r1":
        raise _no_key(what, f"is on curve {key.curve.name}, expected P-256")
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return TrustedKey(id=hashlib.sha256(info).hexdigest(), key=key)


def _bounded(pem: bytes, what: str) -> bytes:
    if len(pem) > MAX_PEM:
        raise _no_key(what, f"has {len(pem)} bytes, the limit is {MAX_PEM}")
    return pem


def _no_key(what: str, problem: str) -> DsseError:
    return DsseError(
        f"{what} {problem}",
        hint="openssl genpkey -algorithm ed25519 makes a key, openssl pkey -pubout its public part",
        code="dsse-key",
    )
