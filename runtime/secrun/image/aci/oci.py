"""The OCI image that an app container image becomes; pure, the same bytes for the same images everywhere.

The manifest stays in a label of the configuration, byte for byte: what OCI has no words for (mount points,
names of ports, isolators, groups) is read from there again when the image is run.
"""

import re
from collections.abc import Sequence

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.aci import limits
from secrun.image.aci.manifest import AciManifest, App
from secrun.image.config import APPC_LABEL, ImageConfig
from secrun.image.manifest import Descriptor, LayerType, MediaType
from secrun.image.platform import Platform
from secrun.jsonio import JsonObject, JsonValue, canonical
from secrun.record import record

_PREFIX = "dev.secrun."
# aci.md: values of the label arch, and OCI's words. Those of mixed endianness have no OCI name.
_ARCHITECTURES = {
    "amd64": ("amd64", ""),
    "i386": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
}
# aci.md, annotations: what they are called in OCI (image-spec, annotations.md).
_ANNOTATIONS = {
    "authors": "authors",
    "created": "created",
    "documentation": "documentation",
    "homepage": "url",
}
# RFC 3339; others read it strictly, and would not read the image otherwise.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)\Z")
_PROTOCOLS = ("tcp", "udp", "sctp")


@record
class Layer:
    """A layer, uncompressed: its digest is its diff_id; size in bytes."""

    digest: Digest
    size: int


@record
class Converted:
    """Configuration and manifest of the OCI image."""

    config: bytes
    config_descriptor: Descriptor
    manifest: bytes


def architecture_of(label: str, what: str) -> tuple[str, str]:
    """Return OCI's words for an `arch` label: architecture and variant; raises ImageError."""
    if label not in _ARCHITECTURES:
        raise ImageError(
            f"{what} is for the architecture {label[:40]!r}, which has no OCI name",
            hint=f"known: {', '.join(_ARCHITECTURES)}",
            code="image-platform",
        )
    return _ARCHITECTURES[label]


def label_of(platform: Platform) -> str:
    """Return the `arch` label of a platform; raises ImageError if the appc spec has none."""
    for label, (architecture, variant) in _ARCHITECTURES.items():
        if architecture == platform.architecture and variant in ("", platform.effective_variant):
            return label
    raise ImageError(f"the appc spec has no name for {platform}", code="image-platform")


def platform_of(image: AciManifest, wanted: Platform, what: str) -> Platform:
    """Return the platform of an image; where its labels leave it open, it is the one that is wanted."""
    system, label = image.label("os"), image.label("arch")
    if label and not system:
        raise ImageError(f"{what} has the label arch without os", code="image-aci-manifest")
    architecture, variant = architecture_of(label, what) if label else (wanted.architecture, wanted.variant)
    return Platform(os=system or wanted.os, architecture=architecture, variant=variant)


def _strings(words: Sequence[str]) -> list[JsonValue]:
    return [*words]


def _process(app: App, user: str, group: str) -> JsonObject:
    found: JsonObject = {
        "User": f"{user}:{group}",
        "Env": [f"{name}={value}" for name, value in app.environment],
        "Entrypoint": _strings(app.exec),
        "WorkingDir": app.working_directory or "/",
    }
    ports = [
        f"{number}/{port.protocol}"
        for port in app.ports
        if port.protocol in _PROTOCOLS
        for number in range(port.port, port.port + port.count)
    ]
    if ports:
        found["ExposedPorts"] = {name: {} for name in ports}
    return found


def _labels(image: AciManifest, text: str, what: str) -> JsonObject:
    own = next((name for name, _ in image.labels if name.startswith(_PREFIX)), None)
    if own is not None:
        raise ImageError(f"{what} has the label {own!r}, which is secrun's own", code="image-aci-manifest")
    return {**dict(image.labels), APPC_LABEL: text}


def _descriptor(media_type: str, digest: Digest, size: int) -> JsonObject:
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _annotations(image: AciManifest, image_id: Digest) -> JsonObject:
    found: JsonObject = {
        f"{_PREFIX}appc.name": image.name,
        f"{_PREFIX}appc.image-id": f"sha512-{image_id.hex}",
        "org.opencontainers.image.title": image.name,
    }
    if version := image.label("version"):
        found["org.opencontainers.image.version"] = version
    for name, value in image.annotations:
        if name in _ANNOTATIONS and (name != "created" or _TIME.match(value)):
            found[f"org.opencontainers.image.{_ANNOTATIONS[name]}"] = value
    return found


def convert(
    image: AciManifest,
    text: str,
    image_id: Digest,
    *,
    owner: tuple[str, str],
    layers: Sequence[Layer],
    platform: Platform,
    what: str,
) -> Converted:
    """Return the OCI image of an app container image with these layers, lowest first; raises ImageError."""
    process = _process(image.app, *owner) if image.app else JsonObject()
    process["Labels"] = _labels(image, text, what)
    config: JsonObject = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
    }
    if platform.variant:
        config["variant"] = platform.variant
    created = dict(image.annotations).get("created", "")
    if _TIME.match(created):
        config["created"] = created
    data = canonical(config)
    own = Descriptor(media_type=MediaType.OCI_CONFIG, digest=Digest.of(data), size=len(data))
    document: JsonObject = {
        "schemaVersion": 2,
        "mediaType": str(MediaType.OCI_MANIFEST),
        "config": _descriptor(own.media_type, own.digest, own.size),
        "layers": [_descriptor(LayerType.OCI_TAR, layer.digest, layer.size) for layer in layers],
        "annotations": _annotations(image, image_id),
    }
    return Converted(config=data, config_descriptor=own, manifest=canonical(document))


def text_of(config: ImageConfig) -> str:
    """Return the manifest that an image was converted from, byte for byte; empty if from none."""
    return dict(config.labels).get(APPC_LABEL, "")


def check_count(layers: int, what: str) -> None:
    """Raise ImageError if images depend on too many others."""
    if layers > limits.MAX_DEPENDENCIES + 1:
        raise ImageError(
            f"{what} is made of {layers} images, the limit is {limits.MAX_DEPENDENCIES + 1}",
            code="image-limit",
        )
