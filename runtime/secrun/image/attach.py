"""Write signatures beside an image: cosign's tag, referrers, and the tag that stands in for their list."""

import base64
from collections.abc import Sequence

from secrun.digest import Digest
from secrun.image.artifact import Part, parse_referrers
from secrun.image.attached import cosign_tag, fallback_tag
from secrun.image.manifest import Descriptor, MediaType, descriptor_document
from secrun.image.source import Document
from secrun.image.target import SignatureTarget, check_artifact
from secrun.jsonio import JsonObject, JsonValue, canonical
from secrun.trust import bundle, cosign, notation
from secrun.trust.signatures import Candidate, SignatureKind

_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
# Registries of before the OCI 1.1 artifacts take signatures of cosign's only with a config of an image.
_CONFIG_TYPE = str(MediaType.OCI_CONFIG)
_TYPES = {
    SignatureKind.BUNDLE: (bundle.MEDIA_TYPE, bundle.MEDIA_TYPE),
    SignatureKind.NOTATION: (notation.ARTIFACT_TYPE, notation.MEDIA_TYPE),
}


def _manifest(fields: JsonObject) -> Document:
    kind = str(MediaType.OCI_MANIFEST)
    return Document.of(canonical({"schemaVersion": 2, "mediaType": kind, **fields}), kind)


def _layer(part: Part) -> JsonObject:
    return {**descriptor_document(part.descriptor), "annotations": dict(part.annotations)}


def add_cosign(target: SignatureTarget, digest: Digest, candidates: Sequence[Candidate]) -> None:
    """Add signatures to those under cosign's tag of a manifest; the same one is not added twice."""
    tag = cosign_tag(digest)
    before = target.tagged(tag)
    parts = list(check_artifact(before, f"signatures {tag}").parts) if before else []
    known = {part.annotations.get(cosign.SIGNATURE) for part in parts}
    for item in candidates:
        descriptor = target.put_data(item.payload, cosign.MEDIA_TYPE)
        if item.annotations.get(cosign.SIGNATURE) not in known:
            parts.append(Part(descriptor=descriptor, annotations=item.annotations))
    config = target.put_data(
        canonical(
            {
                "architecture": "",
                "os": "",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [str(part.descriptor.digest) for part in parts]},
            }
        ),
        _CONFIG_TYPE,
    )
    layers: list[JsonValue] = [_layer(part) for part in parts]
    target.put_manifest(_manifest({"config": descriptor_document(config), "layers": layers}), tag)


def add_referrer(target: SignatureTarget, subject: Descriptor, candidate: Candidate) -> None:
    """Write a bundle or an envelope as a referrer of `subject`."""
    artifact_type, media_type = _TYPES[candidate.kind]
    blob = target.put_data(candidate.payload, media_type)
    empty = target.put_data(b"{}", _EMPTY_TYPE)
    document = _manifest(
        {
            "artifactType": artifact_type,
            "config": descriptor_document(empty),
            "layers": [descriptor_document(blob)],
            "subject": descriptor_document(subject),
        }
    )
    if target.put_manifest(document, None, kind=artifact_type):
        return
    # A registry without the API of referrers: the client keeps their list (distribution-spec 1.1.1).
    tag = fallback_tag(subject.digest)
    before = target.tagged(tag)
    listed = parse_referrers(before.data, what=f"referrers {tag}") if before else ()
    own = Descriptor(media_type=document.media_type, digest=document.digest, size=len(document.data))
    entries: list[JsonValue] = [
        {**descriptor_document(item.descriptor), "artifactType": item.artifact_type}
        for item in listed
        if item.descriptor.digest != own.digest
    ]
    entries.append({**descriptor_document(own), "artifactType": artifact_type})
    kind = str(MediaType.OCI_INDEX)
    index = canonical({"schemaVersion": 2, "mediaType": kind, "manifests": entries})
    target.put_manifest(Document.of(index, kind), tag)


def attach(
    target: SignatureTarget, subjects: Sequence[Descriptor], candidates: Sequence[Candidate]
) -> list[str]:
    """Write signatures beside what they are about; return in words what could not be written."""
    by_digest = {item.digest: item for item in subjects}
    skipped: list[str] = []
    for digest, subject in by_digest.items():
        own = [item for item in candidates if item.subject == digest]
        if plain := [item for item in own if item.kind is SignatureKind.COSIGN]:
            add_cosign(target, digest, plain)
        for item in own:
            if item.kind in _TYPES:
                add_referrer(target, subject, item)
            elif item.kind is SignatureKind.OPENPGP:
                skipped.append(f"{item.origin} is an OpenPGP signature, which only skopeo writes")
    appc = [item for item in candidates if item.kind is SignatureKind.APPC]
    return [*skipped, *(f"{item.origin} is for the file of an app container image" for item in appc)]


def encoded(signature: bytes) -> str:
    """Return a signature as cosign's annotation has it."""
    return base64.b64encode(signature).decode()
