"""Sigstore bundles v0.3: signature, certificate and log entry in one document, checked offline."""

from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.jsonio import JsonObject, parse_object
from secrun.record import record
from secrun.trust import chain, cosign, dsse, limits, publickey, rekor, sct
from secrun.trust.cosign import Signer
from secrun.trust.dsse import Envelope
from secrun.trust.faults import SignatureFaultError
from secrun.trust.rekor import LogEntry, Logged
from secrun.trust.requirement import Requirement
from secrun.trust.signatures import Candidate
from secrun.trust.trustedroot import TrustedRoot
from secrun.trust.verdict import Case, Verified

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

# sigstore/protobuf-specs, sigstore_bundle.proto.
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_MEDIA_TYPES = (MEDIA_TYPE, "application/vnd.dev.sigstore.bundle+json;version=0.3")


@record
class Proof:
    """The proof that an entry is in a log: what a signed checkpoint of the log promises."""

    index: int
    size: int
    root: bytes
    hashes: tuple[bytes, ...]
    checkpoint: str


@record
class Bundle:
    """A bundle's parts; `certificate` is DER, empty if a key signed; `message` is a plain signature's."""

    certificate: bytes
    envelope: Envelope | None
    message: tuple[bytes, bytes] | None
    entries: tuple[tuple[LogEntry, Proof | None], ...]

    @property
    def signature(self) -> bytes:
        """The signature itself."""
        return self.envelope.signature if self.envelope else self.message[1] if self.message else b""

    @property
    def payload_sha256(self) -> str:
        """What a log keeps of the signed bytes."""
        if self.envelope:
            return self.envelope.payload_sha256
        return self.message[0].hex() if self.message else ""


def _number(source: JsonObject, name: str) -> int:
    """Return an int64 of protobuf's JSON: a string or a number."""
    value = source.get(name, 0)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        dsse.bad(f"{name} is no number")
    return value


def _proof(source: JsonObject) -> Proof | None:
    value = source.get("inclusionProof")
    if not isinstance(value, dict):
        return None
    hashes = value.get("hashes", [])
    if not isinstance(hashes, list) or len(hashes) > limits.MAX_PROOF_HASHES:
        dsse.bad("the proof of inclusion is no list of hashes")
    return Proof(
        index=_number(value, "logIndex"),
        size=_number(value, "treeSize"),
        root=dsse.raw(value, "rootHash"),
        hashes=tuple(dsse.raw({"hash": item}, "hash") for item in hashes),
        checkpoint=dsse.text(dsse.member(value, "checkpoint"), "envelope"),
    )


def _entry(source: JsonObject) -> tuple[LogEntry, Proof | None]:
    promise = source.get("inclusionPromise")
    entry = LogEntry(
        body=dsse.raw(source, "canonicalizedBody"),
        integrated_at=_number(source, "integratedTime"),
        log_index=_number(source, "logIndex"),
        log_id=dsse.raw(dsse.member(source, "logId"), "keyId").hex(),
        promise=dsse.raw(promise, "signedEntryTimestamp") if isinstance(promise, dict) else b"",
    )
    return entry, _proof(source)


def _message(document: JsonObject) -> tuple[bytes, bytes]:
    """Return the digest and the signature of a plain signature."""
    source = dsse.member(document, "messageSignature")
    digest = dsse.member(source, "messageDigest")
    if dsse.text(digest, "algorithm") != "SHA2_256":
        dsse.bad("the message's digest is not SHA2_256")
    return dsse.raw(digest, "digest"), dsse.raw(source, "signature")


def parse(data: bytes) -> Bundle:
    """Parse a bundle; raises SignatureFaultError."""
    try:
        document = parse_object(data, what="the bundle", limit=limits.MAX_SIGNATURE_BYTES)
    except ImageError as error:
        dsse.bad(error.message)
    if (kind := dsse.text(document, "mediaType")) not in _MEDIA_TYPES:
        dsse.bad(f"it is {kind[:80]!r}, expected {MEDIA_TYPE!r}")
    material = dsse.member(document, "verificationMaterial")
    certificate = (
        dsse.raw(dsse.member(material, "certificate"), "rawBytes") if "certificate" in material else b""
    )
    if not certificate and "publicKey" not in material:
        dsse.bad("it names neither a certificate nor a key")
    if ("dsseEnvelope" in document) == ("messageSignature" in document):
        dsse.bad("it holds not just one signature")
    enveloped = "dsseEnvelope" in document
    return Bundle(
        certificate=certificate,
        envelope=dsse.parse_envelope(dsse.member(document, "dsseEnvelope")) if enveloped else None,
        message=None if enveloped else _message(document),
        entries=tuple(map(_entry, dsse.items(material, "tlogEntries", limits.MAX_SIGNATURES))),
    )


# What is signed.


def check_content(bundle: Bundle, digests: frozenset[Digest], predicate: str) -> None:
    """Raise SignatureFaultError unless the bundle states `predicate` about one of these digests.

    A plain signature over the manifest itself states no more than that it was signed.
    """
    if bundle.envelope is None:
        if predicate != dsse.SIGN_PREDICATE:
            raise SignatureFaultError(f"it makes no statement, expected {predicate}")
        if not any(item.hex == bundle.payload_sha256 for item in digests):
            raise SignatureFaultError(f"it is about {bundle.payload_sha256}, which is not the image")
        return
    statement = dsse.parse_statement(bundle.envelope)
    if statement.predicate_type != predicate:
        raise SignatureFaultError(f"it states {statement.predicate_type[:200]!r}, expected {predicate!r}")
    dsse.check_subject(statement, digests)


def _check_signature(bundle: Bundle, signer: Signer) -> None:
    if bundle.envelope is not None:
        publickey.verify(signer.key, bundle.signature, bundle.envelope.signed)
    else:
        publickey.verify_digest(signer.key, bundle.signature, bytes.fromhex(bundle.payload_sha256))


# By a policy's keys and authorities.


def verify(candidate: Candidate, requirement: Requirement, case: Case) -> Verified:
    """Hold a bundle against a sigstoreSigned requirement; raises SignatureFaultError."""
    if not case.by_digest:
        raise SignatureFaultError(
            f"a sigstore bundle names no image, so {requirement.identity.match} cannot be met "
            '(bundle-identity = "digest" in trust.toml accepts it for its digest)'
        )
    bundle = parse(candidate.payload)
    signer, at = _signer(bundle, requirement, case)
    check_content(bundle, case.digests, dsse.SIGN_PREDICATE)
    return _verified(candidate, signer, at)


def _verified(candidate: Candidate, signer: Signer, at: int) -> Verified:
    return Verified(
        kind=str(candidate.kind),
        signer=signer.label,
        reference="",
        digest=candidate.digest,
        signed_at=at,
        expires=signer.expires,
    )


def _signer(bundle: Bundle, requirement: Requirement, case: Case) -> tuple[Signer, int]:
    """Return who signed and when it was logged (0 if no log was asked for)."""
    if requirement.keys:
        signer = _by_key(bundle, requirement, case)
        if not requirement.rekor_keys:
            return signer, 0
        return signer, _logged_at(bundle, requirement, case, publickey.der(signer.key))
    if not bundle.certificate:
        raise SignatureFaultError("it comes without a certificate, which the rule demands")
    leaf = chain.load_der(bundle.certificate, "its certificate")
    logged_at = _logged_at(bundle, requirement, case, bundle.certificate) if requirement.rekor_keys else 0
    at = logged_at if requirement.fulcio else case.now
    signer = cosign.certified(leaf, [], requirement, case, at=at)
    _check_signature(bundle, signer)
    return signer, logged_at


def _by_key(bundle: Bundle, requirement: Requirement, case: Case) -> Signer:
    for key in cosign.public_keys(requirement.keys, case):
        signer = Signer(key=key, label=f"key:{publickey.fingerprint(key)}")
        try:
            _check_signature(bundle, signer)
        except SignatureFaultError:
            continue
        return signer
    raise SignatureFaultError("it is by none of the keys of the rule")


def _logged(bundle: Bundle, signer: bytes) -> Logged:
    return Logged(signature=bundle.signature, signer=signer, payload_sha256=bundle.payload_sha256)


def _logged_at(bundle: Bundle, requirement: Requirement, case: Case, signer: bytes) -> int:
    why = "it has no entry of a log, which the rule demands"
    for entry, _ in bundle.entries:
        try:
            return cosign.check_entry(entry, requirement.rekor_keys, case, _logged(bundle, signer))
        except SignatureFaultError as error:
            why = error.reason
    raise SignatureFaultError(why)


# By a trusted root.


@record
class Keyless:
    """Whom a certificate must be for: an account (mail address or URI) of an OpenID provider."""

    issuer: str
    identities: tuple[str, ...]


def verify_keyless(
    candidate: Candidate, root: TrustedRoot, who: Keyless, predicate: str, case: Case
) -> Verified:
    """Hold a bundle against a trusted root and an identity; raises SignatureFaultError."""
    bundle = parse(candidate.payload)
    if not bundle.certificate:
        raise SignatureFaultError("it is by a key, expected a certificate of the trusted root's authorities")
    leaf = chain.load_der(bundle.certificate, "its certificate")
    at = _logged_by_root(bundle, root, case)
    issuer = _issued(leaf, root, at)
    sct.check(leaf, issuer, root)
    if (provider := chain.fulcio_issuer(leaf)) != who.issuer:
        raise SignatureFaultError(f"its signer was known to {provider[:200]!r}, expected {who.issuer!r}")
    names = [*chain.emails(leaf), *chain.addresses(leaf)]
    name = next((name for name in names if name in who.identities), None)
    if name is None:
        raise SignatureFaultError(
            f"it is by {', '.join(names)[:300] or 'nobody'}, not by whom the rule names"
        )
    signer = Signer(key=chain.signer_key(leaf), label=f"{name} ({provider})")
    _check_signature(bundle, signer)
    check_content(bundle, case.digests, predicate)
    return _verified(candidate, signer, at)


def verify_by_key(candidate: Candidate, requirement: Requirement, predicate: str, case: Case) -> Verified:
    """Hold a bundle against keys; raises SignatureFaultError."""
    bundle = parse(candidate.payload)
    signer, at = _signer(bundle, requirement, case)
    check_content(bundle, case.digests, predicate)
    return _verified(candidate, signer, at)


def _issued(leaf: "Certificate", root: TrustedRoot, at: int) -> "Certificate":
    """Return the certificate of who issued `leaf`, which was good when it signed."""
    why = "no authority of the trusted root was in use when it signed"
    for authority in root.authorities:
        if not authority.span.covers(at):
            continue
        try:
            return chain.verify(leaf, authority.intermediates, authority.roots, at=at)[1]
        except SignatureFaultError as error:
            why = error.reason
    raise SignatureFaultError(why)


def _logged_by_root(bundle: Bundle, root: TrustedRoot, case: Case) -> int:
    """Return when a log of the trusted root took the signature: promised, proved and about it."""
    if len(bundle.entries) != 1:
        raise SignatureFaultError(f"it has {len(bundle.entries)} log entries, expected one")
    entry, proof = bundle.entries[0]
    log = root.log(bytes.fromhex(entry.log_id), entry.integrated_at)
    if not entry.promise:
        raise SignatureFaultError(
            "its log entry has no signed timestamp; timestamps of other authorities are not understood yet"
        )
    rekor.check_promise(entry, [log.key])
    if proof is None:
        raise SignatureFaultError("its log entry has no proof of inclusion")
    _check_proof(entry, proof, log.key, log.log_id)
    rekor.check_body(entry, _logged(bundle, bundle.certificate))
    if entry.integrated_at > case.now + limits.CLOCK_SKEW_SECONDS:
        raise SignatureFaultError("its log entry is of the future")
    return entry.integrated_at


def _check_proof(entry: LogEntry, proof: Proof, key: "publickey.PublicKey", log_id: bytes) -> None:
    found = rekor.root_of_proof(entry.body, proof.index, proof.size, proof.hashes)
    if found != proof.root:
        raise SignatureFaultError("its log entry is not in the log that its proof is about")
    rekor.check_checkpoint(proof.checkpoint, proof.size, proof.root, key, log_id)
