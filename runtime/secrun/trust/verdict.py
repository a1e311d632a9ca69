"""What is found out about signatures, and what is known when one is judged."""

from collections.abc import Mapping
from typing import Self

from secrun.digest import Digest
from secrun.dockername import DockerName
from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import record
from secrun.trust.requirement import Material


@record
class Verified:
    """A signature that counts: by whom, in which form, for which name.

    `signer` is a key's fingerprint or whom a certificate is for; `digest` identifies the signature; times
    are seconds since 1970, 0 if there is none; after `expires` it must be judged again.
    """

    kind: str
    signer: str
    reference: str
    digest: Digest
    signed_at: int = 0
    expires: int = 0

    def to_json(self) -> JsonObject:
        """Return the form that is stored and shown."""
        return {
            "kind": self.kind,
            "signer": self.signer,
            "reference": self.reference,
            "digest": str(self.digest),
            "signed_at": self.signed_at,
            "expires": self.expires,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_json` writes; raises StateError or ImageError."""
        found = cls(
            kind=fields.text("kind"),
            signer=fields.text("signer"),
            reference=fields.text("reference"),
            digest=Digest.parse(fields.text("digest")),
            signed_at=fields.integer("signed_at"),
            expires=fields.integer("expires"),
        )
        fields.end()
        return found


@record
class Case:
    """What every signature of an image is held against.

    `name` is the image's name in a registry, None for files; `digests` are those of its manifest and of the
    index that it was chosen from; `keys` are the bytes of the policy's files; `now` in seconds since 1970.
    """

    name: DockerName | None
    digests: frozenset[Digest]
    keys: Mapping[Material, bytes]
    now: float
    by_digest: bool = False
    """Whether a signature that names no image is enough (secrun's own rules)."""
