"""Find the signatures of an image whose digest is fixed: by tag, by referrers, beside the image."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import artifact as artifacts
from secrun.image.artifact import Artifact, Part, Referrer
from secrun.image.manifest import Descriptor
from secrun.image.source import Document
from secrun.record import record
from secrun.trust import bundle, cosign, notation
from secrun.trust import limits as trust_limits
from secrun.trust.signatures import Candidate, SignatureKind, SignatureSet, bounded


class Attachments(Protocol):
    """Where artifacts that belong to images lie; every method raises what its source raises."""

    def tagged(self, tag: str) -> Document | None:
        """Return the manifest of a tag, None if there is none."""

    def referrers(self, subject: Digest) -> tuple[Referrer, ...]:
        """Return what says of itself that it is about `subject`."""

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor; size and digest are checked."""

    def small_blob(self, descriptor: Descriptor) -> bytes:
        """Return a blob by its descriptor, whose size was checked; size and digest are checked."""

    def messages(self, digest: Digest) -> Iterable[bytes]:
        """Return the OpenPGP signatures of the image with this manifest."""


@record
class Wanted:
    """Which forms of signatures to look for, and of which digests: the manifest's and its index's."""

    kinds: tuple[SignatureKind, ...]
    digests: tuple[Digest, ...]


_REFERRER_TYPES = {
    bundle.MEDIA_TYPE: SignatureKind.BUNDLE,
    notation.ARTIFACT_TYPE: SignatureKind.NOTATION,
}


class _Search:
    """One search; what cannot be taken is remembered in words, and the rest goes on."""

    def __init__(self, source: Attachments, wanted: Wanted) -> None:
        self._source = source
        self._wanted = wanted
        self._left = trust_limits.MAX_SIGNATURES_BYTES
        self.found: list[Candidate] = []
        self.faults: list[str] = []

    @property
    def full(self) -> bool:
        return len(self.found) >= trust_limits.MAX_SIGNATURES

    def run(self) -> SignatureSet:
        for digest in self._wanted.digests:
            if SignatureKind.COSIGN in self._wanted.kinds:
                self._tagged(digest)
            if {SignatureKind.BUNDLE, SignatureKind.NOTATION} & set(self._wanted.kinds):
                self._referring(digest)
            if SignatureKind.OPENPGP in self._wanted.kinds:
                self._messages(digest)
        return bounded(self.found, self.faults, self._wanted.kinds)

    def _tagged(self, digest: Digest) -> None:
        """Take cosign's signatures: layers of the tag sha256-DIGEST.sig."""
        tag = cosign_tag(digest)
        try:
            document = self._source.tagged(tag)
            if document is None:
                return
            parsed = artifacts.parse(document.data, what=f"signatures {tag}")
        except ImageError as error:
            self.faults.append(error.message)
            return
        for number, part in enumerate(parsed.parts):
            if part.descriptor.media_type == cosign.MEDIA_TYPE and not self.full:
                self._cosign(part, digest, f"signature {number + 1} of {tag}")

    def _cosign(self, part: Part, digest: Digest, origin: str) -> None:
        payload = self._blob(part.descriptor, trust_limits.MAX_PAYLOAD_BYTES, origin)
        if payload is None:
            return
        annotations = {name: part.annotations.get(name, "") for name in cosign.ANNOTATIONS}
        if any(len(text) > trust_limits.MAX_ANNOTATION_BYTES for text in annotations.values()):
            self.faults.append(f"{origin} has an annotation that is too large")
            return
        self.found.append(
            Candidate(
                kind=SignatureKind.COSIGN,
                subject=digest,
                payload=payload,
                origin=origin,
                annotations={name: text for name, text in annotations.items() if text},
            )
        )

    def _referring(self, digest: Digest) -> None:
        """Take bundles and Notation envelopes among the referrers."""
        try:
            referrers = self._source.referrers(digest)
        except ImageError as error:
            self.faults.append(error.message)
            return
        for item in referrers:
            # Some registries say nothing of the type in their list.
            if not self.full and (not item.artifact_type or self._kind(item.artifact_type)):
                self._referrer(item, digest)

    def _kind(self, artifact_type: str) -> SignatureKind | None:
        kind = _REFERRER_TYPES.get(artifact_type)
        return kind if kind in self._wanted.kinds else None

    def _referrer(self, item: Referrer, digest: Digest) -> None:
        origin = f"referrer {item.descriptor.digest.hex[:12]}"
        try:
            parsed = artifacts.parse(self._source.document(item.descriptor).data, what=origin)
        except ImageError as error:
            self.faults.append(error.message)
            return
        kind = self._kind(parsed.artifact_type)
        if kind is None:
            return
        if parsed.subject != digest:
            self.faults.append(f"{origin} is about {parsed.subject}, not about {digest}")
            return
        payload = self._envelope(kind, parsed, origin)
        if payload is not None:
            self.found.append(Candidate(kind=kind, subject=digest, payload=payload, origin=origin))

    def _envelope(self, kind: SignatureKind, parsed: Artifact, origin: str) -> bytes | None:
        expected = bundle.MEDIA_TYPE if kind is SignatureKind.BUNDLE else notation.MEDIA_TYPE
        types = [part.descriptor.media_type for part in parsed.parts]
        if types != [expected]:
            self.faults.append(f"{origin} holds {', '.join(types)[:200] or 'nothing'}, expected {expected}")
            return None
        return self._blob(parsed.parts[0].descriptor, trust_limits.MAX_SIGNATURE_BYTES, origin)

    def _blob(self, descriptor: Descriptor, limit: int, origin: str) -> bytes | None:
        """Download a blob unless it is larger than a signature can be; nothing of it is read then."""
        limit = min(limit, self._left)
        if descriptor.size > limit:
            self.faults.append(f"{origin} has {descriptor.size} bytes, the limit is {limit}")
            return None
        try:
            data = self._source.small_blob(descriptor)
        except ImageError as error:
            self.faults.append(f"{origin}: {error.message}")
            return None
        self._left -= len(data)
        return data

    def _messages(self, digest: Digest) -> None:
        try:
            for number, message in enumerate(self._source.messages(digest)):
                if self.full:
                    break
                self.found.append(
                    Candidate(
                        kind=SignatureKind.OPENPGP,
                        subject=digest,
                        payload=message,
                        origin=f"signature-{number + 1}",
                    )
                )
        except ImageError as error:
            self.faults.append(error.message)


def cosign_tag(digest: Digest) -> str:
    """Return the tag under which cosign keeps the signatures of a manifest."""
    return f"{digest.algorithm}-{digest.hex}.sig"


def fallback_tag(digest: Digest) -> str:
    """Return the tag of the index of referrers where a registry has no API (distribution-spec 1.1.1)."""
    return f"{digest.algorithm}-{digest.hex}"


def search(source: Attachments, kinds: Sequence[SignatureKind], digests: Sequence[Digest]) -> SignatureSet:
    """Return the signatures of an image; raises RegistryError if the source fails."""
    unique = tuple(dict.fromkeys(digests))
    return _Search(source, Wanted(kinds=tuple(kinds), digests=unique)).run()


def checked(data: bytes, descriptor: Descriptor, what: str) -> bytes:
    """Return `data` if it is what the descriptor promises; raises ImageError."""
    return Document.of(data, descriptor.media_type).checked(descriptor, what).data
