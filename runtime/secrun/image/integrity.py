"""Read a stored image once more: whether its blobs and its rootfs image still are what they were."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import ImageError, StateError
from secrun.image import limits, rootfs
from secrun.image.entries import Entry
from secrun.image.fetch import load
from secrun.image.manifest import Descriptor
from secrun.image.rootfs import rootfs_key
from secrun.image.store import ImageStore
from secrun.record import record
from secrun.trust.admission import BYPASS


@record
class Damage:
    """What is wrong, in words, and which file; what is `rendered` can be made anew from the layers."""

    text: str
    path: Path
    rendered: bool = False


def _blob_damage(store: ImageStore, descriptor: Descriptor) -> Damage | None:
    path = store.blob_path(descriptor.digest)
    state = hashlib.new(descriptor.digest.algorithm)
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(limits.CHUNK_BYTES):
                state.update(chunk)
    except FileNotFoundError:
        return Damage(text=f"blob {descriptor.digest} is gone", path=path)
    if Digest(descriptor.digest.algorithm, state.hexdigest()) != descriptor.digest:
        return Damage(text=f"blob {descriptor.digest} has other bytes than its digest says", path=path)
    return None


def _rootfs_damage(store: ImageStore, diff_ids: tuple[Digest, ...]) -> Damage | None:
    key = rootfs_key(diff_ids)
    try:
        image = rootfs.load(store.layout, key)
        if image is not None:
            rootfs.verify_file(image)
    except ImageError as error:
        path = store.layout.rootfs / f"{key.hex}.erofs"
        return Damage(text=error.message, path=path, rendered=True)
    return None


def damages(store: ImageStore, entry: Entry) -> list[Damage]:
    """Return what is wrong with an image; all of it is read, also its rootfs image if there is one."""
    try:
        known = store.needed_facts(entry)
    except (ImageError, StateError) as error:
        return [Damage(text=error.message, path=store.blob_path(entry.digest))]
    blobs = (entry.descriptor, known.manifest.config, *known.manifest.layers)
    found = [*(_blob_damage(store, item) for item in blobs), _rootfs_damage(store, known.config.diff_ids)]
    return [item for item in found if item is not None]


def repair(store: ImageStore, entry: Entry, found: Sequence[Damage]) -> str:
    """Remove what is damaged, and render the rootfs image anew if the layers are good; tell what was done.

    A pod that has it mounted keeps the old one. Raises what rendering does; forks.
    """
    for damage in found:
        # Without its record a rootfs image is not there; so that goes first.
        for path in (damage.path.with_suffix(".json"), damage.path) if damage.rendered else (damage.path,):
            path.unlink(missing_ok=True)
    if not all(item.rendered for item in found):
        return "the damaged files are removed: secrun fetch brings them in again"
    image = load(store, entry, BYPASS, reference=entry.reference, names=())
    rootfs.ensure(store.layout, image.layers)
    return "the rootfs image is made anew from its layers"
