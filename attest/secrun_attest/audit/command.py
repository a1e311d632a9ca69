"""What `audit verify` does, for secrun and for whoever has this library alone."""

from collections.abc import Iterable, Sequence
from typing import BinaryIO

from secrun_attest import frozen
from secrun_attest.audit import entries
from secrun_attest.audit.note import Checkpoint, OtherKeyError, Verifier
from secrun_attest.audit.proof import MAGIC, MAX_PROOF, Shown, open_proof
from secrun_attest.audit.report import ACCEPTABLE, Fault, Finding, Findings, Report
from secrun_attest.audit.rows import json_line, when
from secrun_attest.audit.trail import Projection, Row
from secrun_attest.audit.verify import Verified, compare, verify_bundle
from secrun_attest.errors import FormatError
from secrun_attest.events import parse_event
from secrun_attest.jcs import JsonObject
from secrun_attest.limits import MAX_INTEGER

SCHEMA = "secrun.dev/audit-verdict/v1"


def accepted_faults(words: Iterable[str]) -> frozenset[Fault]:
    """Return the faults that `words`, lists with commas, accept; raises FormatError."""
    names = {name for word in words for name in word.split(",") if name}
    allowed = {fault.value for fault in ACCEPTABLE}
    for name in sorted(names - allowed):
        raise FormatError(
            f"{name[:40]!r} cannot be accepted",
            hint=f"these can: {', '.join(sorted(allowed))}",
            code="audit-accept",
        )
    return frozenset(Fault(name) for name in names)


@frozen.record
class Result:
    """What verifying some bundles came to; `between` is about them together."""

    reports: tuple[tuple[str, Report], ...]
    between: tuple[Finding, ...]
    accepted: frozenset[Fault]

    @property
    def refused(self) -> tuple[Finding, ...]:
        """All findings that nobody accepts."""
        found = [item for _, report in self.reports for item in report.refused(self.accepted)]
        return (*found, *self.between)

    def to_json(self) -> JsonObject:
        """Return the documented JSON form."""
        return {
            "schema": SCHEMA,
            "accepted": not self.refused,
            "bundles": [{"file": name, **report.to_json(self.accepted)} for name, report in self.reports],
            "between": [
                {"fault": item.fault.value, "where": item.where, "text": item.text} for item in self.between
            ],
        }

    def text(self) -> str:
        """Return what people read; nothing in it moves a cursor."""
        lines: list[str] = []
        for name, report in self.reports:
            lines += _lines(name, report, self.accepted)
        lines += [_finding(item, "REFUSED") for item in self.between]
        lines.append("refused" if self.refused else "accepted")
        return "".join(f"{_printable(line)}\n" for line in lines)


def _lines(name: str, report: Report, accepted: frozenset[Fault]) -> list[str]:
    refused = report.refused(accepted)
    until = "now" if report.until == MAX_INTEGER else when(report.until)
    lines = [
        f"{name}: {report.origin or 'no log'}, leaves {report.first} to {report.size}",
        f"  trail from {when(report.since)} until {until}",
        f"  {report.records} records of {report.epochs} epochs, {report.pods} pods, {report.quotes} quotes",
        f"  root {report.root.hex()}",
    ]
    lines += [f"  quoted by the key {key}" for key in report.keys]
    if report.shown:
        lines.append(f"  leaf {report.first}: {report.shown}")
    if report.software:
        lines.append("  the TPM is a program: it proves nothing against the host's root")
    lines += [_finding(item, "REFUSED" if item in refused else "accepted") for item in report.findings]
    if report.count > len(report.findings):
        lines.append(f"  and {report.count - len(report.findings)} more findings")
    return lines


def _finding(item: Finding, word: str) -> str:
    return f"  {word} {item.fault}: {item.where}: {item.text}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def verify_files(
    paths: Sequence[str], key: Verifier, accepted: frozenset[Fault] = frozenset(), keys: Sequence[str] = ()
) -> Result:
    """Verify bundles, and that they are of one log; `keys`, if any, are the TPM keys that may quote.

    Raises OSError for a file that cannot be read.
    """
    found: list[tuple[str, Verified]] = []
    for path in paths:
        with open(path, "rb") as stream:
            found.append((path, _verified(stream, key)))
    between = compare([item for item in found if item[1].report.origin]).found
    for path, verified in found:
        strange = [name for name in verified.report.keys if keys and name not in keys]
        between += [
            Finding(fault=Fault.QUOTE, where=path, text=f"the TPM's key {name} is none that was named")
            for name in strange
        ]
    reports = tuple((path, verified.report) for path, verified in found)
    return Result(reports=reports, between=tuple(between), accepted=accepted)


def _verified(stream: BinaryIO, key: Verifier) -> Verified:
    """Verify a bundle, or the proof of one leaf."""
    begin = stream.read(len(MAGIC))
    stream.seek(0)
    if begin != MAGIC:
        return verify_bundle(stream, key)
    findings, shown = Findings(), None
    try:
        shown = open_proof(stream.read(MAX_PROOF + 1), key)
    except OtherKeyError as error:
        findings.add(Fault.KEY, "proof", error.message)
    except FormatError as error:
        findings.add(Fault.ROOT, "proof", error.message)
    return Verified(_report_of(shown, findings), {shown.head.size: shown.head.root} if shown else {})


def _report_of(shown: Shown | None, findings: Findings) -> Report:
    head = shown.head if shown else Checkpoint(origin="", size=0, root=b"")
    row = None if shown is None else _row_of(shown)
    return Report(
        origin=head.origin,
        first=shown.index if shown else 0,
        size=head.size,
        root=head.root,
        records=int(shown is not None),
        epochs=0,
        quotes=0,
        pods=0,
        keys=(),
        software=False,
        since=row.time if row else 0,
        until=MAX_INTEGER,
        findings=tuple(findings.found),
        count=findings.count,
        shown=json_line(row.to_json()).decode().strip() if row else "",
    )


def _row_of(shown: Shown) -> Row | None:
    try:
        if shown.data.startswith(entries.DOMAIN):
            return Projection().entry(shown.index, entries.parse(shown.data))
        return Projection().row(shown.index, parse_event(shown.data))
    except FormatError:
        return None
