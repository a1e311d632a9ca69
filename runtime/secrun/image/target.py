"""Where images and signatures are written: a registry, a layout, an archive for docker load."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from secrun.digest import Digest
from secrun.errors import ImageError, StateError, UsageError
from secrun.files import write_atomic
from secrun.image import apart, artifact, facts, limits, sources
from secrun.image.files import FolderFiles
from secrun.image.layout import LayoutSource
from secrun.image.manifest import Descriptor, Manifest, MediaType, descriptor_document
from secrun.image.options import FetchOptions
from secrun.image.reference import FileReference, RegistryReference, Transport
from secrun.image.registry import RegistryClient
from secrun.image.source import Document
from secrun.image.wire import Upload
from secrun.jsonio import JsonObject, JsonValue, parse_object
from secrun.record import record

if TYPE_CHECKING:
    from secrun.trust.signatures import Candidate

_REF_NAME = "org.opencontainers.image.ref.name"


@record
class FileUpload:
    """The bytes of a file."""

    path: Path

    @property
    def size(self) -> int:
        """Return its size in bytes."""
        return self.path.stat().st_size

    def open(self) -> BinaryIO:
        """Open it."""
        return self.path.open("rb")


@record
class BytesUpload:
    """Bytes in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """Return how many there are."""
        return len(self.data)

    def open(self) -> BinaryIO:
        """Return a stream over them."""
        return io.BytesIO(self.data)


class Target(Protocol):
    """Where an image is written; blobs come before the manifests that name them."""

    def put_blob(self, descriptor: Descriptor, path: Path) -> None:
        """Write a blob whose size and digest were checked."""

    def put_manifest(self, document: Document, tag: str | None, *, kind: str = "") -> bool:
        """Write a manifest, under a tag if one is given; tell whether it is listed by its subject.

        `kind` is what an artifact says it is; empty for an image.
        """

    def attach(self, subjects: "Sequence[Descriptor]", candidates: "Sequence[Candidate]") -> list[str]:
        """Write signatures beside what they are about; return in words what could not be written."""


class SignatureTarget(Target, Protocol):
    """Where signatures can be put beside images."""

    def put_data(self, data: bytes, media_type: str) -> Descriptor:
        """Write a small blob; return its descriptor."""

    def tagged(self, tag: str) -> Document | None:
        """Return the manifest of a tag, None if there is none."""


def _attach(
    target: SignatureTarget, subjects: "Sequence[Descriptor]", candidates: "Sequence[Candidate]"
) -> list[str]:
    from secrun.image.attach import attach

    return attach(target, subjects, candidates)


class RegistryTarget:
    """A repository."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client

    def put_blob(self, descriptor: Descriptor, path: Path) -> None:
        """Upload a blob."""
        self.upload(descriptor.digest, FileUpload(path=path))

    def upload(self, digest: Digest, upload: Upload) -> None:
        """Upload a blob unless the repository has it."""
        self._client.put_blob(digest, upload)

    def attach(self, subjects: "Sequence[Descriptor]", candidates: "Sequence[Candidate]") -> list[str]:
        """Upload signatures."""
        return _attach(self, subjects, candidates)

    def put_data(self, data: bytes, media_type: str) -> Descriptor:
        """Upload a small blob; return its descriptor."""
        digest = Digest.of(data)
        self._client.put_blob(digest, BytesUpload(data=data))
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def put_manifest(self, document: Document, tag: str | None, *, kind: str = "") -> bool:
        """Upload a manifest."""
        del kind
        name = tag or str(document.digest)
        media_type = document.media_type.partition(";")[0].strip()
        return self._client.put_manifest(name, media_type, BytesUpload(data=document.data))

    def tagged(self, tag: str) -> Document | None:
        """Return the manifest of a tag."""
        return self._client.tagged(tag)


class LayoutTarget:
    """An OCI image layout; index.json is replaced at each manifest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        blobs = folder / "blobs/sha256"
        if folder.exists() and not (folder / "oci-layout").exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and no image layout", code="usage-target")
        blobs.mkdir(parents=True, exist_ok=True)
        if not (folder / "oci-layout").exists():
            write_atomic(folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')

    def _blob(self, digest: Digest) -> Path:
        path = self._folder / "blobs" / digest.algorithm / digest.hex
        path.parent.mkdir(exist_ok=True)
        return path

    def put_blob(self, descriptor: Descriptor, path: Path) -> None:
        """Copy a blob."""
        import shutil

        target = self._blob(descriptor.digest)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(path, temporary)
        temporary.rename(target)

    def put_data(self, data: bytes, media_type: str) -> Descriptor:
        """Write a small blob; return its descriptor."""
        digest = Digest.of(data)
        write_atomic(self._blob(digest), data)
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def put_manifest(self, document: Document, tag: str | None, *, kind: str = "") -> bool:
        """Write a manifest; without tag only artifacts are listed, which says whose referrers they are."""
        media_type = document.media_type.partition(";")[0].strip()
        entry = descriptor_document(self.put_data(document.data, media_type))
        if kind:
            entry["artifactType"] = kind
        if tag is not None:
            entry["annotations"] = {_REF_NAME: tag}
        if tag is not None or kind:
            self._list(entry, tag)
        return True

    def attach(self, subjects: "Sequence[Descriptor]", candidates: "Sequence[Candidate]") -> list[str]:
        """Write signatures."""
        return _attach(self, subjects, candidates)

    def _list(self, entry: JsonObject, tag: str | None) -> None:
        path = self._folder / "index.json"
        document: JsonObject = {"schemaVersion": 2, "mediaType": str(MediaType.OCI_INDEX), "manifests": []}
        if path.exists():
            what, limit = str(path), limits.MAX_LAYOUT_INDEX_BYTES
            document = parse_object(path.read_bytes(), what=what, limit=limit)
        members = document.get("manifests")
        kept: list[JsonValue] = [
            item
            for item in (members if isinstance(members, list) else [])
            if isinstance(item, dict) and not _replaced(item, entry, tag)
        ]
        document["manifests"] = [*kept, entry]
        write_atomic(path, json.dumps(document, separators=(",", ":")).encode())

    def tagged(self, tag: str) -> Document | None:
        """Return the manifest of a tag."""
        if not (self._folder / "index.json").exists():
            return None
        what = f"oci:{self._folder}"
        return LayoutSource(FolderFiles(self._folder, what), "", what=what).tagged(tag)


def _replaced(old: JsonObject, new: JsonObject, tag: str | None) -> bool:
    """Tell whether a new entry of index.json takes the place of an old one."""
    names = old.get("annotations")
    if tag is not None:
        return isinstance(names, dict) and names.get(_REF_NAME) == tag
    return old.get("digest") == new.get("digest") and "annotations" not in old


class ArchiveTarget:
    """A tar file as `docker save` writes it: one image, no signatures."""

    def __init__(self, tar: tarfile.TarFile, name: str) -> None:
        self._tar = tar
        self._name = name
        self._written: set[Digest] = set()

    def put_blob(self, descriptor: Descriptor, path: Path) -> None:
        """Add a config or a layer, named by its digits."""
        if descriptor.digest not in self._written:
            with path.open("rb") as stream:
                self._add(_member(descriptor), stream, descriptor.size)
            self._written.add(descriptor.digest)

    def _add(self, name: str, stream: BinaryIO, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._tar.addfile(info, stream)

    def put_manifest(self, document: Document, tag: str | None, *, kind: str = "") -> bool:
        """Write manifest.json for an image; raises UsageError for an index."""
        del kind
        (parsed,) = facts.understood([document], what="the image")
        if not isinstance(parsed, Manifest):
            raise UsageError("a docker-archive holds one platform", hint="choose it with --platform")
        listed: list[JsonValue] = [
            {
                "Config": _member(parsed.config),
                "RepoTags": [name] if (name := self._name or tag) else [],
                "Layers": [_member(layer) for layer in parsed.layers],
            }
        ]
        data = json.dumps(listed).encode()
        self._add("manifest.json", io.BytesIO(data), len(data))
        return False

    def attach(self, subjects: "Sequence[Descriptor]", candidates: "Sequence[Candidate]") -> list[str]:
        """Raise UsageError: an archive of this kind has no place for signatures."""
        del subjects, candidates
        raise UsageError(
            "a docker-archive cannot hold signatures", hint="write to oci:DIR instead", code="usage-target"
        )


def _member(descriptor: Descriptor) -> str:
    kind = (
        "json" if "config" in descriptor.media_type or "container.image" in descriptor.media_type else "tar"
    )
    return f"{descriptor.digest.hex}.{kind}"


@contextmanager
def open_target(reference: RegistryReference | FileReference, options: FetchOptions) -> Iterator[Target]:
    """Yield a target; a file is there, whole, when the block ends without an error, or not at all."""
    if isinstance(reference, RegistryReference) and apart.separated():
        from secrun.image.remote import remote_target

        with remote_target(reference, options) as remote:
            yield remote
    elif isinstance(reference, RegistryReference):
        yield RegistryTarget(sources.reach(reference, options).client)
    elif reference.transport is Transport.OCI:
        yield LayoutTarget(Path(reference.path))
    elif reference.transport is Transport.DOCKER_ARCHIVE:
        with _archive(Path(reference.path), reference.tag) as target:
            yield target
    else:
        raise UsageError(
            f"nothing is written to {reference.transport}:",
            hint="write to docker://, oci:DIR[:TAG] or docker-archive:FILE[:NAME:TAG]",
            code="usage-target",
        )


@contextmanager
def _archive(path: Path, name: str) -> Iterator[ArchiveTarget]:
    if path.exists():
        raise StateError(f"{path} exists already", hint="remove it first", code="state-target")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with tarfile.open(temporary, "w") as tar:
            yield ArchiveTarget(tar, name)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def tag_of(reference: RegistryReference | FileReference) -> str | None:
    """Return the tag that an image is written under."""
    return reference.tag or None


def check_artifact(document: Document, what: str) -> artifact.Artifact:
    """Parse a manifest of signatures that is about to be extended; raises ImageError."""
    found = artifact.parse(document.data, what=what)
    if len(found.parts) > limits.MAX_LAYERS - 1:
        raise ImageError(
            f"{what} has {len(found.parts)} signatures, no more can be added", code="image-limit"
        )
    return found
