"""From an app container image to the OCI image that goes into the store, its dependencies below it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import ImageError, UsageError
from secrun.image import reference as references
from secrun.image.aci import limits, oci
from secrun.image.aci.manifest import AciManifest, Dependency
from secrun.image.aci.source import AciSource
from secrun.image.aci.unpack import MadeLayer, Unpacked, narrowed
from secrun.image.platform import Platform
from secrun.image.reference import AppcReference
from secrun.image.rootfs.model import Compression, LayerSource
from secrun.record import record
from secrun.trust.signatures import SignatureSet

# Finds, admits and stores a dependency; returns its layers, lowest first.
Resolve = Callable[[Dependency], Sequence[LayerSource]]
_SHOWN = 5


@record
class Chain:
    """The images that led to the one that is being fetched, the outermost first."""

    names: tuple[str, ...] = ()

    def below(self, name: str, what: str) -> "Chain":
        """Go one image deeper; raises ImageError for an image that needs itself, and for too many levels."""
        names = (*self.names, name)
        path = " needs ".join(names)
        if name in self.names:
            raise ImageError(f"{what} depends on itself: {path}", code="image-aci-loop")
        if len(names) > limits.MAX_DEPTH:
            raise ImageError(
                f"{what} depends on images more than {limits.MAX_DEPTH} deep: {path}", code="image-limit"
            )
        return Chain(names=names)


def matches(dependency: Dependency, image: AciManifest, image_id: Digest) -> bool:
    """Tell whether an image is the one that is depended on (aci.md, Dependency Matching)."""
    if image.name != dependency.name:
        return False
    if dependency.image_id:
        return f"sha512-{image_id.hex}".startswith(dependency.image_id)
    own = dict(image.labels)
    return all(own.get(name) == value for name, value in dependency.labels)


def check_identity(reference: AppcReference, image: AciManifest) -> None:
    """Raise ImageError unless an image has the name and labels that it was discovered by (discovery.md)."""
    if image.name != reference.image:
        raise ImageError(
            f"{reference}: the image calls itself {image.name}",
            hint="whoever serves the name serves another image; nothing was stored",
            code="image-aci-name",
        )
    own = dict(image.labels)
    for name, value in reference.labels:
        if own.get(name) != value:
            raise ImageError(
                f"{reference}: the image's label {name} is {own.get(name, '')[:80]!r}, expected {value!r}",
                code="image-aci-name",
            )


def wanted(dependency: Dependency, what: str) -> AppcReference:
    """Return what to ask discovery for; raises ImageError for labels that cannot be part of an address."""
    asked = AppcReference(image=dependency.name, labels=tuple(sorted(dependency.labels)))
    try:
        references.parse(str(asked))
    except UsageError as error:
        raise ImageError(f"{what}: {error.message}", code="image-aci-dependency") from error
    return asked


def check_dependency(dependency: Dependency, image: AciManifest, image_id: Digest, what: str) -> None:
    """Raise ImageError unless the image that was found is the one that is depended on."""
    if matches(dependency, image, image_id):
        return
    asked = dependency.image_id or ", ".join(f"{name}={value}" for name, value in dependency.labels)
    raise ImageError(
        f"{what} depends on {dependency.name} ({asked}), found was {image.full_name} sha512-{image_id.hex}",
        code="image-aci-dependency",
    )


@record
class Made:
    """A converted image as a source, and what its whitelist names that no image has."""

    source: AciSource
    missing: tuple[str, ...]

    @property
    def note(self) -> str:
        """Say what is missing, empty if nothing is."""
        if not self.missing:
            return ""
        more = f" and {len(self.missing) - _SHOWN} more" if len(self.missing) > _SHOWN else ""
        return f"its path whitelist names {', '.join(self.missing[:_SHOWN])}{more}, which no image has"


def _below(
    unpacked: Unpacked, resolve: Resolve, scratch: Path, what: str
) -> tuple[list[MadeLayer], set[str]]:
    """Return the layers of all dependencies, in order, and the whitelisted paths that they have."""
    layers = [layer for item in unpacked.manifest.dependencies for layer in resolve(item)]
    oci.check_count(len(layers) + 1, what)
    wrong = next((layer for layer in layers if layer.compression is not Compression.NONE), None)
    if wrong is not None:
        raise ImageError(f"{what}: layer {wrong.digest} of a dependency is compressed", code="image-aci")
    if not unpacked.manifest.path_whitelist:
        return [MadeLayer(path=item.path, digest=item.digest, size=item.size) for item in layers], set()
    made, found = narrowed(layers, unpacked.manifest.path_whitelist, scratch, what=what)
    return made, set(found)


def make(
    unpacked: Unpacked,
    signatures: SignatureSet,
    resolve: Resolve,
    *,
    platform: Platform,
    scratch: Path,
    what: str,
) -> Made:
    """Convert an image that was taken apart; raises ImageError, and what finding its dependencies raises."""
    image = unpacked.manifest
    below, found = _below(unpacked, resolve, scratch, what)
    layers = [*below, unpacked.layer]
    converted = oci.convert(
        image,
        unpacked.text,
        unpacked.image_id,
        owner=(unpacked.user, unpacked.group),
        layers=[oci.Layer(digest=layer.digest, size=layer.size) for layer in layers],
        platform=oci.platform_of(image, platform, what),
        what=what,
    )
    source = AciSource(
        converted,
        {layer.digest: layer.path for layer in layers},
        signatures,
        given=image.full_name,
        what=what,
    )
    missing = set(image.path_whitelist) - found - set(unpacked.found)
    return Made(source=source, missing=tuple(sorted(missing)))
