"""Where images come from: one protocol for registries, layouts and archives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.blobs import BlobWriter
from secrun.image.manifest import Descriptor
from secrun.record import record

if TYPE_CHECKING:
    from secrun.trust.signatures import SignatureKind, SignatureSet


@record
class Document:
    """The exact bytes of a manifest or index, the type that it came as, and its digest."""

    data: bytes
    media_type: str
    digest: Digest

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Self:
        """Digest `data`."""
        return cls(data=data, media_type=media_type, digest=Digest.of(data))

    def check_digest(self, expected: Digest, what: str) -> None:
        """Raise ImageError unless the bytes have the digest `expected`."""
        actual = expected.of_same_kind(self.data)
        if actual != expected:
            raise ImageError(
                f"{what} has digest {actual}, expected {expected}",
                hint="the source is broken or lies; nothing was stored",
                code="image-digest",
            )

    def checked(self, descriptor: Descriptor, what: str) -> Self:
        """Return this document if it is what `descriptor` promises; raises ImageError."""
        if len(self.data) != descriptor.size:
            raise ImageError(
                f"{what} has {len(self.data)} bytes, expected {descriptor.size}", code="image-size"
            )
        self.check_digest(descriptor.digest, what)
        return type(self)(data=self.data, media_type=descriptor.media_type, digest=descriptor.digest)


class ImageSource(Protocol):
    """What a fetch reads; one image reference has been chosen already."""

    @property
    def given(self) -> str:
        """What a layout or an archive calls the image; empty if nothing, and from a registry."""

    def root(self) -> Document:
        """Return the manifest or index that the reference names."""

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor; size and digest are checked."""

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Write a blob into `writer`, which checks size and digest."""

    def signatures(self, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]) -> "SignatureSet":
        """Return the signatures of the image with these digests: its manifest's and its index's."""

    def abort(self) -> None:
        """Make calls that wait in other threads fail soon; the source is of no use afterwards."""
