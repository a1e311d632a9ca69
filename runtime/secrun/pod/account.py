"""The accounts of a pod: how it is confined when it starts, and how it ended; kept when its folder is gone.

No secrets: arguments and the values of the environment are bound by the digest of the app's bundle, which
holds a random salt.
"""

from typing import TYPE_CHECKING

from secrun.errors import StateError
from secrun.jsonio import JsonObject, JsonValue, canonical
from secrun.pod import lifestate, readback

if TYPE_CHECKING:
    from secrun.pod.exits import AppExit, PodExit
    from secrun.stage1.manifest import AppManifest, PodManifest
    from secrun.stage1.podfiles import PodFiles

SCHEMA = "secrun.dev/pod-account/v1"
_MILLISECOND = 1_000_000


def account(files: "PodFiles", manifest: "PodManifest", end: "PodExit | None") -> bytes:
    """Return the account of a pod as canonical JSON; `end` is None when it starts."""
    exits = {} if end is None else {app.name: app for app in end.apps}
    try:
        found = {} if end is None else readback.read(files)
    except StateError:
        found = {}  # what is damaged was not read back
    connection = manifest.connection
    apps: list[JsonValue] = [
        {**_app(app, exits.get(app.name), found.get(app.name)), **_life(files, app)} for app in manifest.apps
    ]
    return canonical(
        {
            "schema": SCHEMA,
            "pod": manifest.uuid,
            "flavour": manifest.flavour,
            "hostname": manifest.hostname,
            "stage1": str(manifest.stage1),
            "machine": None if manifest.machine is None else manifest.machine.to_json(),
            "network": str(manifest.network),
            "networks": [] if connection is None else [item.network for item in connection.attachments],
            "ports": [] if connection is None else [str(port) for port in connection.ports],
            "label": "" if manifest.label is None else _label(files),
            "policy": "" if manifest.policy is None else str(manifest.policy),
            "relaxations": list(manifest.relaxations),
            "strict_read_back": manifest.strict_read_back,
            "created": manifest.created_ns // _MILLISECOND,
            "started": _started(files),
            "finished": None if end is None else end.finished_ns // _MILLISECOND,
            "code": None if end is None else end.code,
            "apps": apps,
        }
    )


def _label(files: "PodFiles") -> str:
    try:
        return files.label.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""


def _started(files: "PodFiles") -> int:
    try:
        words = files.started.read_text("utf-8").split()
    except FileNotFoundError:
        words = []
    return int(words[0]) // _MILLISECOND if words and words[0].isdecimal() else 0


def _app(app: "AppManifest", end: "AppExit | None", found: "readback.Enforced | None") -> JsonObject:
    verdict = app.image.admission
    return {
        "name": app.name,
        "image": app.image.reference,
        "manifest": str(app.image.manifest),
        "tree": str(app.image.tree),
        "verity_root": app.image.verity_root,
        "signers": [f"{item.kind}:{item.signer}" for item in verdict.signatures],
        "bypass": verdict.bypass,
        "process": str(app.bundle),
        "arguments": len(app.args),
        "environment": list(app.env_names),
        "uid": app.uid,
        "gid": app.gid,
        "groups": list(app.groups),
        "read_only": app.read_only,
        "terminal": app.terminal,
        "volumes": [volume.to_json() for volume in app.volumes],
        "limits": app.limits.to_json(),
        "capabilities": list(app.capabilities),
        "relaxations": list(app.relaxations),
        "security": app.security.to_json(),
        "read_back": None if found is None else _read_back(found),
        "code": None if end is None else end.code,
        "started": 0 if end is None else end.started_ns // _MILLISECOND,
        "finished": 0 if end is None else end.finished_ns // _MILLISECOND,
    }


def _life(files: "PodFiles", app: "AppManifest") -> JsonObject:
    """Return how often an app began again and how healthy it was last, by its agent's word."""
    state = lifestate.read(files, app.name) or lifestate.LifeState()
    return {
        "restart": str(app.restart),
        "restarts": state.restarts,
        "health": "" if state.health is None else state.health.state,
    }


def _read_back(found: "readback.Enforced") -> JsonObject:
    return {
        "verdict": found.verdict,
        "values": dict(found.values),
        "differences": list(found.differences),
    }
