"""What ran when, as one picture: a bar for each pod, in as few lanes as they fit into."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape

from secrun_attest.audit.rows import when
from secrun_attest.audit.survey import Run

_WIDTH, _LEFT, _RIGHT = 1000, 8, 8
_LANE, _BAR, _AXIS = 16, 11, 26
# More lanes are no picture any more; what does not fit is drawn into the last one.
_MAX_LANES = 40
# A pod of milliseconds is still to be seen.
_MIN_BAR = 2.5
_STEPS = (
    1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 14 * 86400,
    30 * 86400, 91 * 86400, 365 * 86400,
)  # fmt: skip
_MAX_TICKS = 9


def lanes(runs: Sequence[Run], end: int, gap: int) -> list[int]:
    """Return a lane for each run, in the order of their starts, so that bars of one lane do not touch."""
    free: list[int] = []
    found: list[int] = []
    for run in runs:
        lane = next((number for number, until in enumerate(free) if until + gap <= run.started), len(free))
        if lane == len(free) and lane < _MAX_LANES:
            free.append(0)
        lane = min(lane, _MAX_LANES - 1)
        free[lane] = max(free[lane], run.ended or end)
        found.append(lane)
    return found


def ticks(begin: int, end: int) -> tuple[list[int], str]:
    """Return the times of the axis in milliseconds, and the format of their labels."""
    seconds = max(1, (end - begin) // 1000)
    step = next((step for step in _STEPS if seconds / step <= _MAX_TICKS), _STEPS[-1])
    while seconds / step > _MAX_TICKS:
        step *= 2
    first = -(-begin // (step * 1000)) * step * 1000
    form = "%H:%M:%S" if step < 60 else "%d %b %H:%M" if step < 86400 else "%d %b %Y"
    return list(range(first, end + 1, step * 1000)), form


def kind(run: Run) -> str:
    """Return the class of a run's bar."""
    if not run.ended:
        return "running"
    return "ok" if run.code == 0 else "failed"


def svg(runs: Sequence[Run], begin: int, end: int) -> str:
    """Return the picture; `begin` and `end` are milliseconds since 1970."""
    begin = min([begin, *(run.started for run in runs)])
    end = max([end, begin + 1000, *(run.ended or run.started for run in runs)])
    places = lanes(runs, end, gap=(end - begin) // 400)
    height = _AXIS + _LANE * (max(places, default=0) + 1) + 6
    about = f"{len(runs)} pods from {when(begin)} to {when(end)}"
    parts = [f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{about}">']
    parts += _axis(begin, end, height)
    parts += (_bar(run, lane, begin, end) for run, lane in zip(runs, places, strict=True))
    return "".join([*parts, "</svg>"])


def _x(time: int, begin: int, end: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (time - begin) / (end - begin)


def _axis(begin: int, end: int, height: int) -> Iterator[str]:
    times, form = ticks(begin, end)
    for time in times:
        x = _x(time, begin, end)
        label = datetime.fromtimestamp(time // 1000, UTC).strftime(form)
        side = "end" if x > _WIDTH - 60 else "start" if x < 60 else "middle"
        yield f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{_AXIS - 8}" y2="{height}"/>'
        yield f'<text class="axis" x="{x:.1f}" y="12" text-anchor="{side}">{label}</text>'


def _bar(run: Run, lane: int, begin: int, end: int) -> str:
    left, right = _x(run.started, begin, end), _x(run.ended or end, begin, end)
    width = max(_MIN_BAR, right - left)
    left = min(left, _WIDTH - _RIGHT - width)
    ended = f"exit {run.code} at {when(run.ended)}" if run.ended else "still running"
    words = (run.pod, " ".join(run.apps), " ".join(run.images), f"from {when(run.started)}", ended, run.who)
    title = escape("\n".join(filter(None, words)))
    relaxed = " relaxed" if run.relaxed else ""
    place = f'x="{left:.1f}" y="{_AXIS + lane * _LANE}" width="{width:.1f}" height="{_BAR}" rx="2"'
    bar = f'<rect class="{kind(run)}{relaxed}" {place}><title>{title}</title></rect>'
    return f'<a href="#pod-{escape(run.pod)}">{bar}</a>'
