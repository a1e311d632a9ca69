"""Read an image from a folder of skopeo's dir: a manifest, blobs by their digits, OpenPGP signatures."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import limits
from secrun.image.blobs import BlobWriter
from secrun.image.files import FolderFiles, HeldFiles
from secrun.image.manifest import Descriptor
from secrun.image.source import Document
from secrun.trust import limits as trust_limits

if TYPE_CHECKING:
    from secrun.image.artifact import Referrer
    from secrun.trust.signatures import SignatureKind, SignatureSet

# containers/image, directory_dest.go: older versions of the form keep everything the same way.
_VERSION = b"Directory Transport Version: 1."


class DirSource:
    """One image in a folder."""

    def __init__(self, files: FolderFiles | HeldFiles, *, what: str) -> None:
        self._files = files
        self._what = what

    @property
    def given(self) -> str:
        """Empty: such a folder gives its image no name."""
        return ""

    def root(self) -> Document:
        """Return the manifest or index of the folder."""
        if not self._files.head("version", len(_VERSION)).startswith(_VERSION):
            raise ImageError(
                f"{self._what} is no folder of the form that skopeo writes", code="image-layout"
            )
        return Document.of(self._files.read("manifest.json", limits.MAX_MANIFEST_BYTES), "")

    def document(self, descriptor: Descriptor) -> Document:
        """Return a member of an index by its descriptor; size and digest are checked."""
        data = self._files.read(f"{descriptor.digest.hex}.manifest.json", limits.MAX_MANIFEST_BYTES)
        what = f"{self._what}: manifest {descriptor.digest}"
        return Document.of(data, descriptor.media_type).checked(descriptor, what)

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Copy a blob."""
        self._files.copy(descriptor.digest.hex, writer)

    def signatures(self, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]) -> "SignatureSet":
        """Return the signatures beside the image."""
        from secrun.image.attached import search

        return search(self, kinds, digests)

    def tagged(self, tag: str) -> Document | None:
        """Return nothing: the folder holds one image."""
        del tag
        return None

    def referrers(self, subject: Digest) -> "tuple[Referrer, ...]":
        """Return nothing: the folder holds one image."""
        del subject
        return ()

    def small_blob(self, descriptor: Descriptor) -> bytes:
        """Return a blob whose size was checked; raises ImageError if it is not what was promised."""
        data = self._files.read(descriptor.digest.hex, descriptor.size)
        return Document.of(data, "").checked(descriptor, f"{self._what}: blob {descriptor.digest}").data

    def messages(self, digest: Digest) -> Iterator[bytes]:
        """Yield the signatures of the folder's own manifest: signature-1 and so on."""
        if digest != self.root().digest:
            return
        for number in range(1, limits.MAX_MESSAGES + 1):
            name = f"signature-{number}"
            if not self._files.exists(name):
                return
            yield self._files.read(name, trust_limits.MAX_MESSAGE_BYTES)

    def abort(self) -> None:
        """Do nothing: files do not make anybody wait."""
