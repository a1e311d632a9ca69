"""What the events of a pod's life say; pure. What a verifier reads of them: docs/verifier.md."""

import hashlib

from secrun.digest import Digest
from secrun.jsonio import canonical
from secrun.stage1.manifest import ImageIdentity, PodManifest
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.record import Operation


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
        "apps": apps,
    }


def pod_start(manifest: PodManifest, network: Digest | None) -> JsonObject:
    """Return the fields of PodStart; what networks answer is known only then."""
    fields: JsonObject = {"pod": manifest.uuid}
    return fields if network is None else {**fields, "network": str(network)}


def command_digest(argv: tuple[str, ...], salt: bytes) -> str:
    """Return what stands for a command in the log: its words may hold secrets, so they are salted."""
    return f"sha256:{hashlib.sha256(salt + canonical(list(argv))).hexdigest()}"


# The operations that a pod's marker may name.
PREPARE, START, EXIT = Operation.POD_PREPARE, Operation.POD_START, Operation.POD_EXIT
