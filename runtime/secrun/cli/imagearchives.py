"""The verbs that give stored images names, and that carry them to other hosts in archives."""

import os
from pathlib import Path

from secrun.cli.guard import each
from secrun.cli.imageoptions import fetch_options
from secrun.cli.images import fetch_one
from secrun.cli.outputs import archive_output
from secrun.cli.table import Arguments, Context
from secrun.errors import UsageError
from secrun.image import reference as references
from secrun.image import resolve, tags
from secrun.image.store import ImageStore


def tag(args: Arguments, context: Context) -> int:
    """Give a stored image further names."""
    tags.add(ImageStore(context.layout), args.required("image"), args.many("name"))
    return 0


def untag(args: Arguments, context: Context) -> int:
    """Take names away that were given here."""
    store = ImageStore(context.layout)

    def one(word: str) -> None:
        for entry in tags.remove(store, word):
            context.out.write(f"{entry.digest} {entry.tag}\n")

    return each(args.many("name"), one)


def save(args: Arguments, context: Context) -> int:
    """Write stored images to an archive."""
    from secrun.image import save as saving

    store = ImageStore(context.layout)
    write = saving.oci_archive if args.required("format") == "oci-archive" else saving.docker_archive
    with store.using():
        stored = store.entries()
        entries = [
            resolve.newest(resolve.lookup(stored, references.localize(references.parse(word))))
            for word in args.many("image")
        ]
        with archive_output(args) as out:
            notes = write(context.layout, entries, out)
    for note in notes:
        context.warn(f"note: {note}")
    return 0


def load(args: Arguments, context: Context) -> int:
    """Bring in every image of an archive that the policy admits."""
    from secrun.image import listing

    word = args.text("input")
    if word is None:
        raise UsageError("--input is missing", hint="secrun image load -i FILE", code="usage-input")
    found = listing.images_in(Path(os.path.realpath(word)))
    options = fetch_options(args, context)
    return each([str(item) for item in found], lambda item: fetch_one(args, context, item, options))
