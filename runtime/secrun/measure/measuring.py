"""The pods' side of measurement: called at each step of a pod's life, by the rules of the mode in force."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from secrun import checkpoint
from secrun.digest import Digest
from secrun.errors import HostError, SecrunError, StateError
from secrun.files import DISK_FULL, append_line
from secrun.measure import accounts, actor, events, journal, marker
from secrun.measure.events import EXIT, PREPARE, START
from secrun.measure.hostlog import TPM_RESTARTED, EventFields, HeldLog, HostLog, boot_of, translated
from secrun.measure.identity import HostIdentity, load
from secrun.measure.marker import LOST, Marker
from secrun.measure.settings import AttestSettings, Mode
from secrun.paths import Layout
from secrun.record import record, replace
from secrun.stage1.manifest import PodManifest
from secrun.stage1.podfiles import PodFiles
from secrun_attest.errors import LogError
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.record import Operation

_OFF = "attest=off"
_PREFERRED = "attest=preferred"
_NO_TPM = "tpm-failed"
_ENTRIES = "entries"
# The log could not be written, or holds as many records as it may.
_NO_ROOM = frozenset({"log-write", "log-file", "log-full", "audit-write"})


@record
class PodExit:
    """What is measured of a pod's end."""

    pod: str
    code: int
    apps: Mapping[str, int | None]
    account: str
    """The digest of what is kept of it."""


class Measuring:
    """Measures what one command does to pods; `warn` is told what went unmeasured."""

    def __init__(
        self,
        layout: Layout,
        settings: AttestSettings,
        warn: Callable[[str], None],
        *,
        policy: Path | None = None,
    ) -> None:
        self._layout = layout
        self._settings = settings
        self._warn = warn
        self._policy = policy
        self._attended = False

    @contextmanager
    def _open(self, what: str, *, attentive: bool = False) -> Iterator[HeldLog]:
        """Give the host's log; AttestError becomes HostError that says what is not done.

        `attentive` looks whether secrun or its policy changed, once per command.
        """
        attentive, self._attended = attentive and not self._attended, self._attended or attentive
        with translated(what):
            log = HostLog(self._layout, self._identity(), policy=self._policy, attentive=attentive)
            try:
                with log.held() as held:
                    yield held
            finally:
                # A software TPM serves one client at a time: never keep it while a pod is being made.
                log.close()

    def _identity(self) -> HostIdentity:
        found = load(self._layout)
        if found is not None:
            return found
        from secrun.measure.initialise import initialise

        return initialise(self._layout, self._settings)

    def prepared(self, files: PodFiles, manifest: PodManifest) -> None:
        """Measure ImageAdmit, once per image and epoch, and PodPrepare; raises HostError to stop the pod."""
        if self._settings.mode is Mode.OFF:
            return
        try:
            events.check_size(manifest)
            with self._open(
                f"pod {manifest.uuid} is not prepared, since it cannot be measured", attentive=True
            ) as log:
                _prepare(log, files, manifest, Marker(epoch=log.epoch))
        except HostError as error:
            self._let_by(error, manifest.uuid)

    def starting(
        self,
        files: PodFiles,
        manifest: PodManifest,
        *,
        account: Callable[[], bytes],
        label: str = "",
        network: Digest | None = None,
    ) -> None:
        """Measure PodStart; when this returns the pod may start. Raises HostError if it may not.

        `account` gives what is kept of the pod while it runs; its digest is measured. `label` is the SELinux
        context that the pod gets, categories included; `network` the digest of what its networks answered.
        """
        if self._settings.mode is Mode.OFF:
            self._note(_OFF, manifest)
            return
        what = f"pod {manifest.uuid} is not started, since it cannot be measured"
        try:
            with translated(what):
                kept = _keep(self._layout, account())
            with self._open(what, attentive=True) as log:
                known = _settled(log, files, manifest.uuid)
                if known is None or known.last != PREPARE:
                    known = _prepare(log, files, manifest, Marker(epoch=log.epoch))
                _same_manifest(known, manifest)
                fields = events.pod_start(manifest.uuid, label, network, by=actor.here().to_json())
                _append(log, files, known, START, {**fields, "account": kept})
        except HostError as error:
            self._let_by(error, manifest.uuid)
            self._note(_PREFERRED, manifest)

    @property
    def _bypass(self) -> str:
        """Why something went unmeasured that nobody may hold up."""
        return _OFF if self._settings.mode is Mode.OFF else _NO_TPM

    def _let_by(self, error: HostError, subject: str) -> None:
        """Go on with a warning where the mode allows it; that a log had no room is told when it has."""
        if self._settings.mode is not Mode.PREFERRED:
            cause = error.__cause__
            if isinstance(cause, LogError) and cause.code in _NO_ROOM:
                journal.refuse(self._layout, subject=subject, code=cause.code, why=cause.message)
            raise error
        self._warn(f"warning: {error.message}; going on unmeasured (attest=preferred)")

    def _note(self, option: str, manifest: PodManifest) -> None:
        digest = Digest.of(manifest.to_bytes())
        journal.note(
            self._layout,
            option=option,
            what=START.value,
            subject=manifest.uuid,
            detail={"manifest": str(digest)},
        )

    def entering(
        self, files: PodFiles, pod: str, *, app: str, argv: tuple[str, ...], user: str | None
    ) -> None:
        """Measure PodExec before a command runs in an app; raises HostError if it must not run.

        What was run is kept with the pod: the log holds a salted digest, for words may be secrets.
        """
        salt = os.urandom(16)
        command = events.command_digest(argv, salt)
        fields: JsonObject = {
            "app": app,
            "command": command,
            "user": user or "",
            "by": actor.here().to_json(),
        }
        _keep_entry(files, argv, salt, fields)
        if self._settings.mode is Mode.OFF:
            self._note_entry(_OFF, pod, fields)
            return
        try:
            with self._open(f"pod {pod} is not entered, since it cannot be measured") as log:
                log.append([_exec_event(_settled(log, files, pod), pod, fields)])
        except HostError as error:
            self._let_by(error, pod)
            self._note_entry(_PREFERRED, pod, fields)

    def _note_entry(self, option: str, pod: str, fields: JsonObject) -> None:
        journal.note(self._layout, option=option, what=Operation.POD_EXEC.value, subject=pod, detail=fields)

    def ended(
        self,
        files: PodFiles,
        pod: str,
        code: int,
        apps: Mapping[str, int | None],
        *,
        account: Callable[[], bytes],
    ) -> str:
        """Measure PodExit of a pod that was measured when it started, whatever the mode is now.

        `account` gives what is kept of the pod; its digest is measured. Returns why that is not possible
        now, empty if nothing is left to do; it can be repeated.
        """
        known = marker.read(files)
        if known is None or not (known.last == START or known.pending in (START, EXIT)):
            return ""
        try:
            kept = accounts.keep(self._layout, account())
            with self._open(f"the end of pod {pod} is not measured") as log:
                _exit(log, files, known, PodExit(pod=pod, code=code, apps=apps, account=kept))
        except HostError as error:
            return self._give_up(error, files, pod, known)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            return f"the end of pod {pod} is not measured: {error.strerror}"
        return ""

    def _give_up(self, error: HostError, files: PodFiles, pod: str, known: Marker) -> str:
        """Return why the end could not be measured; with attest=off the log is told later instead."""
        if self._settings.mode is not Mode.OFF:
            return f"{error.message}; secrun gc tries again"
        journal.note(self._layout, option=_OFF, what=EXIT.value, subject=pod)
        marker.write(files, known.begun(EXIT).done())
        return ""

    def removed(self, files: PodFiles, pod: str) -> None:
        """Measure PodGC of a pod that the log knows; a failure is told to the log later."""
        known = marker.read(files)
        if known is None or not known.last:
            # Nothing of it, or nothing certain, is in the log: what never started ends without a word.
            return
        try:
            if self._settings.mode is not Mode.OFF:
                with self._open(f"the removal of pod {pod} is not measured") as log:
                    known = _settled(log, files, pod)
                    if known is not None and known.last in (PREPARE, EXIT):
                        log.append([(Operation.POD_GC, {"pod": pod})])
                return
        except HostError as error:
            self._warn(f"warning: {error.message}")
        journal.note(self._layout, option=self._bypass, what=Operation.POD_GC.value, subject=pod)

    def denied(self, subject: str, error: SecrunError, *, what: str = "image") -> None:
        """Measure that something was refused; a failure to do so is told to the log later.

        `what` says what was refused: `image` (by the trust policy), `policy` (a pod, by a rule), `enter`.
        """
        fields: JsonObject = {"what": what, "subject": subject[:500], "code": error.code}
        if what != "image":
            # The rule and its file: what the trust policy says may quote a whole signature.
            fields["why"] = error.message[:1000]
        try:
            if self._settings.mode is not Mode.OFF:
                with self._open("the denial is not measured", attentive=True) as log:
                    log.append([(Operation.DENIED, fields)])
                return
        except HostError as failure:
            self._warn(f"warning: {failure.message}")
        journal.note(self._layout, option=self._bypass, what=Operation.DENIED.value, subject=subject[:500])


def _keep(layout: Layout, account: bytes) -> str:
    """Keep the account of a pod that is to start; raises LogError if its file system is full."""
    try:
        return accounts.keep(layout, account)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise LogError(
            f"its account cannot be kept: {error.strerror}: {layout.accounts}",
            hint="make room on its file system, then try again",
            code="audit-write",
        ) from error


def _prepare(log: HeldLog, files: PodFiles, manifest: PodManifest, known: Marker) -> Marker:
    """Append what must precede PodStart."""
    images = {(app.image.manifest, app.image.tree): app.image for app in manifest.apps}
    admits: list[EventFields] = [
        (Operation.IMAGE_ADMIT, events.image_admit(image))
        for (digest, tree), image in images.items()
        if not log.admitted(digest, tree)
    ]
    digest = Digest.of(manifest.to_bytes())
    known = marker.write(files, replace(known.begun(PREPARE), manifest=str(digest)))
    checkpoint.reached("measuring-PodPrepare")
    log.append([*admits, (PREPARE, events.pod_prepare(manifest, digest))])
    checkpoint.reached("measured-PodPrepare")
    return marker.write(files, known.done())


def _same_manifest(known: Marker, manifest: PodManifest) -> None:
    """Raise StateError if what is about to run is not what PodPrepare measured."""
    digest = str(Digest.of(manifest.to_bytes()))
    if digest != known.manifest:
        raise StateError(
            f"pod {manifest.uuid} is not started: its manifest is {digest}, measured was {known.manifest}",
            hint="somebody changed the manifest since the pod was prepared; prepare it again",
            code="state-manifest",
        )


def _append(
    log: HeldLog, files: PodFiles, known: Marker, operation: Operation, fields: JsonObject
) -> Marker:
    """Append one operation of a pod's life, so that a crash on either side is seen."""
    known = marker.write(files, known.begun(operation))
    checkpoint.reached(f"measuring-{operation}")
    log.append([(operation, fields)])
    checkpoint.reached(f"measured-{operation}")
    return marker.write(files, known.done())


def _settled(log: HeldLog, files: PodFiles, pod: str) -> Marker | None:
    """Return the pod's marker with nothing pending; None if this epoch's log does not know the pod."""
    known = marker.read(files)
    epoch = log.epoch
    if known is None or (known.epoch != epoch and known != LOST):
        return None
    if known.pending:
        last, manifest = log.life(pod)
        known = marker.write(files, Marker(epoch=epoch, last=last, manifest=manifest))
    return known if known.last else None


def _exec_event(known: Marker | None, pod: str, fields: JsonObject) -> EventFields:
    """Return PodExec, or for a pod that this log did not see start the word that it ran unmeasured."""
    if known is not None and known.last == START:
        return Operation.POD_EXEC, {"pod": pod, **fields}
    return Operation.UNMEASURED, {
        **fields,
        "option": "not-measured",
        "what": Operation.POD_EXEC.value,
        "subject": pod,
    }


def _exit(log: HeldLog, files: PodFiles, before: Marker, fields: PodExit) -> None:
    known = _settled(log, files, fields.pod)
    if known is None:
        _tell_of_other_epoch(log, before, fields)
        marker.write(files, before.begun(EXIT).done())
    elif known.last == START:
        codes: list[JsonValue] = [{"name": name, "code": value} for name, value in fields.apps.items()]
        said: JsonObject = {"pod": fields.pod, "code": fields.code, "apps": codes}
        _append(log, files, known, EXIT, {**said, "account": fields.account})


def _tell_of_other_epoch(log: HeldLog, before: Marker, end: PodExit) -> None:
    """A pod that outlived the TPM's epoch, not the host's boot, ran in this one too: say so."""
    if boot_of(log.epoch) == boot_of(before.epoch):
        fields: JsonObject = {"option": TPM_RESTARTED, "what": EXIT.value, "subject": end.pod}
        log.append([(Operation.UNMEASURED, {**fields, "code": end.code})])


def _keep_entry(files: PodFiles, argv: tuple[str, ...], salt: bytes, fields: JsonObject) -> None:
    """Keep the words of a command beside the pod, for whoever may read root's files."""
    line = json.dumps({**fields, "salt": salt.hex(), "argv": list(argv)})
    append_line(files.path / _ENTRIES, line.encode())
