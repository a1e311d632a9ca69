"""The trail: what each record of the event log says happened, as one flat row; pure.

One row per record, in the order of the log. A row repeats what an earlier record of the same epoch said of
an image, as far as it is remembered; everything else is in the record itself.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypedDict

from secrun_attest.audit.entries import Entry, Pruned, State
from secrun_attest.events import Told
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.record import Epoch, Event, Operation

# Images that are remembered with who signed them. A host runs tens; one that is forgotten shows its digests.
MAX_IMAGES = 4096


class Outcome(StrEnum):
    """What came of it."""

    DONE = "done"
    REFUSED = "refused"
    """By a rule; it did not happen."""
    BYPASSED = "bypassed"
    """It happened although a guard did not hold or nobody measured it."""
    GAP = "gap"
    """The trail itself says less than it should."""


class Image(NamedTuple):
    """An image as a row shows it: manifest digest, and what ImageAdmit said."""

    manifest: str
    tree: str = ""
    reference: str = ""
    signers: tuple[str, ...] = ()
    policy: str = ""
    bypass: bool = False


class Row(NamedTuple):
    """One record of the trail; what is unknown is empty. A tuple, as there may be millions.

    `leaf` is its number in the audit log, `epoch` the event log's name, `number` the record in it, `time`
    the host's clock in milliseconds since 1970. `who` is who did it as the kernel knows them, `what` the
    event's own words, `account` the digest of the pod's account.
    """

    leaf: int
    epoch: str
    number: int
    time: int
    event: str
    outcome: Outcome = Outcome.DONE
    pod: str = ""
    who: str = ""
    apps: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    flavour: str = ""
    stage1: str = ""
    manifest: str = ""
    confinement: str = ""
    policy: str = ""
    relaxations: tuple[str, ...] = ()
    label: str = ""
    network: str = ""
    command: str = ""
    code: int | None = None
    account: str = ""
    what: str = ""
    why: str = ""

    def to_json(self) -> JsonObject:
        """Return the documented JSON form (docs/audit.md); what is empty is left out."""
        fields: JsonObject = {
            "index": self.leaf,
            "epoch": self.epoch,
            "number": self.number,
            "time": self.time,
            "event": self.event,
            "outcome": self.outcome.value,
        }
        for name in _TEXTS:
            if value := getattr(self, name):
                fields[name] = value
        for name, values in (("apps", self.apps), ("relaxations", self.relaxations)):
            if values:
                fields[name] = list(values)
        if self.images:
            fields["images"] = [_image_json(image) for image in self.images]
        if self.code is not None:
            fields["code"] = self.code
        return fields


class _Tell(TypedDict, total=False):
    """What the events say of a row, as far as each has it."""

    outcome: Outcome
    pod: str
    who: str
    apps: tuple[str, ...]
    images: tuple[Image, ...]
    flavour: str
    stage1: str
    manifest: str
    confinement: str
    policy: str
    relaxations: tuple[str, ...]
    label: str
    network: str
    command: str
    code: int | None
    account: str
    what: str
    why: str


_TEXTS = (
    "pod", "who", "flavour", "stage1", "manifest", "confinement", "policy", "label", "network", "command",
    "account", "what", "why",
)  # fmt: skip


def _image_json(image: Image) -> JsonObject:
    return {
        "manifest": image.manifest,
        "tree": image.tree,
        "reference": image.reference,
        "signers": list(image.signers),
        "policy": image.policy,
        "bypass": image.bypass,
    }


class Projection:
    """Makes rows of events in the order of the log, in bounded memory."""

    def __init__(self) -> None:
        self._epoch = ""
        self._last: Epoch | None = None
        self._images: OrderedDict[tuple[str, str], Image] = OrderedDict()

    def row(self, index: int, event: Event | Told) -> Row:
        """Return the row of one event."""
        if event.epoch is not self._last or event.operation is Operation.LOG_OPEN:
            self._begin(event)
        fields = event.fields
        said = _Said(fields)
        by = fields.get("by")
        told: _Tell = {"pod": said.text("pod"), "who": _who(by) if isinstance(by, dict) else ""}
        tell = _TELLERS.get(event.operation)
        if tell is not None:
            told |= tell(self, said)
        return Row(index, self._epoch, event.seq, event.t, event.operation.value, **told)

    def _begin(self, event: Event | Told) -> None:
        """Forget the images of another epoch."""
        epoch = f"{event.epoch.reset}-{event.epoch.restart}"
        if event.operation is Operation.LOG_OPEN or epoch != self._epoch:
            self._images.clear()
        self._epoch, self._last = epoch, event.epoch

    def entry(self, index: int, entry: Entry) -> Row:
        """Return the row of how an epoch ended, or of what was pruned."""
        gap = isinstance(entry, Pruned) or entry.state not in (State.CLOSED, State.OPEN)
        return Row(
            leaf=index,
            epoch=entry.name,
            number=entry.count,
            time=entry.t,
            event=type(entry).__name__,
            outcome=Outcome.GAP if gap else Outcome.DONE,
            what="pruned" if isinstance(entry, Pruned) else entry.state.value,
            why=entry.why,
        )

    def admit(self, said: "_Said") -> _Tell:
        """Tell of ImageAdmit, and remember the image."""
        verdict = said.inner("verdict")
        signatures = (_Said(item) for item in verdict.items("signatures") if isinstance(item, dict))
        image = Image(
            manifest=said.text("manifest"),
            tree=said.text("tree"),
            reference=said.text("reference"),
            signers=tuple(f"{item.text('kind')}:{item.text('signer')}" for item in signatures),
            policy=" ".join(
                filter(None, (verdict.text("policy"), verdict.text("scope"), verdict.text("rule")))
            ),
            bypass=verdict.flag("bypass"),
        )
        self._images[image.manifest, image.tree] = image
        if len(self._images) > MAX_IMAGES:
            self._images.popitem(last=False)
        outcome = Outcome.BYPASSED if image.bypass else Outcome.DONE
        return {"images": (image,), "outcome": outcome}

    def prepare(self, said: "_Said") -> _Tell:
        """Tell of PodPrepare."""
        apps = [_Said(item) for item in said.items("apps") if isinstance(item, dict)]
        stage1 = said.inner("stage1")
        relaxations = {*said.texts("relaxations")}
        for app in apps:
            relaxations.update(f"{app.text('name')}: {word}" for word in app.texts("relaxations"))
        machine = said.inner("machine").text("accelerator")
        return {
            "apps": tuple(app.text("name") for app in apps),
            "images": tuple(self._image(app.text("image"), app.text("tree")) for app in apps),
            "flavour": stage1.text("flavour") + (f"/{machine}" if machine else ""),
            "stage1": stage1.text("digest"),
            "manifest": said.text("manifest"),
            "confinement": said.text("confinement"),
            "policy": said.text("policy"),
            "relaxations": tuple(sorted(relaxations)),
            "outcome": Outcome.BYPASSED if "insecure-options:image" in relaxations else Outcome.DONE,
        }

    def _image(self, manifest: str, tree: str) -> Image:
        return self._images.get((manifest, tree)) or Image(manifest=manifest, tree=tree)


class _Said:
    """The fields of an event; what has another type than expected reads as absent."""

    __slots__ = ("fields",)

    def __init__(self, fields: Mapping[str, JsonValue]) -> None:
        self.fields = fields

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int | None:
        value = self.fields.get(name)
        return value if type(value) is int else None

    def flag(self, name: str) -> bool:
        return self.fields.get(name) is True

    def inner(self, name: str) -> "_Said":
        value = self.fields.get(name)
        return _Said(value if isinstance(value, dict) else {})

    def items(self, name: str) -> Sequence[JsonValue]:
        value = self.fields.get(name)
        return value if isinstance(value, list) else ()

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(item for item in self.items(name) if isinstance(item, str))


def _who(by: JsonObject) -> str:
    """Return who did it in one word: `login 1000, uid 0, unit ssh.service`."""
    said = _Said(by)
    login, uid, unit = said.number("login"), said.number("uid"), said.text("unit")
    words = [f"login {login}"] if login is not None else []
    words += [f"uid {uid}"] if uid is not None else []
    words += [f"unit {unit}"] if unit else []
    return ", ".join(words)


def _opened(_: Projection, said: _Said) -> _Tell:
    runtime = said.inner("runtime")
    return {
        "what": f"secrun {runtime.text('version')} {runtime.text('digest')}".strip(),
        "policy": said.text("policy"),
        "why": f"key {said.text('ak')}, {said.inner('tpm').text('kind')} TPM",
    }


def _started(_: Projection, said: _Said) -> _Tell:
    return {
        "label": said.text("selinux"),
        "network": said.text("network"),
        "account": said.text("account"),
    }


def _entered(_: Projection, said: _Said) -> _Tell:
    app, user = said.text("app"), said.text("user")
    return {
        "apps": (app,) if app else (),
        "command": said.text("command"),
        "what": f"as user {user}" if user else "",
    }


def _exited(_: Projection, said: _Said) -> _Tell:
    return {"code": said.number("code"), "account": said.text("account")}


def _denied(_: Projection, said: _Said) -> _Tell:
    return {
        "outcome": Outcome.REFUSED,
        "what": " ".join(filter(None, (said.text("what"), said.text("subject")))),
        "why": ": ".join(filter(None, (said.text("code"), said.text("why")))),
    }


def _unmeasured(_: Projection, said: _Said) -> _Tell:
    what = said.text("what")
    times = said.number("count")
    return {
        "outcome": Outcome.BYPASSED,
        "pod": said.text("pod") or (said.text("subject") if what.startswith("Pod") else ""),
        "what": f"{what} {said.text('subject')}".strip() + (f" and {times - 1} more" if times else ""),
        "why": said.text("option"),
        "command": said.text("command"),
        "manifest": said.text("manifest"),
        "code": said.number("code"),
    }


def _changed(_: Projection, said: _Said) -> _Tell:
    digest = said.text("digest") or said.inner("runtime").text("digest")
    return {"what": said.text("policy"), "policy": digest}


def _resumed(_: Projection, said: _Said) -> _Tell:
    return {"what": f"restart {said.number('restart')}"}


def _checkpoint(_: Projection, said: _Said) -> _Tell:
    return {"what": f"{said.number('size')} leaves", "why": said.text("root")}


_TELLERS: Mapping[Operation, Callable[[Projection, _Said], _Tell]] = {
    Operation.LOG_OPEN: _opened,
    Operation.IMAGE_ADMIT: Projection.admit,
    Operation.POD_PREPARE: Projection.prepare,
    Operation.POD_START: _started,
    Operation.POD_EXEC: _entered,
    Operation.POD_EXIT: _exited,
    Operation.DENIED: _denied,
    Operation.UNMEASURED: _unmeasured,
    Operation.POLICY_LOAD: _changed,
    Operation.TRUST_CHANGE: _changed,
    Operation.RUNTIME_UPGRADE: _changed,
    Operation.RESUME: _resumed,
    Operation.CHECKPOINT: _checkpoint,
}
