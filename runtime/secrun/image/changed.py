"""An image of an app that ran: the layers of its image, and one more with what it changed."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import StateError
from secrun.image import apart, archive, fields, limits
from secrun.image.archive import Blob
from secrun.image.manifest import (
    Descriptor,
    LayerType,
    Manifest,
    MediaType,
    descriptor_document,
    to_document,
)
from secrun.image.store import ImageStore
from secrun.jsonio import JsonObject, JsonValue, canonical, parse_object
from secrun.record import record, replace

if TYPE_CHECKING:
    from typing import BinaryIO

# The same bytes under the name that OCI has for them (image-spec 1.1, media-types.md, compatibility matrix).
_OCI_TYPES = {
    LayerType.DOCKER_TAR: LayerType.OCI_TAR,
    LayerType.DOCKER_GZIP: LayerType.OCI_GZIP,
    LayerType.DOCKER_ZSTD: LayerType.OCI_ZSTD,
}
_BASE_DIGEST = "org.opencontainers.image.base.digest"
_BASE_NAME = "org.opencontainers.image.base.name"


@record
class Base:
    """What an app was started from, and when it ended (nanoseconds since the epoch)."""

    manifest: Digest
    reference: str
    ended_ns: int


def _config(data: bytes, layer: Digest, base: Base) -> bytes:
    """Return a configuration with one more layer; parses what a stranger wrote, for root without rights."""
    what = f"config of {base.reference}"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(base.ended_ns // 1_000_000_000))

    def body() -> JsonObject:
        document = parse_object(data, what=what, limit=limits.MAX_CONFIG_BYTES)
        rootfs = fields.mapping(document, "rootfs", what)
        known: list[JsonValue] = [*fields.texts(rootfs, "diff_ids", what, limit=limits.MAX_LAYERS)]
        changed: JsonObject = {
            **document,
            "created": stamp,
            "rootfs": {"type": "layers", "diff_ids": [*known, str(layer)]},
        }
        if (history := document.get("history")) is not None:
            past = history if isinstance(history, list) else []
            changed["history"] = [*past, {"created": stamp, "created_by": "secrun export"}]
        return changed

    return canonical(apart.run(body, lambda: None))


def write(store: ImageStore, base: Base, layer: Path, out: "BinaryIO") -> Digest:
    """Write an OCI archive of the one image to `out`; return its manifest's digest.

    `layer` is a tar without compression. Raises StateError if the image is not stored any more, ImageError
    if it is damaged; forks.
    """
    known = store.facts(base.manifest)
    if known is None:
        raise StateError(
            f"image {base.reference} ({base.manifest.hex[:12]}) is not stored any more",
            hint=f"fetch it again: secrun fetch {base.reference}",
            code="state-image-missing",
        )
    if len(known.manifest.layers) >= limits.MAX_LAYERS:
        raise StateError(f"image {base.reference} has no room for one more layer", code="state-image-layers")
    top = _blob_of(layer)
    what = f"config of {base.reference}"
    data = store.read(known.manifest.config, what=what)
    config = archive.small(_config(data, top.digest, base))
    manifest, blobs = _manifest(known.manifest, config, top)
    document = archive.small(canonical({**to_document(manifest), "annotations": _annotations(base)}))
    listed = Descriptor(
        media_type=str(MediaType.OCI_MANIFEST),
        digest=document.digest,
        size=document.size,
        platform=known.config.platform,
    )
    index: JsonObject = {"schemaVersion": 2, "manifests": [descriptor_document(listed)]}
    lower = [archive.stored(store, item) for item in known.manifest.layers]
    archive.write(out, index, [document, *blobs, *lower])
    return document.digest


def _annotations(base: Base) -> JsonObject:
    return {_BASE_DIGEST: str(base.manifest), _BASE_NAME: base.reference}


def _blob_of(path: Path) -> Blob:
    import hashlib

    with path.open("rb") as stream:
        digest = Digest("sha256", hashlib.file_digest(stream, "sha256").hexdigest())
        return Blob(digest=digest, size=os.fstat(stream.fileno()).st_size, path=path)


def _manifest(old: Manifest, config: Blob, top: Blob) -> tuple[Manifest, list[Blob]]:
    """Return the manifest with one more layer, and the blobs that are new."""
    lower = tuple(
        replace(item, media_type=str(_OCI_TYPES.get(kind := old.layer_type(number), kind)))
        for number, item in enumerate(old.layers)
    )
    layer = Descriptor(media_type=str(LayerType.OCI_TAR), digest=top.digest, size=top.size)
    described = Descriptor(media_type=str(MediaType.OCI_CONFIG), digest=config.digest, size=config.size)
    made = Manifest(media_type=MediaType.OCI_MANIFEST, config=described, layers=(*lower, layer))
    return made, [config, top]
