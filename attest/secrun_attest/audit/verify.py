"""The verifier of audit bundles: a file and a public key in, a report out. It asks nobody.

The hashes of the leaves give the signed root; each record has the hash of its leaf; the records of each
epoch give the PCR that its quotes sign; each epoch names the head of the log before it. What is wrong gets a
name.
"""

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from secrun_attest.audit import entries, merkle
from secrun_attest.audit.bundle import (
    ACCOUNTS,
    CHECKPOINT,
    MANIFEST,
    MAX_ACCOUNT,
    SEGMENTS,
    SIGNATURE,
    SUMS,
    TRAIL,
    Bundle,
)
from secrun_attest.audit.chain import MAX_SEGMENT, Records, parse_segment
from secrun_attest.audit.entries import Entry
from secrun_attest.audit.logcheck import Epochs
from secrun_attest.audit.naming import named, named_by_order
from secrun_attest.audit.note import (
    MAX_NOTE,
    Checkpoint,
    NoteError,
    OtherKeyError,
    Verifier,
    open_checkpoint,
)
from secrun_attest.audit.report import Fault, Findings, Report
from secrun_attest.audit.rows import RowDigest
from secrun_attest.audit.tarball import TarError, TruncatedError
from secrun_attest.audit.walk import parse_record
from secrun_attest.errors import FormatError
from secrun_attest.limits import MAX_LOG_LINE

_MAX_SUMS = 64 << 20
_SIGNATURE_SIZE = 64


class Verified:
    """What one bundle proves, and the heads that it is known to have had: root by size."""

    def __init__(self, report: Report, heads: dict[int, bytes]) -> None:
        self.report = report
        self.heads = heads


def verify_bundle(stream: BinaryIO, key: Verifier) -> Verified:
    """Verify a bundle that `key` must have signed; never raises for what is in the file.

    `stream` can seek. Reads it twice, in memory that does not grow with the records.
    """
    findings = Findings()
    work = _Work(findings)
    try:
        work.run(Bundle(stream), key)
    except TruncatedError as error:
        findings.add(Fault.TRUNCATED, "bundle", error.message)
    except OtherKeyError as error:
        findings.add(Fault.KEY, CHECKPOINT, error.message)
    except NoteError as error:
        findings.add(Fault.SIGNATURE, CHECKPOINT, error.message)
    except TarError as error:
        findings.add(Fault.FORMAT, "bundle", error.message)
    except FormatError as error:
        findings.add(Fault.FORMAT, "bundle", f"{error.message} ({error.code})")
    return Verified(work.report(), work.heads)


def compare(found: list[tuple[str, Verified]]) -> Findings:
    """Compare bundles of one log with each other: the head of each must be one that the longer ones had."""
    findings = Findings()
    ordered = sorted(found, key=lambda item: item[1].report.size)
    for number, (name, short) in enumerate(ordered):
        report = short.report
        for other, long in ordered[number + 1 :]:
            where = f"{name} and {other}"
            if long.report.origin != report.origin:
                findings.add(Fault.FORK, where, "they are of two logs, and prove nothing about each other")
            elif (root := long.heads.get(report.size)) != report.root:
                had = "another" if root else "no"
                text = f"the head of {report.size} leaves in {name} was signed; {other} had {had} such head"
                findings.add(Fault.FORK, where, text)
    return findings


class _Work:
    """One verification."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.heads: dict[int, bytes] = {}
        self.head = Checkpoint(origin="", size=0, root=b"")
        self.first = self.since = self.until = 0
        self.epochs = Epochs(findings)

    def run(self, bundle: Bundle, key: Verifier) -> None:
        self.head = open_checkpoint(bundle.read(CHECKPOINT, MAX_NOTE), key)
        manifest = bundle.manifest
        self.first, self.since, self.until = manifest.first, manifest.since, manifest.until
        self.epochs.origin = self.head.origin
        if (manifest.origin, manifest.size) != (self.head.origin, self.head.size):
            self.findings.add(Fault.FORMAT, MANIFEST, "is about another head than that in checkpoint")
            return
        self.heads[self.head.size] = self.head.root
        self._check_heads(bundle, key)
        self._check_leaves(bundle)
        self._check_sums(bundle, key)

    def _check_heads(self, bundle: Bundle, key: Verifier) -> None:
        """Check that every head that was signed before is how this tree began."""
        for number, item in enumerate(bundle.heads()):
            where = f"earlier head {number}"
            try:
                old = open_checkpoint(item.note, key)
            except OtherKeyError as error:
                self.findings.add(Fault.KEY, where, error.message)
                continue
            if old.origin != self.head.origin:
                self.findings.add(Fault.FORK, where, f"is of {old.origin[:80]!r}")
                continue
            try:
                merkle.check_consistency(old.size, old.root, self.head.size, self.head.root, item.proof)
            except merkle.ProofError as error:
                self.findings.add(Fault.FORK, where, f"{old.size} leaves were signed: {error.message}")
                continue
            if self.heads.setdefault(old.size, old.root) != old.root:
                self.findings.add(Fault.FORK, where, f"{old.size} leaves were signed with two roots")

    def _check_leaves(self, bundle: Bundle) -> None:
        """Follow all leaves: each has its hash, and all hashes together give the root."""
        tree = merkle.Frontier(bundle.manifest.first, bundle.manifest.frontier)
        hashes = bundle.leaves()
        rows = RowDigest(bundle.manifest.since, bundle.manifest.until)
        self.epochs.reading(rows, bundle.lines(ACCOUNTS, MAX_ACCOUNT))
        for line in bundle.lines(SEGMENTS, MAX_SEGMENT):
            part = parse_segment(line)
            at = tree.size
            self.epochs.boundary(at, tree.root())
            if isinstance(part, Records):
                self._check_records(bundle, at, part, hashes, tree)
            else:
                self._check_entry(at, part, hashes, tree)
        if (got := (tree.size, tree.root())) != (self.head.size, self.head.root):
            text = f"the leaves give {got[0]} and {got[1].hex()}, signed is {self.head.root.hex()}"
            self.findings.add(Fault.ROOT, "leaves", text)
        self.epochs.end()
        if TRAIL in bundle.members:
            self._check_trail(bundle, rows)

    def _check_entry(self, at: int, part: Entry, hashes: Iterator[bytes], tree: merkle.Frontier) -> None:
        expected = next(hashes, b"")
        tree.append(expected)
        if merkle.leaf_hash(entries.encode(part)) != expected:
            self.findings.add(Fault.CHANGED, f"leaf {at}", f"the entry about {part.name} has another hash")
        self.epochs.entry(at, part)

    def _check_records(
        self, bundle: Bundle, at: int, part: Records, hashes: Iterator[bytes], tree: merkle.Frontier
    ) -> None:
        name = f"records/{at}.cel"
        if name not in bundle.members:
            self.epochs.absent(at, part)
            for expected in islice(hashes, part.count):
                tree.append(expected)
            return
        self.epochs.begin(at, part)
        lines = bundle.lines(name, MAX_LOG_LINE + 1)
        good = True
        for index in range(at, at + part.count):
            expected = next(hashes, b"")
            tree.append(expected)
            if good and (problem := self._problem(index, next(lines, b""), expected)):
                good = False
                where = f"leaf {index}, record {part.first + index - at} of log {part.name}"
                self._name(bundle, at, part, where, problem)
        if good and next(lines, b""):
            text = f"{name} has more than its {part.count} records"
            self.findings.add(Fault.INSERTED, f"leaf {at + part.count}", text)

    def _problem(self, index: int, line: bytes, expected: bytes) -> str:
        """Take one record; return why it is not the one of its leaf or cannot follow, empty if it can."""
        try:
            record = parse_record(line)
        except FormatError as error:
            return error.message
        if merkle.leaf_hash(record.event_data) != expected:
            return "it has another hash than its leaf"
        return "" if self.epochs.record(index, record) else self.epochs.problem

    def _name(self, bundle: Bundle, at: int, part: Records, where: str, problem: str) -> None:
        """Name what happened to the records of a segment: `problem` is about the first that is wrong."""
        name, limit = f"records/{at}.cel", MAX_LOG_LINE + 1
        leaves = islice(bundle.leaves(), at - self.first, at - self.first + part.count)
        found = named(bundle.lines(name, limit), leaves, part)
        found = found or named_by_order(bundle.lines(name, limit), part) or (Fault.CHANGED, "")
        self.findings.add(found[0], where, f"{problem}; {found[1]}".removesuffix("; "))
        self.epochs.lost(part)

    def _check_trail(self, bundle: Bundle, rows: RowDigest) -> None:
        digest = hashlib.sha256()
        for piece in bundle.parts(bundle.members[TRAIL]):
            digest.update(piece)
        if self.epochs.whole and digest.digest() != rows.digest():
            self.findings.add(Fault.TRAIL, TRAIL, "is not what the records say")

    def _check_sums(self, bundle: Bundle, key: Verifier) -> None:
        """Check the digest of every file and the signature over all of them."""
        signature = bundle.read(SIGNATURE, _SIGNATURE_SIZE)
        if not key.signed(signature, bundle.read(SUMS, _MAX_SUMS)):
            self.findings.add(Fault.SIGNATURE, SUMS, "is not signed by the key that was given")
        left = {*bundle.members} - {SUMS, SIGNATURE}
        for name, expected in bundle.sums():
            member = bundle.members.get(name)
            found = hashlib.sha256()
            for piece in bundle.parts(member) if member else ():
                found.update(piece)
            if member is None or found.hexdigest() != expected or name not in left:
                self.findings.add(Fault.MEMBER, name[:120], f"is absent or another than {SUMS} says")
            left.discard(name)
        for name in sorted(left):
            self.findings.add(Fault.MEMBER, name[:120], f"is not in {SUMS}")

    def report(self) -> Report:
        epochs = self.epochs
        return Report(
            origin=self.head.origin,
            first=self.first,
            size=self.head.size,
            root=self.head.root,
            records=epochs.records,
            epochs=len(epochs.logs),
            quotes=epochs.quotes,
            pods=epochs.pods,
            keys=tuple(sorted(epochs.keys)),
            software=epochs.software,
            since=self.since,
            until=self.until,
            findings=tuple(self.findings.found),
            count=self.findings.count,
        )
