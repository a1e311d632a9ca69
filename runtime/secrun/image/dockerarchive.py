"""Read an image from what `docker save`, `podman save` and skopeo's docker-archive: write.

manifest.json (moby, image/tarexport) names a config and layers by path. From these an OCI manifest is
made, the same bytes for the same image every time.
"""

import hashlib
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import ImageError, UsageError
from secrun.image import config as configs
from secrun.image import fields, limits
from secrun.image.blobs import BlobWriter
from secrun.image.files import ArchiveFiles
from secrun.image.manifest import Descriptor, LayerType, MediaType
from secrun.image.source import Document
from secrun.jsonio import JsonObject, JsonValue, canonical, parse_object
from secrun.record import record

if TYPE_CHECKING:
    from secrun.trust.signatures import SignatureKind, SignatureSet

# The document is a list; parse_object takes objects, so the list is read as the value of this key.
_WRAP = b'{"images":%s}'
_MAX_IMAGES = 1000
_MAX_TAGS = 1000
_MAGIC = {b"\x1f\x8b": LayerType.OCI_GZIP, b"\x28\xb5\x2f\xfd": LayerType.OCI_ZSTD}


@record
class ArchivedImage:
    """One image as manifest.json describes it."""

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]


def parse_manifest_json(data: bytes, *, what: str) -> tuple[ArchivedImage, ...]:
    """Parse manifest.json; raises ImageError."""
    limit = limits.MAX_ARCHIVE_MANIFEST_BYTES
    document = parse_object(_WRAP % data, what=what, limit=limit + len(_WRAP))
    if len(document) != 1:
        raise ImageError(f"{what} is not one JSON list", code="image-json")
    return tuple(
        ArchivedImage(
            config=_path(fields.text(item, "Config", what, None)),
            layers=tuple(
                _path(name) for name in fields.texts(item, "Layers", what, limit=limits.MAX_LAYERS)
            ),
            # A name that cannot be written in a reference is no name.
            tags=tuple(filter(_is_word, fields.texts(item, "RepoTags", what, limit=_MAX_TAGS))),
        )
        for item in fields.objects(document, "images", what, limit=_MAX_IMAGES)
    )


def _is_word(name: str) -> bool:
    return name.isprintable() and " " not in name


def _path(name: str) -> str:
    return posixpath.normpath(name)


def choose(images: Sequence[ArchivedImage], tag: str, *, what: str) -> ArchivedImage:
    """Return the image at `@position` or with the name `tag`, without one the only image."""
    if tag.startswith("@"):
        if int(tag[1:]) < len(images):
            return images[int(tag[1:])]
        raise UsageError(f"{what} has {len(images)} images, none at {tag}", code="usage-reference")
    wanted = _full_tag(tag)
    found = [image for image in images if not tag or wanted in map(_full_tag, image.tags)]
    if len(found) == 1:
        return found[0]
    names = ", ".join([name for image in images for name in image.tags][:20]) or "no names"
    raise UsageError(
        f"{what} has {len(found)} images{f' called {tag!r}' if tag else ''}, expected one; it has {names}",
        hint="append :NAME:TAG or :@POSITION",
        code="usage-reference",
    )


def names(files: ArchiveFiles, what: str) -> list[str]:
    """Return for each image of an archive its first name, else its position; raises ImageError."""
    data = files.read("manifest.json", limits.MAX_ARCHIVE_MANIFEST_BYTES)
    images = parse_manifest_json(data, what=f"{what}: manifest.json")
    return [image.tags[0] if image.tags else f"@{number}" for number, image in enumerate(images)]


def _full_tag(name: str) -> str:
    """Return a name as containers-transports(5) expands it, so that busybox and docker.io/... agree."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in first or ":" in first or first == "localhost"):
        name = f"docker.io/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class DockerArchiveSource:
    """One image of a docker-archive."""

    def __init__(self, files: ArchiveFiles, tag: str, *, what: str) -> None:
        self._files = files
        self._what = what
        data = files.read("manifest.json", limits.MAX_ARCHIVE_MANIFEST_BYTES)
        image = choose(parse_manifest_json(data, what=f"{what}: manifest.json"), tag, what=what)
        self._given = image.tags[0] if image.tags else ""
        self._blobs: dict[Digest, str] = {}
        self._manifest = self._make_manifest(image)

    def _make_manifest(self, image: ArchivedImage) -> Document:
        data = self._files.read(image.config, limits.MAX_CONFIG_BYTES)
        what = f"config of {self._what}"
        config = configs.parse(data, what=what)
        configs.check_against(config, len(image.layers), what=what)
        own = Descriptor(media_type=MediaType.OCI_CONFIG, digest=Digest.of(data), size=len(data))
        self._blobs[own.digest] = image.config
        layers = [
            self._layer(name, diff_id) for name, diff_id in zip(image.layers, config.diff_ids, strict=True)
        ]
        manifest: JsonObject = {
            "schemaVersion": 2,
            "mediaType": str(MediaType.OCI_MANIFEST),
            "config": _json(own),
            "layers": [_json(layer) for layer in layers],
        }
        return Document.of(canonical(manifest), MediaType.OCI_MANIFEST)

    def _layer(self, name: str, diff_id: Digest) -> Descriptor:
        """Describe a layer; a plain one has its diff_id as digest, and copying checks that."""
        head = self._files.head(name, 4)
        packed = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
        kind = packed or LayerType.OCI_TAR
        digest = self._hash(name) if packed else diff_id
        self._blobs[digest] = name
        return Descriptor(media_type=kind, digest=digest, size=self._files.size(name))

    def _hash(self, name: str) -> Digest:
        state = hashlib.sha256()
        self._files.feed(name, state.update)
        return Digest("sha256", state.hexdigest())

    @property
    def given(self) -> str:
        """The first name that manifest.json gives."""
        return self._given

    def root(self) -> Document:
        """Return the manifest made from manifest.json."""
        return self._manifest

    def document(self, descriptor: Descriptor) -> Document:
        """Raise ImageError: an archived image is no index."""
        raise ImageError(f"{self._what} has no manifest {descriptor.digest}", code="image-manifest")

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Copy the config or a layer."""
        self._files.copy(self._blobs[descriptor.digest], writer)

    def signatures(self, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]) -> "SignatureSet":
        """Return no signatures: an archive of this kind has no place for them."""
        from secrun.trust.signatures import SignatureSet

        del digests
        return SignatureSet(searched=tuple(kinds))

    def abort(self) -> None:
        """Do nothing: files do not make anybody wait."""


def _json(descriptor: Descriptor) -> JsonValue:
    return {
        "mediaType": str(descriptor.media_type),
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
