"""The verbs that show and write what a stored image is made of."""

import json
from pathlib import Path

from secrun.cli.table import Arguments, Context
from secrun.image import apart, limits, resolve
from secrun.image import export as exports
from secrun.image import reference as references
from secrun.image.aci import embedded, oci
from secrun.image.aci.manifest import plain
from secrun.image.entries import Entry
from secrun.image.store import ImageStore
from secrun.jsonio import JsonObject, parse_object

_SCHEMA = "secrun.dev/image-manifest/v1"


def _entry(args: Arguments, context: Context) -> Entry:
    word = references.localize(references.parse(args.required("image")))
    return resolve.newest(resolve.lookup(ImageStore(context.layout).entries(), word))


def _parsed(manifest: bytes, config: bytes, what: str) -> JsonObject:
    """Parse what somebody else wrote, for root without rights."""

    def body() -> JsonObject:
        documents = {"manifest": manifest, "config": config}
        return {
            name: plain(parse_object(data, what=f"{name} of {what}", limit=limits.MAX_CONFIG_BYTES))
            for name, data in documents.items()
        }

    return apart.run(body, lambda: None)


def cat_manifest(args: Arguments, context: Context) -> int:
    """Print the manifest of an app container image byte for byte, of others manifest and configuration."""
    entry = _entry(args, context)
    manifest, config, image = exports.documents(context.layout, entry)
    text = oci.text_of(image.config)
    if text and not args.flag("pretty_print"):
        context.out.write(text if text.endswith("\n") else f"{text}\n")
        return 0
    own = embedded.document_of(image.config, entry.reference)
    document = {"schema": _SCHEMA, **_parsed(manifest, config, entry.reference)} if own is None else own
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
