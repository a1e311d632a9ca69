"""Write stored images to one archive: an OCI archive with their signatures, or one for docker load."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.errors import UsageError
from secrun.image import archive, limits
from secrun.image.aci.tarwriter import END
from secrun.image.archive import Blob
from secrun.image.entries import Entry
from secrun.image.manifest import Descriptor
from secrun.image.reference import RegistryReference, layout_name
from secrun.image.reference import parse as parse_reference
from secrun.image.rootfs.scratch import scratch_folder
from secrun.image.source import Document
from secrun.image.store import ImageStore
from secrun.image.target import LayoutTarget
from secrun.jsonio import JsonValue, parse_object
from secrun.paths import Layout

if TYPE_CHECKING:
    from typing import BinaryIO

_SHORT_ID = 12


def name_of(entry: Entry) -> str:
    """Return what an archive calls an image: its tag, its name in a registry or an archive, its ID."""
    origin = parse_reference(entry.reference)
    named = origin.name if isinstance(origin, RegistryReference) and origin.digest is None else entry.given
    return entry.tag or named or entry.digest.hex[:_SHORT_ID]


def _distinct(entries: Sequence[Entry]) -> dict[str, Entry]:
    named: dict[str, Entry] = {}
    for entry in entries:
        name = name_of(entry)
        if named.setdefault(name, entry).digest != entry.digest:
            raise UsageError(
                f"two images are called {name}",
                hint="give one another name: secrun image tag",
                code="usage-save",
            )
    return named


def _parts(store: ImageStore, entry: Entry) -> list[Descriptor]:
    """Return configuration and layers; raises StateError if one of them is gone."""
    manifest = store.needed_facts(entry).manifest
    return [manifest.config, *manifest.layers]


def oci_archive(layout: Layout, entries: Sequence[Entry], out: "BinaryIO") -> tuple[str, ...]:
    """Write an OCI archive of images with all their signatures; return what was left out, in words.

    Raises UsageError for two images of one name, StateError or ImageError for a damaged one.
    """
    store = ImageStore(layout)
    notes: list[str] = []
    blobs: list[Blob] = []
    with scratch_folder(layout) as folder:
        target = LayoutTarget(folder / "layout")
        for name, entry in _distinct(entries).items():
            data = store.read(entry.descriptor, what=f"stored image {entry.shown}")
            document = Document.of(data, entry.descriptor.media_type)
            target.put_manifest(document, layout_name(name))
            blobs += [archive.stored(store, item) for item in _parts(store, entry)]
            found = store.signatures(entry).candidates if entry.signatures else ()
            if found:
                notes += target.attach([entry.descriptor], found)
        blobs += _written(folder / "layout/blobs")
        what, limit = "index.json", limits.MAX_LAYOUT_INDEX_BYTES
        index = parse_object((folder / "layout/index.json").read_bytes(), what=what, limit=limit)
        archive.write(out, index, blobs)
    return tuple(notes)


def _written(folder: Path) -> list[Blob]:
    return [archive.small(path.read_bytes()) for path in sorted(folder.glob("*/*"))]


def docker_archive(layout: Layout, entries: Sequence[Entry], out: "BinaryIO") -> tuple[str, ...]:
    """Write what `docker load` and `podman load` read; return what was left out, in words.

    Raises as `oci_archive` does.
    """
    store = ImageStore(layout)
    named = _distinct(entries)
    tags: dict[Entry, list[str]] = {}
    for name, entry in named.items():
        same = next((item for item in tags if item.digest == entry.digest), entry)
        # Only a name with a registry is one for those who read this.
        tags.setdefault(same, []).extend([name] if "/" in name and ":" in name else [])
    written: set[str] = set()
    listed: list[JsonValue] = []
    for entry, names in tags.items():
        config, *layers = _parts(store, entry)
        members = [f"{config.digest.hex}.json", *(f"{layer.digest.hex}.tar" for layer in layers)]
        for member, descriptor in zip(members, (config, *layers), strict=True):
            if member not in written:
                archive.add_file(out, member, archive.stored(store, descriptor))
                written.add(member)
        listed.append({"Config": members[0], "RepoTags": [*names], "Layers": [*members[1:]]})
    archive.add(out, "manifest.json", json.dumps(listed).encode())
    out.write(END)
    signed = sorted(item.shown for item in tags if item.signatures and store.signatures(item).candidates)
    return (f"the format has no place for the signatures of {', '.join(signed)}",) if signed else ()
