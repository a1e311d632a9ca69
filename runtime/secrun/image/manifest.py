"""Manifests and indexes: OCI image-spec 1.1 and Docker schema 2, parsed strictly into values."""

from enum import StrEnum

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import fields, limits
from secrun.image.platform import Platform
from secrun.jsonio import JsonObject, JsonValue, parse_object
from secrun.record import record


class MediaType(StrEnum):
    """Documents that describe images."""

    OCI_INDEX = "application/vnd.oci.image.index.v1+json"
    OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
    OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
    DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
    DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
    DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"


class LayerType(StrEnum):
    """Layers that secrun can flatten."""

    OCI_TAR = "application/vnd.oci.image.layer.v1.tar"
    OCI_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
    OCI_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
    DOCKER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
    DOCKER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    DOCKER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"


INDEX_TYPES = frozenset({MediaType.OCI_INDEX, MediaType.DOCKER_LIST})
MANIFEST_TYPES = frozenset({MediaType.OCI_MANIFEST, MediaType.DOCKER_MANIFEST})
_CONFIG_TYPES = frozenset({MediaType.OCI_CONFIG, MediaType.DOCKER_CONFIG})
_SCHEMA1_PREFIX = "application/vnd.docker.distribution.manifest.v1+"
ACCEPT = tuple(sorted(INDEX_TYPES | MANIFEST_TYPES))


@record
class Descriptor:
    """What another document promises about a blob; `size` in bytes."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None


@record
class Manifest:
    """One image: its config and its layers, lowest first."""

    media_type: MediaType
    config: Descriptor
    layers: tuple[Descriptor, ...]

    def layer_type(self, number: int) -> LayerType:
        """Return the type of a layer; parsing has let none through that has no type."""
        return LayerType(self.layers[number].media_type)


@record
class Index:
    """A list of manifests, one per platform; a member may be an index again."""

    media_type: MediaType
    manifests: tuple[Descriptor, ...]


def _platform(source: JsonObject, what: str) -> Platform | None:
    if source.get("platform") is None:
        return None
    words = fields.mapping(source, "platform", what)
    return Platform(
        os=fields.word(words, "os", what),
        architecture=fields.word(words, "architecture", what),
        variant=fields.word(words, "variant", what),
    )


def parse_descriptor(source: JsonObject, what: str, *, limit: int) -> Descriptor:
    """Parse a descriptor whose blob may have at most `limit` bytes; its `urls` and `data` are not used."""
    return Descriptor(
        media_type=fields.text(source, "mediaType", what, None),
        digest=fields.digest(source, "digest", what),
        size=fields.integer(source, "size", what, limit=limit),
        platform=_platform(source, what),
    )


def descriptor_document(descriptor: Descriptor) -> JsonObject:
    """Return a descriptor as documents hold it."""
    result: JsonObject = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.platform is not None:
        platform: JsonObject = {
            "architecture": descriptor.platform.architecture,
            "os": descriptor.platform.os,
        }
        if descriptor.platform.variant:
            platform["variant"] = descriptor.platform.variant
        result["platform"] = platform
    return result


def to_document(parsed: Manifest | Index) -> JsonObject:
    """Return the least document that `of_document` reads the same from."""
    head: JsonObject = {"schemaVersion": 2, "mediaType": str(parsed.media_type)}
    if isinstance(parsed, Index):
        return {**head, "manifests": [descriptor_document(item) for item in parsed.manifests]}
    layers: list[JsonValue] = [descriptor_document(item) for item in parsed.layers]
    return {**head, "config": descriptor_document(parsed.config), "layers": layers}


def _check_layer(layer: Descriptor, what: str) -> None:
    kind = layer.media_type
    if kind in set(LayerType):
        return
    if "foreign" in kind or "nondistributable" in kind:
        reason = "is kept outside the registry (a foreign or non-distributable layer)"
    elif "+encrypted" in kind or kind.endswith(".encrypted"):
        reason = "is encrypted"
    else:
        reason = "has a type that secrun does not know"
    raise ImageError(
        f"{what}: layer {layer.digest} {reason}: {kind[:120]!r}",
        hint="secrun takes tar layers: plain, gzip or zstd",
        code="image-layer-type",
    )


def _kind(document: JsonObject, media_type: str, what: str) -> str:
    """Decide what a document is; raises ImageError if it says two things at once (CVE-2021-41190)."""
    own = fields.text(document, "mediaType", what)
    told = media_type.partition(";")[0].strip()
    version = document.get("schemaVersion")
    if version == 1 or told.startswith(_SCHEMA1_PREFIX) or own.startswith(_SCHEMA1_PREFIX):
        raise ImageError(
            f"{what} is a Docker schema 1 manifest, a format withdrawn in 2017",
            hint="push the image again with a current tool",
            code="image-schema1",
        )
    if version != 2:
        raise ImageError(f"{what}: schemaVersion is {version!r}, expected 2", code="image-manifest")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise ImageError(f"{what} is an index and a manifest at once", code="image-ambiguous")
    known = {str(kind) for kind in INDEX_TYPES | MANIFEST_TYPES}
    if own and told in known and own != told:
        raise ImageError(f"{what} says it is {own[:120]!r} but came as {told!r}", code="image-ambiguous")
    if own or told in known:
        return own or told
    return MediaType.OCI_INDEX if "manifests" in document else MediaType.OCI_MANIFEST


def parse(data: bytes, media_type: str, *, what: str) -> Manifest | Index:
    """Parse a manifest or index that came as `media_type` or as ""; raises ImageError naming `what`."""
    return of_document(parse_object(data, what=what, limit=limits.MAX_MANIFEST_BYTES), media_type, what=what)


def of_document(document: JsonObject, media_type: str, *, what: str) -> Manifest | Index:
    """Read a manifest or index from parsed JSON; raises ImageError naming `what`."""
    kind = _kind(document, media_type, what)
    if kind in INDEX_TYPES:
        return _parse_index(document, MediaType(kind), what)
    if kind in MANIFEST_TYPES:
        return _parse_manifest(document, MediaType(kind), what)
    raise ImageError(f"{what} is {kind[:120]!r}, expected an image manifest or index", code="image-manifest")


def parse_manifest(data: bytes, media_type: str, *, what: str) -> Manifest:
    """Parse the manifest of one image; raises ImageError also for an index."""
    parsed = parse(data, media_type, what=what)
    if isinstance(parsed, Index):
        raise ImageError(f"{what} is an index, expected one image", code="image-manifest")
    return parsed


def _parse_index(document: JsonObject, kind: MediaType, what: str) -> Index:
    members = fields.objects(document, "manifests", what, limit=limits.MAX_INDEX_ENTRIES)
    if "manifests" not in document:
        raise ImageError(f"{what}: an index without 'manifests'", code="image-manifest")
    return Index(
        media_type=kind,
        manifests=tuple(
            parse_descriptor(member, f"{what}, manifests[{number}]", limit=limits.MAX_MANIFEST_BYTES)
            for number, member in enumerate(members)
        ),
    )


def _parse_manifest(document: JsonObject, kind: MediaType, what: str) -> Manifest:
    if "config" not in document or "layers" not in document:
        raise ImageError(f"{what}: a manifest without 'config' or 'layers'", code="image-manifest")
    config = parse_descriptor(
        fields.mapping(document, "config", what), f"{what}, config", limit=limits.MAX_CONFIG_BYTES
    )
    if config.media_type not in _CONFIG_TYPES:
        raise ImageError(
            f"{what} is an artifact, not an image: its config is {config.media_type[:120]!r}",
            hint="signatures, charts and bills of materials cannot run",
            code="image-artifact",
        )
    members = fields.objects(document, "layers", what, limit=limits.MAX_LAYERS)
    layers = tuple(
        parse_descriptor(member, f"{what}, layers[{number}]", limit=limits.MAX_LAYER_BYTES)
        for number, member in enumerate(members)
    )
    for layer in layers:
        _check_layer(layer, what)
    return Manifest(media_type=kind, config=config, layers=layers)
