"""The verbs on stage1 images."""

from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.errors import StateError, UsageError
from secrun.jsonio import JsonObject, JsonValue
from secrun.stage1.imagebuild import current, ensure_stage1, list_stage1, load_manifest
from secrun.stage1.imagerecord import ImageFile, Manifest, manifest_json

LIST_SCHEMA = "secrun.dev/stage1-list/v1"
_SHORT = 12


def _summary(manifest: Manifest, *, is_current: bool) -> JsonObject:
    return {
        "digest": str(manifest.digest),
        "flavour": "nspawn",
        "current": is_current,
        "secrun_version": manifest.secrun_version,
        "tree_digest": str(manifest.tree_digest),
        "verity_root": manifest.verity_root,
        "file_size": manifest.file_size,
        "files": sum(1 for item in manifest.files if item.kind == "file"),
    }


def build(args: Arguments, context: Context) -> int:
    """Build the image for this host's packages, or find that it is built; print its digest."""
    image = ensure_stage1(context.layout)
    if args.text("format") == "json":
        manifest = load_manifest(context.layout, image.digest)
        write_json(context, {"schema": LIST_SCHEMA, "images": [_summary(manifest, is_current=True)]})
    else:
        context.out.write(f"{image.digest}\n")
    return 0


def list_images(args: Arguments, context: Context) -> int:
    """List the built images, the newest last."""
    used = current(context.layout)
    manifests = list_stage1(context.layout)
    if args.text("format") == "json":
        images: list[JsonValue] = [_summary(item, is_current=item.digest == used) for item in manifests]
        write_json(context, {"schema": LIST_SCHEMA, "images": images})
        return 0
    rows = [
        (
            item.digest.hex[:_SHORT],
            "nspawn",
            "yes" if item.digest == used else "",
            f"{item.file_size / 1e6:.1f} MB",
            str(len(item.files)),
            item.secrun_version,
        )
        for item in manifests
    ]
    heading = ("DIGEST", "FLAVOUR", "CURRENT", "SIZE", "PATHS", "SECRUN")
    table(context, heading, rows, legend=not args.flag("no_legend"))
    return 0


def _choose(context: Context, word: str | None) -> Manifest:
    manifests = list_stage1(context.layout)
    if not manifests:
        raise StateError(
            f"no stage1 image is built below {context.layout.stage1}",
            hint="run secrun stage1 build",
            code="state-stage1",
        )
    if word is None:
        used = current(context.layout)
        return next((item for item in manifests if item.digest == used), manifests[-1])
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
        f"verity root  {manifest.verity_root}\nsecrun       {manifest.secrun_version}\n\n"
    )
    rows = [_row(item) for item in manifest.files]
    table(context, ("MODE", "SHA256", "SIZE", "PACKAGE", "PATH"), rows, legend=True)
    return 0
