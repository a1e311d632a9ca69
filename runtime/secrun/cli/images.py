"""The verbs on images."""

import json
import os

from secrun.cli.guard import each
from secrun.cli.imageoptions import fetch_options
from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.digest import Digest
from secrun.errors import DeniedError, ImageError, StateError
from secrun.image import filters, resolve, view
from secrun.image import reference as references
from secrun.image.entries import Entry
from secrun.image.fetch import StoredImage, ensure_image
from secrun.image.options import FetchOptions
from secrun.image.progress import human
from secrun.image.store import ImageStore
from secrun.jsonio import JsonObject

_SHORT_ID = 12


def ensured(args: Arguments, context: Context, word: str, options: FetchOptions) -> StoredImage:
    """Fetch and admit one image; a refusal is measured where this host measures."""
    try:
        return ensure_image(context.layout, word, options)
    except DeniedError as error:
        # The log is the host's: what an ordinary user was refused could not have run.
        if os.geteuid() != 0:
            raise
        from secrun.cli.attestoptions import measuring

        measuring(args, context).denied(word, error)
        raise


def fetch(args: Arguments, context: Context) -> int:
    """Fetch images and render their root file systems; the last line is the image's ID."""
    options = fetch_options(args, context)
    return each(args.many("image"), lambda word: fetch_one(args, context, word, options))


def fetch_one(args: Arguments, context: Context, word: str, options: FetchOptions) -> None:
    """Fetch, admit and render one image; tell its ID. Raises what ensure_image does."""
    from secrun.image import rootfs

    with ImageStore(context.layout).using():
        image = ensured(args, context, word, options)
        rendered = rootfs.ensure(context.layout, image.layers)
    if args.text("format") == "json":
        row = view.fetched_json(image, rendered)
        context.out.write(json.dumps(row, ensure_ascii=False) + "\n")
    else:
        context.out.write(f"{image.manifest_digest}\n")
    context.out.flush()


def _age(imported_at: str) -> str:
    return imported_at.replace("T", " ").removesuffix("Z")


def list_images(args: Arguments, context: Context) -> int:
    """List stored images by reference; one that is damaged is named and hides no other."""
    store = ImageStore(context.layout)
    chosen = filters.chosen(store, args.many("filter"), lambda: _in_use(context))
    entries = sorted(chosen, key=lambda entry: (entry.shown, entry.digest))
    if args.flag("quiet"):
        context.out.write("".join(f"{digest}\n" for digest in sorted({entry.digest for entry in entries})))
        return 0
    sizes = {entry.digest: _size(store, entry, context) for entry in entries}
    if args.text("format") == "json":
        rows = [view.entry_json(entry, sizes[entry.digest], store.used_at(entry)) for entry in entries]
        write_json(context, {"schema": view.LIST_SCHEMA, "images": [*rows]})
        return 0
    cells = [
        (
            entry.digest.hex[:_SHORT_ID],
            entry.shown,
            str(entry.descriptor.platform or "-"),
            "-" if (size := sizes[entry.digest]) is None else human(size),
            _age(entry.imported_at),
            _age(view.stamp(store.used_at(entry))),
        )
        for entry in entries
    ]
    heading = ("ID", "REFERENCE", "PLATFORM", "SIZE", "IMPORTED (UTC)", "LAST USED (UTC)")
    table(context, heading, cells, legend=not args.flag("no_legend"))
    return 0


def _in_use(context: Context) -> frozenset[Digest]:
    from secrun.pod.view import images_of_pods
    from secrun.stage1.imageview import images_mounted

    return images_of_pods(context.layout) | images_mounted(context.layout)


def _size(store: ImageStore, entry: Entry, context: Context) -> int | None:
    try:
        return store.image_size(entry)
    except (ImageError, StateError) as error:
        context.warn(f"image {entry.digest.hex[:_SHORT_ID]}: {error.message}")
        return None


def _lookup(store: ImageStore, word: str) -> list[Entry]:
    return resolve.lookup(store.entries(), references.localize(references.parse(word)))


def inspect(args: Arguments, context: Context) -> int:
    """Show what is known of stored images."""
    store = ImageStore(context.layout)
    found: list[JsonObject] = []

    def one(word: str) -> None:
        digest = _lookup(store, word)[0].digest
        found.append(view.inspect_json(store, [item for item in store.entries() if item.digest == digest]))

    status = each(args.many("image"), one)
    if args.text("format") == "json":
        write_json(context, {"schema": view.INSPECT_SCHEMA, "images": [*found]})
    else:
        context.out.write("\n".join(view.inspect_text(image) for image in found))
    return status


def remove(args: Arguments, context: Context) -> int:
    """Remove images: a reference loses only itself, an ID all references of the image."""
    from secrun.pod.view import images_in_use
    from secrun.stage1.imageview import images_mounted

    store = ImageStore(context.layout)

    def one(word: str) -> None:
        with store.sole_use():
            in_use = images_in_use(context.layout) | images_mounted(context.layout)
            done = store.remove(_lookup(store, word), in_use=in_use)
        for entry in done.removed:
            context.out.write(f"{entry.digest} {entry.shown}\n")
        if done.kept:
            context.err.write(f"secrun: note: its data stays for now: {done.kept}\n")

    return each(args.many("image"), one)
