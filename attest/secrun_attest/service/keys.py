"""The keys that sign tokens: shared by all instances, replaced in time, published as long as they count."""

import base64
import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secrun_attest import jcs
from secrun_attest.ear import MAX_LIFETIME
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.service.store import Store, StoredKey
from secrun_attest.service.trouble import ServiceError, Trouble

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

# A key stays published this long after nobody may sign with it any more (one from a file: after an instance
# last looked at it). That covers the last token's life, with room for clocks that disagree.
PUBLISHED = 3600
LOOK_AGAIN = 30
_COORDINATE = 32
assert PUBLISHED > 2 * MAX_LIFETIME + LOOK_AGAIN  # noqa: S101 - two constants, no input


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key that may sign now, and its id."""

    key_id: str
    key: "EllipticCurvePrivateKey"


class Keyring:
    """Signing keys in the database, or one from a file whose public half is in the database."""

    def __init__(self, store: Store, *, lifetime: int, pem: bytes | None = None) -> None:
        self._store = store
        self._lifetime = lifetime
        self._own = None if pem is None else _stored(_load_pem(pem), keep=False, now=0)
        self._own_key = None if pem is None else _load_pem(pem)
        self._lock = threading.Lock()
        self._signer: Signer | None = None
        self._until = 0

    def signer(self, now: int) -> Signer:
        """Return the key to sign with; makes the first one, and a new one when the newest is too old."""
        with self._lock:
            if self._signer is None or not now < self._until:
                self._signer = self._look(now)
                self._until = now + LOOK_AGAIN
            return self._signer

    def _look(self, now: int) -> Signer:
        if self._own is not None and self._own_key is not None:
            self._store.put_key(self._own, now + PUBLISHED)
            return Signer(key_id=self._own.id, key=self._own_key)
        stored = self._newest(now) or self._make(now)
        return Signer(key_id=stored.id, key=_load(stored))

    def _make(self, now: int) -> StoredKey:
        with self._store.exclusive():
            # Another instance may have made it while we waited.
            stored = self._newest(now)
            if stored is None:
                stored = _stored(_generate(), keep=True, now=now)
                self._store.put_key(stored, now + self._lifetime + PUBLISHED)
        return stored

    def _newest(self, now: int) -> StoredKey | None:
        """Return the newest key of the database that is young enough to sign."""
        fresh = [key for key in self._store.keys(now) if key.private and now < key.created + self._lifetime]
        return fresh[0] if fresh else None

    def jwks(self, now: int) -> JsonObject:
        """Return the keys that tokens may be signed with (RFC 7517)."""
        self.signer(now)
        keys: list[JsonValue] = [_jwk(key) for key in self._store.keys(now)]
        return {"keys": keys}


def _generate() -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _stored(key: "EllipticCurvePrivateKey", *, keep: bool, now: int) -> StoredKey:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    numbers = key.public_key().public_numbers()
    public = b"".join(value.to_bytes(_COORDINATE, "big") for value in (numbers.x, numbers.y))
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()) if keep else None
    return StoredKey(id=_thumbprint(public), public=public, private=private, created=now)


def _load(stored: StoredKey) -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    return _p256(load_der_private_key(stored.private or b"", password=None))


def _load_pem(pem: bytes) -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return _p256(load_pem_private_key(pem, password=None))
    except (ValueError, TypeError) as error:
        raise ServiceError(Trouble.REQUEST, f"the signing key: {error}", hint=_HINT) from error


_HINT = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


def _p256(key: object) -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ServiceError(Trouble.REQUEST, "the signing key is not of P-256", hint=_HINT)
    return key


def _jwk(key: StoredKey) -> JsonObject:
    return {**_members(key.public), "use": "sig", "alg": "ES256", "kid": key.id}


def _members(public: bytes) -> JsonObject:
    x, y = public[:_COORDINATE], public[_COORDINATE:]
    return {"crv": "P-256", "kty": "EC", "x": _encode(x), "y": _encode(y)}


def _thumbprint(public: bytes) -> str:
    """RFC 7638: the digest of the members that make the key."""
    return _encode(hashlib.sha256(jcs.encode(_members(public))).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
