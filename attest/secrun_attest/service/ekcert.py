"""Endorsement certificates: the chain from a TPM's maker, or its cloud, must end at a root that we trust."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun_attest.endorsement import holds
from secrun_attest.service.trouble import ServiceError, Trouble
from secrun_attest.wire import Public

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from cryptography.x509.verification import VerifiedClient

# Leaf, two intermediates and a root are usual.
MAX_DEPTH = 4
# A certificate with its chain of OCSP pointers is 2 kB; some parts have 4.
MAX_CERTIFICATE = 16 << 10
# A few dozen makers and clouds; more is a mistaken folder.
MAX_ROOTS = 1000


def load_roots(folder: Path) -> "tuple[Certificate, ...]":
    """Return the certificates in the `*.pem`, `*.crt`, `*.cer` and `*.der` files of `folder`.

    Raises ServiceError for a file that holds none, and for a folder without any.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".pem", ".crt", ".cer", ".der"))
    roots = tuple(root for path in paths[:MAX_ROOTS] for root in _certificates(path))
    if not roots or len(paths) > MAX_ROOTS:
        text = f"{folder} holds {len(paths)} files of certificates, expected 1 to {MAX_ROOTS}"
        raise ServiceError(Trouble.EK_UNTRUSTED, text, hint="put the TPM makers' root certificates there")
    return roots


def _certificates(path: Path) -> "list[Certificate]":
    from cryptography import x509

    data = path.read_bytes()
    try:
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificates(data)
        return [x509.load_der_x509_certificate(data)]
    except (ValueError, x509.InvalidVersion) as error:
        raise ServiceError(Trouble.EK_UNTRUSTED, f"{path} is not a certificate: {error}") from error


def check_chain(chain: Sequence[bytes], roots: "Sequence[Certificate]", ek: Public, now: int) -> None:
    """Raise ServiceError unless `chain` (DER, the EK's own first) ends at a root now and is about `ek`."""
    from cryptography import x509

    if any(len(item) > MAX_CERTIFICATE for item in chain):
        raise _untrusted(f"a certificate has more than {MAX_CERTIFICATE} bytes")
    try:
        leaf, *others = [x509.load_der_x509_certificate(item) for item in chain]
    except (ValueError, x509.InvalidVersion) as error:
        raise _untrusted(f"not a certificate: {error}") from error
    _verify(leaf, others, roots, now)
    if not holds(leaf, ek):
        raise _untrusted("the certificate is about another key than ek_pub")


def _verify(
    leaf: "Certificate", others: "list[Certificate]", roots: "Sequence[Certificate]", now: int
) -> "VerifiedClient":
    from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

    # An EK certificate is not for TLS: its names and usages are the TCG's; only the chain counts here.
    builder = (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(dt.datetime.fromtimestamp(now, dt.UTC))
        .max_chain_depth(MAX_DEPTH)
        .extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all()
        )
    )
    try:
        return builder.build_client_verifier().verify(leaf, others)
    except VerificationError as error:
        raise _untrusted(f"the chain does not end at a trusted root: {str(error)[:200]}") from error


def _untrusted(message: str) -> ServiceError:
    return ServiceError(
        Trouble.EK_UNTRUSTED,
        message,
        hint="add the maker's root to --ek-roots, or send the intermediates in ek_chain",
    )
