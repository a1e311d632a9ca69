"""Built stage1 images of every flavour: make one once, find it again in a few milliseconds, remove it.

A fingerprint of the inputs decides whether to build; the contents decide what the image is called.
"""

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import HostError, ImageError, SecrunError, StateError
from secrun.files import fsync_dir, write_atomic
from secrun.jsonio import canonical
from secrun.locks import held
from secrun.paths import Layout
from secrun.record import record
from secrun.stage1.imagerecord import (
    IMAGE_NAME,
    MAX_RECORD_BYTES,
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

_MANIFEST = "manifest.json"
_FOLDER = re.compile(r"([a-z]+)-([0-9a-f]{64})")
# An upgrade of a package while its files are copied is rare; twice in a row it is something else.
_ATTEMPTS = 3


@record
class Plan:
    """A build that is decided: which files it will read, and what writes the image into a new folder."""

    inputs: tuple[Path, ...]
    write: Callable[[Path], Manifest]


@record
class Recipe:
    """How a flavour makes its image; `key` digests everything but the inputs that decides its bytes."""

    flavour: str
    key: str
    plan: Callable[[], Plan]


@record
class BuiltImage:
    """A built image and the folder that holds its files."""

    folder: Path
    manifest: Manifest

    @property
    def digest(self) -> Digest:
        """The image's name."""
        return self.manifest.digest

    @property
    def path(self) -> Path:
        """The EROFS file, with its dm-verity tree at offset `data_size` of the manifest."""
        return self.folder / IMAGE_NAME

    @property
    def manifest_path(self) -> Path:
        """The manifest as it is stored."""
        return self.folder / _MANIFEST


def _folder(layout: Layout, flavour: str, digest: Digest) -> Path:
    return layout.stage1 / f"{flavour}-{digest.hex}"


def _inputs_path(layout: Layout, flavour: str) -> Path:
    return layout.stage1 / f"{flavour}.inputs.json"


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_RECORD_BYTES + 1)
    except FileNotFoundError:
        return None


def _part_size(path: Path) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return -1


def load(layout: Layout, flavour: str, digest: Digest) -> BuiltImage:
    """Return the image `digest`; raises HostError if it is gone, StateError if it was changed.

    The content of its files is not read: dm-verity or `verify` does that.
    """
    folder = _folder(layout, flavour, digest)
    data = _read(folder / _MANIFEST)
    if data is None:
        raise HostError(
            f"there is no stage1 image {digest} of flavour {flavour} below {layout.stage1}",
            hint="prepare the pod again; it was prepared with an image that has been removed",
            code="host-stage1-gone",
        )
    manifest = parse_manifest(data, what=str(folder / _MANIFEST))
    if manifest.digest != digest or manifest.flavour != flavour:
        raise StateError(
            f"{folder / _MANIFEST} describes {manifest.digest} of flavour {manifest.flavour[:40]!r}",
            hint=f"remove {folder}; it will be built again",
            code="state-corrupt",
        )
    if identity(manifest.recipe, manifest.tree_digest, manifest.verity_root, manifest.guest) != digest:
        raise StateError(
            f"{folder / _MANIFEST} describes another image than {digest}",
            hint=f"remove {folder}; it will be built again",
            code="state-corrupt",
        )
    for name, size, _ in manifest.parts:
        if (found := _part_size(folder / name)) != size:
            held_by = "is missing" if found < 0 else f"has {found} bytes"
            raise StateError(
                f"{folder / name} {held_by}, the manifest of the stage1 image says {size} bytes",
                hint=f"remove {folder}; it will be built again",
                code="state-corrupt",
            )
    return BuiltImage(folder=folder, manifest=manifest)


def verify(image: BuiltImage, names: Collection[str] | None = None) -> None:
    """Read the image's files, or those in `names`, and compare; raises ImageError if a byte differs."""
    import hashlib

    for name, _, expected in image.manifest.parts:
        if names is not None and name not in names:
            continue
        with (image.folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise ImageError(
                f"{image.folder / name} has the digest sha256:{found}, expected sha256:{expected}",
                hint=f"remove {image.folder}; it will be built again",
                code="image-stage1-damaged",
            )


def _folders(layout: Layout) -> list[tuple[Path, str, Digest]]:
    try:
        names = os.listdir(layout.stage1)
    except FileNotFoundError:
        return []
    matches = (match for name in sorted(names) if (match := _FOLDER.fullmatch(name)))
    return [(layout.stage1 / match[0], match[1], Digest("sha256", match[2])) for match in matches]


def list_images(layout: Layout) -> list[Manifest]:
    """Return the manifests of all built images, the newest last; damaged ones raise SecrunError."""
    found = sorted(_folders(layout), key=lambda item: (item[0].stat().st_mtime_ns, item[0].name))
    return [load(layout, flavour, digest).manifest for _, flavour, digest in found]


def current(layout: Layout, flavour: str) -> Digest | None:
    """Return the digest of the image that the next pod would get without a build, if there is one."""
    data = _read(_inputs_path(layout, flavour))
    if data is None:
        return None
    try:
        return parse_inputs(data).digest
    except SecrunError:
        return None  # an older secrun wrote it: it only saves a build


def remove_unused(layout: Layout, keep: Collection[Digest]) -> list[Digest]:
    """Remove the images that are neither current nor in `keep`, those of pods; return their digests."""
    import shutil

    removed = list[Digest]()
    with held(layout.locks / "stage1.lock"):
        for folder, flavour, digest in _folders(layout):
            if digest not in keep and digest != current(layout, flavour):
                shutil.rmtree(folder)
                removed.append(digest)
    return removed


def _found(layout: Layout, recipe: Recipe) -> BuiltImage | None:
    """Return the image of inputs that still look as they did when it was built."""
    data = _read(_inputs_path(layout, recipe.flavour))
    if data is None:
        return None
    try:
        inputs = parse_inputs(data)
        if inputs.recipe != recipe.key or not unchanged(inputs.inputs):
            return None
        return load(layout, recipe.flavour, inputs.digest)
    except SecrunError:
        return None  # damaged or removed: building again is the cure, and says so if it cannot


def ensure(layout: Layout, recipe: Recipe) -> BuiltImage:
    """Return the image of a recipe for this host's files, building it if one of them has changed.

    Callers that ask at the same time wait for the first of them. Raises HostError if a file is missing or
    the disk is full; nothing is left behind then.
    """
    image = _found(layout, recipe)
    if image is not None:
        return image
    with held(layout.locks / "stage1.lock"):
        image = _found(layout, recipe)
        if image is None:
            try:
                image = _build(layout, recipe)
            except OSError as error:
                raise HostError(
                    f"cannot build the stage1 image below {layout.stage1}: {error}",
                    hint="free space or use another --root",
                    code="host-stage1-build",
                ) from error
    return image


def _build(layout: Layout, recipe: Recipe) -> BuiltImage:
    from secrun.image.rootfs.scratch import scratch_folder

    layout.stage1.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        plan = recipe.plan()
        prints = tuple(map(fingerprint, plan.inputs))
        with scratch_folder(layout) as scratch:
            made = scratch / "image"
            made.mkdir()
            # Pods have no rights but those of everybody; the umask must not decide what they are.
            made.chmod(0o755)
            manifest = plan.write(made)
            if not unchanged(prints):
                continue
            write_atomic(made / _MANIFEST, canonical(manifest_json(manifest)))
            folder = _publish(layout, scratch, manifest)
        inputs = Inputs(digest=manifest.digest, recipe=recipe.key, inputs=prints)
        write_atomic(_inputs_path(layout, recipe.flavour), encode_inputs(inputs))
        return BuiltImage(folder=folder, manifest=manifest)
    raise HostError(
        "the host's packages changed while the stage1 image was built",
        hint="wait for the package manager, then try again",
        code="host-stage1-build",
    )


def _publish(layout: Layout, scratch: Path, manifest: Manifest) -> Path:
    """Move the built folder to its name; an equal image that is already there stays, as pods may use it."""
    folder = _folder(layout, manifest.flavour, manifest.digest)
    try:
        load(layout, manifest.flavour, manifest.digest)
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
