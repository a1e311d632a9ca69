"""Read an image from an OCI image layout folder that somebody else made."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import ImageError, UsageError
from secrun.image import fields, limits
from secrun.image.blobs import BlobWriter
from secrun.image.manifest import Descriptor, parse_descriptor
from secrun.image.reference import FileReference
from secrun.image.source import Document
from secrun.jsonio import JsonObject, parse_object

_REF_NAME = "org.opencontainers.image.ref.name"


def _open_regular(path: Path, what: str) -> int:
    """Open a regular file; a FIFO or a device would block or have no end, a link may lead anywhere."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ImageError(f"{what}: {path} does not exist", code="image-layout") from error
    except OSError as error:
        raise ImageError(f"{what}: {path}: {error.strerror}", code="image-layout") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{what}: {path} is not a regular file", code="image-layout")
    return fd


def read_bounded(path: Path, limit: int, what: str) -> bytes:
    """Read a regular file of at most `limit` bytes; raises ImageError."""
    with os.fdopen(_open_regular(path, what), "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise ImageError(f"{what}: {path} is larger than {limit} bytes", code="image-limit")
    return data


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
    for number, item in enumerate(
        fields.objects(document, "manifests", what, limit=limits.MAX_ARCHIVE_MEMBERS)
    ):
        where = f"{what}, manifests[{number}]"
        name = fields.text(fields.mapping(item, "annotations", where), _REF_NAME, where)
        result.append((name, parse_descriptor(item, where, limit=limits.MAX_MANIFEST_BYTES)))
    return result


class LayoutSource:
    """One image of the layout `directory`."""

    def __init__(self, directory: Path, tag: str, *, what: str) -> None:
        self._directory = directory
        self._tag = tag
        self._what = what

    @classmethod
    def of(cls, reference: FileReference) -> "LayoutSource":
        """Return the source of a localized oci: reference."""
        return cls(Path(reference.path), reference.tag, what=str(reference))

    def root(self) -> Document:
        """Return the manifest or index that the tag names."""
        marker = read_bounded(self._directory / "oci-layout", limits.MAX_AUTH_BYTES, self._what)
        version = fields.text(
            parse_object(marker, what=f"{self._what}: oci-layout", limit=limits.MAX_AUTH_BYTES),
            "imageLayoutVersion",
            self._what,
        )
        if version != "1.0.0":
            raise ImageError(f"{self._what} has layout version {version[:40]!r}, expected 1.0.0")
        what = f"{self._what}: index.json"
        data = read_bounded(self._directory / "index.json", limits.MAX_LAYOUT_INDEX_BYTES, self._what)
        document = parse_object(data, what=what, limit=limits.MAX_LAYOUT_INDEX_BYTES)
        return self.document(choose(_entries(document, what), self._tag, self._what))

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor; size and digest are checked."""
        data = read_bounded(self._blob(descriptor.digest), limits.MAX_MANIFEST_BYTES, self._what)
        return Document.of(data, descriptor.media_type).checked(
            descriptor, f"{self._what}: manifest {descriptor.digest}"
        )

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Copy a blob."""
        fd = _open_regular(self._blob(descriptor.digest), self._what)
        try:
            while chunk := os.read(fd, limits.CHUNK_BYTES):
                writer.write(chunk)
        finally:
            os.close(fd)

    def _blob(self, digest: Digest) -> Path:
        return self._directory / "blobs" / digest.algorithm / digest.hex
