"""The verbs that show and write what a stored image is made of."""

import json
from pathlib import Path

from secrun.cli.table import Arguments, Context
from secrun.image import export as exports
from secrun.image import reference as references
from secrun.image import resolve
from secrun.image.aci import oci
from secrun.image.entries import Entry
from secrun.image.store import ImageStore

_SCHEMA = "secrun.dev/image-manifest/v1"


def _entry(args: Arguments, context: Context) -> Entry:
    word = references.localize(references.parse(args.required("image")))
    return resolve.newest(resolve.lookup(ImageStore(context.layout).entries(), word))


def cat_manifest(args: Arguments, context: Context) -> int:
    """Print the manifest of an app container image byte for byte, of others manifest and configuration."""
    manifest, config, image = exports.documents(context.layout, _entry(args, context))
    text = oci.text_of(image.config)
    if text and not args.flag("pretty_print"):
        context.out.write(text if text.endswith("\n") else f"{text}\n")
        return 0
    document = (
        json.loads(text)
        if text
        else {"schema": _SCHEMA, "manifest": json.loads(manifest), "config": json.loads(config)}
    )
    context.out.write(json.dumps(document, indent=2 if args.flag("pretty_print") else None) + "\n")
    return 0


def export(args: Arguments, context: Context) -> int:
    """Write a stored image to a file; prints its ID in the format that was asked for."""
    entry, path = _entry(args, context), Path(args.required("file")).absolute()
    overwrite = args.flag("overwrite")
    if args.required("format") == "oci":
        context.out.write(f"{exports.oci(context.layout, entry, path, overwrite=overwrite)}\n")
    else:
        image_id = exports.aci(context.layout, entry, path, overwrite=overwrite)
        context.out.write(f"sha512-{image_id.hex}\n")
    return 0
