"""cosign's signatures: a payload in a layer, the signature and perhaps a certificate in its annotations."""

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING

from secrun.errors import DeniedError
from secrun.record import record
from secrun.trust import chain, limits, matching, payload, publickey, rekor
from secrun.trust.faults import SignatureFaultError
from secrun.trust.rekor import LogEntry, Logged
from secrun.trust.requirement import Fulcio, Material, Pki, Requirement
from secrun.trust.signatures import Candidate
from secrun.trust.verdict import Case, Verified

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from secrun.trust.publickey import PublicKey

# cosign, specs/SIGNATURE_SPEC.md.
MEDIA_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
CHAIN = "dev.sigstore.cosign/chain"
LOG_ENTRY = "dev.sigstore.cosign/bundle"
ANNOTATIONS = (SIGNATURE, CERTIFICATE, CHAIN, LOG_ENTRY)


@record
class Signer:
    """Who signed: a key, how it is called, and until when it counts (seconds since 1970, 0 for ever)."""

    key: "PublicKey"
    label: str
    expires: int = 0


def unusable(material: Material, why: str) -> DeniedError:
    """Return the error for a key file of the policy that cannot be used."""
    where = material.path or "a key in the policy"
    return DeniedError(
        f"the trust policy's {where}: {why}",
        hint="correct the file or the policy; until then nothing is admitted under this rule",
        code="denied-policy-key",
    )


def public_keys(materials: tuple[Material, ...], case: Case) -> list["PublicKey"]:
    """Parse the policy's public keys; raises DeniedError for one that cannot be used."""
    found = []
    for material in materials:
        try:
            found.append(publickey.load(case.keys[material]))
        except ValueError as error:
            raise unusable(material, str(error)) from error
    return found


def certificates(material: Material, case: Case) -> list["Certificate"]:
    """Parse the policy's certificates; raises DeniedError."""
    try:
        return chain.load_pem(case.keys[material], "it")
    except ValueError as error:
        raise unusable(material, str(error)) from error


def verify(candidate: Candidate, requirement: Requirement, case: Case) -> Verified:
    """Hold one signature against a sigstoreSigned requirement; raises SignatureFaultError."""
    text = candidate.annotations.get(SIGNATURE, "")
    try:
        signature = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureFaultError("its signature is not base64") from error
    signer = _signer(candidate, requirement, case, signature)
    claim = payload.parse(candidate.payload, payload.COSIGN)
    matching.check_digest(claim.digest, case.digests)
    matching.check_reference(requirement.identity, case.name, claim.reference)
    return Verified(
        kind=str(candidate.kind),
        signer=signer.label,
        reference=claim.reference,
        digest=candidate.digest,
        signed_at=claim.signed_at,
        expires=signer.expires,
    )


def _signer(candidate: Candidate, requirement: Requirement, case: Case, signature: bytes) -> Signer:
    """Return who signed, after the signature proved to be theirs."""
    if requirement.keys:
        return by_key(candidate, requirement, case, signature)
    leaf, others = _chain(candidate)
    logged = Logged(
        signature=signature,
        signer=_der(leaf),
        payload_sha256=hashlib.sha256(candidate.payload).hexdigest(),
    )
    at = case.now
    if requirement.rekor_keys:
        logged_at = _logged_at(candidate, requirement, case, logged)
        # A certificate of Fulcio lives for minutes: it counts for the moment of the log's entry.
        at = logged_at if requirement.fulcio else at
    signer = certified(leaf, others, requirement, case, at=at)
    publickey.verify(signer.key, signature, candidate.payload)
    return signer


def by_key(candidate: Candidate, requirement: Requirement, case: Case, signature: bytes) -> Signer:
    """Return which of the requirement's keys signed the payload; raises SignatureFaultError."""
    for key in public_keys(requirement.keys, case):
        try:
            publickey.verify(key, signature, candidate.payload)
        except SignatureFaultError:
            continue
        if requirement.rekor_keys:
            logged = Logged(
                signature=signature,
                signer=publickey.der(key),
                payload_sha256=hashlib.sha256(candidate.payload).hexdigest(),
            )
            _logged_at(candidate, requirement, case, logged)
        return Signer(key=key, label=f"key:{publickey.fingerprint(key)}")
    raise SignatureFaultError("it is by none of the keys of the rule")


def _logged_at(candidate: Candidate, requirement: Requirement, case: Case, logged: Logged) -> int:
    """Return when a log of the policy took the signature, in seconds since 1970."""
    text = candidate.annotations.get(LOG_ENTRY)
    if text is None:
        raise SignatureFaultError("it has no entry of a log, which the rule demands")
    entry = rekor.parse_annotation(text)
    return check_entry(entry, requirement.rekor_keys, case, logged)


def check_entry(entry: LogEntry, materials: tuple[Material, ...], case: Case, logged: Logged) -> int:
    """Return when one of the policy's logs took the signature; raises SignatureFaultError."""
    rekor.check_promise(entry, public_keys(materials, case))
    rekor.check_body(entry, logged)
    if entry.integrated_at > case.now + limits.CLOCK_SKEW_SECONDS:
        raise SignatureFaultError("its log entry is of the future")
    return entry.integrated_at


def _der(certificate: "Certificate") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _chain(candidate: Candidate) -> tuple["Certificate", list["Certificate"]]:
    """Return the signer's certificate and those that came with it."""
    text = candidate.annotations.get(CERTIFICATE)
    if not text:
        raise SignatureFaultError("it comes without a certificate, which the rule demands")
    try:
        leaf = chain.load_pem(text.encode(), "its certificate")
        rest = candidate.annotations.get(CHAIN)
        others = chain.load_pem(rest.encode(), "its chain") if rest else []
    except (ValueError, UnicodeEncodeError) as error:
        raise SignatureFaultError(str(error)) from error
    if len(leaf) != 1:
        raise SignatureFaultError("it comes with several certificates instead of one")
    return leaf[0], others


def certified(
    leaf: "Certificate", others: list["Certificate"], requirement: Requirement, case: Case, *, at: float
) -> Signer:
    """Return whom a certificate is for, if the requirement accepts it; raises SignatureFaultError."""
    if requirement.fulcio is not None:
        return _by_fulcio(leaf, others, requirement.fulcio, case, at=at)
    if requirement.pki is None:
        raise SignatureFaultError("the rule takes no certificates")
    return _by_pki(leaf, others, requirement.pki, case, at=at)


def _by_fulcio(
    leaf: "Certificate", others: list["Certificate"], fulcio: Fulcio, case: Case, *, at: float
) -> Signer:
    chain.verify(leaf, others, certificates(fulcio.authorities, case), at=at)
    if (issuer := chain.fulcio_issuer(leaf)) != fulcio.issuer:
        raise SignatureFaultError(f"its signer was known to {issuer[:200]!r}, expected {fulcio.issuer!r}")
    if fulcio.email not in (found := chain.emails(leaf)):
        raise SignatureFaultError(
            f"it is by {', '.join(found)[:200] or 'nobody'}, expected {fulcio.email!r}"
        )
    return Signer(key=chain.signer_key(leaf), label=f"{fulcio.email} ({issuer})")


def _by_pki(leaf: "Certificate", others: list["Certificate"], pki: Pki, case: Case, *, at: float) -> Signer:
    known = certificates(pki.intermediates, case) if pki.intermediates else []
    found = chain.verify(leaf, [*known, *others], certificates(pki.roots, case), at=at)
    if pki.email and pki.email not in (names := chain.emails(leaf)):
        raise SignatureFaultError(f"it is by {', '.join(names)[:200] or 'nobody'}, expected {pki.email!r}")
    hosts = chain.hostnames(leaf)
    if pki.hostname and not any(chain.fits_host(name, pki.hostname) for name in hosts):
        raise SignatureFaultError(
            f"it is by {', '.join(hosts)[:200] or 'no host'}, expected {pki.hostname!r}"
        )
    expires = min(int(item.not_valid_after_utc.timestamp()) for item in found)
    return Signer(key=chain.signer_key(leaf), label=pki.email or pki.hostname, expires=expires)
