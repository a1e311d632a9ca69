"""Which pods a command line means: words, a file that holds a UUID, or all of them."""

from pathlib import Path

from secrun.cli.table import Arguments, Context
from secrun.errors import UsageError
from secrun.pod.states import State, walk

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


def several(args: Arguments, context: Context, *states: State) -> tuple[str, ...]:
    """Return the pods that words or files name, or with --all those in `states`; raises UsageError."""
    words, files, every = args.many("uuid"), args.many("uuid_file"), args.flag("all")
    if every:
        if words or files:
            raise UsageError("--all leaves no UUID to name", code="usage-uuid")
        return tuple(found.uuid for found in walk(context.layout) if found.state in states)
    if not words and not files:
        raise UsageError("expected UUIDs, --uuid-file or --all", hint="see secrun list", code="usage-uuid")
    return (*words, *map(_from_file, files))
