"""Detached OpenPGP signatures of app container images: FILE.aci.asc beside FILE.aci (appc spec, aci.md).

The file is not kept once its image is stored: who signed it is found out when it is fetched, and kept with
the signature. Later it is only asked whether that key still counts. A key that is trusted later needs
another fetch.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.trust import openpgp
from secrun.trust.cosign import unusable
from secrun.trust.faults import SignatureFaultError
from secrun.trust.requirement import Material, Requirement
from secrun.trust.ring import is_openpgp
from secrun.trust.signatures import Candidate, SignatureKind
from secrun.trust.verdict import Case, Verified

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pysequoia import Cert

_SIGNER = "signer"
_FINGERPRINT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")


def _certificates(keys: "Mapping[Material, bytes]", materials: Iterable[Material]) -> "list[Cert]":
    found: list[Cert] = []
    for material in materials:
        if not is_openpgp(keys[material]):
            continue
        try:
            found += openpgp.load(keys[material])
        except ValueError as error:
            raise unusable(material, str(error)) from error
    return found


def weigh(
    path: str, message: bytes, image: Digest, keys: "Mapping[Material, bytes]", now: float
) -> Candidate:
    """Check the signature of a file and return it with its signer; raises SignatureFaultError.

    `image` is the ID of the image in the file. Keys that are revoked or expired now do not count.
    """
    import pysequoia

    certificates = _certificates(keys, keys)
    good = openpgp.usable(certificates, now)
    try:
        signature = pysequoia.Sig.from_bytes(message)
        found = pysequoia.verify(file=path, store=lambda _: good, signature=signature)
    # What the binding raises for anything that is no signature, or not one by these keys.
    except RuntimeError as error:
        raise SignatureFaultError(openpgp.why(certificates, good, openpgp.first_line(error))) from error
    signers = {item.certificate.lower() for item in found.valid_sigs}
    for certificate in good:
        if (name := openpgp.fingerprint(certificate)) in signers and _FINGERPRINT.match(name):
            return Candidate(
                kind=SignatureKind.APPC,
                subject=image,
                payload=message,
                origin="the detached signature",
                annotations={_SIGNER: name},
            )
    raise SignatureFaultError(openpgp.why(certificates, good, "it is by none of the trusted keys"))


def verify(candidate: Candidate, requirement: Requirement, case: Case) -> Verified:
    """Tell whether the key that made a signature counts now; raises SignatureFaultError."""
    signer = candidate.annotations.get(_SIGNER, "")
    if candidate.subject not in case.digests:
        raise SignatureFaultError(f"it is for the image {candidate.subject}")
    certificates = _certificates(case.keys, requirement.keys)
    good = openpgp.usable(certificates, case.now)
    for certificate in good:
        if openpgp.fingerprint(certificate) == signer:
            return Verified(
                kind=str(candidate.kind),
                signer=f"openpgp:{signer}",
                reference="",
                digest=candidate.digest,
                expires=int(certificate.expiration.timestamp()) if certificate.expiration else 0,
            )
    raise SignatureFaultError(openpgp.why(certificates, good, f"it is by {signer}, which is no trusted key"))
