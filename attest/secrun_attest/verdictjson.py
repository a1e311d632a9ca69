"""A verdict, or the refusal to give one, as the JSON `secrun.dev/verdict/v1` (docs/verifier.md)."""

from collections.abc import Sequence

from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.policy import Policy
from secrun_attest.policyfile import Part
from secrun_attest.rejection import RejectedError
from secrun_attest.verify import Appraisal, Verdict
from secrun_attest.verify.machine import App, Pod
from secrun_attest.verify.state import machine_json

SCHEMA = "secrun.dev/verdict/v1"
REJECTED = "rejected"


def verdict_json(verdict: Verdict, policy: Policy, parts: Sequence[Part] = ()) -> JsonObject:
    """Return all that a verdict says; `parts` are the documents that `policy` was made of."""
    state, machine = verdict.state, verdict.state.machine
    host: JsonObject = {
        "name": state.host,
        "ak": state.ak.hex(),
        "tpm": machine.tpm.value,
        "runtimes": [_digest(value) for value in machine.runtimes],
        "denied": machine.denied,
        **_appraisal(verdict.host),
    }
    return {
        "schema": SCHEMA,
        "status": verdict.status.value,
        "host": host,
        "pods": [_pod(machine.pods[uuid], appraisal) for uuid, appraisal in verdict.pods],
        "epoch": {
            "reset": state.epoch.reset,
            "restart": state.epoch.restart,
            "boot_id": state.epoch.boot_id,
        },
        "log": {"count": state.recnum, "head": verdict.head.hex()},
        "policy": {
            "id": policy.id,
            "version": policy.version,
            "digest": _digest(verdict.policy_digest),
            "parts": [_part(part) for part in parts],
        },
    }


def rejection_json(error: RejectedError) -> JsonObject:
    """Return why evidence proves nothing: the code, the number of the check, and what was got."""
    return {
        "schema": SCHEMA,
        "status": REJECTED,
        "code": error.reason.value,
        "check": error.step,
        "reason": error.message,
    }


def _digest(value: bytes) -> str:
    return f"sha256:{value.hex()}"


def _appraisal(appraisal: Appraisal) -> JsonObject:
    return {
        "status": appraisal.status.value,
        "vector": {claim.value: value for claim, value in appraisal.vector},
        "reasons": [*appraisal.reasons],
        "operations": [*appraisal.operations],
        "unmeasured": [*appraisal.unmeasured],
    }


def _pod(pod: Pod, appraisal: Appraisal) -> JsonObject:
    stage1: JsonValue = None
    if pod.stage1 is not None:
        stage1 = {"digest": _digest(pod.stage1.digest), "tree": _digest(pod.stage1.tree)}
    return {
        "uuid": pod.uuid,
        "state": pod.state.value,
        "manifest": _digest(pod.manifest),
        "stage1": stage1,
        "machine": None if pod.machine is None else machine_json(pod.machine),
        "entries": appraisal.entries,
        "relaxations": [*pod.relaxations],
        "apps": [_app(app) for app in pod.apps],
        **_appraisal(appraisal),
    }


def _app(app: App) -> JsonObject:
    return {
        "name": app.name,
        "reference": app.image.reference,
        "manifest": _digest(app.image.manifest),
        "tree": _digest(app.image.tree),
        "verity_root": app.verity_root.hex() or None,
        "bypassed": app.image.bypassed,
        "relaxations": [*app.relaxations],
    }


def _part(part: Part) -> JsonObject:
    return {
        "layer": part.layer.value,
        "id": part.id,
        "version": part.version,
        "digest": _digest(part.digest),
        "signers": [*part.signers],
    }
