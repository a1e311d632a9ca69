"""An audit bundle as it lies in a file: what it holds, found and read in bounded memory.

A bundle is a tar: `bundle.json` says which leaves of which log, `checkpoint` is the signed head, `leaves`
the hashes of the leaves, `segments.jsonl` what they are, `records/N.cel` the records that begin at leaf N.
"""

from collections.abc import Iterator
from typing import BinaryIO

from secrun_attest import frozen, jcs
from secrun_attest.audit import tarball
from secrun_attest.audit.merkle import HASH_SIZE, MAX_HEIGHT
from secrun_attest.audit.note import MAX_NOTE, MAX_SIZE
from secrun_attest.audit.tarball import Member, TarError, TruncatedError
from secrun_attest.fields import Fields, as_hex, as_text, parse_json
from secrun_attest.limits import MAX_INTEGER

SCHEMA = "secrun.dev/audit-bundle/v1"
MANIFEST, CHECKPOINT, HEADS, SEGMENTS, LEAVES = (
    "bundle.json", "checkpoint", "checkpoints.jsonl", "segments.jsonl", "leaves",
)  # fmt: skip
ACCOUNTS, TRAIL, SUMS, SIGNATURE = "accounts.jsonl", "trail.jsonl", "SHA256SUMS", "SHA256SUMS.sig"
# What is kept of one pod: some lines for each of its apps.
MAX_ACCOUNT = 1 << 20
# Heads that were signed before: each export and each shutdown makes one.
MAX_HEADS = 20_000
_MAX_MANIFEST = 64 * 1024
_MAX_SUM_LINE = 256
_MAX_HEAD_LINE = 2 * MAX_NOTE + MAX_HEIGHT * 80


@frozen.record
class Manifest:
    """What a bundle says that it is; times in milliseconds since 1970, `until` is the first beyond."""

    origin: str
    host: str
    tool: str
    first: int
    size: int
    frontier: tuple[bytes, ...]
    made: int
    since: int = 0
    until: int = MAX_INTEGER

    def to_bytes(self) -> bytes:
        """Return what `parse_manifest` reads."""
        return jcs.encode(
            {
                "schema": SCHEMA,
                "origin": self.origin,
                "host": self.host,
                "tool": self.tool,
                "first": self.first,
                "size": self.size,
                "frontier": [item.hex() for item in self.frontier],
                "made": self.made,
                "since": self.since,
                "until": self.until,
            }
        )


def parse_manifest(data: bytes) -> Manifest:
    """Parse the first file of a bundle; raises FormatError."""
    fields = Fields(parse_json(data, what=MANIFEST, limit=_MAX_MANIFEST), MANIFEST)
    if (schema := fields.text("schema")) != SCHEMA:
        raise TarError(f"{MANIFEST} is {schema[:80]!r}, expected {SCHEMA}")
    found = Manifest(
        origin=fields.text("origin"),
        host=fields.text("host"),
        tool=fields.text("tool"),
        first=fields.integer("first", limit=MAX_SIZE),
        size=fields.integer("size", limit=MAX_SIZE),
        frontier=tuple(
            as_hex(item, "frontier", sizes=(HASH_SIZE,))
            for item in fields.items("frontier", limit=MAX_HEIGHT)
        ),
        made=fields.integer("made"),
        since=fields.integer("since"),
        until=fields.integer("until"),
    )
    fields.done()
    return found


@frozen.record
class Head:
    """A head that was signed before, and the proof that the bundle's own tree began with it."""

    note: bytes
    proof: tuple[bytes, ...]

    def line(self) -> bytes:
        """Return the head as a line."""
        return jcs.encode({"note": self.note.decode(), "proof": [item.hex() for item in self.proof]}) + b"\n"


def _head(line: bytes) -> Head:
    fields = Fields(parse_json(line, what="head", limit=_MAX_HEAD_LINE), "head")
    proof = fields.items("proof", limit=MAX_HEIGHT)
    head = Head(
        note=fields.text("note", limit=MAX_NOTE).encode(),
        proof=tuple(as_hex(as_text(item, "proof"), "proof", sizes=(HASH_SIZE,)) for item in proof),
    )
    fields.done()
    return head


class Bundle:
    """A bundle that can be read anywhere; raises TarError, and TruncatedError if its end is missing."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.members = tarball.index(stream)
        for name in (MANIFEST, CHECKPOINT, SEGMENTS, LEAVES):
            if name not in self.members:
                raise TarError(f"the bundle has no {name}")
        if SUMS not in self.members or SIGNATURE not in self.members:
            raise TruncatedError(f"the bundle has no {SUMS} with its signature, which come last")
        self.manifest = parse_manifest(self.read(MANIFEST, _MAX_MANIFEST))

    def read(self, name: str, limit: int) -> bytes:
        """Return a file of at most `limit` bytes."""
        member = self.members.get(name)
        if member is None or member.size > limit:
            size = "none" if member is None else member.size
            raise TarError(f"the bundle has {size} bytes of {name}, the limit is {limit}")
        self._stream.seek(member.begin)
        return self._stream.read(member.size)

    def parts(self, member: Member) -> Iterator[bytes]:
        """Yield the bytes of a file in pieces; other files may be read meanwhile."""
        for begin in range(0, member.size, tarball.BLOCK * 2048):
            self._stream.seek(member.begin + begin)
            yield self._stream.read(min(tarball.BLOCK * 2048, member.size - begin))

    def lines(self, name: str, limit: int) -> Iterator[bytes]:
        """Yield the lines of a file with their ends, of at most `limit` bytes each; nothing if it is absent.

        The last may lack its end. A longer line is given up to the limit, and nothing of it after that.
        """
        member = self.members.get(name)
        if member is None:
            return
        rest = b""
        for part in self.parts(member):
            *lines, rest = (rest + part).split(b"\n")
            yield from (line[:limit] + b"\n" for line in lines)
            if len(rest) > limit:
                yield rest[:limit]
                return
        if rest:
            yield rest

    def leaves(self) -> Iterator[bytes]:
        """Yield the hashes of the leaves."""
        member = self.members[LEAVES]
        if member.size != HASH_SIZE * (self.manifest.size - self.manifest.first):
            raise TarError(f"{LEAVES} has {member.size} bytes for other than its leaves")
        for part in self.parts(member):
            yield from (part[at : at + HASH_SIZE] for at in range(0, len(part), HASH_SIZE))

    def heads(self) -> Iterator[Head]:
        """Yield the heads that were signed before."""
        for number, line in enumerate(self.lines(HEADS, _MAX_HEAD_LINE)):
            if number >= MAX_HEADS:
                raise TarError(f"the bundle has more than {MAX_HEADS} heads")
            yield _head(line)

    def sums(self) -> Iterator[tuple[str, str]]:
        """Yield name and SHA-256 of each file, as the bundle says."""
        for line in self.lines(SUMS, _MAX_SUM_LINE):
            digest, _, name = line.decode("ascii", "replace").rstrip("\n").partition("  ")
            yield name, digest
