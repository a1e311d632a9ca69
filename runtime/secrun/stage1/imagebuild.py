"""Build the stage1 image from this host's packages, once; find it again in a few milliseconds.

A fingerprint of the inputs decides whether to build; the contents decide what the image is called.
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from secrun import __version__
from secrun.digest import Digest
from secrun.errors import HostError, ImageError, SecrunError, StateError
from secrun.files import fsync_dir, write_atomic
from secrun.image.rootfs.model import FORMAT_VERSION, FileKind, PackedImage, TreeEntry
from secrun.jsonio import canonical
from secrun.locks import held
from secrun.paths import Layout
from secrun.record import record
from secrun.stage1 import content
from secrun.stage1.agent import agent_path
from secrun.stage1.imagerecord import (
    MAX_RECORD_BYTES,
    ImageFile,
    Inputs,
    Manifest,
    encode_inputs,
    fingerprint,
    identity,
    manifest_json,
    parse_inputs,
    parse_manifest,
    unchanged,
)

_PREFIX = "nspawn-"
_IMAGE = "stage1.erofs"
_MANIFEST = "manifest.json"
# An upgrade of systemd while its files are copied is rare; twice in a row it is something else.
_ATTEMPTS = 3


@record
class Stage1Image:
    """A built stage1 image: one EROFS file with its dm-verity tree at offset `data_size`."""

    digest: Digest
    path: Path
    manifest_path: Path
    tree_digest: Digest
    verity_root: str
    verity_salt: str
    data_size: int
    file_size: int
    file_sha256: str


def _recipe() -> str:
    """Digest everything but the inputs that decides the image's bytes."""
    fixed = [[name, value] for table in (content.LINKS, content.TEXTS) for name, value in table.items()]
    programs = [str(path) for path in content.PROGRAMS]
    return Digest.of(
        canonical(
            {
                "versions": [content.RECIPE_VERSION, FORMAT_VERSION],
                "secrun": __version__,
                "fixed": [list(pair) for pair in fixed],
                "folders": list(content.FOLDERS),
                "programs": list(programs),
            }
        )
    ).hex


def _folder(layout: Layout, digest: Digest) -> Path:
    return layout.stage1 / f"{_PREFIX}{digest.hex}"


def _inputs_path(layout: Layout) -> Path:
    return layout.stage1 / "nspawn.inputs.json"


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_RECORD_BYTES + 1)
    except FileNotFoundError:
        return None


def _image(folder: Path, manifest: Manifest) -> Stage1Image:
    return Stage1Image(
        digest=manifest.digest,
        path=folder / _IMAGE,
        manifest_path=folder / _MANIFEST,
        tree_digest=manifest.tree_digest,
        verity_root=manifest.verity_root,
        verity_salt=manifest.verity_salt,
        data_size=manifest.data_size,
        file_size=manifest.file_size,
        file_sha256=manifest.file_sha256,
    )


def load_manifest(layout: Layout, digest: Digest) -> Manifest:
    """Read the manifest of the image `digest`; raises HostError if there is no such image."""
    folder = _folder(layout, digest)
    data = _read(folder / _MANIFEST)
    try:
        size = os.stat(folder / _IMAGE, follow_symlinks=False).st_size
    except FileNotFoundError:
        data = None
        size = 0
    if data is None:
        raise HostError(
            f"there is no stage1 image {digest} below {layout.stage1}",
            hint="prepare the pod again; it was prepared with an image that has been removed",
            code="host-stage1-gone",
        )
    manifest = parse_manifest(data, what=str(folder / _MANIFEST))
    if identity(manifest.recipe, manifest.tree_digest, manifest.verity_root) != digest:
        raise StateError(
            f"{folder / _MANIFEST} describes another image than {digest}",
            hint=f"remove {folder}; it will be built again",
            code="state-corrupt",
        )
    if manifest.digest != digest or manifest.file_size != size:
        raise StateError(
            f"stage1 image {folder / _IMAGE} has {size} bytes, its manifest says {manifest.file_size}",
            hint=f"remove {folder}; it will be built again",
            code="state-corrupt",
        )
    return manifest


def load_stage1(layout: Layout, digest: Digest) -> Stage1Image:
    """Return the image `digest`; raises HostError if it is gone, StateError if it was changed.

    The content is not read: dm-verity or `verify_stage1` does that.
    """
    return _image(_folder(layout, digest), load_manifest(layout, digest))


def verify_stage1(image: Stage1Image) -> None:
    """Read the whole image file and compare its digest; raises ImageError if a byte differs."""
    with image.path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != image.file_sha256:
        raise ImageError(
            f"stage1 image {image.path} has the digest sha256:{found}, expected sha256:{image.file_sha256}",
            hint=f"remove {image.path.parent}; it will be built again",
            code="image-stage1-damaged",
        )


def list_stage1(layout: Layout) -> list[Manifest]:
    """Return the manifests of all built images, the newest last; damaged ones raise SecrunError."""
    try:
        found = [item for item in layout.stage1.iterdir() if item.name.startswith(_PREFIX) and item.is_dir()]
    except FileNotFoundError:
        return []
    found.sort(key=lambda item: (item.stat().st_mtime_ns, item.name))
    return [load_manifest(layout, Digest("sha256", item.name.removeprefix(_PREFIX))) for item in found]


def current(layout: Layout) -> Digest | None:
    """Return the digest of the image that the next pod would get without a build, if there is one."""
    data = _read(_inputs_path(layout))
    if data is None:
        return None
    try:
        return parse_inputs(data).digest
    except SecrunError:
        return None  # an older secrun wrote it: it only saves a build


def _found(layout: Layout, agent: Path, recipe: str) -> Stage1Image | None:
    """Return the image of inputs that still look as they did when it was built."""
    data = _read(_inputs_path(layout))
    if data is None:
        return None
    try:
        inputs = parse_inputs(data)
        if inputs.recipe != recipe or inputs.agent != str(agent) or not unchanged(inputs.inputs):
            return None
        return load_stage1(layout, inputs.digest)
    except SecrunError:
        return None  # damaged or removed: building again is the cure, and says so if it cannot


def remove_unused(layout: Layout, keep: Collection[Digest]) -> list[Digest]:
    """Remove the images that are neither current nor in `keep`, those of pods; return their digests."""
    import shutil

    removed = list[Digest]()
    with held(layout.locks / "stage1.lock"):
        wanted = {digest.hex for digest in keep}
        if (used := current(layout)) is not None:
            wanted.add(used.hex)
        for folder in sorted(layout.stage1.glob(f"{_PREFIX}*/")):
            name = folder.name.removeprefix(_PREFIX)
            if name not in wanted:
                shutil.rmtree(folder)
                removed.append(Digest("sha256", name))
    return removed


def ensure_stage1(layout: Layout, agent: Path | None = None) -> Stage1Image:
    """Return the image for this host's packages and `agent`, building it if an input has changed.

    Callers that ask at the same time wait for the first of them. Raises HostError if a program or library
    is missing or the disk is full; nothing is left behind then.
    """
    agent = agent_path() if agent is None else agent.absolute()
    recipe = _recipe()
    image = _found(layout, agent, recipe)
    if image is not None:
        return image
    with held(layout.locks / "stage1.lock"):
        image = _found(layout, agent, recipe)
        if image is None:
            try:
                image = _build(layout, agent, recipe)
            except OSError as error:
                raise HostError(
                    f"cannot build the stage1 image below {layout.stage1}: {error}",
                    hint="free space or use another --root",
                    code="host-stage1-build",
                ) from error
    return image


def _build(layout: Layout, agent: Path, recipe: str) -> Stage1Image:
    from secrun.image.rootfs.scratch import scratch_folder

    layout.stage1.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        what = content.contents(agent)
        prints = tuple(fingerprint(item.source) for item in what.inputs)
        tree = content.entries(what)
        with scratch_folder(layout) as scratch:
            manifest = _pack(scratch, what, tree)
            if not unchanged(prints):
                continue
            folder = _publish(layout, scratch, manifest)
        inputs = Inputs(digest=manifest.digest, recipe=recipe, agent=str(agent), inputs=prints)
        write_atomic(_inputs_path(layout), encode_inputs(inputs))
        return _image(folder, manifest)
    raise HostError(
        "the host's packages changed while the stage1 image was built",
        hint="wait for the package manager, then try again",
        code="host-stage1-build",
    )


def _pack(scratch: Path, what: content.Contents, tree: Sequence[TreeEntry]) -> Manifest:
    """Write image and manifest into a new folder `scratch`/image."""
    from secrun.image.rootfs.pack import pack

    folder = scratch / "image"
    folder.mkdir()
    fd = os.open(folder / _IMAGE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "rb") as stream:
        packed = pack(tree, fd)
        os.fsync(fd)
        stream.seek(0)
        file_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    manifest = _manifest(what, tree, packed, file_sha256)
    write_atomic(folder / _MANIFEST, canonical(manifest_json(manifest)))
    return manifest


def _manifest(
    what: content.Contents, tree: Sequence[TreeEntry], packed: PackedImage, file_sha256: str
) -> Manifest:
    from secrun.stage1.provenance import packages_of

    sources = {item.target: item.source for item in what.inputs}
    packages = packages_of(list(sources.values()))
    digests = {path.decode(): digest.hex for path, digest in packed.contents}

    def described(entry: TreeEntry) -> ImageFile:
        path = entry.path.decode()
        source = sources.get(path)
        package = packages.get(source) if source else None
        return ImageFile(
            path=f"/{path}",
            kind=entry.kind.value,
            mode=entry.mode,
            size=entry.size,
            sha256=digests[path] if entry.kind is FileKind.FILE else "",
            target=entry.target.decode(),
            # The agent's place on the host that built the image is not part of the image.
            source="" if source is None or path == str(content.AGENT).lstrip("/") else str(source),
            package=package.name if package else "",
            version=package.version if package else "",
        )

    return Manifest(
        digest=identity(content.RECIPE_VERSION, packed.tree_digest, packed.verity_root),
        recipe=content.RECIPE_VERSION,
        secrun_version=__version__,
        tree_digest=packed.tree_digest,
        verity_root=packed.verity_root,
        verity_salt=packed.verity_salt,
        data_size=packed.data_size,
        file_size=packed.file_size,
        file_sha256=file_sha256,
        files=tuple(described(entry) for entry in sorted(tree, key=lambda entry: entry.path)),
    )


def _publish(layout: Layout, scratch: Path, manifest: Manifest) -> Path:
    """Move the built folder to its name; an equal image that is already there stays, as pods may use it."""
    folder = _folder(layout, manifest.digest)
    try:
        load_manifest(layout, manifest.digest)
    except SecrunError:
        _discard(folder, scratch)
        os.rename(scratch / "image", folder)
        fsync_dir(layout.stage1)
    return folder


def _discard(folder: Path, scratch: Path) -> None:
    """Move a damaged image out of the way; it disappears with the scratch folder."""
    try:
        os.rename(folder, scratch / "damaged")
    except FileNotFoundError:
        return
