"""Endorsement keys and their certificates, as data: a certificate must hold the key that the TPM made."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from secrun_attest.errors import TpmError
from secrun_attest.wire import Alg, Public, name_of, parse_public

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_SEQUENCE = 0x30
_LONG_FORM = 0x80


class EkKind(StrEnum):
    """An endorsement key by the TCG's default template (EK Credential Profile 2.5, B.3 and B.4)."""

    RSA_2048 = "EK-RSA2048"
    P_256 = "EK-ECC256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """An endorsement key: TPM2B_PUBLIC, Name, and its certificate in DER if the TPM stores one."""

    kind: EkKind
    public: bytes
    name: bytes
    certificate: bytes | None


def endorsement_of(kind: EkKind, public: bytes, stored: bytes | None) -> Endorsement:
    """Return the endorsement key with what its NV index holds; raises TpmError `tpm-ek-certificate`."""
    parsed = parse_public(public)
    certificate = None if stored is None else _checked(kind, parsed, stored)
    return Endorsement(kind=kind, public=public, name=name_of(parsed), certificate=certificate)


def _checked(kind: EkKind, public: Public, stored: bytes) -> bytes:
    from cryptography import x509

    der = stored[: _der_size(stored)]
    try:
        certificate = x509.load_der_x509_certificate(der)
        same = holds(certificate, public)
    except ValueError as error:
        raise _error(kind, f"cannot be read: {error}") from error
    if not same:
        raise _error(kind, "holds another key than the one that this TPM makes")
    return der


def _der_size(data: bytes) -> int:
    """Return the size of the DER value that `data` begins with; an NV index may be larger."""
    if len(data) < 2 or data[0] != _SEQUENCE:
        return len(data)
    if data[1] < _LONG_FORM:
        return 2 + data[1]
    digits = data[1] - _LONG_FORM
    return 2 + digits + int.from_bytes(data[2 : 2 + digits], "big")


def holds(certificate: "Certificate", public: Public) -> bool:
    """Tell whether `certificate` is about the key `public`."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    key = certificate.public_key()
    unique = [int.from_bytes(part, "big") for part in public.unique]
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return public.type == Alg.RSA and [numbers.n] == unique and numbers.e == public.exponent
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_numbers()
        return public.type == Alg.ECC and [point.x, point.y] == unique and key.curve.name == "secp256r1"
    return False


def _error(kind: EkKind, what: str) -> TpmError:
    return TpmError(
        f"the {kind} certificate in the TPM {what}",
        hint="its endorsement seed was changed, or its maker did not write it: nothing vouches for it",
        code="tpm-ek-certificate",
    )
