"""The audit as one page that a person reads: no script, nothing from elsewhere, prints well."""

from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files

from secrun_attest.audit.about import About
from secrun_attest.audit.checks import FRAMEWORKS, Evidence, Finding, Verdict
from secrun_attest.audit.rows import image_text, when
from secrun_attest.audit.survey import MAX_NOTABLE, Run, Survey
from secrun_attest.audit.timeline import kind, svg
from secrun_attest.audit.trail import Row

_STYLE = "page.css"
_CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# Of what broke one check, these are named beside it; all that are known are in the table of evidence.
_BESIDE = 6


def page(about: About, survey: Survey) -> str:
    """Return the whole page."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}">',
        f"<title>Audit of {escape(about.host)}</title><style>",
        (files(__package__) / _STYLE).read_text("utf-8"),
        "</style></head><body>",
        *_head(about, survey),
        *_timeline(about, survey),
        *_findings(about, survey),
        *_notable(survey),
        *_pods(survey),
        *_evidence(survey),
        *_foot(about),
        "</body></html>\n",
    ]
    return "".join(parts)


def _clock(milliseconds: int) -> str:
    """Return a time for people, in UTC; the trail has the milliseconds."""
    return when(milliseconds)[:19].replace("T", " ")


def _heading(*words: str) -> str:
    cells = "".join(f"<th>{word}</th>" for word in words)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>"


def _count(survey: Survey, verdict: Verdict) -> int:
    return sum(finding.verdict is verdict for finding in survey.findings)


def _head(about: About, survey: Survey) -> Iterator[str]:
    outcomes = dict(survey.outcomes)
    begin, end = about.since or survey.first, about.until or survey.last
    failed = _count(survey, Verdict.FAIL)
    yield f"<h1>What ran on {escape(about.host)}</h1>"
    made = f"made {_clock(about.made)} by {escape(about.tool)}"
    yield f'<p class="dim">{_clock(begin)} to {_clock(end)} UTC; {made}</p>'
    verdict = f"{failed} of {len(survey.findings)} checks failed." if failed else "No check failed."
    yield f'<p class="{"fail" if failed else "pass"}">{verdict}</p><div class="tiles">'
    for number, word in (
        (survey.pods, "pods started"),
        (len(survey.images), "images run"),
        (_count(survey, Verdict.PASS), "checks passed"),
        (failed, "checks failed"),
        (outcomes.get("refused", 0), "refusals"),
        (outcomes.get("bypassed", 0), "bypasses"),
        (outcomes.get("gap", 0), "gaps in the trail"),
        (survey.rows, "records"),
    ):
        yield f'<div class="tile"><b>{number:,}</b><span>{word}</span></div>'
    yield "</div>"


def _timeline(about: About, survey: Survey) -> Iterator[str]:
    yield "<h2>What ran when</h2>"
    if not survey.runs:
        yield '<p class="dim">No pod was started.</p>'
        return
    left_out = survey.pods - len(survey.runs)
    if left_out > 0:
        shown = f"The last {len(survey.runs)} pods; {left_out:,} earlier ones are in the trail."
        yield f'<p class="dim">{shown}</p>'
    begin = survey.runs[0].started if left_out > 0 else about.since or survey.first
    yield svg(survey.runs, begin, about.until or survey.last)
    yield '<div class="key">'
    for colour, word in (("okbar", "exit 0"), ("badbar", "another exit"), ("runbar", "still running")):
        yield f'<span><i style="background:var(--{colour})"></i>{word}</span>'
    yield '<span><i style="border:2px solid var(--odd)"></i>a guard was relaxed</span></div>'


def _findings(about: About, survey: Survey) -> Iterator[str]:
    yield "<h2>Findings by control</h2>"
    for name in [about.framework] if about.framework else FRAMEWORKS:
        yield f"<h3>{escape(FRAMEWORKS[name])}</h3>"
        yield _heading("Control", "Check", "Result", "Evidence")
        about_it = [finding for finding in survey.findings if name in finding.check.mappings]
        looked = [finding for finding in about_it if finding.verdict is not Verdict.NOT_APPLICABLE]
        rows = [(item, finding) for finding in looked for item in finding.check.mappings[name]]
        for item, finding in sorted(rows, key=lambda row: (_natural(row[0]), row[1].check.id)):
            yield f'<tr><td class="ids">{escape(item)}</td><td>{escape(finding.check.title)}</td>'
            verdict = finding.verdict.value
            yield f'<td class="{verdict}">{verdict}</td><td>{_beside(finding)}</td></tr>'
        yield "</tbody></table>"
        rest = [finding.check for finding in about_it if finding.verdict is Verdict.NOT_APPLICABLE]
        if rest:
            words = "; ".join(f"{check.title} ({', '.join(check.mappings[name])})" for check in rest)
            yield f'<p class="dim">There was nothing to look at for: {escape(words)}.</p>'


def _natural(item: str) -> list[tuple[int, str]]:
    """Return a key that puts 5.4 before 5.10."""
    words = item.replace("(", ".").replace(")", "").replace("-", ".").split(".")
    return [(int(word), "") if word.isdigit() else (-1, word) for word in words]


def _beside(finding: Finding) -> str:
    if finding.verdict is Verdict.PASS:
        seen = f"{finding.looked:,} looked at" if finding.looked else "none seen"
        return f'<span class="dim">{seen}</span>'
    shown = finding.evidence[:_BESIDE]
    links = ", ".join(f'<a href="#leaf-{item.index}">{item.index}</a>' for item in shown)
    more = finding.broken - len(shown)
    tail = f" and {more:,} more" if more > 0 else ""
    return (
        f"{finding.broken:,} of {finding.looked:,}: leaf {links}{tail}"
        f'<br><span class="dim">{escape(finding.check.remedy)}</span>'
    )


def _notable(survey: Survey) -> Iterator[str]:
    yield "<h2>Refusals, bypasses and gaps</h2>"
    if not survey.notable:
        yield '<p class="dim">There is none.</p>'
        return
    total = sum(count for name, count in survey.outcomes if name != "done")
    if total > MAX_NOTABLE:
        yield f'<p class="dim">The last {MAX_NOTABLE} of {total:,}.</p>'
    yield _heading("Leaf", "Time", "Event", "Outcome", "What")
    yield from map(_notable_row, survey.notable)
    yield "</tbody></table>"


def _notable_row(row: Row) -> str:
    images = " ".join(map(image_text, row.images))
    what = " ".join(filter(None, (row.pod, row.what, images, ", ".join(row.relaxations), row.why)))
    return (
        f'<tr><td class="num">{row.leaf}</td><td class="ids">{_clock(row.time)}</td>'
        f"<td>{escape(row.event)}</td>"
        f'<td class="{row.outcome.value}">{row.outcome.value}</td><td>{escape(what[:600])}</td></tr>'
    )


def _pods(survey: Survey) -> Iterator[str]:
    yield "<h2>Pods</h2>"
    if not survey.runs:
        yield '<p class="dim">There is none.</p>'
        return
    yield _heading("Pod", "Started", "Ended", "Exit", "Image", "By")
    yield from map(_pod_row, survey.runs)
    yield "</tbody></table>"


def _pod_row(run: Run) -> str:
    ended = _clock(run.ended) if run.ended else "runs"
    code = "" if run.code is None else str(run.code)
    shown = {"ok": "pass", "failed": "fail", "running": "dim"}[kind(run)]
    return (
        f'<tr id="pod-{escape(run.pod)}"><td class="mono">{escape(run.pod)}</td>'
        f"<td>{_clock(run.started)}</td><td>{ended}</td>"
        f'<td class="{shown}">{code}</td><td>{escape(" ".join(run.images))}</td>'
        f"<td>{escape(run.who)}</td></tr>"
    )


def _evidence(survey: Survey) -> Iterator[str]:
    yield "<h2>Evidence</h2>"
    found: dict[int, list[tuple[str, Evidence]]] = {}
    for finding in survey.findings:
        for item in finding.evidence:
            found.setdefault(item.index, []).append((finding.check.id, item))
    if not found:
        yield '<p class="dim">No record broke a check.</p>'
        return
    yield "<p>Each leaf is a record of the audit log: the line of trail.jsonl with this index, and "
    yield "<code>secrun audit verify</code> proves that it is in the log.</p>"
    yield _heading("Leaf", "Time", "Event", "Pod", "What broke a check")
    for index, items in sorted(found.items()):
        yield _evidence_row(index, items)
    yield "</tbody></table>"


def _evidence_row(index: int, items: Iterable[tuple[str, Evidence]]) -> str:
    items = [*items]
    first = items[0][1]
    words = "<br>".join(
        f"{escape(check)}: {escape(' '.join(filter(None, (item.app, item.value))))}" for check, item in items
    )
    return (
        f'<tr id="leaf-{index}"><td class="num">{index}</td><td class="ids">{_clock(first.time)}</td>'
        f'<td>{escape(first.event)}</td><td class="mono">{escape(first.pod)}</td><td>{words}</td></tr>'
    )


def _foot(about: About) -> Iterator[str]:
    yield "<h2>Where this comes from</h2><table><tbody>"
    for word, value in (
        ("Log", about.origin),
        ("Leaves", f"{about.size:,}"),
        ("Root", about.root.hex()),
    ):
        yield f'<tr><th>{word}</th><td class="mono">{escape(value)}</td></tr>'
    yield "</tbody></table><p>This page was made by the host. What it says can be checked without it: "
    yield "<code>secrun audit verify --key host.pem audit.tar</code>.</p>"
