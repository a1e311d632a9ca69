"""What a policy can demand of an image: the requirements of containers-policy.json(5) as values."""

from enum import StrEnum

from secrun.jsonio import JsonObject, JsonValue
from secrun.record import record


class RequirementType(StrEnum):
    """The requirement types of the format; the last is secrun's own, made of the key ring."""

    ACCEPT = "insecureAcceptAnything"
    REJECT = "reject"
    SIGNED_BY = "signedBy"
    SIGSTORE_SIGNED = "sigstoreSigned"
    KEY_RING = "keyRing"


class IdentityMatch(StrEnum):
    """How the identity in a signature has to match the image's (`signedIdentity`)."""

    EXACT = "matchExact"
    REPO_DIGEST_OR_EXACT = "matchRepoDigestOrExact"
    REPOSITORY = "matchRepository"
    EXACT_REFERENCE = "exactReference"
    EXACT_REPOSITORY = "exactRepository"
    REMAP = "remapIdentity"


@record
class SignedIdentity:
    """A `signedIdentity` object; the names are empty where its type has none."""

    match: IdentityMatch = IdentityMatch.REPO_DIGEST_OR_EXACT
    reference: str = ""
    prefix: str = ""
    signed_prefix: str = ""

    def to_json(self) -> JsonObject:
        """Return all that decides."""
        return {
            "match": str(self.match),
            "reference": self.reference,
            "prefix": self.prefix,
            "signed_prefix": self.signed_prefix,
        }


@record
class Material:
    """A key or certificate file of a policy: where it lies, or its bytes."""

    path: str = ""
    data: bytes = b""


@record
class Fulcio:
    """The `fulcio` form: a certificate for one account of one OpenID provider."""

    authorities: Material
    issuer: str
    email: str


@record
class Pki:
    """The `pki` form: a certificate for a host or a mail address; empty is not asked for."""

    roots: Material
    intermediates: Material | None
    email: str
    hostname: str


@record
class Requirement:
    """One requirement; keys and certificates only of the signature types."""

    type: RequirementType
    keys: tuple[Material, ...] = ()
    fulcio: Fulcio | None = None
    pki: Pki | None = None
    rekor_keys: tuple[Material, ...] = ()
    identity: SignedIdentity = SignedIdentity()

    @property
    def signed(self) -> bool:
        """Whether only a signature can meet it."""
        return self.type not in (RequirementType.ACCEPT, RequirementType.REJECT)

    @property
    def materials(self) -> tuple[Material, ...]:
        """All key and certificate files that it names."""
        found = [*self.keys, *self.rekor_keys]
        if self.fulcio:
            found.append(self.fulcio.authorities)
        if self.pki:
            found.append(self.pki.roots)
            found += [self.pki.intermediates] if self.pki.intermediates else []
        return tuple(found)

    def to_json(self) -> JsonObject:
        """Return what decides beside the bytes of keys: part of the digest that an admission keeps."""
        people: list[JsonValue] = []
        if self.fulcio:
            people += [self.fulcio.issuer, self.fulcio.email]
        if self.pki:
            people += [self.pki.email, self.pki.hostname]
        return {
            "type": str(self.type),
            "identity": self.identity.to_json(),
            "form": "fulcio" if self.fulcio else "pki" if self.pki else "key",
            "people": people,
            "rekor": len(self.rekor_keys),
        }
