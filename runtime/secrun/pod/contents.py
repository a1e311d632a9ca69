"""The documents that measured digests stand for, as far as this root still has them."""

from secrun.digest import Digest
from secrun.errors import SecrunError
from secrun.image.store import ImageStore
from secrun.measure import marker
from secrun.paths import Layout
from secrun.pod.states import Found, walk
from secrun.stage1.manifest import MAX_MANIFEST_BYTES, PodManifest
from secrun.stage1.podfiles import PodFiles

# Evidence has a limit of its own; what a verifier wants beyond this it asks for.
_MAX_BYTES = 16 * 1024 * 1024


def measured_contents(layout: Layout, epoch: str) -> tuple[bytes, ...]:
    """Return the manifests of pods that the log of `epoch` knows, and of the images that they name.

    What they hold is not believed: a verifier compares each with the digest that was measured.
    """
    found: dict[Digest, bytes] = {}
    left = _MAX_BYTES
    for pod in walk(layout):
        for data in _documents(layout, pod, epoch):
            digest = Digest.of(data)
            if digest not in found and len(data) <= left:
                found[digest] = data
                left -= len(data)
    return tuple(found.values())


def _documents(layout: Layout, pod: Found, epoch: str) -> list[bytes]:
    files = PodFiles(pod.path)
    try:
        known = marker.read(files)
        if known is None or known.epoch != epoch or not known.last:
            return []
        with files.manifest.open("rb") as stream:
            data = stream.read(MAX_MANIFEST_BYTES)
    except (SecrunError, FileNotFoundError):
        return []  # it was removed meanwhile, or nobody can say whether it was measured
    return [data, *_image_manifests(layout, data)]


def _image_manifests(layout: Layout, data: bytes) -> list[bytes]:
    try:
        manifest = PodManifest.from_bytes(data)
    except SecrunError:
        return []  # the pod's own manifest is sent all the same, and is found to be another
    store = ImageStore(layout)
    paths = {store.blob_path(app.image.manifest) for app in manifest.apps}
    return [path.read_bytes() for path in sorted(paths) if path.exists()]
