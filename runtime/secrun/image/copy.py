"""Copy images from one place to another, with their signatures, and sign them where they are."""

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import UsageError
from secrun.image import facts, resolve, sources
from secrun.image import platform as platforms
from secrun.image import reference as references
from secrun.image.attach import encoded
from secrun.image.blobs import BlobWriter
from secrun.image.files import FolderFiles
from secrun.image.finding import walked
from secrun.image.layout import LayoutSource
from secrun.image.manifest import Descriptor, Index, Manifest
from secrun.image.options import FetchOptions
from secrun.image.reference import (
    FileReference,
    ImageReference,
    RegistryReference,
    StoredReference,
    Transport,
)
from secrun.image.source import Document, ImageSource
from secrun.image.store import ImageStore
from secrun.image.target import Target, open_target, tag_of
from secrun.paths import Layout
from secrun.record import record
from secrun.trust import cosign, payload
from secrun.trust.privatekey import SigningKey
from secrun.trust.signatures import Candidate, SignatureKind, SignatureSet

Place = RegistryReference | FileReference


@record
class Copied:
    """What was written: the digest of the image or index, and what was left out, in words."""

    digest: Digest
    notes: tuple[str, ...]


class _Source:
    """What is copied: the documents of an image or of all members of an index, and their signatures."""

    def __init__(self, source: ImageSource, root: Document, what: str) -> None:
        self._source = source
        self._what = what
        self.root = root

    def members(self) -> list[tuple[Document, Manifest]]:
        """Return every image: the one, or all of the index; raises ImageError."""
        (parsed,) = facts.understood([self.root], what=self._what)
        if isinstance(parsed, Manifest):
            return [(self.root, parsed)]
        documents = [self._source.document(item) for item in parsed.manifests]
        found: list[tuple[Document, Manifest]] = []
        for document, inner in zip(documents, facts.understood(documents, what=self._what), strict=True):
            if isinstance(inner, Index):
                raise UsageError(f"{self._what} is an index of indexes, which is not copied as a whole")
            found.append((document, inner))
        return found

    def blob(self, descriptor: Descriptor, scratch: Path) -> Path:
        """Bring a blob into a file and check it."""
        path = scratch / descriptor.digest.hex
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            writer = BlobWriter(fd, descriptor, counter=_Silent(), cancelled=threading.Event())
            self._source.copy_blob(descriptor, writer)
            writer.finish()
        finally:
            os.close(fd)
        return path


class _Silent:
    def advance(self, count: int) -> None:
        """Do nothing."""


def _copy_images(source: _Source, target: Target, scratch: Path, tag: str | None) -> list[Document]:
    """Copy every image and then the index; return all documents."""
    members = source.members()
    for document, parsed in members:
        for descriptor in (parsed.config, *parsed.layers):
            path = source.blob(descriptor, scratch)
            target.put_blob(descriptor, path)
            path.unlink()
        if document.digest != source.root.digest:
            target.put_manifest(document, None)
    target.put_manifest(source.root, tag)
    return [source.root, *(document for document, _ in members if document.digest != source.root.digest)]


def described(documents: Sequence[Document]) -> list[Descriptor]:
    """Return the descriptors of documents; raises ImageError."""
    return [
        Descriptor(media_type=str(parsed.media_type), digest=item.digest, size=len(item.data))
        for item, parsed in zip(documents, facts.understood(documents, what="the image"), strict=True)
    ]


@contextmanager
def _opened(layout: Layout, reference: ImageReference, options: FetchOptions) -> Iterator[ImageSource]:
    """Open a place, or what the store has under a name or ID."""
    if not isinstance(reference, StoredReference):
        with sources.open_source(reference, options) as source:
            yield source
        return
    store = ImageStore(layout)
    entry = resolve.newest(resolve.select(store.entries(), reference, options.platform))
    files = FolderFiles(layout.images, str(layout.images))
    yield LayoutSource(files, entry.name, what=str(reference))


def _stored_signatures(layout: Layout, reference: StoredReference, options: FetchOptions) -> SignatureSet:
    store = ImageStore(layout)
    entry = resolve.newest(resolve.select(store.entries(), reference, options.platform))
    return store.signatures(entry)


def copy(layout: Layout, source: str, target: str, options: FetchOptions) -> Copied:
    """Copy an image, or all images of an index, with signatures; raises what either side raises.

    From the store one image is copied; from elsewhere an index as a whole, unless a platform is given.
    """
    origin = references.localize(references.parse(source))
    place = destination(target)
    with (
        tempfile.TemporaryDirectory(prefix="secrun-copy-") as scratch,
        _opened(layout, origin, options) as opened,
        open_target(place, options) as written,
    ):
        root = opened.root()
        archived = isinstance(place, FileReference) and place.transport is Transport.DOCKER_ARCHIVE
        if options.platform is not None or archived:
            wanted = options.platform or platforms.host_platform()
            chain, _ = walked(opened, root, wanted, what=source)
            root = chain[-1]
        documents = _copy_images(_Source(opened, root, source), written, Path(scratch), tag_of(place))
        if archived:
            return Copied(digest=root.digest, notes=())
        if isinstance(origin, StoredReference):
            found = _stored_signatures(layout, origin, options)
        else:
            kinds = (SignatureKind.COSIGN, SignatureKind.BUNDLE, SignatureKind.NOTATION)
            found = opened.signatures(kinds, [item.digest for item in documents])
        notes = written.attach(described(documents), found.candidates)
        return Copied(digest=root.digest, notes=(*found.faults, *notes))


def destination(text: str, *, digest: bool = False) -> Place:
    """Parse where something is written to, or lies already if it may be a `digest`; raises UsageError."""
    place = references.localize(references.parse(text))
    if isinstance(place, StoredReference):
        raise UsageError(
            f"{text[:200]!r} is no place to write to", hint="write docker://REGISTRY/NAME:TAG or oci:DIR:TAG"
        )
    if isinstance(place, RegistryReference) and place.tag is None and not digest:
        raise UsageError(
            f"{text[:200]!r} has a digest instead of a tag", hint="write docker://REGISTRY/NAME:TAG"
        )
    if not isinstance(place, RegistryReference | FileReference):
        raise UsageError(f"{text[:200]!r} is no place to write to", hint="write docker:// or oci:DIR:TAG")
    return place


def sign(place: Place, key: SigningKey, options: FetchOptions, *, identity: str) -> list[Digest]:
    """Sign the image at a place, or the index and all its members; return what was signed.

    `identity` is the name that the signature is for; empty is the image's own.
    """
    with sources.open_source(place, options) as source, open_target(place, options) as target:
        found = _Source(source, source.root(), str(place))
        documents = {item.digest: item for item in (found.root, *(item for item, _ in found.members()))}
        candidates = [_signed(digest, key, identity or _name(place)) for digest in documents]
        target.attach(described([*documents.values()]), candidates)
        return list(documents)


def _name(place: Place) -> str:
    if isinstance(place, RegistryReference):
        return place.repository if place.digest else f"{place.repository}:{place.tag}"
    raise UsageError(
        f"{place} has no name in a registry, and a signature is for a name",
        hint="give the name it will be fetched by: --identity REGISTRY/NAME:TAG",
        code="usage-identity",
    )


def _signed(digest: Digest, key: SigningKey, identity: str) -> Candidate:
    from secrun import __version__

    said = payload.build(payload.COSIGN, digest, identity, creator=f"secrun {__version__}")
    return Candidate(
        kind=SignatureKind.COSIGN,
        subject=digest,
        payload=said,
        origin="secrun sign",
        annotations={cosign.SIGNATURE: encoded(key.sign(said))},
    )
