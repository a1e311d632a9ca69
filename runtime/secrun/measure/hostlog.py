"""The event log of this host, opened for one command: finds the TPM, says what runs, appends."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secrun import __version__, config, policyfiles
from secrun.digest import Digest
from secrun.errors import HostError, ImageError, StateError
from secrun.fields import Fields
from secrun.files import write_atomic
from secrun.jsonio import canonical, parse_object
from secrun.measure import journal, journald, marker, software
from secrun.measure.identity import HostIdentity
from secrun.paths import Layout
from secrun.record import record
from secrun.selfdigest import fingerprint, runtime_digest
from secrun.trust.places import POLICY_PATHS, RULES_NAME
from secrun_attest.directtpm import DirectTpm
from secrun_attest.errors import AttestError
from secrun_attest.jcs import JsonObject
from secrun_attest.logfile import EventLog, Hold, Runtime
from secrun_attest.record import Epoch, Operation, Record, parse_event_data
from secrun_attest.tpm import TpmClock, TpmKind

if TYPE_CHECKING:
    from secrun_attest.audit.host import Place

SEEN_NAME = "seen.json"
# Why a pod is in no log of the epoch it runs in: its TPM began another one under it.
TPM_RESTARTED = "tpm-restarted"
_MAX_SEEN = 64 * 1024

EventFields = tuple[Operation, JsonObject]


@record
class Context:
    """What decides beside the pods and secrun's code: trust policy, key ring, policy files, by digest."""

    policy: str
    trust: str
    rules: str


@record
class _Seen:
    """The context that the log of `epoch` was last told."""

    epoch: str
    context: Context


def boot_of(epoch: str) -> str:
    """Return the kernel's boot id in an epoch's name."""
    return epoch.split("-", 2)[-1]


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


def now_ms() -> int:
    """Return the host's clock in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def log_name(counters: TpmClock | Epoch) -> str:
    """Return the name of the event log of an epoch."""
    return f"{counters.reset}-{counters.restart}"


def audit_place(layout: Layout, identity: HostIdentity) -> "Place":
    """Return where the audit log of this root lies."""
    from secrun_attest.audit.host import Place
    from secrun_attest.audit.note import note_name

    return Place(folder=layout.audit, logs=layout.measure, name=note_name(identity.host))


class HostLog:
    """The log of this root; `close` gives the TPM back.

    `policy` is the trust policy of this command. With `attentive` the log is told before anything else if
    that, the key ring or secrun's code are not those that it knows.
    """

    def __init__(
        self,
        layout: Layout,
        identity: HostIdentity,
        *,
        policy: Path | None = None,
        attentive: bool = False,
    ) -> None:
        self._layout = layout
        self._identity = identity
        self._policy = policy
        self._attentive = attentive
        self._told: Context | None = None
        self._opened = False
        self._tpm = DirectTpm(tcti_of(layout, identity))
        self._log = EventLog(
            layout.measure,
            self._tpm,
            identity.pcr,
            opening=self._opening,
            runtime=Runtime(fingerprint=fingerprint(), fields=_runtime) if attentive else None,
        )

    def close(self) -> None:
        """Let go of the TPM."""
        self._tpm.close()

    @contextmanager
    def held(self) -> Iterator["HeldLog"]:
        """Recover the log and keep others from it for several questions and appends."""
        with self._log.held() as hold:
            yield HeldLog(self, hold)

    def records(self) -> tuple[Record, ...]:
        """Return the whole log, every record checked and extended."""
        return self._log.recover()

    def unexplained(self) -> tuple[Record, ...]:
        """Return the records of an epoch that is broken: true in themselves, but the PCR says otherwise."""
        return self._log.records()

    def life(self, pod: str) -> tuple[str, str]:
        """Return the last operation of a pod's life in the log and the digest of its manifest there.

        Both are empty if the log does not know the pod; reads all of it.
        """
        last = manifest = ""
        for item in self._log.records():
            event = parse_event_data(item.event_data)
            if event.fields.get("pod") == pod and event.operation in _LIFE:
                last = event.operation.value
                if event.operation is Operation.POD_PREPARE:
                    manifest = str(event.fields.get("manifest", ""))
        return last, manifest

    def _opening(self) -> JsonObject:
        """Return what LogOpen says beside the baseline."""
        self._opened = True
        identity = self._identity
        self._told = context = _context(self._layout, self._policy)
        return {
            **_runtime(),
            "previous": self._previous(),
            "ak": identity.ak_name.hex(),
            "tpm": {
                "kind": str(identity.kind),
                "manufacturer": identity.manufacturer,
                "firmware": identity.firmware,
            },
            "policy": context.policy,
            "trust": context.trust,
            "rules": context.rules,
        }

    def _previous(self) -> JsonObject:
        """Return the head of the audit log of all earlier epochs, whose logs nobody writes any more."""
        from secrun_attest.audit import host

        clock = self._tpm.clock()
        return host.previous_of(audit_place(self._layout, self._identity), log_name(clock), now_ms())

    def changes(self, epoch: str) -> list[EventFields]:
        """Return the events that tell the log what decides, where that is not as it was told last."""
        if not self._attentive:
            return []
        told = self._told or _seen(self._layout, epoch) or Context(policy="", trust="", rules="")
        self._told = now = _context(self._layout, self._policy)
        events: list[EventFields] = []
        if now.policy != told.policy:
            where = str(_policy_file(self._policy) or "")
            events.append((Operation.POLICY_LOAD, {"policy": where, "digest": now.policy}))
        if now.trust != told.trust:
            events.append((Operation.TRUST_CHANGE, {"digest": now.trust}))
        if now.rules != told.rules:
            events.append((Operation.POLICY_LOAD, {"policy": policyfiles.FOLDER, "digest": now.rules}))
        return events

    def survivors(self, epoch: str) -> list[JsonObject]:
        """Return, when this command opened the log, the pods that run on from another epoch of this boot."""
        if not self._opened:
            return []
        self._opened = False
        boot = boot_of(epoch)
        return [
            {"option": TPM_RESTARTED, "what": Operation.POD_START.value, "subject": pod}
            for pod, known in marker.of_running(self._layout)
            if known.last == Operation.POD_START and known.epoch != epoch and boot_of(known.epoch) == boot
        ]

    def remember(self, epoch: str) -> None:
        """Keep what the log of this epoch was told, so that it is not told again."""
        if self._told is None:
            return
        seen = _Seen(epoch=epoch, context=self._told)
        if _read_seen(self._layout) != seen:
            write_atomic(self._layout.measure / SEEN_NAME, _seen_bytes(seen), mode=0o600, durable=False)

    @property
    def layout(self) -> Layout:
        """The root that is measured."""
        return self._layout


class HeldLog:
    """The log while nobody else may write it; `epoch` names the boot epoch, the boot's id in it."""

    def __init__(self, host: HostLog, hold: Hold) -> None:
        self._host = host
        self._hold = hold
        epoch = hold.epoch
        self.epoch = f"{epoch.reset}-{epoch.restart}-{epoch.boot_id}"

    @property
    def standing(self) -> tuple[Epoch, int]:
        """The epoch in parts, and how many records there are, all of them extended."""
        return self._hold.epoch, self._hold.count

    def admitted(self, manifest: Digest, tree: Digest) -> bool:
        """Tell whether this epoch's log has an ImageAdmit of these."""
        return self._hold.admitted(str(manifest), str(tree))

    def append(self, events: Sequence[EventFields]) -> None:
        """Measure events in order, and before them what changed around them or ran unmeasured."""
        with journal.told(self._host.layout) as (bypasses, refusals):
            told = (*self._host.survivors(self.epoch), *bypasses)
            late = [(Operation.UNMEASURED, fields) for fields in told]
            late += [(Operation.DENIED, fields) for fields in refusals]
            for operation, fields in (*self._host.changes(self.epoch), *late, *events):
                self._hold.append(operation, fields)
                journald.tell(operation, fields)
        self._host.remember(self.epoch)

    def life(self, pod: str) -> tuple[str, str]:
        """Return the last operation of a pod's life in the log, and the digest of its manifest there."""
        return self._host.life(pod)


_LIFE = frozenset({Operation.POD_PREPARE, Operation.POD_START, Operation.POD_EXIT, Operation.POD_GC})


def _runtime() -> JsonObject:
    return {"runtime": {"digest": str(runtime_digest()), "version": __version__}}


def _policy_file(policy: Path | None) -> Path | None:
    return policy or next((path for path in POLICY_PATHS if path.exists()), None)


def _context(layout: Layout, policy: Path | None) -> Context:
    file = _policy_file(policy)
    return Context(
        policy="" if file is None else _file_digest(file),
        trust=_ring_digest(layout),
        rules=policyfiles.digest(),
    )


def _file_digest(path: Path) -> str:
    """Return the digest of a file; empty if there is none, or none that can be read: it admits nothing."""
    try:
        with path.open("rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
    except OSError:
        return ""


def _ring_digest(layout: Layout) -> str:
    """Return the digest over names and contents of all trusted keys and rules; empty without any."""
    found = [
        [os.path.relpath(os.path.join(base, name), layout.trust), _file_digest(Path(base, name))]
        for base, _, names in os.walk(layout.trust)
        for name in names
    ]
    # Rules of the host's own places decide like those beside the keys.
    found += [[str(path), _file_digest(path)] for path in config.files(RULES_NAME, config.PLACES)]
    if not found:
        return ""
    lines = canonical([list(pair) for pair in sorted(found)])
    return f"sha256:{hashlib.sha256(lines).hexdigest()}"


def _seen_bytes(seen: _Seen) -> bytes:
    context = seen.context
    return canonical(
        {
            "epoch": seen.epoch,
            "policy": context.policy,
            "trust": context.trust,
            "rules": context.rules,
        }
    )


def _read_seen(layout: Layout) -> _Seen | None:
    path = layout.measure / SEEN_NAME
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_SEEN + 1)
    except FileNotFoundError:
        return None
    try:
        return _parse_seen(data, str(path))
    except (ImageError, StateError):
        return None  # a loss of power can leave it empty


def _parse_seen(data: bytes, what: str) -> _Seen:
    fields = Fields(parse_object(data, what=what, limit=_MAX_SEEN), what)
    seen = _Seen(
        epoch=fields.text("epoch"),
        context=Context(
            policy=fields.text("policy"), trust=fields.text("trust"), rules=fields.text("rules")
        ),
    )
    fields.end()
    return seen


def _seen(layout: Layout, epoch: str) -> Context | None:
    """Return what the log of this epoch was told; None, which tells it anew, if that is not known."""
    seen = _read_seen(layout)
    return seen.context if seen is not None and seen.epoch == epoch else None
