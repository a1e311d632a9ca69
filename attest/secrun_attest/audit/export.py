"""Exports of a host's audit log: rows as JSON lines or CSV, or a bundle that proves itself."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from secrun_attest import frozen
from secrun_attest.audit import entries, guide, merkle
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
from secrun_attest.audit.entries import Closing, Pruned
from secrun_attest.audit.heads import heads
from secrun_attest.audit.note import Checkpoint, Signer, open_checkpoint
from secrun_attest.audit.rows import csv_lines, json_line
from secrun_attest.audit.tarball import TarWriter, parts_of
from secrun_attest.audit.trail import Projection, Row
from secrun_attest.audit.walk import chained, parse_record
from secrun_attest.events import parse_event
from secrun_attest.limits import MAX_INTEGER, MAX_LOG_LINE
from secrun_attest.quotefiles import quote_files

# Gives what is kept of a pod by the digest that was measured; None if it is gone.
Accounts = Callable[[str], bytes | None]
_PIECE = 4096


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
        if line:
            row = projection.row(index, parse_event(data))
        else:
            row = projection.entry(index, entries.parse(data))
        if scope.span.since <= row.time < scope.span.until:
            yield row


def write_json_lines(chain: Chain, scope: Scope, out: IO[bytes]) -> int:
    """Write the rows as JSON lines; return how many."""
    return _write_all(out, map(json_line, rows(chain, scope)))


def write_csv(chain: Chain, scope: Scope, out: IO[bytes]) -> int:
    """Write the rows as CSV; return how many."""
    return _write_all(out, csv_lines(rows(chain, scope))) - 1


def _write_all(out: IO[bytes], lines: Iterable[bytes]) -> int:
    count = 0
    for line in lines:
        out.write(line)
        count += 1
    return count


class BundleWriter:
    """Writes a bundle; what grows with the records goes through files beside it."""

    def __init__(self, chain: Chain, scope: Scope, key: Signer, *, host: str, tool: str, made: int) -> None:
        self._chain, self._scope, self._key = chain, scope, key
        self._host, self._tool, self._made = host, tool, made

    def write(self, out: BinaryIO, folder: Path, accounts: Accounts) -> int:
        """Write the bundle, with files in `folder` meanwhile; return how many rows its trail has."""
        tar = TarWriter(out)
        self._describe(tar)
        self._leaves(tar)
        self._records(tar)
        with _unnamed(folder) as trail, _unnamed(folder) as table, _unnamed(folder) as kept:
            count = _write_all(table, csv_lines(self._told(trail, kept, accounts))) - 1
            for name, stream in ((ACCOUNTS, kept), (TRAIL, trail), ("trail.csv", table)):
                size = stream.tell()
                stream.seek(0)
                tar.add_parts(name, size, parts_of(stream, size))
        sums = "".join(f"{digest}  {name}\n" for name, digest in tar.sums.items()).encode()
        tar.add(SUMS, sums)
        tar.add(SIGNATURE, self._key.sign(sums))
        tar.end()
        return count

    def _told(self, trail: IO[bytes], kept: IO[bytes], accounts: Accounts) -> Iterator[Row]:
        """Yield the rows, and write them and the accounts that they name on the way."""
        chain, scope = self._chain, self._scope
        projection = Projection()
        for index, data, line in chain.leaves(scope.first, scope.head.size):
            event = parse_event(data) if line else None
            row = projection.row(index, event) if event else projection.entry(index, entries.parse(data))
            if row.account:
                # One line for each that is named, in the span or not: the verifier counts them so.
                kept.write((accounts(row.account) or b"") + b"\n")
            if scope.span.since <= row.time < scope.span.until:
                trail.write(json_line(row))
                yield row

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
            host=self._host,
            tool=self._tool,
            first=scope.first,
            size=scope.head.size,
            frontier=tuple(chain.frontier(scope.first).peaks),
            made=self._made,
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
            b"".join(self._chain.read_hash(0, index) for index in range(at, min(at + _PIECE, size)))
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


def _unnamed(folder: Path) -> IO[bytes]:
    """Return a file that nobody else sees and that goes away by itself."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)
