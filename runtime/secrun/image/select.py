"""From what a reference names to the one manifest of a platform, through indexes."""

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import limits, manifest
from secrun.image.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Index, Manifest
from secrun.image.platform import Platform, choose
from secrun.image.source import Document, ImageSource


def _member(index: Index, wanted: Platform, what: str) -> Descriptor:
    """Return the index's member for a platform."""
    candidates = [item for item in index.manifests if item.media_type in MANIFEST_TYPES | INDEX_TYPES]
    unnamed = [item for item in candidates if item.platform is None]
    # An index of one image often does not say its platform; its config will.
    if len(unnamed) == 1 and len(candidates) == 1:
        return unnamed[0]
    return candidates[choose(wanted, [item.platform for item in candidates], what=what)]


def select_manifest(
    source: ImageSource, root: Document, wanted: Platform, *, what: str
) -> tuple[Document, Manifest]:
    """Return the manifest for `wanted`; raises ImageError for loops, deep nesting and missing platforms."""
    document = root
    seen: set[Digest] = set()
    for _ in range(limits.MAX_INDEX_DEPTH + 1):
        if document.digest in seen:
            raise ImageError(f"{what}: index {document.digest} contains itself", code="image-index-loop")
        seen.add(document.digest)
        parsed = manifest.parse(document.data, document.media_type, what=f"{what} ({document.digest})")
        if isinstance(parsed, Manifest):
            return document, parsed
        member = _member(parsed, wanted, what)
        if member.digest in seen:
            raise ImageError(f"{what}: index {document.digest} contains itself", code="image-index-loop")
        document = source.document(member)
    raise ImageError(
        f"{what}: indexes nest deeper than {limits.MAX_INDEX_DEPTH} levels", code="image-index-depth"
    )
