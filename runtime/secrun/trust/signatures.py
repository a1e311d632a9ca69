"""Signatures as they were found with an image: bytes that nobody has believed yet."""

import base64
import binascii
from collections.abc import Mapping
from enum import StrEnum
from typing import Self

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.fields import Fields
from secrun.jsonio import JsonObject, canonical
from secrun.record import field, record
from secrun.trust import limits

SCHEMA = "secrun.dev/signatures/v1"


class SignatureKind(StrEnum):
    """The forms in which images are signed."""

    COSIGN = "cosign"
    """A simple-signing payload in a layer of the tag sha256-DIGEST.sig; the signature is an annotation."""
    BUNDLE = "bundle"
    """A sigstore bundle: signature, certificate and log entry in one JSON document."""
    NOTATION = "notation"
    """A JWS envelope of the Notary Project."""
    OPENPGP = "openpgp"
    """A signed OpenPGP message that holds a simple-signing payload."""
    APPC = "appc"
    """A detached OpenPGP signature of an app container image's file."""


@record
class Candidate:
    """One signature: `payload` is what was signed or the whole envelope, `subject` whose referrer it was.

    `annotations` are those of a cosign layer, `origin` is where it lay, in words.
    """

    kind: SignatureKind
    subject: Digest
    payload: bytes
    origin: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> Digest:
        """What the signature is known by: the digest of all that was found of it."""
        return Digest.of(canonical(self.to_json()))

    def to_json(self) -> JsonObject:
        """Return the form that is stored."""
        return {
            "kind": str(self.kind),
            "subject": str(self.subject),
            "payload": base64.b64encode(self.payload).decode(),
            "origin": self.origin,
            "annotations": [[name, value] for name, value in sorted(self.annotations.items())],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_json` writes; raises StateError or ImageError."""
        found = cls(
            kind=_kind(fields, "kind", fields.text("kind")),
            subject=Digest.parse(fields.text("subject")),
            payload=_decoded(fields, fields.text("payload")),
            origin=fields.text("origin"),
            annotations=dict(_pair(fields, pair) for pair in fields.text_lists("annotations")),
        )
        fields.end()
        return found


def _kind(fields: Fields, name: str, word: str) -> SignatureKind:
    if word not in tuple(SignatureKind):
        fields.unexpected(name, word, ", ".join(SignatureKind))
    return SignatureKind(word)


def _decoded(fields: Fields, word: str) -> bytes:
    try:
        return base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        fields.unexpected("payload", word, "base64")


def _pair(fields: Fields, words: tuple[str, ...]) -> tuple[str, str]:
    if len(words) != 2:
        fields.unexpected("annotations", " ".join(words), "pairs")
    return words[0], words[1]


@record
class SignatureSet:
    """All signatures that were found with one image, and in words what was there but could not be taken.

    `searched` tells the forms that were looked for: what was not looked for may exist.
    """

    candidates: tuple[Candidate, ...] = ()
    faults: tuple[str, ...] = ()
    searched: tuple[SignatureKind, ...] = ()

    def of_kind(self, *kinds: SignatureKind) -> tuple[Candidate, ...]:
        """Return the signatures of some forms."""
        return tuple(item for item in self.candidates if item.kind in kinds)

    def to_bytes(self) -> bytes:
        """Return the document that is stored beside the image."""
        return canonical(
            {
                "schema": SCHEMA,
                "candidates": [item.to_json() for item in self.candidates],
                "faults": list(self.faults),
                "searched": [str(kind) for kind in self.searched],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse what `to_bytes` writes; raises StateError or ImageError."""
        fields = Fields.document(
            data, what="stored signatures", limit=2 * limits.MAX_SIGNATURES_BYTES, schema=SCHEMA
        )
        found = cls(
            candidates=tuple(Candidate.from_fields(item) for item in fields.objects("candidates")),
            faults=fields.texts("faults"),
            searched=tuple(_kind(fields, "searched", word) for word in fields.texts("searched")),
        )
        fields.end()
        return found


def bounded(
    candidates: list[Candidate], faults: list[str], searched: tuple[SignatureKind, ...]
) -> SignatureSet:
    """Return a set within the limits; what is beyond them is dropped and said to be."""
    kept: list[Candidate] = []
    size = 0
    for item in candidates:
        size += len(item.payload)
        if len(kept) >= limits.MAX_SIGNATURES or size > limits.MAX_SIGNATURES_BYTES:
            faults = [*faults, f"{len(candidates) - len(kept)} more signatures than are looked at"]
            break
        kept.append(item)
    return SignatureSet(
        candidates=tuple(kept), faults=tuple(faults[: limits.MAX_SIGNATURES]), searched=searched
    )


def base64_of(text: str, what: str) -> bytes:
    """Decode base64 of a signature; raises ImageError naming `what`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{what} is not base64", code="image-signature") from error
