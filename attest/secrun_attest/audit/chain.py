"""The audit log of a host: the records of all its boot epochs and how each ended, in one Merkle tree.

Files: docs/audit.md. Records stay in the event logs; here are where each lies, the tree's hashes, the
entries that are no records, and the signed heads. Whoever writes holds the lock; a crash leaves at most
hashes and a line that nobody counts, and the next writer cuts them off.
"""

import fcntl
import os
import re
from binascii import Error, unhexlify
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from secrun_attest import celjson, frozen, jcs
from secrun_attest.audit import entries, merkle
from secrun_attest.audit.entries import Closing, Entry, Pruned, State
from secrun_attest.audit.walk import Walk
from secrun_attest.errors import FormatError, LogError
from secrun_attest.evidence import banks
from secrun_attest.fields import Fields, parse_json
from secrun_attest.jcs import JsonObject
from secrun_attest.limits import MAX_LOG_LINE, MAX_PCR, MAX_RECORDS
from secrun_attest.logstore import LOG_SUFFIX, sync_directory
from secrun_attest.record import Bank, Epoch, epoch_json, parse_epoch

LOCK_NAME, HASHES_NAME, SEGMENTS_NAME = "lock", "hashes", "segments"
MAX_SEGMENT = 2 * entries.MAX_ENTRY
# 64 bytes of hashes for a leaf: written in pieces, so that a long log costs no memory.
_FLUSH = 1024
_LOG_NAME = re.compile(r"(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})")


class ChainError(LogError):
    """The audit log of this host cannot be written or read."""

    code = "audit-chain"


@frozen.record
class Records:
    """Leaves that are records of the log `name`: from record `first`, `count` of them, at these bytes."""

    name: str
    epoch: Epoch
    first: int
    count: int
    begin: int
    end: int
    pcr: int
    pcrs: dict[Bank, bytes]


@frozen.record
class Placed:
    """A segment and the number of its first leaf; an entry is one leaf."""

    at: int
    part: Records | Entry

    @property
    def end(self) -> int:
        """The number of the leaf behind it."""
        return self.at + (self.part.count if isinstance(self.part, Records) else 1)


@frozen.record
class Tail:
    """How far a log is in the tree: its last segment, and the last entry about it."""

    records: Records
    entry: Entry | None = None

    @property
    def count(self) -> int:
        """How many of its records are leaves."""
        return self.records.first + self.records.count

    @property
    def settled(self) -> bool:
        """Whether it is said how it ended, and nothing followed."""
        entry = self.entry
        if isinstance(entry, Pruned):
            return True
        return entry is not None and entry.state is not State.OPEN and entry.count == self.count


def segment_line(part: Records | Entry) -> bytes:
    """Return a segment as `parse_segment` reads it, with its end."""
    if not isinstance(part, Records):
        return jcs.encode({"entry": entries.encode(part).decode()}) + b"\n"
    said: JsonObject = {
        "log": part.name,
        "epoch": epoch_json(part.epoch),
        "first": part.first,
        "count": part.count,
        "begin": part.begin,
        "end": part.end,
        "pcr": part.pcr,
        "pcrs": {bank.value: value.hex() for bank, value in part.pcrs.items()},
    }
    return jcs.encode(said) + b"\n"


def parse_segment(line: bytes) -> Records | Entry:
    """Parse one line of the segments; raises FormatError."""
    fields = Fields(parse_json(line, what="segment", limit=MAX_SEGMENT), "segment")
    if fields.has("entry"):
        found = entries.parse(fields.text("entry", limit=entries.MAX_ENTRY).encode())
        fields.done()
        return found
    part = Records(
        name=_log_name(fields.text("log", limit=entries.MAX_LOG_NAME)),
        epoch=parse_epoch(fields.take("epoch")),
        first=fields.integer("first", limit=MAX_RECORDS),
        count=fields.integer("count", limit=MAX_RECORDS),
        begin=fields.integer("begin"),
        end=fields.integer("end"),
        pcr=fields.integer("pcr", limit=MAX_PCR),
        pcrs=banks(fields.mapping("pcrs", limit=len(Bank)), "segment.pcrs"),
    )
    fields.done()
    return part


def _log_name(text: str) -> str:
    if not _LOG_NAME.fullmatch(text):
        raise FormatError(f"{text[:40]!r} is no name of a log", code="audit-chain")
    return text


@contextmanager
def opened(folder: Path, logs: Path) -> Iterator["Chain"]:
    """Hold the audit log in `folder`, made if absent, over the event logs in `logs`; raises ChainError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(folder / LOCK_NAME, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            chain = Chain(folder, logs)
            try:
                yield chain
            finally:
                chain.close()
        finally:
            os.close(fd)
    except OSError as error:
        raise ChainError(
            f"the audit log in {folder} cannot be used: {error.strerror}: {error.filename or ''}",
            hint="make room on its file system, then try again",
            code="audit-write",
        ) from error


class Chain:
    """The audit log while its lock is held; `opened` makes it."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder = folder
        self._logs = logs
        self._hashes = _open(folder / HASHES_NAME)
        self._segments = _open(folder / SEGMENTS_NAME)
        self.placed: list[Placed] = []
        self.tails: dict[str, Tail] = {}
        self._load()

    def close(self) -> None:
        """Close the files."""
        os.close(self._hashes)
        os.close(self._segments)

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return self.placed[-1].end if self.placed else 0

    def read_hash(self, height: int, number: int) -> bytes:
        """Return the hash of a whole subtree."""
        at = merkle.HASH_SIZE * merkle.stored_index(height, number)
        found = os.pread(self._hashes, merkle.HASH_SIZE, at)
        if len(found) != merkle.HASH_SIZE:
            raise self._damaged("its hashes are cut")
        return found

    def frontier(self, size: int | None = None) -> merkle.Frontier:
        """Return the frontier of the first `size` leaves, all by default."""
        return merkle.frontier(self.read_hash, self.size if size is None else size)

    def _damaged(self, why: str) -> ChainError:
        return ChainError(
            f"the audit log in {self.folder} is damaged: {why}",
            hint="move the folder away and keep it: a new audit log begins; older bundles still verify",
            code="audit-damaged",
        )

    def _load(self) -> None:
        with open(self._segments, "rb", closefd=False) as stream:
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            for line in whole.split(b"\n")[:-1]:
                self._place(parse_segment(line))
        except FormatError as error:
            raise self._damaged(error.message) from error
        if len(whole) != len(data):
            os.ftruncate(self._segments, len(whole))
        wanted = merkle.HASH_SIZE * merkle.stored_count(self.size)
        found = os.fstat(self._hashes).st_size
        if found < wanted:
            raise self._damaged(f"it has {found} bytes of hashes, expected {wanted}")
        if found > wanted:
            os.ftruncate(self._hashes, wanted)

    def _place(self, part: Records | Entry) -> None:
        tail = self.tails.get(part.name)
        if isinstance(part, Records):
            if (tail.count if tail else 0) != part.first:
                raise FormatError(f"log {part.name} goes on at {part.first}", code="audit-chain")
            self.tails[part.name] = Tail(records=part, entry=tail.entry if tail else None)
        elif tail is None:
            raise FormatError(f"an entry is about {part.name}, which has no record", code="audit-chain")
        else:
            self.tails[part.name] = Tail(records=tail.records, entry=part)
        self.placed.append(Placed(at=self.size, part=part))

    def log_names(self) -> list[str]:
        """Return the names of all event logs, in the order of the TPM's counters."""
        found = [
            name.removesuffix(LOG_SUFFIX) for name in os.listdir(self._logs) if name.endswith(LOG_SUFFIX)
        ]
        return sorted(filter(_LOG_NAME.fullmatch, found), key=lambda name: [*map(int, name.split("-"))])

    def log_path(self, name: str) -> Path:
        """Return where the event log of an epoch lies."""
        return self._logs / f"{name}{LOG_SUFFIX}"

    def sync(self, *, going: str, now: int, quoted: tuple[Bank, bytes] | None = None) -> None:
        """Make leaves of all records that are none yet, and say of each epoch but `going` how it ended.

        `going` is the log of the present epoch, which need not exist; of it, records wait behind that which
        gives the PCR the value `quoted`. `now` is in milliseconds. Raises ChainError if that log is damaged.
        """
        for name in self.log_names():
            tail = self.tails.get(name)
            if name == going:
                self._absorb(name, quoted, last=False, now=now)
            elif tail is None or not tail.settled or os.stat(self.log_path(name)).st_size > tail.records.end:
                self._absorb(name, None, last=True, now=now)

    def _absorb(self, name: str, quoted: tuple[Bank, bytes] | None, *, last: bool, now: int) -> None:
        tail = self.tails.get(name)
        if tail is not None and isinstance(tail.entry, Pruned):
            return
        walk = _resumed(tail)
        why = self._absorb_lines(name, walk, tail.records.end if tail else 0, quoted)
        tail = self.tails.get(name)
        if why and not last:
            raise self._damaged(f"log {name}: {why}")
        if tail is None or walk.epoch is None or not last or (tail.settled and not why):
            return
        ended = Closing(
            state=State.DAMAGED if why else State.NOT_CLOSED,
            name=name,
            epoch=walk.epoch,
            count=walk.count,
            pcr=walk.pcr,
            pcrs=walk.pcrs,
            t=now,
            why=why[: entries.MAX_WHY],
        )
        if tail.entry != frozen.replace(ended, t=tail.entry.t if tail.entry else now):
            self.add(ended)

    def _absorb_lines(self, name: str, walk: Walk, begin: int, quoted: tuple[Bank, bytes] | None) -> str:
        """Make leaves of the lines from `begin` on; return what is wrong with the next, if anything is."""
        first, end, why = walk.count, begin, ""
        tree = self.frontier()
        fresh: list[bytes] = []
        with open_log(self.log_path(name)) as stream:
            stream.seek(begin)
            while quoted is None or walk.pcrs.get(quoted[0]) != quoted[1]:
                line = stream.readline(MAX_LOG_LINE + 1)
                if not line.endswith(b"\n") and len(line) <= MAX_LOG_LINE:
                    break  # the end, or a record that was never whole
                try:
                    data = walk.take_line(line)
                except FormatError as error:
                    why = f"record {walk.count}: {error.message}"
                    break
                end += len(line)
                fresh += tree.append(merkle.leaf_hash(data))
                if len(fresh) > _FLUSH:
                    _write_all(self._hashes, b"".join(fresh))
                    fresh.clear()
        _write_all(self._hashes, b"".join(fresh))
        if walk.count > first and walk.epoch is not None:
            place = {"first": first, "count": walk.count - first, "begin": begin, "end": end}
            self._commit(Records(name=name, epoch=walk.epoch, pcr=walk.pcr, pcrs=dict(walk.pcrs), **place))
        return why

    def add(self, entry: Entry) -> int:
        """Add an entry; return the number of its leaf."""
        at = self.size
        _write_all(self._hashes, b"".join(self.frontier().append(merkle.leaf_hash(entries.encode(entry)))))
        self._commit(entry)
        return at

    def _commit(self, part: Records | Entry) -> None:
        """Count leaves whose hashes are written, once they are on disk."""
        os.fdatasync(self._hashes)
        before = os.fstat(self._segments).st_size
        try:
            _write_all(self._segments, segment_line(part))
            os.fdatasync(self._segments)
        except OSError:
            os.ftruncate(self._segments, before)
            raise
        if not self.placed:
            sync_directory(self.folder)
        self._place(part)

    def leaves(self, first: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield number, bytes and line of the leaves from `first` to `end`; an entry has no line.

        Raises ChainError if a record is not the one whose hash is in the tree. Records that were pruned are
        left out.
        """
        end = self.size if end is None else end
        for placed in self.placed:
            if placed.end <= first or placed.at >= end:
                continue
            if isinstance(placed.part, Records):
                yield from self._records(placed.at, placed.part, first, end)
            else:
                yield placed.at, entries.encode(placed.part), b""

    def _records(self, at: int, part: Records, first: int, end: int) -> Iterator[tuple[int, bytes, bytes]]:
        if isinstance(self.tails[part.name].entry, Pruned):
            return
        with open_log(self.log_path(part.name)) as stream:
            stream.seek(part.begin)
            for low in range(at, min(at + part.count, end), _FLUSH):
                high = min(low + _FLUSH, at + part.count, end)
                for index, expected in enumerate(self.leaf_hashes(low, high), low):
                    line = stream.readline(MAX_LOG_LINE + 1)
                    if index < first:
                        continue
                    data = _event_of(line)
                    if merkle.leaf_hash(data) != expected:
                        text = f"leaf {index} of log {part.name}"
                        raise self._damaged(f"{text} is not the record that it was")
                    yield index, data, line

    def leaf_hashes(self, first: int, end: int) -> Iterator[bytes]:
        """Yield the hashes of some leaves, which are read at once; raises ChainError."""
        size = merkle.HASH_SIZE
        low = merkle.stored_count(first)
        found = os.pread(self._hashes, size * (merkle.stored_count(end) - low), size * low)
        if len(found) != size * (merkle.stored_count(end) - low):
            raise self._damaged("its hashes are cut")
        at = 0
        for index in range(first, end):
            yield found[at : at + size]
            # Behind a leaf are the subtrees that it completes: as many as its number ends in ones.
            at += size * (~index & index + 1).bit_length()


def _event_of(line: bytes) -> bytes:
    """Return the event of a line as it is written, or nothing: the hash of its leaf is the judge."""
    begin = len(celjson.BEFORE_DATA)
    try:
        return unhexlify(line[begin : line.find(b'"', begin)])
    except Error:
        return b""


def _resumed(tail: Tail | None) -> Walk:
    if tail is None:
        return Walk()
    last = tail.records
    return Walk(count=tail.count, epoch=last.epoch, pcr=last.pcr, pcrs=last.pcrs)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def open_log(path: Path) -> BinaryIO:
    """Open the event log of an epoch; raises ChainError if it is gone."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise ChainError(
            f"{path} is gone: its records were never pruned",
            hint="put the file back; without it the audit log of this host has a hole",
            code="audit-epoch",
        ) from error


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
