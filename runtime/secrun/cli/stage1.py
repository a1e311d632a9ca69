"""The verbs on stage1 images."""

from pathlib import Path

from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.errors import StateError, UsageError
from secrun.jsonio import JsonObject, JsonValue
from secrun.stage1 import flavours
from secrun.stage1.imagerecord import ImageFile, Manifest, manifest_json
from secrun.stage1.imagestore import current, list_images, load

LIST_SCHEMA = "secrun.dev/stage1-list/v1"
_DEFAULT = "nspawn"
_SHORT = 12


def _summary(manifest: Manifest, *, is_current: bool) -> JsonObject:
    summary: JsonObject = {
        "digest": str(manifest.digest),
        "flavour": manifest.flavour,
        "current": is_current,
        "secrun_version": manifest.secrun_version,
        "tree_digest": str(manifest.tree_digest),
        "verity_root": manifest.verity_root,
        "file_size": manifest.file_size,
        "files": sum(1 for item in manifest.files if item.kind == "file"),
    }
    if (guest := manifest.guest) is not None:
        summary["kernel"] = {"release": guest.release, "sha256": guest.kernel.sha256}
        summary["initrd"] = {"sha256": guest.initrd.sha256}
    return summary


def build(args: Arguments, context: Context) -> int:
    """Build a flavour's image for this host's packages, or find that it is built; print its digest."""
    flavour = flavours.load(args.text("flavour") or _DEFAULT)
    kernel = args.text("kernel")
    identity = flavour.build_image(context.layout, Path(kernel).absolute() if kernel else None)
    if args.text("format") == "json":
        manifest = load(context.layout, flavour.name, identity.digest).manifest
        write_json(context, {"schema": LIST_SCHEMA, "images": [_summary(manifest, is_current=True)]})
    else:
        context.out.write(f"{identity.digest}\n")
    return 0


def _is_current(context: Context, manifest: Manifest) -> bool:
    return current(context.layout, manifest.flavour) == manifest.digest


def _megabytes(manifest: Manifest) -> str:
    return f"{sum(size for _, size, _ in manifest.parts) / 1e6:.1f} MB"


def list_built(args: Arguments, context: Context) -> int:
    """List the built images, the newest last."""
    manifests = [(item, _is_current(context, item)) for item in list_images(context.layout)]
    if args.text("format") == "json":
        images: list[JsonValue] = [_summary(item, is_current=used) for item, used in manifests]
        write_json(context, {"schema": LIST_SCHEMA, "images": images})
        return 0
    rows = [
        (
            item.digest.hex[:_SHORT],
            item.flavour,
            "yes" if used else "",
            _megabytes(item),
            str(len(item.files)),
            item.guest.release if item.guest else "",
            item.secrun_version,
        )
        for item, used in manifests
    ]
    heading = ("DIGEST", "FLAVOUR", "CURRENT", "SIZE", "PATHS", "KERNEL", "SECRUN")
    table(context, heading, rows, legend=not args.flag("no_legend"))
    return 0


def _choose(context: Context, word: str | None) -> Manifest:
    manifests = list_images(context.layout)
    if not manifests:
        raise StateError(
            f"no stage1 image is built below {context.layout.stage1}",
            hint="run secrun stage1 build",
            code="state-stage1",
        )
    if word is None or word in {item.flavour for item in manifests}:
        # The default flavour is shown before another that is built too.
        wanted = word or _DEFAULT
        ranked = sorted(manifests, key=lambda item: (item.flavour == wanted, _is_current(context, item)))
        return ranked[-1]
    prefix = word.removeprefix("sha256:")
    found = [item for item in manifests if prefix and item.digest.hex.startswith(prefix)]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} stage1 images have a digest that begins with {word[:80]!r}",
            hint="secrun stage1 list shows them",
            code="usage-stage1",
        )
    return found[0]


def _row(item: ImageFile) -> tuple[str, ...]:
    path = f"{item.path} -> {item.target}" if item.target else item.path
    origin = f"{item.package} {item.version}" if item.package else ""
    digest = item.sha256[:_SHORT] if item.sha256 else item.kind
    return (f"{item.mode:04o}", digest, str(item.size) if item.sha256 else "", origin, path)


def show(args: Arguments, context: Context) -> int:
    """List every path of an image with mode, digest and the package it comes from."""
    manifest = _choose(context, args.text("digest"))
    if args.text("format") == "json":
        write_json(context, manifest_json(manifest))
        return 0
    context.out.write(
        f"digest       {manifest.digest}\ntree digest  {manifest.tree_digest}\n"
        f"verity root  {manifest.verity_root}\nsecrun       {manifest.secrun_version}\n"
    )
    heading = ("MODE", "SHA256", "SIZE", "PACKAGE", "PATH")
    if (guest := manifest.guest) is not None:
        context.out.write(f"kernel       {guest.release}\n\nbeside the image\n")
        table(context, heading, [_row(guest.kernel), _row(guest.initrd)], legend=True)
        context.out.write("\nin the initramfs\n")
        table(context, heading, [_row(item) for item in guest.initrd_files], legend=True)
    context.out.write("\n" if manifest.guest is None else "\nin stage1\n")
    table(context, heading, [_row(item) for item in manifest.files], legend=True)
    return 0
