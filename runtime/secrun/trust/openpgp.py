"""OpenPGP simple signing: containers-signature(5), made by skopeo, podman and gpg."""

import re
from typing import TYPE_CHECKING

from secrun.trust import matching, packets, payload, publickey
from secrun.trust.cosign import unusable
from secrun.trust.faults import SignatureFaultError
from secrun.trust.requirement import Requirement
from secrun.trust.signatures import Candidate
from secrun.trust.verdict import Case, Verified

if TYPE_CHECKING:
    from pysequoia import Cert

_FINGERPRINT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


def load(data: bytes) -> list["Cert"]:
    """Parse a key ring, armored or not; raises ValueError saying why not."""
    try:
        from pysequoia import Cert
    except ImportError as error:
        raise publickey.missing("pysequoia") from error
    try:
        return Cert.split_bytes(data)
    # What the binding raises for anything that is no key ring.
    except RuntimeError as error:
        raise ValueError(f"it is no OpenPGP key ring: {first_line(error)}") from error


def holds_secret(data: bytes) -> bool:
    """Tell whether a binary key begins with a secret key packet (type 5), in the new form or the old."""
    return data[:1] == b"\xc5" or data[:1] in (b"\x94", b"\x95", b"\x96", b"\x97")


def first_line(error: RuntimeError) -> str:
    """Return what went wrong, without the traces that follow."""
    return str(error).partition("\n")[0][:200]


def fingerprint(certificate: "Cert") -> str:
    """Return a fingerprint in lower-case digits."""
    return certificate.fingerprint.lower()


def usable(certificates: list["Cert"], now: float) -> list["Cert"]:
    """Return the keys that are neither revoked nor expired."""
    return [
        item
        for item in certificates
        if not item.is_revoked and (item.expiration is None or item.expiration.timestamp() > now)
    ]


def verify_message(message: bytes, certificates: list["Cert"], now: float) -> tuple[bytes, str, int]:
    """Return what a signed message says, the fingerprint of its signer, and when that key expires.

    Raises SignatureFaultError. A key that is revoked or expired now does not count, whenever it signed.
    """
    import pysequoia

    plain = packets.flattened(message)
    good = usable(certificates, now)
    try:
        found = pysequoia.verify(bytes=plain, store=lambda _: good)
    except RuntimeError as error:
        raise SignatureFaultError(why(certificates, good, first_line(error))) from error
    signers = {item.certificate.lower() for item in found.valid_sigs}
    for certificate in good:
        if (name := fingerprint(certificate)) in signers and _FINGERPRINT.match(name):
            expires = int(certificate.expiration.timestamp()) if certificate.expiration else 0
            return bytes(found.bytes or b""), name, expires
    raise SignatureFaultError(why(certificates, good, "it is by none of the keys of the rule"))


def why(certificates: list["Cert"], good: list["Cert"], said: str) -> str:
    """Say why no key made a signature, and which keys cannot have."""
    if "no valid signatures" in said:
        said = "it is by none of the keys of the rule"
    lost = [item for item in certificates if item not in good]
    words = [f"{fingerprint(item)[:16]} is {'revoked' if item.is_revoked else 'expired'}" for item in lost]
    return f"{said} ({', '.join(words)})" if words else said


def verify(candidate: Candidate, requirement: Requirement, case: Case) -> Verified:
    """Hold one signature against a signedBy requirement; raises SignatureFaultError."""
    certificates: list[Cert] = []
    for material in requirement.keys:
        try:
            certificates += load(case.keys[material])
        except ValueError as error:
            raise unusable(material, str(error)) from error
    said, signer, expires = verify_message(candidate.payload, certificates, case.now)
    claim = payload.parse(said, payload.ATOMIC)
    matching.check_digest(claim.digest, case.digests)
    if not case.any_name:
        matching.check_reference(requirement.identity, case.name, claim.reference)
    return Verified(
        kind=str(candidate.kind),
        signer=f"openpgp:{signer}",
        reference=claim.reference,
        digest=candidate.digest,
        signed_at=claim.signed_at,
        expires=expires,
    )
