"""What a verification of an audit bundle found: faults by name, and what was checked."""

from collections.abc import Iterable
from enum import StrEnum

from secrun_attest import frozen
from secrun_attest.jcs import JsonObject


class Fault(StrEnum):
    """What may be wrong; the names are stable and explained in docs/audit.md."""

    TRUNCATED = "bundle-truncated"
    FORMAT = "bundle-format"
    MEMBER = "bundle-member"
    KEY = "checkpoint-key"
    SIGNATURE = "checkpoint-signature"
    ROOT = "tree-root"
    FORK = "fork"
    REMOVED = "record-removed"
    CHANGED = "record-changed"
    REORDERED = "record-reordered"
    INSERTED = "record-inserted"
    EPOCH = "epoch-missing"
    QUOTE = "quote"
    ACCOUNT = "account"
    TRAIL = "trail"
    NOT_CLOSED = "not-closed"
    CLOCK = "clock-back"
    DAMAGED = "log-damaged"
    PRUNED = "pruned"
    UNCHAINED = "epoch-unchained"
    UNQUOTED = "unquoted"


# What can happen on an honest host: a power cut, a clock that was set, a rule of retention. Whoever files
# the bundle may accept each by its name; the others never.
ACCEPTABLE = frozenset(
    {Fault.NOT_CLOSED, Fault.CLOCK, Fault.DAMAGED, Fault.PRUNED, Fault.UNCHAINED, Fault.UNQUOTED}
)
# One forged file can be wrong in a million places; the first tell enough.
MAX_FINDINGS = 100


@frozen.record
class Finding:
    """One thing that is wrong, and where."""

    fault: Fault
    where: str
    text: str


class Findings:
    """Collects what is wrong, as far as somebody will read it."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.count = 0

    def add(self, fault: Fault, where: str, text: str) -> None:
        """Note one thing."""
        self.count += 1
        if len(self.found) < MAX_FINDINGS:
            self.found.append(Finding(fault=fault, where=where, text=text))


@frozen.record
class Report:
    """A verified bundle: leaves `first` to `size` of the log `origin`, and what is wrong with them.

    `findings` are at most MAX_FINDINGS of `count`. `keys` are the Names of the TPMs' attestation keys, as
    hex; `software` says that one of them is a program.
    """

    origin: str
    first: int
    size: int
    root: bytes
    records: int
    epochs: int
    quotes: int
    pods: int
    keys: tuple[str, ...]
    software: bool
    since: int
    until: int
    findings: tuple[Finding, ...]
    count: int
    shown: str = ""
    """The row of a leaf that is shown alone."""

    def refused(self, accepted: Iterable[Fault] = ()) -> tuple[Finding, ...]:
        """Return the findings that nobody accepts."""
        allowed = ACCEPTABLE.intersection(accepted)
        return tuple(item for item in self.findings if item.fault not in allowed)

    def to_json(self, accepted: Iterable[Fault] = ()) -> JsonObject:
        """Return the documented JSON form."""
        return {
            "origin": self.origin,
            "first": self.first,
            "size": self.size,
            "root": self.root.hex(),
            "records": self.records,
            "epochs": self.epochs,
            "quotes": self.quotes,
            "pods": self.pods,
            "keys": list(self.keys),
            "software_tpm": self.software,
            "since": self.since,
            "until": self.until,
            "accepted": not self.refused(accepted),
            "findings": [
                {"fault": item.fault.value, "where": item.where, "text": item.text} for item in self.findings
            ],
            "count": self.count,
            "shown": self.shown,
        }
