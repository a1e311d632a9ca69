"""Write a stored image to a file: as an app container image, or as an OCI archive."""

from contextlib import ExitStack
from pathlib import Path

from secrun.digest import Digest
from secrun.image import archive, rootfs
from secrun.image.aci import embedded
from secrun.image.aci.describe import describe
from secrun.image.aci.flatten import job
from secrun.image.aci.unpack import hashed
from secrun.image.entries import Entry
from secrun.image.fetch import StoredImage, load
from secrun.image.manifest import descriptor_document
from secrun.image.reference import RegistryReference
from secrun.image.reference import parse as parse_reference
from secrun.image.rootfs.sandbox import run_confined
from secrun.image.rootfs.scratch import scratch_folder
from secrun.image.rootfs.store import open_layers
from secrun.image.store import ImageStore
from secrun.jsonio import JsonObject
from secrun.paths import Layout
from secrun.syscalls import LinuxSyscalls
from secrun.trust.admission import BYPASS


def _named(entry: Entry) -> tuple[str, str]:
    """Return a name and a version for an image: those that it came by."""
    origin = parse_reference(entry.reference)
    if isinstance(origin, RegistryReference):
        return origin.repository, origin.tag or ""
    # An archive's own name, else that of the file.
    name, _, version = (entry.given or Path(origin.name.partition(":")[0]).stem).partition(":")
    return name, version


def aci(layout: Layout, entry: Entry, path: Path, *, overwrite: bool = False) -> Digest:
    """Write an image as an uncompressed app container image with all files in it; return its ID.

    Raises ImageError for what the appc spec has no words for, StateError for a file that exists; forks.
    """
    store = ImageStore(layout)
    image = load(store, entry, BYPASS, reference=entry.reference, names=())
    rendered = rootfs.ensure(layout, image.layers)
    name, version = _named(entry)
    own = embedded.document_of(image.config, entry.reference)
    data = describe(image.config, rendered, own=own, name=name, version=version, what=entry.reference)
    with ExitStack() as stack:
        out = stack.enter_context(archive.whole(path, overwrite=overwrite))
        folder = stack.enter_context(scratch_folder(layout))
        opened = open_layers(image.layers, folder, stack)
        archive.add(out, "manifest", data)
        out.flush()
        run_confined(job(opened, out.fileno()), LinuxSyscalls())
        return hashed(out.fileno(), "sha512")


def oci(layout: Layout, entry: Entry, path: Path, *, overwrite: bool = False) -> Digest:
    """Write an image as an OCI archive of this one image; return its manifest's digest.

    Raises StateError for a file that exists or an image that is damaged.
    """
    store = ImageStore(layout)
    manifest = store.needed_facts(entry).manifest
    index: JsonObject = {"schemaVersion": 2, "manifests": [descriptor_document(entry.descriptor)]}
    blobs = {item.digest: item for item in (entry.descriptor, manifest.config, *manifest.layers)}
    with archive.whole(path, overwrite=overwrite) as out:
        archive.write(out, index, [archive.stored(store, item) for item in blobs.values()])
    return entry.digest


def documents(layout: Layout, entry: Entry) -> tuple[bytes, bytes, StoredImage]:
    """Return manifest and configuration of a stored image, byte for byte."""
    store = ImageStore(layout)
    what = f"stored image {entry.reference}"
    data = store.read(entry.descriptor, what=what)
    manifest = store.needed_facts(entry).manifest
    image = load(store, entry, BYPASS, reference=entry.reference, names=())
    return data, store.read(manifest.config, what=what), image
