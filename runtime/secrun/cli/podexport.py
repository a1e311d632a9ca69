"""The verb that writes what an app left behind to an archive."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from secrun.cli.table import Arguments, Context
from secrun.errors import UsageError

# What an app left may hold its keys: the file is its caller's.
_MODE = 0o600


@contextmanager
def _output(word: str | None, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield the file of --output, else standard output."""
    from secrun.image import archive

    if word is not None:
        with archive.whole(Path(word).absolute(), overwrite=overwrite, mode=_MODE) as stream:
            yield stream
        return
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def export(args: Arguments, context: Context) -> int:
    """Write an app of an exited pod, with its changes, as an OCI archive; prints the image's digest."""
    from secrun.pod import export as exporting

    word = args.text("output")
    if word is None and sys.stdout.isatty():
        raise UsageError("an archive is not for a terminal", hint="give -o FILE, or redirect the output")
    with (
        exporting.ended(context.layout, args.required("uuid"), args.text("app")) as one,
        _output(word, overwrite=args.flag("overwrite")) as out,
    ):
        done = exporting.export(context.layout, one, out)
    for note in done.notes:
        context.warn(f"note: {note}")
    if word is not None:
        context.out.write(f"{done.digest}\n")
    return 0
