"""The stage1 image of a guest: kernel, and an initramfs with the tree that containers boot from too.

`ensure_guest` is on the way of every start: what only a build needs is imported by the build.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import HostError, StateError
from secrun.files import fsync_dir, write_atomic
from secrun.jsonio import canonical
from secrun.locks import held
from secrun.paths import Layout
from secrun.record import record
from secrun.stage1 import imagestore
from secrun.stage1.agent import stage0_path
from secrun.stage1.imagebuild import contents_of, ensure_stage1
from secrun.stage1.imagerecord import IMAGE_NAME, INITRD_NAME, KERNEL_NAME
from secrun.stage1.imagestore import BuiltImage, Plan, Recipe
from secrun_kvm import kernel as kernels

if TYPE_CHECKING:
    from secrun.stage1.imagerecord import Guest, ImageFile, Manifest
    from secrun.stage1.provenance import Package
    from secrun_kvm.modules import Module

FLAVOUR = "kvm"
# Bumped whenever the same inputs give another initramfs.
RECIPE_VERSION = 3
_MAX_CHOICE_BYTES = 4096


@record
class GuestImage:
    """A built image: its files, the digests that bind them, and how the guest opens `stage1`."""

    digest: Digest
    reference: Digest
    release: str
    kernel: Path
    kernel_digest: Digest
    initrd: Path
    initrd_digest: Digest


def _guest_image(built: BuiltImage) -> GuestImage:
    manifest = built.manifest
    if manifest.guest is None:
        raise StateError(
            f"{built.manifest_path} lists no kernel",
            hint=f"remove {built.folder}; it will be built again",
            code="state-corrupt",
        )
    return GuestImage(
        digest=manifest.digest,
        reference=manifest.reference,
        release=manifest.guest.release,
        kernel=built.folder / KERNEL_NAME,
        kernel_digest=Digest("sha256", manifest.guest.kernel.sha256),
        initrd=built.folder / INITRD_NAME,
        initrd_digest=Digest("sha256", manifest.guest.initrd.sha256),
    )


def load_guest(layout: Layout, digest: Digest) -> GuestImage:
    """Return the image `digest` as it is; raises HostError if it is gone, StateError if it was changed."""
    return _guest_image(imagestore.load(layout, FLAVOUR, digest))


def verify_guest(layout: Layout, digest: Digest) -> None:
    """Read kernel and initramfs and compare; raises ImageError if a byte differs.

    Nothing else checks these two, and the second holds stage1.
    """
    imagestore.verify(imagestore.load(layout, FLAVOUR, digest), (KERNEL_NAME, INITRD_NAME))


def _choice_path(layout: Layout) -> Path:
    return layout.stage1 / f"{FLAVOUR}.kernel"


def chosen_kernel(layout: Layout) -> Path | None:
    """Return the kernel that was named for guests of this root, if one was."""
    try:
        with _choice_path(layout).open("rb") as stream:
            text = stream.read(_MAX_CHOICE_BYTES + 1)
    except FileNotFoundError:
        return None
    path = os.fsdecode(text.removesuffix(b"\n"))
    if len(text) > _MAX_CHOICE_BYTES or not path.startswith("/"):
        raise StateError(
            f"{_choice_path(layout)} names no kernel",
            hint="choose one: secrun stage1 build kvm [--kernel FILE]",
            code="state-corrupt",
        )
    return Path(path)


def choose_kernel(layout: Layout, kernel: Path | None) -> None:
    """Make `kernel` the one that guests of this root boot, or the newest that is installed."""
    path = _choice_path(layout)
    if kernel is not None:
        write_atomic(path, os.fsencode(kernel) + b"\n")
    elif path.exists():
        path.unlink()
        fsync_dir(path.parent)


@record
class _Origin:
    """What an image is made of besides modules."""

    base: BuiltImage
    kernel: Path
    stage0: Path


def ensure_guest(layout: Layout, kernel: Path | None = None) -> GuestImage:
    """Return the image of a kernel, built if an input changed; None: of the chosen or the newest kernel.

    Raises HostError naming what is missing; never takes another kernel instead.
    """
    kernel = kernel or chosen_kernel(layout) or kernels.installed()
    stage0 = stage0_path()
    base = ensure_stage1(layout)
    origin = _Origin(base=base, kernel=kernel, stage0=stage0)
    recipe = Recipe(flavour=FLAVOUR, key=_key(origin), plan=partial(_plan, origin))
    return _guest_image(imagestore.ensure(layout, recipe))


def build_guest(layout: Layout, kernel: Path | None) -> GuestImage:
    """As `ensure_guest`, and make the kernel the one of later pods; None: the newest that is installed."""
    with held(layout.locks / "stage1-kernel.lock"):
        image = ensure_guest(layout, kernel or kernels.installed())
        choose_kernel(layout, kernel)
    return image


def _key(origin: _Origin) -> str:
    """Digest everything but the inputs that decides the image."""
    names = [str(origin.kernel), str(origin.stage0), str(origin.base.digest)]
    return Digest.of(canonical({"recipe": RECIPE_VERSION, "names": [*names]})).hex


def _plan(origin: _Origin) -> Plan:
    from secrun_kvm import modules

    release = kernels.release(kernels.read(origin.kernel), origin.kernel)
    order = modules.resolve(modules.read(release), modules.GROUPS, kernels.this_platform().hashes)
    files = {modules.file_of(module, release) for module in order}
    return Plan(
        inputs=(origin.kernel, origin.stage0, *modules.lists(release), *sorted(files)),
        write=partial(_write, origin, release, order),
    )


def _write(origin: _Origin, release: str, order: "tuple[Module, ...]", folder: Path) -> "Manifest":
    """Write kernel, initramfs and stage1 into `folder`; return what they are."""
    from secrun.record import replace
    from secrun.stage1.imagerecord import Guest
    from secrun.stage1.provenance import packages_of
    from secrun_kvm import initramfs, modules

    base, kernel = origin.base, origin.kernel
    # The same tree as containers have it: one file for all flavours, and a damaged one gets no second name.
    imagestore.verify(base)
    os.link(base.path, folder / IMAGE_NAME)
    data = kernels.read(kernel)
    if kernels.release(data, kernel) != release:
        raise HostError(f"kernel {kernel} changed while it was read", hint="try again", code="host-kernel")
    sources = {initramfs.file_name(module): modules.file_of(module, release) for module in order}
    files = {name: modules.content(path) for name, path in sources.items()}
    stage1 = initramfs.tree(contents_of(base))
    nodes = initramfs.nodes(origin.stage0.read_bytes(), order, files)
    initrd = initramfs.archive([*nodes, *stage1])
    write_atomic(folder / KERNEL_NAME, data)
    write_atomic(folder / INITRD_NAME, initrd)
    packages = packages_of([kernel, *sources.values()])
    guest = Guest(
        release=release,
        kernel=_described(KERNEL_NAME, 0o100644, data, kernel, packages),
        initrd=_described(INITRD_NAME, 0o100644, initrd, None, packages),
        initrd_files=tuple(
            _described(f"/{node.path}", node.mode, node.data, sources.get(node.path), packages)
            for node in nodes
        ),
    )
    digest = _digest(base, guest)
    return replace(base.manifest, flavour=FLAVOUR, recipe=RECIPE_VERSION, digest=digest, guest=guest)


def _digest(base: BuiltImage, guest: "Guest") -> Digest:
    from secrun.stage1.imagerecord import identity

    return identity(RECIPE_VERSION, base.manifest.tree_digest, base.manifest.verity_root, guest)


_KINDS = {0o040000: "dir", 0o020000: "char", 0o100000: "file"}


def _described(
    path: str, mode: int, data: bytes, source: Path | None, packages: "Mapping[Path, Package]"
) -> "ImageFile":
    from secrun.stage1.imagerecord import ImageFile

    package = packages.get(source) if source else None
    kind = _KINDS[mode & 0o170000]
    return ImageFile(
        path=path,
        kind=kind,
        mode=mode & 0o7777,
        size=len(data),
        sha256=Digest.of(data).hex if kind == "file" else "",
        target="",
        # Where a file of no package lies on the host that built the image is not part of the image.
        source=str(source) if package else "",
        package=package.name if package else "",
        version=package.version if package else "",
    )
