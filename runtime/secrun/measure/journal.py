"""What ran while it could not or should not be measured, kept until the log can be told of it.

One line of JSON per bypass, on disk before the thing starts. The next append puts each into the log as
`Unmeasured`; a crash in between may tell twice, never not at all.

What was refused since the log had no room is kept below `--run-root`, which is another file system, and told
as `Denied`.
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
REFUSED_NAME = "refused"
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


def refuse(layout: Layout, *, subject: str, code: str, why: str) -> None:
    """Write down that `subject` was refused since the log could not take it."""
    layout.run_root.mkdir(mode=0o755, parents=True, exist_ok=True)
    line = jcs.encode({"what": "trail", "subject": subject, "code": code, "why": why[:1000]})
    with held(layout.locks / FILE_NAME):
        append_line(layout.run_root / REFUSED_NAME, line)


def _pending(place: Path) -> tuple[JsonObject, ...]:
    try:
        data = place.read_bytes()
    except FileNotFoundError:
        return ()
    lines = data.split(b"\n")[:-1]
    if len(lines) > MAX_TOLD:
        first = _parse(lines[0], place)
        return ({**first, "count": len(lines)},)
    return tuple(_parse(line, place) for line in lines)


def _parse(line: bytes, place: Path) -> JsonObject:
    """Read one line; one that a crash or a full disk cut is told too, though nobody knows what it was."""
    try:
        return jcs.parse_object(line, what=f"line of {place}", limit=_MAX_LINE)
    except FormatError:
        return {"option": "unknown", "what": "unreadable", "subject": ""}


@contextmanager
def told(layout: Layout) -> Iterator[tuple[tuple[JsonObject, ...], tuple[JsonObject, ...]]]:
    """Give what is not in the log yet, as fields of Unmeasured and of Denied.

    It is forgotten once the caller told the log.
    """
    places = (path(layout), layout.run_root / REFUSED_NAME)
    if not any(place.exists() for place in places):
        yield (), ()
        return
    with held(layout.locks / FILE_NAME):
        yield _pending(places[0]), _pending(places[1])
        for place in places:
            place.unlink(missing_ok=True)
