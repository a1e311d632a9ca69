"""Certificates of signers: the chain to an authority of the policy, and whom they are for."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

from secrun.trust import limits, publickey
from secrun.trust.faults import SignatureFaultError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.x509 import Certificate, ExtensionType
    from cryptography.x509.verification import Policy

    from secrun.trust.publickey import PublicKey

_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"


def load_pem(data: bytes, what: str) -> list["Certificate"]:
    """Parse certificates in PEM; raises ValueError naming `what`."""
    publickey.need_cryptography()
    from cryptography import x509

    if not 0 < data.count(_PEM_BEGIN) <= limits.MAX_CERTIFICATES:
        raise ValueError(f"{what} holds no certificate in PEM, or more than {limits.MAX_CERTIFICATES}")
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ValueError(f"{what} holds something that is no certificate") from error


def load_der(data: bytes, what: str) -> "Certificate":
    """Parse a certificate in DER; raises SignatureFaultError."""
    publickey.need_cryptography()
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise SignatureFaultError(f"{what} is no certificate") from error


def signer_key(certificate: "Certificate") -> "PublicKey":
    """Return the key of a signer's certificate; raises SignatureFaultError."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return publickey.checked(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureFaultError(f"the key of its certificate cannot be used: {error}") from error


def _may_sign_code(policy: "Policy", certificate: "Certificate", extension: "ExtensionType | None") -> None:
    """Demand the purpose code signing; raises ValueError, which the verifier reports."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose

    del policy, certificate
    if extension is None:
        return
    if not isinstance(extension, x509.ExtendedKeyUsage):
        raise TypeError(type(extension).__name__)
    if Purpose.CODE_SIGNING not in extension and Purpose.ANY_EXTENDED_KEY_USAGE not in extension:
        raise ValueError("a certificate of the chain is not for code signing")


def _may_sign(policy: "Policy", certificate: "Certificate", extension: "ExtensionType | None") -> None:
    from cryptography import x509

    del policy, certificate
    if isinstance(extension, x509.KeyUsage) and not extension.digital_signature:
        raise ValueError("the certificate's key is not for digital signatures")


def _may_issue(policy: "Policy", certificate: "Certificate", extension: "ExtensionType | None") -> None:
    from cryptography import x509

    del policy, certificate
    if isinstance(extension, x509.KeyUsage) and not extension.key_cert_sign:
        raise ValueError("a key of the chain may not sign certificates")


def verify(
    leaf: "Certificate",
    intermediates: Sequence["Certificate"],
    roots: Sequence["Certificate"],
    *,
    at: float,
    purpose: bool = True,
) -> tuple["Certificate", ...]:
    """Return the chain from `leaf` to one of `roots` that is good for code signing at a time in seconds.

    Without `purpose` a signer's certificate that names no purpose will do. Raises SignatureFaultError.
    RFC 5280 by `cryptography`'s verifier; purposes nest as in Go's x509.
    """
    from cryptography import x509
    from cryptography.x509 import verification
    from cryptography.x509.verification import Criticality, ExtensionPolicy

    either = Criticality.AGNOSTIC
    authority = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, either, None)
        .may_be_present(x509.KeyUsage, either, _may_issue)
        .may_be_present(x509.ExtendedKeyUsage, either, _may_sign_code)
    )
    signer = ExtensionPolicy.permit_all().may_be_present(x509.KeyUsage, either, _may_sign)
    if purpose:
        signer = signer.require_present(x509.ExtendedKeyUsage, either, _may_sign_code)
    else:
        signer = signer.may_be_present(x509.ExtendedKeyUsage, either, _may_sign_code)
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(list(roots)))
        .time(dt.datetime.fromtimestamp(at, dt.UTC))
        .max_chain_depth(limits.MAX_CHAIN_DEPTH)
        .extension_policies(ca_policy=authority, ee_policy=signer)
        .build_client_verifier()
    )
    try:
        return tuple(verifier.verify(leaf, list(intermediates)[: limits.MAX_CERTIFICATES]).chain)
    except verification.VerificationError as error:
        raise SignatureFaultError(
            f"its certificate is not accepted: {_words(leaf, at, str(error))}"
        ) from error


def _words(leaf: "Certificate", at: float, said: str) -> str:
    """Say the commonest reasons as people do."""
    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    if moment > leaf.not_valid_after_utc:
        return f"it expired at {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    if moment < leaf.not_valid_before_utc:
        return f"it begins at {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
    if "with no interior errors" in said or said.endswith("signature does not match"):
        return "no authority of the policy issued it"
    return said.replace("validation failed: ", "").partition(" (encountered")[0][:300]


def emails(certificate: "Certificate") -> list[str]:
    """Return the mail addresses that a certificate is for."""
    from cryptography import x509

    return _names(certificate, x509.RFC822Name)


def hostnames(certificate: "Certificate") -> list[str]:
    """Return the host names that a certificate is for."""
    from cryptography import x509

    return _names(certificate, x509.DNSName)


def addresses(certificate: "Certificate") -> list[str]:
    """Return the URIs that a certificate is for: workflows and services of Fulcio's."""
    from cryptography import x509

    return _names(certificate, x509.UniformResourceIdentifier)


def _names(
    certificate: "Certificate",
    kind: "type[x509.RFC822Name | x509.DNSName | x509.UniformResourceIdentifier]",
) -> list[str]:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except ValueError as error:
        raise SignatureFaultError("its certificate has names that cannot be read") from error
    return [name.value for name in found if isinstance(name, kind)]


def fits_host(pattern: str, hostname: str) -> bool:
    """Tell whether a certificate's name covers a host: equal, or *.example.com for one label (RFC 6125)."""
    pattern, hostname = pattern.lower().rstrip("."), hostname.lower().rstrip(".")
    if pattern == hostname:
        return True
    star, _, domain = pattern.partition(".")
    label, _, parent = hostname.partition(".")
    return star == "*" and bool(label) and "." in domain and domain == parent


# Fulcio's certificate extensions (sigstore/fulcio, docs/oid-info.md): the issuer as it is, and as DER.
_ISSUER_RAW = "1.3.6.1.4.1.57264.1.1"
_ISSUER_DER = "1.3.6.1.4.1.57264.1.8"


def fulcio_issuer(certificate: "Certificate") -> str:
    """Return the OpenID provider that a Fulcio certificate names; raises SignatureFaultError."""
    from cryptography import x509

    found: dict[str, bytes] = {}
    try:
        for extension in certificate.extensions:
            if isinstance(extension.value, x509.UnrecognizedExtension):
                found[extension.oid.dotted_string] = extension.value.value
    except ValueError as error:
        raise SignatureFaultError("its certificate has extensions that cannot be read") from error
    if _ISSUER_DER in found:
        return _utf8_string(found[_ISSUER_DER])
    if _ISSUER_RAW in found:
        return found[_ISSUER_RAW].decode("utf-8", "replace")
    raise SignatureFaultError("its certificate does not name an OpenID provider")


def _utf8_string(data: bytes) -> str:
    """Decode a DER UTF8String of at most 64 KiB."""
    if len(data) >= 2 and data[0] == 0x0C:
        if data[1] < 0x80 and len(data) == 2 + data[1]:
            return data[2:].decode("utf-8", "replace")
        if data[1] == 0x81 and len(data) >= 3 and len(data) == 3 + data[2]:
            return data[3:].decode("utf-8", "replace")
        if data[1] == 0x82 and len(data) >= 4 and len(data) == 4 + int.from_bytes(data[2:4], "big"):
            return data[4:].decode("utf-8", "replace")
    raise SignatureFaultError("its certificate names the OpenID provider in a form that cannot be read")
