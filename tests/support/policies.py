"""Keys and documents of signed policies, as tests need them."""

import json

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from secrun_attest import dsse
from secrun_attest.dsse import SigningKey, TrustedKey
from support.attest_bench import NOW, policy_document

LAYERS = ("platform", "runtime", "workload")


def pem_of(key) -> bytes:
    """A private key as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem_of(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def pair(key) -> tuple[SigningKey, TrustedKey]:
    """The key as the signer and as the verifier load it."""
    return (
        dsse.load_signing_key(pem_of(key), what="key"),
        dsse.load_public_key(public_pem_of(key), what="key"),
    )


def p256() -> tuple[SigningKey, TrustedKey]:
    return pair(ec.generate_private_key(ec.SECP256R1()))


def ed() -> tuple[SigningKey, TrustedKey]:
    return pair(ed25519.Ed25519PrivateKey.generate())


def document(**changes) -> bytes:
    """A whole policy in one document."""
    return json.dumps(policy_document(**changes)).encode()


def layered(*, without: tuple = LAYERS, minimum: int = 1, **changes) -> bytes:
    """A base that leaves out layers and names the documents that hold them."""
    body = policy_document(**changes)
    for layer in without:
        del body[layer]
    body["layers"] = {layer: {"id": f"{layer}s", "min_version": minimum} for layer in without}
    return json.dumps(body).encode()


def layer(name: str, **changes) -> bytes:
    """The document of one layer."""
    body = {
        "v": 1,
        "layer": name,
        "id": f"{name}s",
        "version": 1,
        "not_before": NOW - 100,
        "not_after": NOW + 100,
        name: policy_document().get(name, {}),
    }
    return json.dumps(body | changes).encode()
