"""Policies as files: signed, versioned, and if wanted in layers that different people sign.

A base document says the rules and holds the layers `platform`, `runtime` and `workload`, or names for each
the document that does. What is merged is one `Policy`, whose digest covers every byte that was read. The
format is docs/policy-format.md.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from secrun_attest import dsse, jcs
from secrun_attest.dsse import DsseError, SigningKey, TrustedKey
from secrun_attest.errors import FormatError
from secrun_attest.fields import FieldError, Fields, parse_json
from secrun_attest.jcs import JsonObject, JsonValue
from secrun_attest.policy import (
    MAX_POLICY,
    VERSION,
    Policy,
    minimum_version,
    platform_of,
    policy_of,
    runtime_of,
    workload_of,
)

PAYLOAD_TYPE = "application/vnd.secrun.policy+json"
# A policy of the largest size in base64, and the signatures.
MAX_FILE = 2 * MAX_POLICY
MAX_ID = 255
NO_MINIMUMS: Mapping[str, int] = MappingProxyType({})


class PolicyFileError(FormatError):
    """A policy is not one, not signed by whom it should be, or not in force."""

    code = "policy"


class Layer(StrEnum):
    """What a document decides: the rules, or one of the three layers of reference values."""

    BASE = "base"
    PLATFORM = "platform"
    RUNTIME = "runtime"
    WORKLOAD = "workload"


LAYERS: Mapping[Layer, Callable[[Fields], object]] = MappingProxyType(
    {Layer.PLATFORM: platform_of, Layer.RUNTIME: runtime_of, Layer.WORKLOAD: workload_of}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One document of a policy; `digest` is that of its bytes, `signers` are the ids of the keys."""

    layer: Layer
    id: str
    version: int
    min_version: int
    not_before: int
    not_after: int
    digest: bytes
    signers: tuple[str, ...]

    @property
    def name(self) -> str:
        """What versions are counted under: the layer and the document's id."""
        return f"{self.layer}:{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedPolicy:
    """A policy that may be used, and the documents that it was made of."""

    policy: Policy
    parts: tuple[Part, ...]

    @property
    def minimums(self) -> dict[str, int]:
        """The least version of each part that may follow; to be kept and given to the next `open_policy`."""
        return {part.name: part.min_version for part in self.parts}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    part: Part
    body: JsonObject
    wanted: tuple[tuple[Layer, str, int], ...] = ()


def open_policy(
    data: bytes,
    keys: Sequence[TrustedKey],
    *,
    require_signature: bool,
    now: int,
    minimums: Mapping[str, int] = NO_MINIMUMS,
) -> OpenedPolicy:
    """Open a policy of one file, as `open_policies` does those of several."""
    return open_policies((data,), keys, require_signature=require_signature, now=now, minimums=minimums)


def open_policies(
    files: Sequence[bytes],
    keys: Sequence[TrustedKey],
    *,
    require_signature: bool,
    now: int,
    minimums: Mapping[str, int] = NO_MINIMUMS,
) -> OpenedPolicy:
    """Verify, parse and merge the files of one policy; raises PolicyFileError.

    Each file is a DSSE envelope signed by one of `keys`, or plain JSON if `require_signature` is off. `now`
    is in seconds since 1970. `minimums` are those of the `OpenedPolicy` that was opened last.
    """
    documents = [_document(data, keys, require_signature=require_signature) for data in files]
    for document in documents:
        _check_validity(document.part, now)
        _check_version(document.part, minimums.get(document.part.name, 0))
    return _merged(documents)


def _document(data: bytes, keys: Sequence[TrustedKey], *, require_signature: bool) -> _Document:
    try:
        value = parse_json(data, what="policy", limit=MAX_FILE)
        signers: tuple[str, ...] = ()
        if dsse.is_envelope(value):
            if not keys:
                raise PolicyFileError(
                    "the policy is signed and there is no key to verify it with", code="policy-key"
                )
            envelope = dsse.parse_envelope(data, what="signed policy", limit=MAX_FILE)
            signers = dsse.verify(envelope, PAYLOAD_TYPE, keys)
            data = envelope.payload
            value = parse_json(data, what="policy", limit=MAX_POLICY)
        elif require_signature:
            raise PolicyFileError("the policy is not signed", code="policy-unsigned")
        return _read(value, hashlib.sha256(data).digest(), signers)
    except DsseError as error:
        code = error.code.replace("dsse-", "policy-").replace("-envelope", "-format")
        raise PolicyFileError(error.message, hint=error.hint, code=code) from error
    except FieldError as error:
        raise PolicyFileError(error.message, hint=error.hint, code="policy-format") from error


def _read(value: JsonValue, digest: bytes, signers: tuple[str, ...]) -> _Document:
    """Read what the merge needs of a document; the rest waits for the parser of the whole policy."""
    fields = Fields(value, "policy")
    if (form := fields.integer("v")) != VERSION:
        raise FieldError(f"the policy has format {form}, this verifier reads {VERSION}")
    layer = _layer(fields.text("layer", limit=20)) if fields.has("layer") else Layer.BASE
    version = fields.integer("version")
    part = Part(
        layer=layer,
        id=fields.text("id", limit=MAX_ID),
        version=version,
        min_version=minimum_version(fields, version),
        not_before=fields.integer("not_before"),
        not_after=fields.integer("not_after"),
        digest=digest,
        signers=signers,
    )
    if layer is not Layer.BASE:
        body: JsonObject = {layer.value: fields.take(layer.value)}
        fields.done()
        LAYERS[layer](Fields(body[layer.value], f"policy.{layer}"))
        return _Document(part=part, body=body)
    wanted = _wanted(fields) if fields.has("layers") else ()
    rest = dict(value) if isinstance(value, dict) else {}
    rest.pop("layers", None)
    if twice := [layer for layer, _, _ in wanted if layer.value in rest]:
        raise PolicyFileError(
            f"the base holds the layer {twice[0]} and names a document for it", code="policy-layer-twice"
        )
    return _Document(part=part, body=rest, wanted=wanted)


def _wanted(fields: Fields) -> tuple[tuple[Layer, str, int], ...]:
    """Return which document each layer that the base leaves out is in, and the least version of it."""
    found = []
    for name, value in fields.mapping("layers", limit=len(LAYERS)).items():
        inner = Fields(value, f"policy.layers.{name[:20]}")
        found.append((_layer(name), inner.text("id", limit=MAX_ID), inner.integer("min_version")))
        inner.done()
    return tuple(found)


def _layer(name: str) -> Layer:
    if name not in {layer.value for layer in LAYERS}:
        raise FieldError(f"the policy names the layer {name[:20]!r}, expected one of {', '.join(LAYERS)}")
    return Layer(name)


def _check_validity(part: Part, now: int) -> None:
    when = f"{part.name} version {part.version} is valid from {part.not_before} to {part.not_after}"
    if now < part.not_before:
        raise PolicyFileError(f"{when}, now is {now}", code="policy-early")
    if now >= part.not_after:
        raise PolicyFileError(f"{when}, now is {now}", hint="sign a new one", code="policy-expired")


def _check_version(part: Part, minimum: int) -> None:
    if part.version < minimum:
        raise PolicyFileError(
            f"{part.name} has version {part.version}, the least that may be used is {minimum}",
            hint="somebody gave an old policy back",
            code="policy-rollback",
        )


def _merged(documents: Sequence[_Document]) -> OpenedPolicy:
    by_layer: dict[Layer, _Document] = {}
    for document in documents:
        layer = document.part.layer
        if layer in by_layer:
            raise PolicyFileError(f"there are two documents of the layer {layer}", code="policy-layer-twice")
        by_layer[layer] = document
    base = by_layer.pop(Layer.BASE, None)
    if base is None:
        raise PolicyFileError("no document is the base of the policy", code="policy-layer-missing")
    body = dict(base.body)
    for layer, name, minimum in base.wanted:
        document = _wanted_document(by_layer.pop(layer, None), layer, name)
        _check_version(document.part, minimum)
        body.update(document.body)
    for layer in by_layer:
        if layer in base.body:
            raise PolicyFileError(
                f"the layer {layer} is in the base and in a document of its own", code="policy-layer-twice"
            )
        raise PolicyFileError(f"the base does not ask for the layer {layer}", code="policy-layer-unknown")
    order = list(Layer)
    parts = tuple(
        sorted((document.part for document in documents), key=lambda part: order.index(part.layer))
    )
    return OpenedPolicy(policy=_policy(body, parts), parts=parts)


def _wanted_document(document: _Document | None, layer: Layer, name: str) -> _Document:
    if document is None or document.part.id != name:
        got = "none" if document is None else repr(document.part.id)
        raise PolicyFileError(
            f"the base asks for the {layer} layer {name!r}, got {got}", code="policy-layer-missing"
        )
    return document


def _policy(body: JsonObject, parts: Sequence[Part]) -> Policy:
    try:
        policy = policy_of(body, digest=_digest(parts))
    except FieldError as error:
        raise PolicyFileError(error.message, hint=error.hint, code="policy-format") from error
    return replace(
        policy,
        not_before=max(part.not_before for part in parts),
        not_after=min(part.not_after for part in parts),
    )


def _digest(parts: Sequence[Part]) -> bytes:
    """Return the digest of a policy: of its document, or of the list of its documents' digests."""
    if len(parts) == 1:
        return parts[0].digest
    listed: list[JsonValue] = [{"digest": part.digest.hex(), "layer": part.layer.value} for part in parts]
    return hashlib.sha256(jcs.encode(listed)).digest()


def sign_policy(document: bytes, key: SigningKey) -> bytes:
    """Return a policy document in a signed envelope, byte for byte; raises PolicyFileError if it is none."""
    opened = _document(document, (), require_signature=False)
    if opened.part.layer is Layer.BASE and not opened.wanted:
        _policy(opened.body, (opened.part,))
    return dsse.sign(document, PAYLOAD_TYPE, key)
