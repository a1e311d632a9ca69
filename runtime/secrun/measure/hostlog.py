"""The event log of this host, opened for one command: finds the TPM, says what runs, appends."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from secrun import __version__
from secrun.digest import Digest
from secrun.errors import HostError
from secrun.fields import Fields
from secrun.files import write_atomic
from secrun.jsonio import canonical, parse_object
from secrun.measure import journal, software
from secrun.measure.identity import HostIdentity, TpmKind
from secrun.paths import Layout
from secrun.record import record
from secrun.trust.admission import POLICY_PATHS
from secrun_attest.directtpm import DirectTpm
from secrun_attest.errors import AttestError
from secrun_attest.jcs import JsonObject
from secrun_attest.logfile import EventLog
from secrun_attest.record import Operation, Record, parse_event_data

SEEN_NAME = "seen.json"
_MAX_SEEN = 64 * 1024
# A trust policy or a key is text of some kilobytes; what is larger is digested no further.
_MAX_TRUSTED = 4 * 1024 * 1024

EventFields = tuple[Operation, JsonObject]


@record
class Context:
    """What decides beside the pods: secrun's own code, the trust policy, the key ring.

    `runtime` only tells whether the code may have changed; its digest is computed when it has.
    """

    runtime: str
    policy: str
    trust: str


@record
class _Seen:
    """The context that the log of `epoch` was last told."""

    epoch: str
    context: Context


def tcti_of(layout: Layout, identity: HostIdentity) -> str:
    """Return the way to the TPM, which runs when this returns."""
    if identity.kind is TpmKind.SOFTWARE and not identity.tcti:
        software.ensure_running(layout)
        return software.tcti(layout)
    return identity.tcti


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn errors of the attestation library into secrun's, which say what could not be done."""
    try:
        yield
    except AttestError as error:
        raise HostError(
            f"{what}: {error.message} ({error.code})",
            hint=error.hint
            or "see secrun doctor; --attest=off starts pods unmeasured, and the log will say so",
            code="host-measure",
        ) from error


class HostLog:
    """Appends to the log of the present boot epoch; `close` gives the TPM back."""

    def __init__(self, layout: Layout, identity: HostIdentity, *, policy: Path | None = None) -> None:
        self._layout = layout
        self._identity = identity
        self._policy = policy
        self._tpm = DirectTpm(tcti_of(layout, identity))
        self._told: Context | None = None
        self._log = EventLog(layout.measure, self._tpm, identity.pcr, opening=self._opening)

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()

    def epoch(self) -> str:
        """Bring log and PCR to agree and return the name of the epoch, the boot's id in it."""
        epoch = self._log.epoch()
        return f"{epoch.reset}-{epoch.restart}-{epoch.boot_id}"

    def admitted(self, manifest: Digest, tree: Digest) -> bool:
        """Tell whether this epoch's log has an ImageAdmit of these."""
        return self._log.admitted(str(manifest), str(tree))

    def append(self, events: Sequence[EventFields]) -> None:
        """Measure events in order, and before them what changed around them or ran unmeasured."""
        epoch = self.epoch()
        with journal.told(self._layout) as bypasses:
            unmeasured = [(Operation.UNMEASURED, fields) for fields in bypasses]
            self._log.append_many([*self._changes(epoch), *unmeasured, *events])
        self._remember(epoch)

    def last_operation(self, pod: str) -> str:
        """Return the last operation of a pod's life in the log, empty if there is none; reads all of it."""
        last = ""
        for item in self._log.records():
            event = parse_event_data(item.event_data)
            if event.fields.get("pod") == pod and event.operation in _LIFE:
                last = event.operation.value
        return last

    def records(self) -> tuple[Record, ...]:
        """Return the whole log, for evidence and exports."""
        return self._log.records()

    @property
    def log(self) -> EventLog:
        """The library's log."""
        return self._log

    def _opening(self) -> JsonObject:
        """Return what LogOpen says beside the baseline."""
        from secrun.selfdigest import runtime_digest

        identity = self._identity
        context = _context(self._layout, self._policy)
        self._told = context
        return {
            "runtime": {"digest": str(runtime_digest()), "version": __version__},
            "ak": identity.ak_name.hex(),
            "tpm": {
                "kind": str(identity.kind),
                "manufacturer": identity.manufacturer,
                "firmware": identity.firmware,
            },
            "policy": context.policy,
            "trust": context.trust,
        }

    def _changes(self, epoch: str) -> list[EventFields]:
        """Return the events that tell the log what is not as it was told last."""
        now = _context(self._layout, self._policy)
        told = self._told or _seen(self._layout, epoch)
        self._told = now
        if told is None:
            told = Context(runtime="", policy="", trust="")
        events: list[EventFields] = []
        if now.runtime != told.runtime:
            events.append((Operation.RUNTIME_UPGRADE, _runtime()))
        if now.policy != told.policy:
            where = str(_policy_file(self._policy) or "")
            events.append((Operation.POLICY_LOAD, {"policy": where, "digest": now.policy}))
        if now.trust != told.trust:
            events.append((Operation.TRUST_CHANGE, {"digest": now.trust}))
        return events

    def _remember(self, epoch: str) -> None:
        if self._told is None:
            return
        seen = _Seen(epoch=epoch, context=self._told)
        if _read_seen(self._layout) != seen:
            write_atomic(self._layout.measure / SEEN_NAME, _seen_bytes(seen), mode=0o600, durable=False)


_LIFE = frozenset({Operation.POD_PREPARE, Operation.POD_START, Operation.POD_EXIT, Operation.POD_GC})


def _runtime() -> JsonObject:
    from secrun.selfdigest import runtime_digest

    return {"runtime": {"digest": str(runtime_digest()), "version": __version__}}


def _policy_file(policy: Path | None) -> Path | None:
    return policy or next((path for path in POLICY_PATHS if path.exists()), None)


def _context(layout: Layout, policy: Path | None) -> Context:
    from secrun.selfdigest import fingerprint

    file = _policy_file(policy)
    return Context(
        runtime=fingerprint(), policy="" if file is None else _file_digest(file), trust=_ring_digest(layout)
    )


def _file_digest(path: Path) -> str:
    """Return the digest of a file's first bytes; empty if there is none."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_TRUSTED)
    except FileNotFoundError:
        return ""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _ring_digest(layout: Layout) -> str:
    """Return the digest over names and contents of all trusted keys; empty without any."""
    found = [
        [os.path.relpath(os.path.join(base, name), layout.trust), _file_digest(Path(base, name))]
        for base, _, names in os.walk(layout.trust)
        for name in names
    ]
    if not found:
        return ""
    lines = canonical([list(pair) for pair in sorted(found)])
    return f"sha256:{hashlib.sha256(lines).hexdigest()}"


def _seen_bytes(seen: _Seen) -> bytes:
    context = seen.context
    return canonical(
        {
            "epoch": seen.epoch,
            "runtime": context.runtime,
            "policy": context.policy,
            "trust": context.trust,
        }
    )


def _read_seen(layout: Layout) -> _Seen | None:
    path = layout.measure / SEEN_NAME
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_SEEN + 1)
    except FileNotFoundError:
        return None
    fields = Fields(parse_object(data, what=str(path), limit=_MAX_SEEN), str(path))
    seen = _Seen(
        epoch=fields.text("epoch"),
        context=Context(
            runtime=fields.text("runtime"), policy=fields.text("policy"), trust=fields.text("trust")
        ),
    )
    fields.end()
    return seen


def _seen(layout: Layout, epoch: str) -> Context | None:
    """Return what the log of this epoch was told; None, which tells it anew, if that is not known."""
    seen = _read_seen(layout)
    return seen.context if seen is not None and seen.epoch == epoch else None
