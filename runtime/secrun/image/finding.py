"""What a fetch asks of a source, whether it is read here or in a helper."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.image.manifest import Manifest
from secrun.image.platform import Platform
from secrun.image.remote import RemoteSource
from secrun.image.select import walk
from secrun.image.source import Document, ImageSource

if TYPE_CHECKING:
    from secrun.trust.signatures import SignatureKind


def walked(
    source: ImageSource, root: Document, wanted: Platform, *, what: str
) -> tuple[tuple[Document, ...], Manifest]:
    """Return the documents from `root` to the manifest for a platform, and what it names; raises ImageError.

    From a helper it is a claim that `facts.read` has to confirm.
    """
    if isinstance(source, RemoteSource):
        return source.walk(root, wanted, what=what)
    return walk(source, root, wanted, what=what)


def signature_bytes(
    source: ImageSource, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]
) -> bytes:
    """Return the signatures of an image as one document; raises RegistryError, ImageError."""
    if isinstance(source, RemoteSource):
        return source.signature_bytes(kinds, digests)
    return source.signatures(kinds, digests).to_bytes()
