"""Public keys in PEM, and signatures by them: ECDSA, RSA and Ed25519, as sigstore uses them."""

import hashlib
from typing import TYPE_CHECKING, TypeAlias

from secrun.errors import HostError
from secrun.trust.faults import SignatureFaultError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    PublicKey: TypeAlias = EllipticCurvePublicKey | RSAPublicKey | Ed25519PublicKey

# NIST SP 800-131A: shorter RSA keys are disallowed for verification of new signatures.
_MIN_RSA_BITS = 2048


def need_cryptography() -> None:
    """Raise HostError where the package that checks signatures is missing."""
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise missing("cryptography") from error


def missing(package: str) -> HostError:
    """Return the error for a package of the extra that is not installed."""
    return HostError(
        f"signatures cannot be checked: the Python package {package} is not installed",
        hint="pip install 'secrun[signatures]'",
        code="host-signatures",
    )


def load(data: bytes) -> "PublicKey":
    """Parse one public key in PEM; raises ValueError saying why not."""
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except UnsupportedAlgorithm as error:
        raise ValueError("it is of a kind that is not supported") from error
    except ValueError as error:
        raise ValueError("it is not a public key in PEM") from error
    return checked(key)


def checked(key: object) -> "PublicKey":
    """Return a key of the kinds that sign images; raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _MIN_RSA_BITS:
            raise ValueError(f"it is an RSA key of {key.key_size} bits, {_MIN_RSA_BITS} are needed")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return key
    raise ValueError("it is neither ECDSA nor RSA nor Ed25519")


def der(key: "PublicKey") -> bytes:
    """Return the SubjectPublicKeyInfo."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def kind(key: "PublicKey") -> str:
    """Return the kind of a key in a word or two."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    return f"RSA {key.key_size}" if isinstance(key, rsa.RSAPublicKey) else "Ed25519"


def fingerprint(key: "PublicKey") -> str:
    """Return SHA-256 over the SubjectPublicKeyInfo, in hexadecimal digits."""
    return hashlib.sha256(der(key)).hexdigest()


def verify(key: "PublicKey", signature: bytes, data: bytes) -> None:
    """Raise SignatureFaultError unless `signature` over `data` is by `key`; SHA-256, PKCS#1 v1.5 for RSA."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, data)
    except InvalidSignature as error:
        raise SignatureFaultError(f"it is not by the key {fingerprint(key)[:16]}") from error


def verify_digest(key: "PublicKey", signature: bytes, digest: bytes) -> None:
    """Raise SignatureFaultError unless `signature` is by `key` over what has this SHA-256 digest.

    Not possible with Ed25519, which signs the data itself.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

    hashed = Prehashed(hashes.SHA256())
    if isinstance(key, ed25519.Ed25519PublicKey):
        raise SignatureFaultError("it is a plain signature by an Ed25519 key, which needs the signed bytes")
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, digest, ec.ECDSA(hashed))
        else:
            key.verify(signature, digest, padding.PKCS1v15(), hashed)
    except (InvalidSignature, ValueError) as error:
        raise SignatureFaultError(f"it is not by the key {fingerprint(key)[:16]}") from error
