"""Read an image from an OCI image layout that somebody else made, a folder or an archive."""

from collections.abc import Sequence

from secrun.digest import Digest
from secrun.errors import ImageError, UsageError
from secrun.image import fields, limits
from secrun.image.blobs import BlobWriter
from secrun.image.files import Files
from secrun.image.manifest import Descriptor, parse_descriptor
from secrun.image.source import Document
from secrun.jsonio import JsonObject, parse_object

_REF_NAME = "org.opencontainers.image.ref.name"
_MAX_MARKER_BYTES = 4096


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
        data = self._files.read("index.json", limits.MAX_LAYOUT_INDEX_BYTES)
        document = parse_object(data, what=what, limit=limits.MAX_LAYOUT_INDEX_BYTES)
        return self.document(choose(_entries(document, what), self._tag, self._what))

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor; size and digest are checked."""
        data = self._files.read(_blob(descriptor.digest), limits.MAX_MANIFEST_BYTES)
        return Document.of(data, descriptor.media_type).checked(
            descriptor, f"{self._what}: manifest {descriptor.digest}"
        )

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Copy a blob."""
        self._files.copy(_blob(descriptor.digest), writer)

    def abort(self) -> None:
        """Do nothing: files do not make anybody wait."""
