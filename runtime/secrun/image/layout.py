"""Read an image from an OCI image layout that somebody else made, a folder or an archive."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import ImageError, UsageError
from secrun.image import fields, limits
from secrun.image.blobs import BlobWriter
from secrun.image.files import Files
from secrun.image.manifest import Descriptor, parse_descriptor
from secrun.image.source import Document
from secrun.jsonio import JsonObject, parse_object

if TYPE_CHECKING:
    from secrun.image.artifact import Referrer
    from secrun.trust.signatures import SignatureKind, SignatureSet

_REF_NAME = "org.opencontainers.image.ref.name"
_MAX_MARKER_BYTES = 4096
# The tags of cosign's signatures, attestations and bills of materials, and of lists of referrers.
_ATTACHED_TAG = re.compile(r"sha256-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?\Z")


def choose(manifests: Sequence[tuple[str, Descriptor]], tag: str, what: str) -> Descriptor:
    """Return the entry called `tag`, without one the only entry; raises UsageError listing the tags."""
    found = [descriptor for name, descriptor in manifests if not tag or name == tag]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted({name for name, _ in manifests if name})[:20]) or "no tags"
    if not found:
        raise UsageError(f"{what} has no image {tag!r}; it has {names}", code="usage-reference")
    raise UsageError(
        f"{what} has {len(found)} images{f' called {tag!r}' if tag else ''}, expected one; it has {names}",
        hint="append :TAG",
        code="usage-reference",
    )


def _entries(document: JsonObject, what: str) -> list[tuple[str, Descriptor]]:
    result: list[tuple[str, Descriptor]] = []
    members = fields.objects(document, "manifests", what, limit=limits.MAX_ARCHIVE_MEMBERS)
    for number, item in enumerate(members):
        where = f"{what}, manifests[{number}]"
        name = fields.word(fields.mapping(item, "annotations", where), _REF_NAME, where)
        result.append((name, parse_descriptor(item, where, limit=limits.MAX_MANIFEST_BYTES)))
    return result


def _images(entries: list[tuple[str, Descriptor]]) -> list[tuple[str, Descriptor]]:
    """Leave out signatures and lists of referrers: they are no images, and never what a lone DIR means."""
    return [item for item in entries if not _ATTACHED_TAG.match(item[0])]


def names(files: Files, what: str) -> list[str]:
    """Return the name of each image of a layout, empty for one that has none; raises ImageError."""
    data = files.read("index.json", limits.MAX_LAYOUT_INDEX_BYTES)
    what = f"{what}: index.json"
    document = parse_object(data, what=what, limit=limits.MAX_LAYOUT_INDEX_BYTES)
    members = fields.objects(document, "manifests", what, limit=limits.MAX_ARCHIVE_MEMBERS)
    # Signatures that are listed as referrers have a type of their own, and no name.
    images = zip(_entries(document, what), members, strict=True)
    return [name for name, _ in _images([own for own, item in images if not item.get("artifactType")])]


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


class LayoutSource:
    """One image of a layout."""

    def __init__(self, files: Files, tag: str, *, what: str) -> None:
        self._files = files
        self._tag = tag
        self._what = what

    @property
    def given(self) -> str:
        """The tag that was asked for."""
        return self._tag

    def root(self) -> Document:
        """Return the manifest or index that the tag names."""
        what = f"{self._what}: oci-layout"
        marker = self._files.read("oci-layout", _MAX_MARKER_BYTES)
        document = parse_object(marker, what=what, limit=_MAX_MARKER_BYTES)
        version = fields.text(document, "imageLayoutVersion", what)
        if version != "1.0.0":
            raise ImageError(f"{what} says version {version[:40]!r}, expected 1.0.0", code="image-layout")
        what = f"{self._what}: index.json"
        return self.document(choose(_images(_entries(self._index(), what)), self._tag, self._what))

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor; size and digest are checked."""
        data = self._files.read(_blob(descriptor.digest), limits.MAX_MANIFEST_BYTES)
        return Document.of(data, descriptor.media_type).checked(
            descriptor, f"{self._what}: manifest {descriptor.digest}"
        )

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Copy a blob."""
        self._files.copy(_blob(descriptor.digest), writer)

    def _index(self) -> JsonObject:
        data = self._files.read("index.json", limits.MAX_LAYOUT_INDEX_BYTES)
        return parse_object(data, what=f"{self._what}: index.json", limit=limits.MAX_LAYOUT_INDEX_BYTES)

    def signatures(self, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]) -> "SignatureSet":
        """Return the signatures that the layout has of the image with these digests."""
        from secrun.image.attached import search

        return search(self, kinds, digests)

    def tagged(self, tag: str) -> Document | None:
        """Return the manifest that index.json calls `tag`, None if there is none; the last one counts."""
        what = f"{self._what}: index.json"
        named = [item for name, item in _entries(self._index(), what) if name == tag]
        return self.document(named[-1]) if named else None

    def referrers(self, subject: Digest) -> "tuple[Referrer, ...]":
        """Return the artifacts in index.json, and those in the index that stands for referrers."""
        from secrun.image import artifact, attached

        what = f"{self._what}: index.json"
        listed = artifact.referrers_of(self._index(), what=what, limit=limits.MAX_ARCHIVE_MEMBERS)
        fallback = self.tagged(attached.fallback_tag(subject))
        more = artifact.parse_referrers(fallback.data, what=what) if fallback else ()
        found = {item.descriptor.digest: item for item in (*listed, *more) if item.artifact_type}
        about = (item for item in found.values() if self._subject(item.descriptor) == subject)
        return tuple(about)

    def _subject(self, descriptor: Descriptor) -> Digest | None:
        """Return what an artifact of the layout is about; index.json lists those of other images too."""
        from secrun.image import artifact

        return artifact.parse(self.document(descriptor).data, what=f"{descriptor.digest}").subject

    def small_blob(self, descriptor: Descriptor) -> bytes:
        """Return a blob whose size was checked; raises ImageError if it is not what was promised."""
        data = self._files.read(_blob(descriptor.digest), descriptor.size)
        return Document.of(data, "").checked(descriptor, f"{self._what}: blob {descriptor.digest}").data

    def messages(self, digest: Digest) -> Iterable[bytes]:
        """Return nothing: a layout has no place for OpenPGP signatures."""
        del digest
        return ()

    def abort(self) -> None:
        """Do nothing: files do not make anybody wait."""
