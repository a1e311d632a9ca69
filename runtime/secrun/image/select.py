"""From what a reference names to the one manifest of a platform, through indexes."""

from typing import Protocol

from secrun.errors import ImageError
from secrun.image import limits, manifest
from secrun.image.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Index, Manifest
from secrun.image.platform import Platform, choose
from secrun.image.source import Document


def _member(index: Index, wanted: Platform, what: str) -> Descriptor:
    """Return the index's member for a platform."""
    candidates = [item for item in index.manifests if item.media_type in MANIFEST_TYPES | INDEX_TYPES]
    unnamed = [item for item in candidates if item.platform is None]
    # An index of one image often does not say its platform; its config will.
    if len(unnamed) == 1 and len(candidates) == 1:
        return unnamed[0]
    return candidates[choose(wanted, [item.platform for item in candidates], what=what)]


class Documents(Protocol):
    """Where members of an index are."""

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor; size and digest are checked."""


def walk(
    source: Documents, root: Document, wanted: Platform, *, what: str
) -> tuple[tuple[Document, ...], Manifest]:
    """Return all documents from `root` to the manifest for `wanted`, and that manifest.

    Raises ImageError for loops, deep nesting and missing platforms.
    """
    chain = [root]
    for _ in range(limits.MAX_INDEX_DEPTH + 1):
        document = chain[-1]
        parsed = manifest.parse(document.data, document.media_type, what=f"{what} ({document.digest})")
        if isinstance(parsed, Manifest):
            return tuple(chain), parsed
        member = _member(parsed, wanted, what)
        if member.digest in {item.digest for item in chain}:
            raise ImageError(f"{what}: index {document.digest} contains itself", code="image-index-loop")
        chain.append(source.document(member))
    raise ImageError(
        f"{what}: indexes nest deeper than {limits.MAX_INDEX_DEPTH} levels", code="image-index-depth"
    )


def select_manifest(
    source: Documents, root: Document, wanted: Platform, *, what: str
) -> tuple[Document, Manifest]:
    """Return the manifest for `wanted`; raises ImageError for loops, deep nesting and missing platforms."""
    chain, found = walk(source, root, wanted, what=what)
    return chain[-1], found
