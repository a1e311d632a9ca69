"""The payload of simple signing: containers-signature(5), in OpenPGP messages and in cosign's layers."""

import time
from typing import NoReturn

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.jsonio import JsonObject, JsonValue, canonical, parse_object
from secrun.record import record
from secrun.trust import limits
from secrun.trust.faults import SignatureFaultError

ATOMIC = "atomic container signature"
COSIGN = "cosign container image signature"


@record
class Claim:
    """What a payload says: this manifest is that reference; `signed_at` in seconds since 1970, or 0."""

    digest: Digest
    reference: str
    signed_at: int = 0


def _bad(why: str) -> NoReturn:
    raise SignatureFaultError(f"its payload is malformed: {why}")


def _object(value: JsonValue, where: str, names: frozenset[str]) -> JsonObject:
    """Return an object that has just the members `names`."""
    if not isinstance(value, dict):
        _bad(f"{where} is no object")
    if value.keys() != names:
        odd = sorted(names.symmetric_difference(value))
        _bad(f"{where} has or lacks {', '.join(repr(name[:40]) for name in odd[:5])}")
    return value


def _text(value: JsonValue, where: str) -> str:
    if not isinstance(value, str):
        _bad(f"{where} is no string")
    return value


def _signed_at(optional: JsonValue) -> int:
    """Return the optional timestamp; other optional members say nothing that secrun asks for."""
    if not isinstance(optional, dict):
        return 0
    stamp = optional.get("timestamp", 0)
    return stamp if isinstance(stamp, int) and not isinstance(stamp, bool) and stamp > 0 else 0


def parse(data: bytes, kind: str) -> Claim:
    """Parse a payload whose `critical.type` must be `kind`; raises SignatureFaultError."""
    try:
        document = parse_object(data, what="the payload", limit=limits.MAX_PAYLOAD_BYTES)
    except ImageError as error:
        _bad(error.message)
    document.setdefault("optional", None)
    top = _object(document, "it", frozenset({"critical", "optional"}))
    if top["optional"] is not None and not isinstance(top["optional"], dict):
        _bad("'optional' is no object")
    critical = _object(top["critical"], "'critical'", frozenset({"type", "image", "identity"}))
    image = _object(critical["image"], "'image'", frozenset({"docker-manifest-digest"}))
    identity = _object(critical["identity"], "'identity'", frozenset({"docker-reference"}))
    if (got := _text(critical["type"], "'type'")) != kind:
        _bad(f"its type is {got[:60]!r}, expected {kind!r}")
    try:
        digest = Digest.parse(_text(image["docker-manifest-digest"], "the digest"))
    except ImageError as error:
        _bad(error.message)
    return Claim(
        digest=digest,
        reference=_text(identity["docker-reference"], "the reference"),
        signed_at=_signed_at(top["optional"]),
    )


def build(kind: str, digest: Digest, reference: str, *, creator: str, now: float | None = None) -> bytes:
    """Return the payload that says so, as canonical JSON."""
    stamp = int(time.time() if now is None else now)
    return canonical(
        {
            "critical": {
                "type": kind,
                "image": {"docker-manifest-digest": str(digest)},
                "identity": {"docker-reference": reference},
            },
            "optional": {"creator": creator, "timestamp": stamp},
        }
    )
