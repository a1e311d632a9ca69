"""The verbs of the audit log."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from secrun import __version__
from secrun.cli.table import Arguments, Context
from secrun.cli.views import table, write_json
from secrun.errors import EvidenceError, UsageError
from secrun.files import replaced
from secrun.measure import accounts, auditing
from secrun.measure import identity as identities
from secrun.measure.hostlog import now_ms
from secrun_attest.audit import command
from secrun_attest.audit.about import About
from secrun_attest.audit.checks import Verdict, chosen
from secrun_attest.audit.entries import State
from secrun_attest.audit.export import BundleWriter, Form, Scope, Span, about_of, pieces, scope_of, told
from secrun_attest.audit.heads import heads
from secrun_attest.audit.note import MAX_NOTE, load_verifier, open_checkpoint
from secrun_attest.audit.proof import make_proof
from secrun_attest.audit.survey import Survey, survey_of
from secrun_attest.errors import FormatError

_FOREVER = "forever"
_UNITS = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_STDOUT = "-"
REPORT_SCHEMA = "secrun.dev/audit-report/v1"


def parse_time(text: str, now: datetime, what: str) -> int:
    """Return a time in milliseconds since 1970; raises UsageError. Without a zone it is UTC."""
    count, unit = text[:-1], text[-1:]
    try:
        if count.isascii() and count.isdigit() and unit in _UNITS:
            moment = now - int(count) * _UNITS[unit]
        else:
            moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        found = int(moment.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{what} {text[:40]!r} is no time", hint="such as 2026-01-31, 2026-01-31T12:00+01:00, 12h, 30d"
        ) from error
    if found < 0:
        raise UsageError(f"{what} {text[:40]!r} is before 1970")
    return found


def span_of(args: Arguments) -> Span:
    """Return what --since and --until say; raises UsageError."""
    now, usual = datetime.now(UTC), Span()
    since, until = args.text("since"), args.text("until")
    span = Span(
        since=parse_time(since, now, "--since") if since else usual.since,
        until=parse_time(until, now, "--until") if until else usual.until,
    )
    if span.since >= span.until:
        raise UsageError("--since is not before --until")
    return span


@contextmanager
def _output(args: Arguments, context: Context) -> Iterator[tuple[BinaryIO, Path]]:
    """Give where to write, and a folder for what is needed meanwhile."""
    place = args.required("out")
    if place != _STDOUT:
        path = Path(place).absolute()
        with replaced(path, mode=0o600) as stream:
            yield stream, path.parent
        return
    if args.values.get("format") == "bundle" and os.isatty(1):
        raise UsageError("a bundle is no text for a terminal", hint="--out FILE")
    context.out.flush()
    yield sys.stdout.buffer, context.layout.scratch
    sys.stdout.buffer.flush()


def _about(args: Arguments, scope: Scope, host: str) -> About:
    framework = args.text("framework") or ""
    return about_of(scope, host=host, tool=f"secrun {__version__}", made=now_ms(), framework=framework)


def export(args: Arguments, context: Context) -> int:
    """Write the trail in one of its forms, or a bundle."""
    layout, span = context.layout, span_of(args)
    identity = identities.required(layout)
    form = args.required("format")
    kept = accounts.reader(layout)
    with _output(args, context) as (out, folder):
        auditing.close(layout, identity, State.OPEN)
        with auditing.reading(layout, identity) as (chain, key):
            scope = scope_of(chain, key, span)
            about = _about(args, scope, identity.host)
            if form == "bundle":
                BundleWriter(chain, scope, key, about).write(out, folder, kept)
            else:
                for piece in pieces(Form(form), about, told(chain, scope, kept), key):
                    out.write(piece)
    context.err.write(f"secrun: leaves {scope.first} to {scope.head.size} of {scope.head.origin}\n")
    return 0


def report(args: Arguments, context: Context) -> int:
    """Print what the checks found; return 1 if one failed."""
    layout, span = context.layout, span_of(args)
    identity = identities.required(layout)
    auditing.close(layout, identity, State.OPEN)
    with auditing.reading(layout, identity) as (chain, key):
        scope = scope_of(chain, key, span)
        about = _about(args, scope, identity.host)
        found = told(chain, scope, accounts.reader(layout))
        survey = survey_of(found, chosen(about.framework))
    if args.text("format") == "json":
        rows = [finding.to_json() for finding in survey.findings]
        head = {"origin": about.origin, "size": about.size, "root": about.root.hex(), "rows": survey.rows}
        write_json(context, {"schema": REPORT_SCHEMA, **head, "failed": survey.failed, "findings": rows})
    else:
        _table(args, context, survey)
    return int(survey.failed)


def _table(args: Arguments, context: Context, survey: Survey) -> None:
    framework = args.text("framework") or ""
    heading = ["CHECK", "RESULT", "BROKEN", *(["CONTROLS"] if framework else []), "ABOUT"]
    cells = []
    for finding in survey.findings:
        check, failed = finding.check, finding.verdict is Verdict.FAIL
        controls = [" ".join(check.mappings.get(framework, ()))] if framework else []
        count = f"{finding.broken}/{finding.looked}"
        cells.append(
            [check.id, finding.verdict.value, count, *controls, check.remedy if failed else check.title]
        )
    table(context, heading, cells, legend=True)


def verify(args: Arguments, context: Context) -> int:
    """Verify bundles offline."""
    key_file = args.required("key")
    try:
        with open(key_file, "rb") as stream:
            key = load_verifier(stream.read(MAX_NOTE + 1), what=key_file)
        accepted = command.accepted_faults(args.many("accept"))
    except FormatError as error:
        raise UsageError(error.message, hint=error.hint, code="usage-audit-key") from error
    keys = tuple(word.lower() for word in args.many("ak"))
    result = command.verify_files(args.many("file"), key, accepted, keys)
    if args.text("format") == "json":
        write_json(context, result.to_json())
    else:
        context.out.write(result.text())
    if refused := result.refused:
        first = refused[0]
        raise EvidenceError(
            f"{len(refused)} findings that nobody accepts, the first: {first.fault}: {first.text[:200]}",
            hint="docs/audit.md explains each name; --accept takes some of them",
            code=f"evidence-{first.fault}",
        )
    return 0


def key(args: Arguments, context: Context) -> int:
    """Print the public key, made if there is none."""
    identity = identities.required(context.layout)
    with auditing.reading(context.layout, identity) as (_, signer):
        verifier = signer.verifier
    text = verifier.pem().decode() if args.text("format") == "pem" else f"{verifier.text()}\n"
    context.out.write(text)
    return 0


def prove(args: Arguments, context: Context) -> int:
    """Write the proof of one leaf."""
    text = args.required("index")
    identity = identities.required(context.layout)
    with auditing.reading(context.layout, identity) as (chain, signer):
        known = heads(chain.folder)
        head = open_checkpoint(known[-1], signer.verifier) if known else None
        if head is None or not (text.isascii() and text.isdigit() and int(text) < head.size):
            size = 0 if head is None else head.size
            raise UsageError(
                f"{text[:40]!r} is none of the {size} leaves that are signed",
                hint="secrun audit export --format jsonl signs all, and shows their numbers",
            )
        data = make_proof(chain, int(text), known[-1], head)
    with _output(args, context) as (out, _):
        out.write(data)
    return 0


def close(args: Arguments, context: Context) -> int:
    """Close the log of this boot."""
    del args
    head = auditing.close(context.layout, identities.required(context.layout), State.CLOSED)
    context.out.write(head.text())
    return 0


def prune(args: Arguments, context: Context) -> int:
    """Remove the records of old epochs."""
    del args
    keep = context.settings["audit.keep"]
    if keep.value == _FOREVER:
        context.out.write("audit.keep is forever: nothing is removed\n")
        return 0
    count, unit = keep.value[:-1], keep.value[-1:]
    if not (count.isascii() and count.isdigit() and unit in _UNITS):
        raise UsageError(
            f"{keep.origin}: audit.keep is {keep.value[:40]!r}", hint="forever, or such as 400d"
        )
    before = parse_time(keep.value, datetime.now(UTC), "audit.keep")
    identity = identities.required(context.layout)
    for given in auditing.prune(context.layout, identity, before, why=f"audit.keep is {keep.value}"):
        context.out.write(f"removed {given.count} records of the log {given.name}\n")
    return 0
