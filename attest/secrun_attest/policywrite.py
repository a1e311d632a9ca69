"""Write a policy as the JSON that `policy.parse_policy` reads, for people to read and change."""

import json

from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.policy import HIERARCHIES, VERSION, Guest, Machines, Platform, Policy, Runtime, Workload


def dump_policy(policy: Policy) -> bytes:
    """Return `policy` as one document; its own `digest` is no part of it."""
    return json.dumps(policy_json(policy), indent=2, ensure_ascii=False).encode() + b"\n"


def policy_json(policy: Policy) -> JsonObject:
    """Return `policy` as JSON, lists sorted."""
    names = {value: name for name, value in HIERARCHIES.items()}
    return {
        "v": VERSION,
        "id": policy.id,
        "version": policy.version,
        "min_version": policy.min_version,
        "not_before": policy.not_before,
        "not_after": policy.not_after,
        "pcr": policy.pcr,
        "bank": policy.bank.value,
        "selection": [*policy.selection],
        "hierarchies": [*sorted(names[item] for item in policy.hierarchies)],
        "keys": None if policy.keys is None else _hex(policy.keys),
        "software_tpm": policy.software_tpm,
        "max_age": policy.max_age,
        "platform": _platform(policy.platform),
        "runtime": _runtime(policy.runtime),
        "workload": _workload(policy.workload),
    }


def _hex(values: frozenset[bytes]) -> list[JsonValue]:
    return [value.hex() for value in sorted(values)]


def _digest(value: bytes) -> str:
    return f"sha256:{value.hex()}"


def _digests(values: frozenset[bytes]) -> list[JsonValue]:
    return [_digest(value) for value in sorted(values)]


def _platform(platform: Platform) -> JsonObject:
    pcrs: JsonObject = {str(index): _hex(values) for index, values in platform.pcrs}
    return {"pcrs": pcrs}


def _runtime(runtime: Runtime) -> JsonObject:
    return {
        "binaries": _digests(runtime.binaries),
        "stage1": _digests(runtime.stage1),
        "machines": _machines(runtime.machines),
    }


def _machines(machines: Machines) -> JsonObject:
    guests = sorted(machines.guests, key=lambda guest: (guest.kernel, guest.initrd))
    return {
        "required": machines.required,
        "accelerators": [*sorted(machines.accelerators)],
        "guests": [_guest(guest) for guest in guests],
    }


def _guest(guest: Guest) -> JsonObject:
    return {
        "kernel": _digest(guest.kernel),
        "initrd": _digest(guest.initrd),
        "command_lines": [*sorted(guest.command_lines)],
    }


def _image(manifest: bytes, tree: bytes, verity_root: bytes) -> JsonObject:
    image: JsonObject = {"manifest": _digest(manifest), "tree": _digest(tree)}
    return image | {"verity_root": verity_root.hex()} if verity_root else image


def _workload(workload: Workload) -> JsonObject:
    return {
        "images": [_image(*image) for image in sorted(workload.images)],
        "manifests": _digests(workload.manifests),
        "trees": _digests(workload.trees),
        "references": [*workload.references],
        "forbidden_operations": [*sorted(workload.forbidden_operations)],
        "forbidden_relaxations": [*workload.forbidden_relaxations],
    }
