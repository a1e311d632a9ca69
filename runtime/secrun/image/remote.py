"""Root's side of a helper: sources and targets whose work is done elsewhere.

What comes back is bytes, which are digested and not parsed, and small records with nothing in them but words
of known forms. Nobody else can write to the files that blobs are written to.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import facts, fields, limits, serving
from secrun.image.blobs import BlobWriter
from secrun.image.frames import Frame, Kind
from secrun.image.helper import WHO, Helper, Work, start
from secrun.image.manifest import Descriptor, Manifest, descriptor_document
from secrun.image.options import FetchOptions
from secrun.image.platform import Platform
from secrun.image.progress import Progress
from secrun.image.reference import FileReference, RegistryReference
from secrun.image.reported import shown
from secrun.image.source import Document
from secrun.jsonio import JsonObject

if TYPE_CHECKING:
    from secrun.trust.signatures import Candidate, SignatureKind, SignatureSet

_WHAT = f"answer of {WHO}"
_MAX_NOTES = 20


class RemoteSource:
    """An image source in a helper."""

    def __init__(self, helper: Helper, progress: Progress) -> None:
        self._helper = helper
        self._progress = progress
        self._given = ""

    @property
    def given(self) -> str:
        """What a layout or an archive calls the image; known with `root`."""
        return self._given

    def _ask(self, name: str, request: JsonObject) -> tuple[JsonObject, list[bytes]]:
        found: list[bytes] = []

        def take(frame: Frame) -> None:
            if frame.kind is not Kind.BYTES or len(found) > limits.MAX_INDEX_DEPTH:
                raise ImageError(f"{WHO} sent what was not asked for", code="image-worker")
            found.append(frame.data)

        return self._helper.call(name, request, take=take), found

    def _documents(self, answer: JsonObject, found: Sequence[bytes]) -> tuple[Document, ...]:
        types = fields.texts(answer, "types", _WHAT, limit=limits.MAX_INDEX_DEPTH + 1)
        if len(types) != len(found) or any(len(data) > limits.MAX_MANIFEST_BYTES for data in found):
            raise ImageError(f"{WHO} sent too much or too little", code="image-worker")
        return tuple(
            Document.of(data, shown(kind)[:_MAX_TYPE]) for data, kind in zip(found, types, strict=True)
        )

    def root(self) -> Document:
        """Return the manifest or index that the reference names."""
        answer, found = self._ask("root", {})
        self._given = shown(fields.text(answer, "given", _WHAT))
        for note in fields.texts(answer, "notes", _WHAT, limit=_MAX_NOTES):
            self._progress.note(shown(note))
        (document,) = self._documents(answer, found)
        return document

    def walk(self, root: Document, wanted: Platform, *, what: str) -> tuple[tuple[Document, ...], Manifest]:
        """Return the documents from `root` to the manifest for `wanted`, and what it is said to name.

        Nothing of that is believed: `facts.read` walks the same way over these bytes.
        """
        answer, found = self._ask("walk", {"platform": str(wanted), "what": what})
        chain = (root, *self._documents(answer, found))
        return chain, facts.manifest_of(fields.mapping(answer, "manifest", _WHAT), what)

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor; size and digest are checked."""
        answer, found = self._ask("document", {"descriptor": descriptor_document(descriptor)})
        (document,) = self._documents(answer, found)
        return document.checked(descriptor, f"manifest {descriptor.digest}")

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Write a blob into `writer`, which checks size and digest."""

        def take(frame: Frame) -> None:
            if frame.kind is Kind.CHUNK:
                writer.write(frame.data)
            elif frame.kind is Kind.RESTART:
                writer.restart()
            else:
                raise ImageError(f"{WHO} sent what was not asked for", code="image-worker")

        self._helper.call("blob", {"descriptor": descriptor_document(descriptor)}, take=take)

    def signature_bytes(self, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]) -> bytes:
        """Return the signatures as one document that nobody has parsed."""
        request: JsonObject = {
            "kinds": [str(item) for item in kinds],
            "digests": [str(item) for item in digests],
        }
        _, found = self._ask("signatures", request)
        (document,) = found
        return document

    def signatures(self, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]) -> "SignatureSet":
        """Return the signatures of the image with these digests, as candidates for another place."""
        from secrun.trust.signatures import SignatureSet

        return SignatureSet.from_bytes(self.signature_bytes(kinds, digests))

    def abort(self) -> None:
        """Make calls that wait in other threads fail now."""
        self._helper.kill()


# No media type of an image is a third as long.
_MAX_TYPE = 300


class RemoteTarget:
    """A repository that a helper writes to."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def put_blob(self, descriptor: Descriptor, path: Path) -> None:
        """Hand the helper an open file."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._helper.call("put-blob", {"descriptor": descriptor_document(descriptor)}, fd=fd)
        finally:
            os.close(fd)

    def put_manifest(self, document: Document, tag: str | None, *, kind: str = "") -> bool:
        """Upload a manifest."""
        del kind
        request: JsonObject = {"type": document.media_type, "tag": tag}
        answer = self._helper.call("put-manifest", request, data=document.data)
        return answer.get("listed") is True

    def attach(self, subjects: Sequence[Descriptor], candidates: "Sequence[Candidate]") -> list[str]:
        """Upload signatures."""
        from secrun.trust.signatures import SignatureSet

        request: JsonObject = {"subjects": [descriptor_document(item) for item in subjects]}
        data = SignatureSet(candidates=tuple(candidates)).to_bytes()
        answer = self._helper.call("attach", request, data=data)
        return [shown(item) for item in fields.texts(answer, "notes", _WHAT, limit=limits.MAX_LAYERS)]


@contextmanager
def running(work: Work) -> Iterator[Helper]:
    """Yield a helper that does this work, and end it afterwards."""
    helper = start(work)
    try:
        yield helper
    finally:
        helper.close()


@contextmanager
def remote_source(
    reference: RegistryReference | FileReference, options: FetchOptions
) -> Iterator[RemoteSource]:
    """Yield a source that a helper reads."""
    if isinstance(reference, RegistryReference):
        work = serving.from_registry(reference, options)
    else:
        work = serving.from_files(reference)
    with running(work) as helper:
        yield RemoteSource(helper, options.progress)


@contextmanager
def remote_target(reference: RegistryReference, options: FetchOptions) -> Iterator[RemoteTarget]:
    """Yield a repository that a helper writes to."""
    with running(serving.to_registry(reference, options)) as helper:
        yield RemoteTarget(helper)
