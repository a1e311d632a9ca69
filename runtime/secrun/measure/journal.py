"""What ran while it could not or should not be measured, kept until the log can be told of it.

One line of JSON per bypass, on disk before the thing starts. The next append puts each into the log as
`Unmeasured`; a crash in between may tell twice, never not at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secrun.files import append_line
from secrun.locks import held
from secrun.paths import Layout
from secrun_attest import jcs
from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject

FILE_NAME = "unmeasured"
_MAX_LINE = 4096
# More bypasses than these are told as one: the first, and how many there are.
MAX_TOLD = 100


def path(layout: Layout) -> Path:
    """Return the journal's place."""
    return layout.measure / FILE_NAME


def note(layout: Layout, *, option: str, what: str, subject: str, detail: JsonObject | None = None) -> None:
    """Write down, durably, that `what` happened to `subject` unmeasured, let by by `option`."""
    layout.measure.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = jcs.encode({**(detail or {}), "option": option, "what": what, "subject": subject})
    with held(layout.locks / FILE_NAME):
        append_line(path(layout), line, durable=True)


def _pending(layout: Layout) -> tuple[JsonObject, ...]:
    try:
        data = path(layout).read_bytes()
    except FileNotFoundError:
        return ()
    lines = data.split(b"\n")[:-1]
    if len(lines) > MAX_TOLD:
        first = _parse(lines[0], layout)
        return ({**first, "count": len(lines)},)
    return tuple(_parse(line, layout) for line in lines)


def _parse(line: bytes, layout: Layout) -> JsonObject:
    """Read one line; one that a crash or a full disk cut is a bypass too, of what nobody knows any more."""
    try:
        return jcs.parse_object(line, what=f"line of {path(layout)}", limit=_MAX_LINE)
    except FormatError:
        return {"option": "unknown", "what": "unreadable", "subject": ""}


@contextmanager
def told(layout: Layout) -> Iterator[tuple[JsonObject, ...]]:
    """Give what is not in the log yet, as fields of Unmeasured; forget it once the caller told the log."""
    if not path(layout).exists():
        yield ()
        return
    with held(layout.locks / FILE_NAME):
        yield _pending(layout)
        path(layout).unlink(missing_ok=True)
