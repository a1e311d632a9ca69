"""One image from the first of several places that has it: mirrors, then the registry itself."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import RegistryError
from secrun.image.blobs import BlobWriter
from secrun.image.manifest import Descriptor
from secrun.image.registry import RegistryClient
from secrun.image.source import Document

if TYPE_CHECKING:
    from secrun.trust.signatures import SignatureKind, SignatureSet


class MirroredSource:
    """Asks each place for the manifest; from where it came comes all the rest, signatures too."""

    def __init__(self, clients: Sequence[RegistryClient], note: Callable[[str], None]) -> None:
        self._clients = clients
        self._note = note
        self._chosen = clients[-1]

    @property
    def given(self) -> str:
        """Empty: the name in a registry is the reference itself."""
        return ""

    def root(self) -> Document:
        """Return the manifest or index of the first place that has it; the last one's error counts."""
        for client in self._clients[:-1]:
            try:
                document = client.root()
            except RegistryError as error:
                self._note(f"{error.message}; trying the next place")
                continue
            self._chosen = client
            return document
        self._chosen = self._clients[-1]
        return self._chosen.root()

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor."""
        return self._chosen.document(descriptor)

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Write a blob."""
        self._chosen.copy_blob(descriptor, writer)

    def signatures(self, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]) -> "SignatureSet":
        """Return the signatures that the chosen place has."""
        return self._chosen.signatures(kinds, digests)

    def abort(self) -> None:
        """End the downloads of other threads."""
        self._chosen.abort()
