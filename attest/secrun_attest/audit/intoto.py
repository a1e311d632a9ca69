"""Statements about pods and images in DSSE envelopes: in-toto v1, SLSA's verification summary where it fits.

A pod's statement is about the images that it ran; its predicate says how. That an image was admitted by the
host's policy is a verification summary; one that was let in past the policy gets none.
"""

import json
from collections.abc import Iterator

from secrun_attest.audit.about import About
from secrun_attest.audit.note import Signer
from secrun_attest.audit.rows import when
from secrun_attest.audit.trail import Image, Outcome, Row
from secrun_attest.dsse import sign
from secrun_attest.jcs import JsonObject, JsonValue

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
RUN = "https://secrun.dev/attestation/pod-run/v1"
SUMMARY = "https://slsa.dev/verification_summary/v1"
# A level of our own: names that begin with SLSA_ are SLSA's.
ADMITTED = "SECRUN_ADMITTED"
_PREFIX = "sha256:"
# An account may be none, and its statement still has to say so: no canonical form, which refuses some JSON.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _subject(image: Image) -> JsonObject:
    return {
        "name": image.reference or image.manifest,
        "digest": {"sha256": image.manifest.removeprefix(_PREFIX)},
    }


def _statement(subjects: list[JsonValue], kind: str, predicate: JsonObject) -> bytes:
    said = {"_type": STATEMENT, "subject": subjects, "predicateType": kind, "predicate": predicate}
    return _ENCODER.encode(said).encode()


def statements(about: About, row: Row, account: bytes | None) -> Iterator[bytes]:
    """Yield the payloads that a row gives: one for an admitted image, one for a pod that has ended."""
    if row.event == "ImageAdmit" and row.outcome is Outcome.DONE:
        yield from (
            _statement([_subject(image)], SUMMARY, _summary(about, row, image)) for image in row.images
        )
    if row.event == "PodExit":
        told = _parsed(account)
        if subjects := _subjects(told):
            yield _statement(subjects, RUN, _run(about, row, told))


def _parsed(account: bytes | None) -> JsonObject:
    try:
        told: JsonValue = json.loads(account) if account else None
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {}


def _subjects(told: JsonObject) -> list[JsonValue]:
    """Return the images of a pod's account, each once."""
    apps = told.get("apps")
    found: dict[str, JsonValue] = {}
    for app in apps if isinstance(apps, list) else ():
        name, manifest = (app.get("image"), app.get("manifest")) if isinstance(app, dict) else (None, None)
        if isinstance(name, str) and isinstance(manifest, str):
            found[manifest] = _subject(Image(manifest=manifest, reference=name))
    return [*found.values()]


def _summary(about: About, row: Row, image: Image) -> JsonObject:
    return {
        "verifier": {"id": about.origin, "version": {"secrun": about.tool.rpartition(" ")[2]}},
        "timeVerified": when(row.time),
        "resourceUri": image.reference or image.manifest,
        "policy": {"uri": image.policy or "unknown"},
        "verificationResult": "PASSED",
        "verifiedLevels": [ADMITTED],
    }


def _run(about: About, row: Row, told: JsonObject) -> JsonObject:
    return {
        "log": {"origin": about.origin, "size": about.size, "root": about.root.hex(), "index": row.leaf},
        "pod": row.pod,
        "finished": when(row.time),
        "code": row.code,
        "account": told,
        "accountDigest": row.account,
    }


def envelopes(key: Signer, payloads: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the payloads as signed envelopes, one to a line."""
    signing = key.dsse()
    for payload in payloads:
        yield sign(payload, PAYLOAD_TYPE, signing) + b"\n"
