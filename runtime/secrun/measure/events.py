"""What the events of a pod's life say; pure. What a verifier reads of them: docs/verifier.md."""

import hashlib

from secrun.digest import Digest
from secrun.errors import HostError
from secrun.jsonio import canonical
from secrun.stage1.machine import Machine
from secrun.stage1.manifest import AppManifest, ImageIdentity, PodManifest
from secrun_attest import jcs
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.limits import MAX_EVENT_DATA
from secrun_attest.record import Operation

# What an event has around the fields: its version, sequence number, operation and time.
_ENVELOPE_BYTES = 256


def image_admit(image: ImageIdentity) -> JsonObject:
    """Return the fields of ImageAdmit."""
    verdict = image.admission
    return {
        "reference": image.reference,
        "manifest": str(image.manifest),
        "config": str(image.config),
        "rootfs": str(image.rootfs),
        "tree": str(image.tree),
        "verity_root": image.verity_root,
        "verdict": {
            "policy": verdict.policy_source,
            "scope": verdict.scope,
            "requirements": list(verdict.requirement_types),
            "bypass": verdict.bypass,
            "rule": verdict.rule,
            "signatures": [
                {"kind": item.kind, "signer": item.signer, "digest": str(item.digest)}
                for item in verdict.signatures
            ],
        },
    }


def pod_prepare(manifest: PodManifest, digest: Digest) -> JsonObject:
    """Return the fields of PodPrepare; the rest of the manifest is bound by its digest."""
    apps: list[JsonValue] = [
        {
            "name": app.name,
            "image": str(app.image.manifest),
            "tree": str(app.image.tree),
            "relaxations": list(app.relaxations),
            **_enforced(manifest, app),
        }
        for app in manifest.apps
    ]
    return {
        "pod": manifest.uuid,
        "manifest": str(digest),
        "stage1": {
            "flavour": manifest.flavour,
            "digest": str(manifest.stage1),
            "tree": str(manifest.stage1_tree),
        },
        "relaxations": list(manifest.relaxations),
        "policy": "" if manifest.policy is None else str(manifest.policy),
        # One for all apps: an event has 16 KiB, and a pod up to 64 apps.
        "confinement": str(
            Digest.of(canonical({app.name: app.security.to_json() for app in manifest.apps}))
        ),
        "apps": apps,
        **({} if manifest.machine is None else {"machine": _machine(manifest.machine)}),
    }


def check_size(manifest: PodManifest) -> None:
    """Raise HostError unless what is measured of a pod fits into one event.

    64 apps on the host's kernel do, with short names; a machine's root hashes take more.
    """
    size = len(jcs.encode(pod_prepare(manifest, Digest.of(b""))))
    limit = MAX_EVENT_DATA - _ENVELOPE_BYTES
    if size > limit:
        raise HostError(
            f"pod {manifest.uuid} cannot be measured: what is said of its {len(manifest.apps)} apps has"
            f" {size} bytes, one event holds {limit}",
            hint="fewer apps in one pod, shorter names, or fewer relaxations",
            code="host-measure-size",
        )


def _enforced(manifest: PodManifest, app: AppManifest) -> JsonObject:
    """Return the root hash that the pod's own kernel holds the app to; of other pods ImageAdmit tells."""
    return {} if manifest.machine is None else {"verity_root": app.image.verity_root}


def _machine(machine: Machine) -> JsonObject:
    return {
        "accelerator": str(machine.accelerator),
        "model": machine.model,
        "vcpus": machine.vcpus,
        "memory_bytes": machine.memory_bytes,
        "storage_bytes": machine.storage_bytes,
        "vtpm": machine.vtpm,
        "kernel": str(machine.kernel),
        "initrd": str(machine.initrd),
        "command_line": machine.command_line,
        "pod_root": machine.pod_root,
        "pod_blocks": machine.pod_blocks,
    }


def pod_start(uuid: str, label: str, network: Digest | None = None, *, by: JsonObject) -> JsonObject:
    """Return the fields of PodStart, `by` being who starts it; without SELinux nothing is said of a label.

    What networks answer is known only then.
    """
    fields: JsonObject = {"pod": uuid, "by": by}
    if label:
        fields["selinux"] = label
    return fields if network is None else {**fields, "network": str(network)}


def command_digest(argv: tuple[str, ...], salt: bytes) -> str:
    """Return what stands for a command in the log: its words may hold secrets, so they are salted."""
    return f"sha256:{hashlib.sha256(salt + canonical(list(argv))).hexdigest()}"


# The operations that a pod's marker may name.
PREPARE, START, EXIT = Operation.POD_PREPARE, Operation.POD_START, Operation.POD_EXIT
