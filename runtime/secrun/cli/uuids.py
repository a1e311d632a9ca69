"""Which pods a command line means: words, a file that holds a UUID, or all of them."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.cli.table import Arguments, Context
from secrun.errors import UsageError
from secrun.pod.states import State, find, walk

if TYPE_CHECKING:
    from secrun.pod.glance import Glance

# A UUID and a newline; a larger file was given by mistake.
_MAX_BYTES = 100


def _from_file(name: str) -> str:
    try:
        with Path(name).open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--uuid-file {name}: {error.strerror}", code="usage-uuid") from error
    text = data.decode("ascii", "replace").strip()
    if len(data) > _MAX_BYTES or not text or len(text.split()) != 1:
        raise UsageError(f"--uuid-file {name} holds no UUID, but {text[:40]!r}", code="usage-uuid")
    return text


def one(args: Arguments) -> str:
    """Return the one pod that is named, by word or by file; raises UsageError."""
    word, file = args.text("uuid"), args.text("uuid_file")
    if (word is None) == (file is None):
        what = "a UUID or --uuid-file" if word is None else "either a UUID or --uuid-file, not both"
        raise UsageError(f"expected {what}", hint="see secrun list", code="usage-uuid")
    return _from_file(file) if file is not None else word or ""


def chosen(context: Context, filters: Sequence[str]) -> "list[Glance]":
    """Return the pods of which filters hold; raises UsageError."""
    from secrun.pod import select
    from secrun.pod.glance import glances

    def created(text: str) -> int:
        uuid = find(context.layout, text).uuid
        return next(pod.created_ns for pod in glances(context.layout) if pod.uuid == uuid)

    wanted = select.parse(filters, time.time_ns(), created)
    return [pod for pod in glances(context.layout, ends=wanted.needs_ends) if wanted.holds(pod)]


def _files(args: Arguments) -> list[str]:
    """Return the UUIDs that files hold; with --ignore a file that is not there holds none."""
    names = args.many("uuid_file")
    return [_from_file(name) for name in names if not args.flag("ignore") or Path(name).exists()]


def several(args: Arguments, context: Context, *states: State) -> tuple[str, ...]:
    """Return the pods that words or files name, or those in `states` with --all or filters.

    Raises UsageError.
    """
    words, filters, every = args.many("uuid"), args.many("filter"), args.flag("all")
    named = bool(words or args.many("uuid_file"))
    if every + bool(filters) + named > 1:
        raise UsageError("UUIDs, --filter and --all exclude each other", code="usage-uuid")
    if every:
        return tuple(found.uuid for found in walk(context.layout) if found.state in states)
    if filters:
        return tuple(pod.uuid for pod in chosen(context, filters) if pod.state in states)
    if not named:
        raise UsageError("expected UUIDs, --uuid-file or --all", hint="see secrun list", code="usage-uuid")
    found = (*words, *_files(args))
    return tuple(filter(partial(_is_there, context), found)) if args.flag("ignore") else found


def _is_there(context: Context, word: str) -> bool:
    """Tell whether a pod is called so; a word that may be several, or is none, stays an error."""
    try:
        find(context.layout, word)
    except UsageError as error:
        if error.code != "usage-no-pod":
            raise
        return False
    return True
