"""The result token: an EAR (draft-ietf-rats-ear-04) as a compact JWS with ES256 (RFC 7515, RFC 7518 3.4).

The key is passed in and stays with the caller; time and the token's id are arguments too.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secrun_attest import jcs
from secrun_attest.errors import AttestError, FormatError
from secrun_attest.fields import Fields
from secrun_attest.jcs import JsonObject
from secrun_attest.verify import Appraisal, Session, Verdict
from secrun_attest.verify.state import machine_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PROFILE = "tag:ietf.org,2026:rats/ear#04"
# A verdict is about one instant; a relying party that needs a newer one asks again.
MAX_LIFETIME = 300
# A host with thousands of pods; a header of HTTP takes far less, but a body does.
MAX_TOKEN = 8 << 20
_COORDINATE = 32


class TokenError(AttestError):
    """A token is malformed, not signed by this key, or not valid now."""

    code = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Who issues: the verifier's developer and build, and the id of its key."""

    developer: str
    build: str
    key_id: str


def claims(
    verdict: Verdict,
    session: Session,
    issuer: Issuer,
    *,
    now: int,
    token_id: str,
    channel_key: str | None = None,
) -> JsonObject:
    """Return the claims of a token about `verdict`: one submodule for the host and one per pod."""
    policy = f"sha256:{verdict.policy_digest.hex()}"
    state = verdict.state
    host = {**_submodule(verdict.host, policy), "secrun_denied": state.machine.denied}
    modules: JsonObject = {"host": host}
    for uuid, appraisal in verdict.pods:
        machine = state.machine.pods[uuid].machine
        told: JsonObject = {} if machine is None else {"secrun_machine": machine_json(machine)}
        modules[f"pod:{uuid}"] = {**_submodule(appraisal, policy), **told}
    result: JsonObject = {
        "eat_profile": PROFILE,
        "iat": now,
        "exp": now + MAX_LIFETIME,
        "jti": token_id,
        "aud": session.audience,
        "ear_verifier_id": {"developer": issuer.developer, "build": issuer.build},
        "eat_nonce": _encode(session.nonce),
        "submods": modules,
        "secrun_host": state.host,
        "secrun_tpm": state.machine.tpm.value,
        "secrun_epoch": {
            "reset": state.epoch.reset,
            "restart": state.epoch.restart,
            "boot_id": state.epoch.boot_id,
        },
        "secrun_log": {"count": state.recnum, "head": verdict.head.hex()},
    }
    if channel_key is not None:
        result["cnf"] = {"jkt": channel_key}
    return result


def _submodule(appraisal: Appraisal, policy: str) -> JsonObject:
    return {
        "ear_status": appraisal.status.value,
        "ear_trustworthiness_vector": {claim.value: value for claim, value in appraisal.vector},
        "ear_appraisal_policy_ids": [policy],
        "secrun_reasons": [*appraisal.reasons],
        "secrun_operations": [*appraisal.operations],
        "secrun_unmeasured": [*appraisal.unmeasured],
        "secrun_entries": appraisal.entries,
    }


def sign(payload: JsonObject, key: "EllipticCurvePrivateKey", *, key_id: str) -> str:
    """Return `payload` as a compact JWS; `key` must be of P-256."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    _check_curve(key.curve)
    head = jcs.encode({"alg": "ES256", "typ": "JWT", "kid": key_id})
    text = f"{_encode(head)}.{_encode(jcs.encode(payload))}"
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{_encode(r.to_bytes(_COORDINATE, 'big') + s.to_bytes(_COORDINATE, 'big'))}"


def verify_token(token: str, key: "EllipticCurvePublicKey", *, audience: str, now: int) -> JsonObject:
    """Return the claims of a token that `key` signed for `audience`, valid now; raises TokenError."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    _check_curve(key.curve)
    parts = token.split(".") if len(token) <= MAX_TOKEN else []
    if len(parts) != 3:
        raise TokenError("the token is not a compact JWS")
    head, body, signature = (_decode(part) for part in parts)
    if len(signature) != 2 * _COORDINATE:
        raise TokenError(f"the signature has {len(signature)} bytes, expected {2 * _COORDINATE}")
    r, s = (int.from_bytes(half, "big") for half in (signature[:_COORDINATE], signature[_COORDINATE:]))
    try:
        key.verify(encode_dss_signature(r, s), f"{parts[0]}.{parts[1]}".encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise TokenError("the token is not signed by this key") from None
    try:
        return _valid(head, body, audience, now)
    except FormatError as error:
        raise TokenError(error.message) from error


def _valid(head: bytes, body: bytes, audience: str, now: int) -> JsonObject:
    header = jcs.parse_object(head, what="token header", limit=MAX_TOKEN)
    if header.get("alg") != "ES256" or "crit" in header:
        raise TokenError("the token's header asks for another algorithm, or for an extension")
    payload = jcs.parse_object(body, what="token", limit=MAX_TOKEN)
    fields = Fields(payload, "token")
    if fields.text("eat_profile") != PROFILE:
        raise TokenError(f"the token's profile is not {PROFILE}")
    if (got := fields.text("aud")) != audience:
        raise TokenError(f"the token is meant for {got!r}, expected {audience!r}")
    issued, expires = fields.integer("iat"), fields.integer("exp")
    if not issued <= now < expires <= issued + MAX_LIFETIME:
        raise TokenError(f"the token is valid from {issued} to {expires}, now is {now}")
    return payload


def _check_curve(curve: object) -> None:
    name = getattr(curve, "name", "")
    if name != "secp256r1":
        raise TokenError(f"the key is on curve {name!r}, ES256 needs secp256r1")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise TokenError("the token is not base64url") from error
    if _encode(data) != text:
        raise TokenError("the token is not canonical base64url")
    return data
