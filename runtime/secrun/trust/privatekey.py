"""Private keys that sign images: PEM, encrypted or not, and cosign's own box."""

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

from secrun.errors import ImageError, UsageError
from secrun.jsonio import JsonObject, parse_object
from secrun.record import record
from secrun.trust import dsse, publickey
from secrun.trust.faults import SignatureFaultError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_BOXES = (b"-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----", b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----")
# A key file holds one key; with all of its fields an RSA key of 8192 bits has 7 KB.
MAX_KEY_BYTES = 64 * 1024
# scrypt of cosign takes 64 MiB (N=65536, r=8); a file that asks for much more is no key of ours.
_MAX_SCRYPT_BYTES = 256 * 1024 * 1024


@record
class SigningKey:
    """A key that signs, of the kinds that sigstore uses."""

    key: "EllipticCurvePrivateKey | RSAPrivateKey | Ed25519PrivateKey"

    @property
    def fingerprint(self) -> str:
        """Fingerprint of its public half."""
        return publickey.fingerprint(self.key.public_key())

    @property
    def public_pem(self) -> bytes:
        """Its public half in PEM."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, data: bytes) -> bytes:
        """Sign as `publickey.verify` expects it."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(data, ec.ECDSA(hashes.SHA256()))
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self.key.sign(data)

    def private_pem(self, passphrase: bytes) -> bytes:
        """Return PKCS #8 in PEM, encrypted unless the passphrase is empty."""
        from cryptography.hazmat.primitives.serialization import (
            BestAvailableEncryption,
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        lock = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


def generate() -> SigningKey:
    """Make an ECDSA key on P-256, as cosign does."""
    publickey.need_cryptography()
    from cryptography.hazmat.primitives.asymmetric import ec

    return SigningKey(key=ec.generate_private_key(ec.SECP256R1()))


def _bad(source: str, why: str, hint: str = "") -> UsageError:
    return UsageError(f"key {source}: {why}", hint=hint, code="usage-key")


def load(data: bytes, passphrase: bytes, *, source: str) -> SigningKey:
    """Parse a private key that was read from `source`; raises UsageError, never quoting the key."""
    publickey.need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    password = passphrase or None
    try:
        if data.lstrip().startswith(_BOXES):
            inner = _unboxed(data, passphrase, source)
            key = serialization.load_der_private_key(inner, None)
        else:
            key = serialization.load_pem_private_key(data, password)
    except TypeError as error:
        why = "it is encrypted" if password is None else "it is not encrypted"
        raise _bad(source, why, "give --passphrase-file for an encrypted key, and only for one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "expected PKCS #8 in PEM (openssl genpkey, secrun trust generate-key) or cosign's own form"
        raise _bad(source, "it is no private key, or the passphrase is wrong", hint) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise _bad(source, "it is neither ECDSA nor RSA nor Ed25519")
    return SigningKey(key=key)


def _unboxed(data: bytes, passphrase: bytes, source: str) -> bytes:
    """Open cosign's box: scrypt and NaCl's secretbox (secure-systems-lab/go-securesystemslib, encrypted)."""
    try:
        from nacl.exceptions import CryptoError
        from nacl.secret import SecretBox
    except ImportError as error:
        raise publickey.missing("pynacl") from error

    lines = data.decode("ascii", "replace").strip().splitlines()
    try:
        document = parse_object(
            base64.b64decode("".join(lines[1:-1]), validate=True), what="it", limit=MAX_KEY_BYTES
        )
        secret = _stretched(dsse.member(document, "kdf"), passphrase)
        cipher = dsse.member(document, "cipher")
        if dsse.text(cipher, "name") != "nacl/secretbox":
            dsse.bad("its cipher is unknown")
        return SecretBox(secret).decrypt(dsse.raw(document, "ciphertext"), dsse.raw(cipher, "nonce"))
    except (ImageError, SignatureFaultError, binascii.Error, ValueError) as error:
        raise _bad(source, "its encryption is not cosign's") from error
    except CryptoError as error:
        raise _bad(source, "the passphrase is wrong", "give it with --passphrase-file") from error


def _stretched(kdf: JsonObject, passphrase: bytes) -> bytes:
    parameters = dsse.member(kdf, "params")
    n, r, p = (parameters.get(name) for name in ("N", "r", "p"))
    if dsse.text(kdf, "name") != "scrypt" or not (
        isinstance(n, int) and isinstance(r, int) and isinstance(p, int)
    ):
        dsse.bad("its key derivation is unknown")
    if not (n > 0 and r > 0 and 0 < p < 100 and 128 * n * r <= _MAX_SCRYPT_BYTES):
        dsse.bad("its key derivation asks for too much")
    salt = dsse.raw(kdf, "salt")
    return hashlib.scrypt(passphrase, salt=salt, n=n, r=r, p=p, maxmem=2 * _MAX_SCRYPT_BYTES, dklen=32)
