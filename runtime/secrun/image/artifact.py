"""Manifests of what hangs on images: signatures, attestations; OCI image-spec 1.1 artifacts."""

from collections.abc import Mapping

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import fields, limits
from secrun.image.manifest import Descriptor, parse_descriptor
from secrun.jsonio import JsonObject, parse_object
from secrun.record import record


@record
class Part:
    """One layer of an artifact; its size is what the manifest says and may be anything."""

    descriptor: Descriptor
    annotations: Mapping[str, str]


@record
class Artifact:
    """An artifact: what it is, its layers, and whose referrer it says it is."""

    artifact_type: str
    parts: tuple[Part, ...]
    subject: Digest | None


@record
class Referrer:
    """What a list of referrers says about one artifact."""

    descriptor: Descriptor
    artifact_type: str


def annotations_of(source: JsonObject, what: str) -> dict[str, str]:
    """Return annotations within bounds; raises ImageError."""
    found = fields.mapping(source, "annotations", what)
    if len(found) > limits.MAX_ANNOTATIONS:
        raise ImageError(f"{what} has {len(found)} annotations", code="image-limit")
    return {name: fields.text(found, name, what) for name in found}


def _part(source: JsonObject, what: str) -> Part:
    return Part(
        descriptor=parse_descriptor(source, what, limit=limits.MAX_LAYER_BYTES),
        annotations=annotations_of(source, what),
    )


def parse(data: bytes, *, what: str) -> Artifact:
    """Parse the manifest of an artifact; raises ImageError. Older ones say in their config what they are."""
    document = parse_object(data, what=what, limit=limits.MAX_MANIFEST_BYTES)
    if document.get("schemaVersion") != 2 or "manifests" in document:
        raise ImageError(f"{what} is no manifest", code="image-manifest")
    config = fields.text(fields.mapping(document, "config", what), "mediaType", what)
    members = fields.objects(document, "layers", what, limit=limits.MAX_LAYERS)
    subject = fields.mapping(document, "subject", what)
    return Artifact(
        artifact_type=fields.text(document, "artifactType", what) or config,
        parts=tuple(_part(item, f"{what}, layers[{number}]") for number, item in enumerate(members)),
        subject=fields.digest(subject, "digest", what) if subject else None,
    )


def parse_referrers(data: bytes, *, what: str) -> tuple[Referrer, ...]:
    """Parse an index of referrers (distribution-spec 1.1); raises ImageError.

    Indexes in it are passed over: nothing says what they are for, and they may lead in a circle.
    """
    document = parse_object(data, what=what, limit=limits.MAX_MANIFEST_BYTES)
    return referrers_of(document, what=what, limit=limits.MAX_INDEX_ENTRIES)


def referrers_of(document: JsonObject, *, what: str, limit: int) -> tuple[Referrer, ...]:
    """Return what an index of at most `limit` entries lists, but for indexes; raises ImageError."""
    members = fields.objects(document, "manifests", what, limit=limit)
    found: list[Referrer] = []
    for number, item in enumerate(members):
        where = f"{what}, manifests[{number}]"
        descriptor = parse_descriptor(item, where, limit=limits.MAX_MANIFEST_BYTES)
        if "index" not in descriptor.media_type and "list" not in descriptor.media_type:
            found.append(
                Referrer(descriptor=descriptor, artifact_type=fields.text(item, "artifactType", where))
            )
    return tuple(found)
