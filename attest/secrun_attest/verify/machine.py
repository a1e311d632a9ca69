"""What a log says happened, as a state machine: Admit -> Prepare -> Start -> Exec* -> Exit, in this order.

It holds facts, not judgements: whether an image may run is the policy's business (verify/judge.py).
There is one of these tuples for each of up to 300,000 pods: a frozen dataclass takes twice as long to make.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from secrun_attest.evidence import banks
from secrun_attest.fields import FieldError, Fields, as_text
from secrun_attest.record import Bank, Event, Operation
from secrun_attest.rejection import Code, RejectedError
from secrun_attest.tpm import TpmKind

# A pod has tens of apps at most; images, mounts and units are counted elsewhere.
MAX_APPS = 256
MAX_RELAXATIONS = 256
# Names of options; an event is bounded, what is kept of a million of them must be too.
MAX_OPTION = 255
# A UUID has 36 characters; there is no other bound on how long a pod's name may be.
MAX_UUID = 64
# Names of accelerators and machine types.
MAX_MODEL = 40

# Copies of a pod share what they have in common: each has at most an event's 16 KiB of it.
SHARED = 256

_NAMES = {operation: operation.value for operation in Operation}


class PodState(StrEnum):
    """How far a pod got."""

    PREPARED = "prepared"
    STARTED = "started"
    EXITED = "exited"
    REMOVED = "removed"


# What these events make of a pod, and out of which states.
_MOVES: dict[Operation, tuple[PodState, ...]] = {
    Operation.POD_START: (PodState.STARTED, PodState.PREPARED),
    Operation.POD_EXIT: (PodState.EXITED, PodState.STARTED),
    Operation.POD_GC: (PodState.REMOVED, PodState.PREPARED, PodState.EXITED),
}


class Image(NamedTuple):
    """An admitted image; `reference` is the host's word, the digests are of what is mounted.

    `bypassed` says that the host's trust policy had no say.
    """

    reference: str
    manifest: bytes
    tree: bytes
    bypassed: bool = False
    verity_root: bytes = b""


class Stage1(NamedTuple):
    """The image of a pod's own system: the digest that names it, and that of its tree."""

    digest: bytes
    tree: bytes


class App(NamedTuple):
    """One app of a pod: which admitted image it runs and which guards were relaxed for it.

    `verity_root` is the dm-verity root hash of what is mounted, empty if the log does not tell it.
    """

    name: str
    image: Image
    relaxations: tuple[str, ...]
    verity_root: bytes = b""


class VirtualMachine(NamedTuple):
    """The virtual machine of a pod; sizes in bytes, `storage` is 0 without a disk for what apps write.

    `command_line` lacks its last word; that names `pod_root`, the root hash of the pod's own image.
    """

    accelerator: str
    model: str
    vcpus: int
    memory: int
    storage: int
    vtpm: bool
    kernel: bytes
    initrd: bytes
    command_line: str
    pod_root: bytes


class Pod(NamedTuple):
    """One pod; `operations` are those of the events that name it, `unmeasured` the options that let it by.

    `stage1` is None for a flavour that has none, `machine` for one that starts no virtual machine.
    """

    uuid: str
    state: PodState
    manifest: bytes
    stage1: Stage1 | None
    apps: tuple[App, ...]
    relaxations: tuple[str, ...]
    operations: frozenset[str] = frozenset()
    unmeasured: frozenset[str] = frozenset()
    entries: int = 0
    machine: VirtualMachine | None = None


@dataclass(slots=True, kw_only=True)
class Machine:
    """All that the log told since LogOpen; `operations` are those of events that name no pod."""

    opened: bool = False
    ak: bytes = b""
    tpm: TpmKind = TpmKind.SOFTWARE
    baseline: dict[Bank, bytes] = field(default_factory=dict)
    runtimes: tuple[bytes, ...] = ()
    images: dict[tuple[bytes, bytes], Image] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    operations: set[str] = field(default_factory=set)
    unmeasured: set[str] = field(default_factory=set)
    denied: int = 0

    def copy(self) -> "Machine":
        """Return an independent machine in the same state."""
        return replace(
            self,
            baseline=dict(self.baseline),
            images=dict(self.images),
            pods=dict(self.pods),
            operations=set(self.operations),
            unmeasured=set(self.unmeasured),
        )

    def apply(self, event: Event) -> None:
        """Take one event; raises RejectedError E_SEM if it may not come now, or lacks what it must say."""
        if self.opened == (event.operation is Operation.LOG_OPEN):
            raise _illegal(event, "the log is opened twice" if self.opened else "the log is not opened")
        try:
            if (move := _MOVES.get(event.operation)) is None:
                self._take(event, _fields(event))
            else:
                self._move(event, *move)
        except FieldError as error:
            raise RejectedError(Code.SEM, f"record {event.seq}: {error.message}") from error
        # A denied pod is not in the state: the denial is the host's.
        if "pod" not in event.fields or event.operation is Operation.DENIED:
            self.operations.add(_NAMES[event.operation])

    def _take(self, event: Event, fields: Fields) -> None:
        match event.operation:
            case Operation.LOG_OPEN:
                self._open(fields)
            case Operation.RUNTIME_UPGRADE:
                self.runtimes += (fields.object("runtime").digest("digest"),)
            case Operation.IMAGE_ADMIT:
                self._admit(fields)
            case Operation.DENIED:
                self.denied += 1
            case Operation.TRUST_CHANGE | Operation.POLICY_LOAD | Operation.RESUME | Operation.CHECKPOINT:
                pass  # they change no pod
            case _:
                self._take_pod(event, fields)

    def _take_pod(self, event: Event, fields: Fields) -> None:
        match event.operation:
            case Operation.POD_PREPARE:
                self._prepare(event, fields)
            case Operation.POD_EXEC:
                self._enter(event, fields)
            case Operation.UNMEASURED:
                self._bypass(event, fields)
            case _:
                raise _illegal(event, "this verifier does not know what it means")

    def _open(self, fields: Fields) -> None:
        self.opened = True
        self.ak = fields.hex("ak")
        self.runtimes = (fields.object("runtime").digest("digest"),)
        self.tpm = _tpm(fields.object("tpm"))
        self.baseline = banks(fields.mapping("baseline", limit=len(Bank)), "LogOpen.baseline")

    def _admit(self, fields: Fields) -> None:
        image = Image(
            reference=fields.text("reference"),
            manifest=fields.digest("manifest"),
            tree=fields.digest("tree"),
            bypassed=_bypassed(fields.object("verdict")) if fields.has("verdict") else False,
            verity_root=_verity_root(fields),
        )
        # The first name stands: a second one must not lend an image a name that the policy likes.
        self.images.setdefault((image.manifest, image.tree), image)

    def _prepare(self, event: Event, fields: Fields) -> None:
        uuid = fields.text("pod", limit=MAX_UUID)
        if uuid in self.pods:
            raise _illegal(event, f"pod {uuid} is prepared twice")
        apps = tuple(
            self._app(event, Fields(item, "PodPrepare.apps"))
            for item in fields.items("apps", limit=MAX_APPS)
        )
        self.pods[uuid] = Pod(
            uuid=uuid,
            state=PodState.PREPARED,
            manifest=fields.digest("manifest"),
            stage1=_same_stage1(_stage1(fields.object("stage1"))) if fields.has("stage1") else None,
            apps=_same_apps(apps),
            relaxations=_relaxations(fields),
            operations=frozenset({_NAMES[event.operation]}),
            machine=virtual_machine(fields.object("machine")) if fields.has("machine") else None,
        )

    def _app(self, event: Event, fields: Fields) -> App:
        name = fields.text("name", limit=255)
        image = self.images.get((fields.digest("image"), fields.digest("tree")))
        if image is None:
            raise _illegal(event, f"app {name!r} runs an image that was not admitted")
        # Only a pod's own virtual machine is told the root hash by the pod itself.
        root = _verity_root(fields) or image.verity_root
        return App(name=name, image=image, relaxations=_relaxations(fields), verity_root=root)

    def _enter(self, event: Event, fields: Fields) -> None:
        pod = self._move(event, PodState.STARTED, PodState.STARTED)
        name = fields.text("app", limit=255) if fields.has("app") else None
        if name is not None and name not in {app.name for app in pod.apps}:
            raise _illegal(event, f"pod {pod.uuid} has no app {name!r}")

    def _bypass(self, event: Event, fields: Fields) -> None:
        option = fields.text("option", limit=MAX_OPTION)
        if not fields.has("pod"):
            self.unmeasured.add(option)
            return
        uuid = fields.text("pod", limit=MAX_UUID)
        pod = self.pods.get(uuid)
        if pod is None:
            raise _illegal(event, f"pod {uuid} is not known")
        self.pods[uuid] = pod._replace(
            operations=_with(pod.operations, _NAMES[event.operation]),
            unmeasured=pod.unmeasured | {option},
        )

    def _move(self, event: Event, to: PodState, *sources: PodState) -> Pod:
        uuid = event.fields.get("pod")
        pod = self.pods.get(uuid) if isinstance(uuid, str) else None
        if pod is None or pod.state not in sources:
            uuid = _fields(event).text("pod", limit=MAX_UUID)
            now = "unknown" if pod is None else pod.state.value
            raise _illegal(event, f"pod {uuid} is {now}, expected {' or '.join(sources)}")
        moved = self.pods[pod.uuid] = pod._replace(
            state=to,
            operations=_with(pod.operations, _NAMES[event.operation]),
            entries=pod.entries + (event.operation is Operation.POD_EXEC),
        )
        return moved


def _fields(event: Event) -> Fields:
    return Fields(dict(event.fields), _NAMES[event.operation])


@lru_cache(maxsize=SHARED)
def _with(operations: frozenset[str], name: str) -> frozenset[str]:
    return operations | {name}


@lru_cache(maxsize=SHARED)
def _same_apps(apps: tuple[App, ...]) -> tuple[App, ...]:
    return apps


@lru_cache(maxsize=SHARED)
def _same_stage1(stage1: Stage1) -> Stage1:
    return stage1


def _tpm(fields: Fields) -> TpmKind:
    kind = fields.text("kind", limit=40)
    if kind not in set(TpmKind):
        raise FieldError(f"{fields.what}.kind is {kind!r}, expected {' or '.join(TpmKind)}")
    return TpmKind(kind)


def _bypassed(verdict: Fields) -> bool:
    return verdict.boolean("bypass") if verdict.has("bypass") else False


def _stage1(fields: Fields) -> Stage1:
    return Stage1(digest=fields.digest("digest"), tree=fields.digest("tree"))


def _verity_root(fields: Fields) -> bytes:
    return fields.hex("verity_root", sizes=(32,)) if fields.has("verity_root") else b""


def virtual_machine(fields: Fields) -> VirtualMachine:
    """Read the machine of a pod; raises FieldError. More members are allowed."""
    return VirtualMachine(
        accelerator=fields.text("accelerator", limit=MAX_MODEL),
        model=fields.text("model", limit=MAX_MODEL),
        vcpus=fields.integer("vcpus"),
        memory=fields.integer("memory_bytes"),
        storage=fields.integer("storage_bytes"),
        vtpm=fields.boolean("vtpm"),
        kernel=fields.digest("kernel"),
        initrd=fields.digest("initrd"),
        command_line=fields.text("command_line"),
        pod_root=fields.hex("pod_root", sizes=(32,)),
    )


def _relaxations(fields: Fields) -> tuple[str, ...]:
    items = fields.items("relaxations", limit=MAX_RELAXATIONS)
    if not items:
        return ()
    return tuple(as_text(item, f"{fields.what}.relaxations") for item in items)


def _illegal(event: Event, why: str) -> RejectedError:
    return RejectedError(Code.SEM, f"record {event.seq}, {event.operation.value}: {why}")
