"""What secrun knows of an image: its manifest and config, read once, by a process without rights.

Root never parses the documents themselves. It reads the record that was made of them, in a form of secrun's
own, and holds it against the bytes: each digest that the record names must stand in them.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import ImageError, StateError
from secrun.image import apart, fields, limits
from secrun.image import config as configs
from secrun.image import manifest as manifests
from secrun.image.config import ImageConfig
from secrun.image.manifest import Descriptor, Index, Manifest
from secrun.image.platform import Platform
from secrun.jsonio import JsonObject, JsonValue, canonical, parse_object
from secrun.record import record

if TYPE_CHECKING:
    from secrun.image.source import Document

SCHEMA = "secrun.dev/image-facts/v1"
# The least form of a manifest and a config is no larger than both can be.
MAX_BYTES = limits.MAX_MANIFEST_BYTES + limits.MAX_CONFIG_BYTES


@record
class ImageFacts:
    """A manifest and its config."""

    manifest: Manifest
    config: ImageConfig

    def to_json(self) -> JsonObject:
        """Return the record."""
        return {
            "schema": SCHEMA,
            "manifest": manifests.to_document(self.manifest),
            "config": configs.to_document(self.config),
        }

    def to_bytes(self) -> bytes:
        """Return the record as it is stored, with its digest: a damaged disk must not change an image."""
        data = canonical(self.to_json())
        return data + f"\n{Digest.of(data)}\n".encode()


def of_record(document: JsonObject, what: str) -> ImageFacts:
    """Parse a record; raises ImageError."""
    if document.get("schema") != SCHEMA:
        raise ImageError(f"{what} is no record of an image", code="image-facts")
    manifest = manifest_of(fields.mapping(document, "manifest", what), what)
    config = configs.of_document(fields.mapping(document, "config", what), what=what)
    configs.check_against(config, len(manifest.layers), what=what)
    return ImageFacts(manifest=manifest, config=config)


def of_bytes(data: bytes, what: str) -> ImageFacts:
    """Parse a stored record; raises StateError if it is damaged."""
    text, _, digest = data.rstrip(b"\n").rpartition(b"\n")
    try:
        Digest.parse(digest.decode("ascii", "replace")).check(text, what)
        return of_record(parse_object(text, what=what, limit=MAX_BYTES), what)
    except ImageError as error:
        raise StateError(
            f"the record of {what} is damaged: {error.message}",
            hint="remove the image (secrun image rm) and fetch it again",
            code="state-image-store",
        ) from error


def manifest_of(document: JsonObject, what: str) -> Manifest:
    """Read the least form of a manifest; raises ImageError also for an index."""
    parsed = manifests.of_document(document, "", what=what)
    if isinstance(parsed, Index):
        raise ImageError(f"{what} is an index, expected one image", code="image-manifest")
    return parsed


class _Chain:
    """Documents that are at hand, as a source to choose from."""

    def __init__(self, documents: "Sequence[Document]") -> None:
        self._documents = {item.digest: item for item in documents}

    def document(self, descriptor: Descriptor) -> "Document":
        found = self._documents.get(descriptor.digest)
        if found is None:
            raise ImageError(
                f"the source offers another image than its index names: {descriptor.digest}",
                code="image-digest",
            )
        return found.checked(descriptor, f"manifest {descriptor.digest}")


def _preload() -> None:
    import hashlib  # noqa: F401 - what the bodies below import, while there are files

    from secrun.image import select  # noqa: F401


def read(chain: "Sequence[Document]", config: bytes, platform: Platform, *, what: str) -> ImageFacts:
    """Choose from the first document along the chain to the last, and read that image; raises ImageError.

    What names the next is held against its digest on the way, by the reader and, word for word, by us.
    """

    def body() -> JsonObject:
        from secrun.image.select import select_manifest

        document, manifest = select_manifest(_Chain(chain), chain[0], platform, what=what)
        if document.digest != chain[-1].digest:
            raise ImageError(f"{what}: the source chose another image than asked for", code="image-digest")
        return _facts(manifest, config, what).to_json()

    return _held(of_record(apart.run(body, _preload), what), chain, config, what)


def again(document: "Document", find: Callable[[Descriptor], bytes], *, what: str) -> ImageFacts:
    """Read a stored image whose record is missing; raises ImageError and what `find` raises.

    `find` returns a blob of the store.
    """
    (parsed,) = understood([document], what=what)
    if isinstance(parsed, Index):
        raise ImageError(f"{what} is an index, expected one image", code="image-manifest")
    data = find(parsed.config)

    def body() -> JsonObject:
        parsed = manifests.parse_manifest(document.data, document.media_type, what=what)
        return _facts(parsed, data, what).to_json()

    return _held(of_record(apart.run(body, _preload), what), (document,), data, what)


def _facts(manifest: Manifest, config: bytes, what: str) -> ImageFacts:
    """Parse a config that belongs to a manifest."""
    where = f"config of {what}"
    if (
        len(config) != manifest.config.size
        or manifest.config.digest.of_same_kind(config) != manifest.config.digest
    ):
        raise ImageError(f"{where} is not the one that the manifest names", code="image-digest")
    parsed = configs.parse(config, what=where)
    configs.check_against(parsed, len(manifest.layers), what=where)
    return ImageFacts(manifest=manifest, config=parsed)


def _held(found: ImageFacts, chain: "Sequence[Document]", config: bytes, what: str) -> ImageFacts:
    """Hold a record against the bytes: no digest may come from elsewhere; raises ImageError."""
    for outer, inner in itertools.pairwise(chain):
        _stand([inner.digest], outer.data, what)
    own = found.manifest
    _stand([own.config.digest], chain[-1].data, what)
    _stand([item.digest for item in own.layers], chain[-1].data, what)
    _stand(found.config.diff_ids, config, what)
    if own.config.digest.of_same_kind(config) != own.config.digest:
        raise ImageError(f"{what}: the config is not the one that was read", code="image-digest")
    return found


def _stand(digests: Sequence[Digest], data: bytes, what: str) -> None:
    """Raise ImageError unless `digests` are written in a document, in this order."""
    position = 0
    for digest in digests:
        position = data.find(f'"{digest}"'.encode(), position) + 1
        if not position:
            raise ImageError(
                f"{what}: {digest} is not written in the document that is said to name it",
                hint="digests must be written plainly, without JSON escapes",
                code="image-digest",
            )


def understood(documents: "Sequence[Document]", *, what: str) -> list[Manifest | Index]:
    """Read manifests and indexes that are only passed on; raises ImageError."""

    def body() -> JsonObject:
        parsed: list[JsonValue] = [
            manifests.to_document(manifests.parse(item.data, item.media_type, what=what))
            for item in documents
        ]
        return {"documents": parsed}

    members = fields.objects(
        apart.run(body, _preload), "documents", what, limit=limits.MAX_INDEX_ENTRIES + 1
    )
    if len(members) != len(documents):
        raise ImageError(f"{what}: not every document was read", code="image-worker")
    return [manifests.of_document(item, "", what=what) for item in members]
