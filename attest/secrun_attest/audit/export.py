"""Exports of a host's audit log: rows as JSON lines or CSV, or a bundle that proves itself."""

import errno
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, BinaryIO

from secrun_attest import frozen
from secrun_attest.audit import entries, guide, intoto, merkle, ocsf, oscal
from secrun_attest.audit.about import About
from secrun_attest.audit.bundle import (
    ACCOUNTS,
    CHECKPOINT,
    HEADS,
    LEAVES,
    MANIFEST,
    MAX_HEADS,
    SEGMENTS,
    SIGNATURE,
    SUMS,
    TRAIL,
    Head,
    Manifest,
)
from secrun_attest.audit.chain import Chain, Placed, Records, open_log, segment_line
from secrun_attest.audit.checks import chosen
from secrun_attest.audit.entries import Closing, Pruned
from secrun_attest.audit.heads import heads
from secrun_attest.audit.note import Checkpoint, Signer, open_checkpoint
from secrun_attest.audit.page import page
from secrun_attest.audit.rows import csv_lines, json_line
from secrun_attest.audit.survey import Survey, Surveyor, survey_of
from secrun_attest.audit.tarball import TarWriter, parts_of
from secrun_attest.audit.trail import Projection, Row
from secrun_attest.audit.walk import chained, parse_record
from secrun_attest.events import parse_event, retold
from secrun_attest.jcs import JsonObject
from secrun_attest.limits import MAX_INTEGER, MAX_LOG_LINE
from secrun_attest.quotefiles import quote_files

# Gives what is kept of a pod by the digest that was measured; None if it is gone.
Accounts = Callable[[str], bytes | None]
_PIECE = 1024
# So many leaves take longer to tell than a process to start.
WORTH_A_PROCESS = 20_000


@frozen.record
class Span:
    """From when to when: milliseconds since 1970 by the host's clock, `until` not included."""

    since: int = 0
    until: int = MAX_INTEGER


@frozen.record
class Scope:
    """The leaves that cover a span, whole epochs, and the signed head that they end with."""

    span: Span
    first: int
    head: Checkpoint
    note: bytes


def scope_of(chain: Chain, key: Signer, span: Span) -> Scope:
    """Return which leaves to export for `span`; the log has a signed head."""
    opened = list(_openings(chain))
    first, end = 0, chain.size
    for at, time, before in opened:
        if time <= span.since:
            first = before
        elif time >= span.until:
            end = min(end, at)
    notes = [(open_checkpoint(note, key.verifier), note) for note in heads(chain.folder)]
    good = [(head, note) for head, note in notes if head.size >= end and _ends_well(chain, head.size)]
    head, note = min(good, key=lambda item: item[0].size, default=notes[-1])
    return Scope(span=span, first=first, head=head, note=note)


def _ends_well(chain: Chain, size: int) -> bool:
    """Tell whether the last of `size` leaves says how an epoch stands: nothing before it is unquoted."""
    return any(placed.end == size and not isinstance(placed.part, Records) for placed in chain.placed)


def _openings(chain: Chain) -> Iterator[tuple[int, int, int]]:
    """Yield of each epoch where its records begin, when it was opened, and the size of the log before it."""
    for placed in chain.placed:
        part = placed.part
        if not isinstance(part, Records) or part.first:
            continue
        if isinstance(chain.tails[part.name].entry, Pruned):
            continue
        with open_log(chain.log_path(part.name)) as stream:
            event = parse_event(parse_record(stream.readline(MAX_LOG_LINE + 1)).event_data)
        before = chained(event)
        yield placed.at, event.t, placed.at if before is None else before[0]


def rows(chain: Chain, scope: Scope) -> Iterator[Row]:
    """Yield the rows of the trail within the span; raises ChainError if a record is not what it was."""
    projection = Projection()
    for index, data, line in chain.leaves(scope.first, scope.head.size):
        row = projection.row(index, retold(data)) if line else projection.entry(index, entries.parse(data))
        if scope.span.since <= row.time < scope.span.until:
            yield row


def about_of(scope: Scope, *, host: str, tool: str, made: int, framework: str = "") -> About:
    """Return what an export of `scope` is about."""
    span, usual = scope.span, Span()
    return About(
        origin=scope.head.origin,
        host=host,
        tool=tool,
        size=scope.head.size,
        root=scope.head.root,
        made=made,
        since=span.since,
        until=0 if span.until == usual.until else span.until,
        framework=framework,
    )


class Form(StrEnum):
    """What an export may be beside a bundle."""

    JSONL = "jsonl"
    CSV = "csv"
    OCSF = "ocsf"
    IN_TOTO = "in-toto"
    OSCAL = "oscal"
    HTML = "html"


def told(chain: Chain, scope: Scope, accounts: Accounts) -> Iterator[tuple[Row, bytes | None]]:
    """Yield the rows within the span, each with the account that it names."""
    for row in rows(chain, scope):
        yield row, accounts(row.account) if row.account else None


def pieces(
    form: Form, about: About, found: Iterable[tuple[Row, bytes | None]], key: Signer
) -> Iterator[bytes]:
    """Yield an export of rows and accounts in one of the forms."""
    match form:
        case Form.JSONL:
            yield from (json_line(row.to_json()) for row, _ in found)
        case Form.CSV:
            yield from csv_lines(row for row, _ in found)
        case Form.IN_TOTO:
            payloads = (item for row, account in found for item in intoto.statements(about, row, account))
            yield from intoto.envelopes(key, payloads)
        case Form.OCSF:
            yield from _ocsf(about, found)
        case _:
            survey = survey_of(found, chosen(about.framework))
            yield readings(about, survey)["oscal.json" if form is Form.OSCAL else "report.html"]


def _ocsf(about: About, found: Iterable[tuple[Row, bytes | None]]) -> Iterator[bytes]:
    surveyor = Surveyor(chosen(about.framework))
    for row, account in found:
        surveyor.take(row, account)
        yield _json(ocsf.event(about, row))
    yield from map(_json, ocsf.findings(about, surveyor.survey()))


def readings(about: About, survey: Survey) -> dict[str, bytes]:
    """Return what is made of a whole trail, by the names that a bundle gives them."""
    return {
        "findings.json": _json({"findings": [finding.to_json() for finding in survey.findings]}),
        "oscal.json": _json(oscal.assessment_results(about, survey)),
        "report.html": page(about, survey).encode("utf-8", "backslashreplace"),
    }


def _json(value: JsonObject) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


class BundleWriter:
    """Writes a bundle; what grows with the records goes through files beside it."""

    def __init__(self, chain: Chain, scope: Scope, key: Signer, about: About) -> None:
        self._chain, self._scope, self._key, self._about = chain, scope, key, about

    def write(self, out: BinaryIO, folder: Path, accounts: Accounts) -> Survey:
        """Write the bundle, with files in `folder` meanwhile; return what its trail came to."""
        tar = TarWriter(out)
        self._describe(tar)
        with _unnamed(folder) as trail, _unnamed(folder) as table, _unnamed(folder) as kept:
            with self._meanwhile(lambda: self._tell(trail, table)):
                self._leaves(tar)
                self._records(tar)
                survey = self._survey(kept, accounts)
            for name, stream in ((ACCOUNTS, kept), (TRAIL, trail), ("trail.csv", table)):
                size = stream.seek(0, os.SEEK_END)
                stream.seek(0)
                tar.add_parts(name, size, parts_of(stream, size))
        for name, data in readings(self._about, survey).items():
            tar.add(name, data)
        sums = "".join(f"{digest}  {name}\n" for name, digest in tar.sums.items()).encode()
        tar.add(SUMS, sums)
        tar.add(SIGNATURE, self._key.sign(sums))
        tar.end()
        return survey

    @contextmanager
    def _meanwhile(self, work: Callable[[], None]) -> Iterator[None]:
        """Do `work` too: in a process of its own where there is much to do and another core to do it."""
        leaves = self._scope.head.size - self._scope.first
        if leaves < WORTH_A_PROCESS or len(os.sched_getaffinity(0)) == 1:
            work()
            yield
        else:
            with _beside(work):
                yield

    def _tell(self, trail: IO[bytes], table: IO[bytes]) -> None:
        """Write the rows within the span, as lines and as a table."""

        def told() -> Iterator[Row]:
            for row in rows(self._chain, self._scope):
                trail.write(json_line(row.to_json()))
                yield row

        _write_all(table, csv_lines(told()))
        trail.flush()
        table.flush()

    def _survey(self, kept: IO[bytes], accounts: Accounts) -> Survey:
        """Return what the trail within the span came to, and write the accounts that its records name."""
        span = self._scope.span
        surveyor = Surveyor(chosen(self._about.framework))
        # One line for each that is named, in the span or not: the verifier counts them so.
        for row in rows(self._chain, frozen.replace(self._scope, span=Span())):
            account = accounts(row.account) if row.account else None
            if row.account:
                kept.write((account or b"") + b"\n")
            if span.since <= row.time < span.until:
                surveyor.take(row, account)
        return surveyor.survey()

    @property
    def _placed(self) -> Iterator[Placed]:
        scope = self._scope
        return (
            item for item in self._chain.placed if item.at >= scope.first and item.end <= scope.head.size
        )

    def _describe(self, tar: TarWriter) -> None:
        chain, scope = self._chain, self._scope
        manifest = Manifest(
            origin=scope.head.origin,
            host=self._about.host,
            tool=self._about.tool,
            first=scope.first,
            size=scope.head.size,
            frontier=tuple(chain.frontier(scope.first).peaks),
            made=self._about.made,
            since=scope.span.since,
            until=scope.span.until,
        )
        tar.add(MANIFEST, manifest.to_bytes())
        tar.add(CHECKPOINT, scope.note)
        tar.add("key.pub", f"{self._key.verifier.text()}\n".encode())
        quotes = dict(self._quotes())
        texts = guide.files(
            origin=scope.head.origin,
            first=scope.first,
            size=scope.head.size,
            quotes=[command for command, _ in quotes.values()],
        )
        for name, data in texts.items():
            tar.add(name, data)
        for folder, (_, found) in quotes.items():
            for name, data in found.items():
                tar.add(f"{folder}/{name}", data)
        tar.add(HEADS, b"".join(head.line() for head in self._heads()))
        tar.add(SEGMENTS, b"".join(segment_line(item.part) for item in self._placed))

    def _quotes(self) -> Iterator[tuple[str, tuple[str, dict[str, bytes]]]]:
        for item in self._placed:
            part = item.part
            if isinstance(part, Closing) and (quote := part.quote) is not None:
                folder = f"quotes/{item.at}"
                extra = entries.binding(self._scope.head.origin, part.epoch, part.state, quote.asked)
                found = quote_files(
                    quote.key,
                    quote.attest,
                    quote.signature,
                    quote.bank,
                    ((part.pcr, part.pcrs[quote.bank]),),
                )
                place = f"-u {folder}/ak.pub -m {folder}/quote.msg -s {folder}/quote.sig"
                command = f"tpm2_checkquote {place} -f {folder}/quote.pcrs -q {extra.hex()}"
                yield folder, (command, found)

    def _heads(self) -> Iterator[Head]:
        chain, size = self._chain, self._scope.head.size
        known = [(open_checkpoint(note, self._key.verifier).size, note) for note in heads(chain.folder)]
        for old, note in [item for item in known if item[0] < size][-MAX_HEADS:]:
            yield Head(note=note, proof=tuple(merkle.consistency_proof(chain.read_hash, old, size)))

    def _leaves(self, tar: TarWriter) -> None:
        first, size = self._scope.first, self._scope.head.size
        pieces = (
            b"".join(self._chain.leaf_hashes(at, min(at + _PIECE, size)))
            for at in range(first, size, _PIECE)
        )
        tar.add_parts(LEAVES, merkle.HASH_SIZE * (size - first), pieces)

    def _records(self, tar: TarWriter) -> None:
        for item in self._placed:
            part = item.part
            if not isinstance(part, Records) or isinstance(self._chain.tails[part.name].entry, Pruned):
                continue
            with open_log(self._chain.log_path(part.name)) as stream:
                stream.seek(part.begin)
                size = part.end - part.begin
                tar.add_parts(f"records/{item.at}.cel", size, parts_of(stream, size))


@contextmanager
def _beside(work: Callable[[], None]) -> Iterator[None]:
    """Do `work` in a process of its own meanwhile; raises OSError if it could not be done."""
    child = os.fork()
    if child == 0:
        status = errno.EIO
        try:
            work()
            status = 0
        except OSError as error:
            status = error.errno or status
        finally:
            os._exit(status)
    try:
        yield
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        code = code if code > 0 else errno.EIO
        raise OSError(code, os.strerror(code))


def _write_all(out: IO[bytes], lines: Iterable[bytes]) -> None:
    for line in lines:
        out.write(line)


def _unnamed(folder: Path) -> IO[bytes]:
    """Return a file that nobody else sees and that goes away by itself."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)
