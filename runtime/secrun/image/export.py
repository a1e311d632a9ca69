"""Write a stored image to a file: as an app container image, or as an OCI archive."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from secrun.digest import Digest
from secrun.errors import ImageError, StateError
from secrun.image import limits, rootfs
from secrun.image.aci import embedded
from secrun.image.aci.describe import describe
from secrun.image.aci.flatten import job
from secrun.image.aci.tarwriter import END, header, padding
from secrun.image.aci.unpack import hashed
from secrun.image.entries import Entry
from secrun.image.fetch import StoredImage, load
from secrun.image.manifest import Descriptor, descriptor_document
from secrun.image.reference import RegistryReference
from secrun.image.reference import parse as parse_reference
from secrun.image.rootfs.model import FileKind, Xattrs
from secrun.image.rootfs.sandbox import run_confined
from secrun.image.rootfs.scratch import scratch_folder
from secrun.image.rootfs.store import open_layers
from secrun.image.store import ImageStore
from secrun.jsonio import JsonObject, canonical
from secrun.paths import Layout
from secrun.record import record
from secrun.syscalls import LinuxSyscalls
from secrun.trust.admission import BYPASS

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_MODE = 0o644


@record
class _Member:
    """What all members of an archive have in common: the same bytes come of the same image."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()


_FOLDER, _FILE = _Member(mode=0o755), _Member(mode=_MODE)


@contextmanager
def _whole(path: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield a file that is there, whole, when the block ends without an error, or not at all."""
    if path.exists() and not overwrite:
        raise StateError(
            f"{path} exists already", hint="remove it first, or give --overwrite", code="state-target"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("x+b") as stream:
            os.fchmod(stream.fileno(), _MODE)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


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
        out = stack.enter_context(_whole(path, overwrite=overwrite))
        folder = stack.enter_context(scratch_folder(layout))
        opened = open_layers(image.layers, folder, stack)
        out.write(header(b"manifest", FileKind.FILE, _FILE, size=len(data)) + data + padding(len(data)))
        out.flush()
        run_confined(job(opened, out.fileno()), LinuxSyscalls())
        return hashed(out.fileno(), "sha512")


def _add(out: BinaryIO, name: str, data: bytes) -> None:
    out.write(header(name.encode(), FileKind.FILE, _FILE, size=len(data)) + data + padding(len(data)))


def _add_blob(out: BinaryIO, store: ImageStore, descriptor: Descriptor) -> None:
    """Copy a blob, and check that it still is what its digest says."""
    name = f"blobs/{descriptor.digest.algorithm}/{descriptor.digest.hex}"
    out.write(header(name.encode(), FileKind.FILE, _FILE, size=descriptor.size))
    state = hashlib.new(descriptor.digest.algorithm)
    left = descriptor.size
    with store.blob_path(descriptor.digest).open("rb") as stream:
        while chunk := stream.read(min(limits.CHUNK_BYTES, left)):
            state.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if left or state.hexdigest() != descriptor.digest.hex:
        raise ImageError(
            f"blob {descriptor.digest} of the image store is damaged",
            hint="fetch the image again with --pull=always",
            code="image-digest",
        )
    out.write(padding(descriptor.size))


def oci(layout: Layout, entry: Entry, path: Path, *, overwrite: bool = False) -> Digest:
    """Write an image as an OCI archive of this one image; return its manifest's digest.

    Raises StateError for a file that exists or an image that is damaged.
    """
    store = ImageStore(layout)
    manifest = store.needed_facts(entry).manifest
    index: JsonObject = {"schemaVersion": 2, "manifests": [descriptor_document(entry.descriptor)]}
    blobs = {item.digest: item for item in (entry.descriptor, manifest.config, *manifest.layers)}
    algorithms = sorted({digest.algorithm for digest in blobs})
    with _whole(path, overwrite=overwrite) as out:
        _add(out, "oci-layout", _LAYOUT)
        _add(out, "index.json", canonical(index))
        for folder in ("blobs", *(f"blobs/{name}" for name in algorithms)):
            out.write(header(folder.encode(), FileKind.DIRECTORY, _FOLDER))
        for digest in sorted(blobs):
            _add_blob(out, store, blobs[digest])
        out.write(END)
    return entry.digest


def documents(layout: Layout, entry: Entry) -> tuple[bytes, bytes, StoredImage]:
    """Return manifest and configuration of a stored image, byte for byte."""
    store = ImageStore(layout)
    what = f"stored image {entry.reference}"
    data = store.read(entry.descriptor, what=what)
    manifest = store.needed_facts(entry).manifest
    image = load(store, entry, BYPASS, reference=entry.reference, names=())
    return data, store.read(manifest.config, what=what), image
