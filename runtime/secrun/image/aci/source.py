"""An app container image as a source of the OCI image that it becomes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import limits
from secrun.image.aci.oci import Converted
from secrun.image.blobs import BlobWriter
from secrun.image.manifest import Descriptor, MediaType
from secrun.image.source import Document
from secrun.trust.signatures import SignatureKind, SignatureSet


class AciSource:
    """A converted image: its configuration in memory, its layers in files."""

    def __init__(
        self,
        converted: Converted,
        layers: Mapping[Digest, Path],
        signatures: SignatureSet,
        *,
        given: str,
        what: str,
    ) -> None:
        self._converted = converted
        self._layers = layers
        self._signatures = signatures
        self._given = given
        self._what = what

    @property
    def given(self) -> str:
        """The image's own name, and its version behind a colon."""
        return self._given

    def root(self) -> Document:
        """Return the manifest that the image was converted to."""
        return Document.of(self._converted.manifest, MediaType.OCI_MANIFEST)

    def document(self, descriptor: Descriptor) -> Document:
        """Raise ImageError: the image is no index."""
        raise ImageError(f"{self._what} has no manifest {descriptor.digest}", code="image-manifest")

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Copy the configuration or a layer."""
        if descriptor.digest == self._converted.config_descriptor.digest:
            writer.write(self._converted.config)
            return
        fd = os.open(self._layers[descriptor.digest], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            while chunk := os.read(fd, limits.CHUNK_BYTES):
                writer.write(chunk)
        finally:
            os.close(fd)

    def signatures(self, kinds: Sequence[SignatureKind], digests: Sequence[Digest]) -> SignatureSet:
        """Return the signature that lay beside the file, if it was one by a key that counts."""
        del kinds, digests
        return self._signatures

    def abort(self) -> None:
        """Do nothing: files do not make anybody wait."""
