"""The head of a log: what its records come to, so that an append need not read them all.

It saves time and decides nothing. It is believed only if the log is still the file that it was made of, its
last record stands where the head says, and that record leads from `before` to what the TPM holds now.
"""

import hashlib
import os

from secrun_attest import celjson, frozen, jcs
from secrun_attest.errors import FormatError
from secrun_attest.fields import FieldError, Fields, as_hex, parse_json
from secrun_attest.history import History, baseline_json, parse_baseline
from secrun_attest.jcs import JsonObject
from secrun_attest.limits import (
    MAX_ADMITTED,
    MAX_COUNT,
    MAX_HEAD,
    MAX_LOG,
    MAX_RECORDS,
    MAX_RUNTIME,
)
from secrun_attest.record import Bank, Epoch, epoch_json, parse_epoch

VERSION = 1
_DIGEST_LINE = 65


@frozen.record
class Head:
    """What a log of `size` bytes and `count` records comes to; its last record begins at `last`.

    `inode` and `changed` are those of the file. `runtime` is what the log says, `fingerprint` what its
    writer said of the files that this digest is of.
    """

    inode: str
    changed: str
    size: int
    last: int
    count: int
    epoch: Epoch
    restart: int
    base: dict[Bank, bytes]
    before: dict[Bank, bytes]
    admitted: tuple[bytes, ...]
    runtime: str
    fingerprint: str

    def fits(self, status: os.stat_result) -> bool:
        """Tell whether the log with this `status` can be the one of the head, or grown from it."""
        if self.inode != inode_of(status):
            return False
        # A writer that died after an append let it grow; any other writer leaves another time of change.
        return self.size < status.st_size or (self.size, self.changed) == (status.st_size, change_of(status))

    def history(self, line: bytes, pcr: int) -> History:
        """Return the history up to the last record, `line`; raises FormatError if that is another."""
        if not line.endswith(b"\n"):
            raise FormatError("the head's last record has no end", code="record-torn")
        last = celjson.parse_one_line(line[:-1])
        celjson.check_order(last, self.count - 1)
        return History.at(
            last,
            pcr=pcr,
            epoch=self.epoch,
            restart=self.restart,
            base=self.base,
            before=self.before,
            runtime=self.runtime,
            admitted=self.admitted,
        )


def make_head(history: History, status: os.stat_result, *, size: int, last: int, fingerprint: str) -> Head:
    """Return the head of a log whose file has this `status`."""
    return Head(
        inode=inode_of(status),
        changed=change_of(status),
        size=size,
        last=last,
        count=history.count,
        epoch=history.epoch,
        restart=history.restart,
        base=dict(history.base),
        before=dict(history.before),
        admitted=history.admissions,
        runtime=history.runtime,
        fingerprint=fingerprint,
    )


def inode_of(status: os.stat_result) -> str:
    """Name a file; text, since both numbers may have 64 bits."""
    return f"{status.st_dev}:{status.st_ino}"


def change_of(status: os.stat_result) -> str:
    """Return the time of a file's last change in nanoseconds; text, since it has more than 53 bits."""
    return str(status.st_ctime_ns)


def encode(head: Head) -> bytes:
    """Return the head's file: a line with the SHA-256 of the next, which is canonical JSON."""
    body: JsonObject = {
        "v": VERSION,
        "inode": head.inode,
        "changed": head.changed,
        "size": head.size,
        "last": head.last,
        "count": head.count,
        "epoch": epoch_json(head.epoch),
        "restart": head.restart,
        "base": baseline_json(head.base),
        "before": baseline_json(head.before),
        "admitted": [key.hex() for key in head.admitted],
        "runtime": head.runtime,
        "fingerprint": head.fingerprint,
    }
    text = jcs.encode(body) + b"\n"
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def parse(data: bytes) -> Head:
    """Parse a head's file; raises FormatError unless it is whole."""
    text = data[_DIGEST_LINE:]
    if data[:_DIGEST_LINE] != hashlib.sha256(text).hexdigest().encode() + b"\n":
        raise FormatError("the head of the log is torn", code="record-torn")
    fields = Fields(parse_json(text, what="head", limit=MAX_HEAD), "head")
    if (version := fields.integer("v")) != VERSION:
        raise FieldError(f"the head has version {version}, expected {VERSION}")
    size = fields.integer("size", limit=MAX_LOG)
    admitted = fields.items("admitted", limit=MAX_ADMITTED)
    found = Head(
        inode=fields.text("inode", limit=64),
        changed=fields.text("changed", limit=64),
        size=size,
        last=fields.integer("last", limit=size),
        count=fields.integer("count", limit=MAX_RECORDS),
        epoch=parse_epoch(fields.take("epoch")),
        restart=fields.integer("restart", limit=MAX_COUNT),
        base=parse_baseline(fields.take("base"), "head"),
        before=parse_baseline(fields.take("before"), "head"),
        admitted=tuple(as_hex(item, "head.admitted", sizes=(32,)) for item in admitted),
        runtime=fields.text("runtime", limit=MAX_RUNTIME),
        fingerprint=fields.text("fingerprint", limit=MAX_RUNTIME),
    )
    fields.done()
    return found
