"""Where a verb writes an archive: a file, which is whole or absent, or standard output."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.cli.table import Arguments
from secrun.errors import UsageError

if TYPE_CHECKING:
    from typing import BinaryIO


@contextmanager
def archive_output(args: Arguments, *, mode: int = 0o644) -> "Iterator[BinaryIO]":
    """Yield the file of --output, else standard output; raises UsageError for a terminal, StateError."""
    from secrun.image import archive

    word = args.text("output")
    if word is not None:
        with archive.whole(Path(word).absolute(), overwrite=args.flag("overwrite"), mode=mode) as stream:
            yield stream
        return
    if sys.stdout.isatty():
        raise UsageError("an archive is not for a terminal", hint="give -o FILE, or redirect the output")
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()
