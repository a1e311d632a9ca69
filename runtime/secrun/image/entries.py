"""The entries of the store's index.json: what is stored under which reference, and how it came there."""

from collections.abc import Sequence

from secrun.digest import Digest
from secrun.errors import ImageError, StateError
from secrun.image import fields, limits
from secrun.image.manifest import Descriptor, MediaType, descriptor_document, parse_descriptor
from secrun.image.platform import Platform
from secrun.image.reference import layout_name
from secrun.jsonio import JsonObject, JsonValue, parse_object
from secrun.record import record

# A store of 100,000 images; the file is secrun's own, the bound keeps a damaged one from filling memory.
_MAX_ENTRIES = 100_000
_MAX_INDEX_BYTES = 128 * 1024 * 1024

_REF_NAME = "org.opencontainers.image.ref.name"
_PREFIX = "dev.secrun."


@record
class Entry:
    """One stored image under one reference.

    `reference` is its canonical text, `source_digest` what the reference named (an index, or the manifest
    itself), `given` what a layout or an archive calls it, `stamp` identifies the state of the file that
    it came from, `imported_at` is RFC 3339 in UTC, and `admission` is the last decision as JSON.
    `signatures` is the digest of the blob with the signatures that were found, empty if none were sought.
    `tag` is a further name that was given here, localhost/NAME:TAG; whatever it is, `reference` says where
    the image came from, and so which policy it is judged by.
    """

    descriptor: Descriptor
    reference: str
    name: str
    source_digest: Digest
    given: str
    stamp: str
    imported_at: str
    admission: str
    signatures: str = ""
    tag: str = ""

    @property
    def shown(self) -> str:
        """What a list calls it."""
        return self.tag or self.reference

    @property
    def digest(self) -> Digest:
        """Digest of the manifest: the image's ID."""
        return self.descriptor.digest

    @property
    def key(self) -> tuple[str, str]:
        """What a newer entry replaces: the same reference, or the same tag, for the same platform."""
        return f"tag:{self.tag}" if self.tag else self.reference, str(self.descriptor.platform)


def ref_name(name: str, platform: Platform, host: Platform) -> str:
    """Return a name for other tools; a foreign platform shows in it, since they choose by name alone."""
    suffix = "" if platform == host else f"--{platform.os}-{platform.architecture}"
    return layout_name(
        f"{name}{suffix}-{platform.variant}" if suffix and platform.variant else name + suffix
    )


def to_json(entries: Sequence[Entry]) -> JsonObject:
    """Return the document index.json for `entries`."""
    manifests: list[JsonValue] = []
    for entry in entries:
        annotations: JsonObject = {
            _REF_NAME: entry.name,
            f"{_PREFIX}reference": entry.reference,
            f"{_PREFIX}transport": entry.reference.partition(":")[0],
            f"{_PREFIX}source-digest": str(entry.source_digest),
            f"{_PREFIX}given-name": entry.given,
            f"{_PREFIX}stamp": entry.stamp,
            f"{_PREFIX}imported-at": entry.imported_at,
            f"{_PREFIX}admission": entry.admission,
            f"{_PREFIX}signatures": entry.signatures,
        }
        if entry.tag:
            annotations[f"{_PREFIX}tag"] = entry.tag
        manifests.append({**descriptor_document(entry.descriptor), "annotations": annotations})
    return {"schemaVersion": 2, "mediaType": str(MediaType.OCI_INDEX), "manifests": manifests}


def _entry(source: JsonObject, what: str) -> Entry | None:
    annotations = fields.mapping(source, "annotations", what)
    if f"{_PREFIX}reference" not in annotations:
        # Put there by another tool: nothing says where it came from, so no policy can judge it. It goes with
        # the next write; the store is for others to read.
        return None
    return Entry(
        descriptor=parse_descriptor(source, what, limit=limits.MAX_MANIFEST_BYTES),
        reference=fields.text(annotations, f"{_PREFIX}reference", what, None),
        name=fields.text(annotations, _REF_NAME, what, None),
        source_digest=fields.digest(annotations, f"{_PREFIX}source-digest", what),
        given=fields.text(annotations, f"{_PREFIX}given-name", what),
        stamp=fields.text(annotations, f"{_PREFIX}stamp", what),
        imported_at=fields.text(annotations, f"{_PREFIX}imported-at", what, None),
        admission=fields.text(annotations, f"{_PREFIX}admission", what),
        signatures=fields.text(annotations, f"{_PREFIX}signatures", what),
        tag=fields.text(annotations, f"{_PREFIX}tag", what),
    )


def parse(data: bytes, *, what: str) -> tuple[Entry, ...]:
    """Parse the store's index.json; raises StateError if it is damaged."""
    try:
        document = parse_object(data, what=what, limit=_MAX_INDEX_BYTES)
        members = fields.objects(document, "manifests", what, limit=_MAX_ENTRIES)
        found = (_entry(member, f"{what}, manifests[{number}]") for number, member in enumerate(members))
        return tuple(entry for entry in found if entry is not None)
    except ImageError as error:
        raise StateError(
            f"the image store is damaged: {error.message}",
            hint="move the images folder away and fetch again",
            code="state-image-store",
        ) from error
