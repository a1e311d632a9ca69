"""What a verifier keeps of a host between two appraisals, so that only new records have to be sent."""

import hashlib
from dataclasses import dataclass, field

from secrun_attest import jcs
from secrun_attest.evidence import banks
from secrun_attest.fields import FieldError, Fields, as_digest, as_text, parse_json
from secrun_attest.jcs import JsonObject
from secrun_attest.limits import MAX_COUNT, MAX_INTEGER, MAX_RECORDS
from secrun_attest.record import Bank, Epoch
from secrun_attest.tpm import TpmKind
from secrun_attest.verify.machine import (
    App,
    Image,
    Machine,
    Pod,
    PodState,
    Stage1,
    VirtualMachine,
    virtual_machine,
)
from secrun_attest.wire import Clock

VERSION = 2
# A million records of an epoch leave at most 300,000 pods.
MAX_STATE = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where the last appraisal of `host` ended: `recnum` is that of the next record, `pcrs` its base.

    `stored` is the digest of the bytes that it was read from or written to, if it was.
    """

    host: str
    ak: bytes
    epoch: Epoch
    clock: Clock
    recnum: int
    pcrs: tuple[tuple[Bank, bytes], ...]
    machine: Machine
    stored: bytes | None = field(default=None, compare=False)

    def dump(self) -> bytes:
        """Return the state as canonical JSON: equal states have equal bytes."""
        return jcs.encode(_json(self))

    def digest(self) -> bytes:
        """Return SHA-256 of the canonical bytes, for compare-and-set in a database."""
        return self.stored or hashlib.sha256(self.dump()).digest()


def load_state(data: bytes) -> State:
    """Read what `State.dump` wrote; raises FormatError."""
    fields = Fields(parse_json(data, what="verifier state", limit=MAX_STATE), "state")
    if (version := fields.integer("v")) != VERSION:
        raise FieldError(f"the state has version {version}, this verifier reads {VERSION}")
    epoch, clock = fields.object("epoch"), fields.object("clock")
    state = State(
        host=fields.text("host"),
        ak=fields.hex("ak"),
        epoch=Epoch(
            reset=epoch.integer("reset", limit=MAX_COUNT),
            restart=epoch.integer("restart", limit=MAX_COUNT),
            boot_id=epoch.text("boot_id"),
        ),
        clock=Clock(
            clock=int.from_bytes(clock.hex("clock", sizes=(8,)), "big"),
            reset=clock.integer("reset", limit=MAX_COUNT),
            restart=clock.integer("restart", limit=MAX_COUNT),
            safe=clock.integer("safe", limit=1) == 1,
        ),
        recnum=fields.integer("recnum", limit=MAX_RECORDS),
        pcrs=tuple(sorted(_banks(fields, "pcrs").items())),
        machine=_machine(fields.object("machine")),
        stored=hashlib.sha256(data).digest(),
    )
    for part in (epoch, clock, fields):
        part.done()
    return state


def _json(state: State) -> JsonObject:
    epoch, clock, machine = state.epoch, state.clock, state.machine
    return {
        "v": VERSION,
        "host": state.host,
        "ak": state.ak.hex(),
        "epoch": {"reset": epoch.reset, "restart": epoch.restart, "boot_id": epoch.boot_id},
        "clock": {
            # 64 bits do not fit a JSON number.
            "clock": clock.clock.to_bytes(8, "big").hex(),
            "reset": clock.reset,
            "restart": clock.restart,
            "safe": int(clock.safe),
        },
        "recnum": state.recnum,
        "pcrs": {str(bank): value.hex() for bank, value in state.pcrs},
        "machine": {
            "ak": machine.ak.hex(),
            "tpm": machine.tpm.value,
            "baseline": {str(bank): value.hex() for bank, value in machine.baseline.items()},
            "runtimes": [_digest(value) for value in machine.runtimes],
            "images": [_image_json(image) for image in machine.images.values()],
            "pods": [_pod_json(pod) for pod in machine.pods.values()],
            "operations": [*sorted(machine.operations)],
            "unmeasured": [*sorted(machine.unmeasured)],
            "denied": machine.denied,
        },
    }


def _digest(value: bytes) -> str:
    return f"sha256:{value.hex()}"


def _image_json(image: Image) -> JsonObject:
    reference, manifest, tree, bypassed, root = image
    return {
        "reference": reference,
        "manifest": _digest(manifest),
        "tree": _digest(tree),
        "bypassed": int(bypassed),
        **_root_json(root),
    }


def _root_json(root: bytes) -> JsonObject:
    return {"verity_root": root.hex()} if root else {}


def machine_json(machine: VirtualMachine) -> JsonObject:
    """Return what `virtual_machine` reads."""
    accelerator, model, vcpus, memory, storage, vtpm, kernel, initrd, command_line, pod_root = machine
    return {
        "accelerator": accelerator,
        "model": model,
        "vcpus": vcpus,
        "memory_bytes": memory,
        "storage_bytes": storage,
        "vtpm": vtpm,
        "kernel": _digest(kernel),
        "initrd": _digest(initrd),
        "command_line": command_line,
        "pod_root": pod_root.hex(),
    }


def _stage1_json(stage1: Stage1) -> JsonObject:
    return {"digest": _digest(stage1.digest), "tree": _digest(stage1.tree)}


def _pod_json(pod: Pod) -> JsonObject:
    uuid, state, manifest, stage1, apps, relaxations, operations, unmeasured, entries, machine = pod
    return {
        "uuid": uuid,
        "state": state,
        "manifest": _digest(manifest),
        "stage1": None if stage1 is None else _stage1_json(stage1),
        "apps": [_app_json(app) for app in apps],
        "relaxations": [*relaxations],
        "operations": [*sorted(operations)],
        "unmeasured": [*sorted(unmeasured)],
        "entries": entries,
        **({} if machine is None else {"machine": machine_json(machine)}),
    }


def _app_json(app: App) -> JsonObject:
    name, image, relaxations, root = app
    return {
        "name": name,
        "image": _image_json(image),
        "relaxations": [*relaxations],
        **_root_json(root),
    }


def _machine(fields: Fields) -> Machine:
    images = [_image(Fields(item, "image")) for item in fields.items("images", limit=MAX_RECORDS)]
    pods = [_pod(Fields(item, "pod")) for item in fields.items("pods", limit=MAX_RECORDS)]
    runtimes = fields.items("runtimes", limit=MAX_RECORDS)
    machine = Machine(
        opened=True,
        ak=fields.hex("ak"),
        tpm=_tpm(fields.text("tpm")),
        baseline=_banks(fields, "baseline"),
        runtimes=tuple(as_digest(item, "runtime") for item in runtimes),
        images={(image.manifest, image.tree): image for image in images},
        pods={pod.uuid: pod for pod in pods},
        operations=set(_texts(fields, "operations")),
        unmeasured=set(_texts(fields, "unmeasured")),
        denied=fields.integer("denied", limit=MAX_INTEGER),
    )
    fields.done()
    return machine


def _tpm(kind: str) -> TpmKind:
    if kind not in set(TpmKind):
        raise FieldError(f"a TPM is {kind[:40]!r}, which is no kind")
    return TpmKind(kind)


def _banks(fields: Fields, name: str) -> dict[Bank, bytes]:
    return banks(fields.mapping(name, limit=len(Bank)), name)


def _image(fields: Fields) -> Image:
    image = Image(
        reference=fields.text("reference"),
        manifest=fields.digest("manifest"),
        tree=fields.digest("tree"),
        bypassed=fields.integer("bypassed", limit=1) == 1,
        verity_root=_root(fields),
    )
    fields.done()
    return image


def _root(fields: Fields) -> bytes:
    return fields.hex("verity_root", sizes=(32,)) if fields.has("verity_root") else b""


def _virtual_machine(fields: Fields) -> VirtualMachine:
    machine = virtual_machine(fields)
    fields.done()
    return machine


def _stage1(fields: Fields) -> Stage1:
    stage1 = Stage1(digest=fields.digest("digest"), tree=fields.digest("tree"))
    fields.done()
    return stage1


def _pod(fields: Fields) -> Pod:
    state = fields.text("state")
    if state not in set(PodState):
        raise FieldError(f"a pod is {state[:40]!r}, which is no state")
    pod = Pod(
        uuid=fields.text("uuid"),
        state=PodState(state),
        manifest=fields.digest("manifest"),
        stage1=_stage1(fields.object("stage1")) if fields.has("stage1") else None,
        apps=tuple(_app(Fields(item, "app")) for item in fields.items("apps", limit=MAX_RECORDS)),
        relaxations=_texts(fields, "relaxations"),
        operations=frozenset(_texts(fields, "operations")),
        unmeasured=frozenset(_texts(fields, "unmeasured")),
        entries=fields.integer("entries"),
        machine=_virtual_machine(fields.object("machine")) if fields.has("machine") else None,
    )
    fields.done()
    return pod


def _app(fields: Fields) -> App:
    app = App(
        name=fields.text("name"),
        image=_image(fields.object("image")),
        relaxations=_texts(fields, "relaxations"),
        verity_root=_root(fields),
    )
    fields.done()
    return app


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    return tuple(as_text(item, name) for item in fields.items(name, limit=MAX_RECORDS))
