"""The manifest that a stored image was converted from; root lets a process without rights parse it."""

from secrun.image import apart, fields
from secrun.image.aci import manifest as manifests
from secrun.image.aci import oci
from secrun.image.aci.manifest import AciManifest
from secrun.image.config import ImageConfig
from secrun.jsonio import JsonObject

_KEY = "manifest"


def document_of(config: ImageConfig, what: str) -> JsonObject | None:
    """Return the manifest as a JSON object, None if the image was converted from none; raises ImageError.

    Forks where root asks.
    """
    text = oci.text_of(config)
    if not text:
        return None
    named = f"image manifest of {what}"

    def body() -> JsonObject:
        return {_KEY: manifests.document_of(text.encode(), what=named)}

    return fields.mapping(apart.run(body, lambda: None), _KEY, named)


def manifest_of(config: ImageConfig, what: str) -> AciManifest | None:
    """Return the manifest, None if the image was converted from none; raises ImageError."""
    document = document_of(config, what)
    return None if document is None else manifests.read(document, what=f"image manifest of {what}")
