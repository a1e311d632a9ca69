"""The policy file of containers-policy.json(5), parsed strictly: what is not understood rejects the file."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType

from secrun.errors import ImageError, UsageError
from secrun.jsonio import JsonObject, JsonValue, parse_object
from secrun.record import field, record
from secrun.trust import limits


class RequirementType(StrEnum):
    """The requirement types of the format."""

    ACCEPT = "insecureAcceptAnything"
    REJECT = "reject"
    SIGNED_BY = "signedBy"
    SIGSTORE_SIGNED = "sigstoreSigned"


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


@record
class Requirement:
    """One requirement; keys are paths or bytes, and only of the signature types."""

    type: RequirementType
    key_paths: tuple[str, ...] = ()
    key_data: tuple[bytes, ...] = ()
    identity: SignedIdentity | None = None


@record
class TrustPolicy:
    """A whole policy file: requirements by transport and scope; scope "" is a transport's default."""

    source: str
    default: tuple[Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[Requirement, ...]]] = field(
        default_factory=lambda: MappingProxyType({})
    )


# containers/image knows these transports; a policy for another one is a typing error that would never apply.
_TRANSPORTS = frozenset(
    {
        "atomic",
        "containers-storage",
        "dir",
        "docker",
        "docker-archive",
        "docker-daemon",
        "oci",
        "oci-archive",
        "ostree",
        "sif",
        "tarball",
    }
)
# Their scopes are absolute paths, perhaps with a tag.
_PATH_TRANSPORTS = frozenset({"dir", "oci", "oci-archive", "sif"})
# They have no scope but the default.
_UNSCOPED_TRANSPORTS = frozenset({"docker-archive", "tarball"})


class _Reader:
    """Takes fields out of one object; what is left at the end is unknown and an error."""

    def __init__(self, source: JsonObject, where: str) -> None:
        self._rest = dict(source)
        self.where = where

    def error(self, why: str) -> UsageError:
        return policy_error(f"{self.where}: {why}")

    def text(self, key: str) -> str:
        value = self._rest.pop(key, None)
        if not isinstance(value, str) or not value:
            raise self.error(f"{key!r} must be a string that is not empty")
        return value

    def has(self, key: str) -> bool:
        return key in self._rest

    def pop(self, key: str) -> JsonValue:
        return self._rest.pop(key, None)

    def mapping(self, key: str) -> JsonObject:
        value = self._rest.pop(key, None)
        if not isinstance(value, dict):
            raise self.error(f"{key!r} must be an object")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._rest.pop(key, None)
        if not isinstance(value, list) or not value:
            raise self.error(f"{key!r} must be a list that is not empty")
        words = tuple(item for item in value if isinstance(item, str) and item)
        if len(words) != len(value):
            raise self.error(f"{key!r} must hold strings")
        return words

    def end(self) -> None:
        if self._rest:
            unknown = ", ".join(repr(key[:60]) for key in sorted(self._rest))
            raise self.error(f"unknown field {unknown}")


def policy_error(message: str) -> UsageError:
    """Return the error for a policy file that cannot be used."""
    return UsageError(
        f"trust policy {message}",
        hint="the whole file is refused, as containers-policy.json(5) demands; correct it",
        code="usage-policy",
    )


def _identity(reader: _Reader) -> SignedIdentity:
    if not reader.has("signedIdentity"):
        return SignedIdentity()
    inner = _Reader(reader.mapping("signedIdentity"), f"{reader.where}, signedIdentity")
    kind = inner.text("type")
    if kind not in set(IdentityMatch):
        raise inner.error(f"unknown type {kind[:60]!r}")
    match = IdentityMatch(kind)
    reference = prefix = signed = ""
    if match is IdentityMatch.EXACT_REFERENCE:
        reference = inner.text("dockerReference")
    elif match is IdentityMatch.EXACT_REPOSITORY:
        reference = inner.text("dockerRepository")
    elif match is IdentityMatch.REMAP:
        prefix, signed = inner.text("prefix"), inner.text("signedPrefix")
    inner.end()
    return SignedIdentity(match=match, reference=reference, prefix=prefix, signed_prefix=signed)


def _decoded(reader: _Reader, word: str) -> bytes:
    import base64
    import binascii

    try:
        return base64.b64decode(word, validate=True)
    except binascii.Error as error:
        raise reader.error("key data is not base64") from error


def _keys(reader: _Reader, *, plural_data: bool) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    names = ["keyPath", "keyPaths", "keyData", *(["keyDatas"] if plural_data else [])]
    given = [name for name in names if reader.has(name)]
    if len(given) != 1:
        raise reader.error(f"exactly one of {', '.join(names)} must be present, got {len(given)}")
    name = given[0]
    words = reader.texts(name) if name.endswith("s") else (reader.text(name),)
    if name.startswith("keyData"):
        return (), tuple(_decoded(reader, word) for word in words)
    return words, ()


def _signed_by(reader: _Reader) -> Requirement:
    if reader.text("keyType") != "GPGKeys":
        raise reader.error("'keyType' must be GPGKeys")
    paths, data = _keys(reader, plural_data=False)
    return Requirement(
        type=RequirementType.SIGNED_BY, key_paths=paths, key_data=data, identity=_identity(reader)
    )


def _sigstore_signed(reader: _Reader) -> Requirement:
    # Newer forms (fulcio, pki, rekorPublicKey...) are unknown fields here and reject the file.
    paths, data = _keys(reader, plural_data=True)
    return Requirement(
        type=RequirementType.SIGSTORE_SIGNED, key_paths=paths, key_data=data, identity=_identity(reader)
    )


_PARSERS: Mapping[RequirementType, Callable[[_Reader], Requirement]] = MappingProxyType(
    {
        RequirementType.ACCEPT: lambda _: Requirement(type=RequirementType.ACCEPT),
        RequirementType.REJECT: lambda _: Requirement(type=RequirementType.REJECT),
        RequirementType.SIGNED_BY: _signed_by,
        RequirementType.SIGSTORE_SIGNED: _sigstore_signed,
    }
)


def _requirements(value: JsonValue, where: str) -> tuple[Requirement, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= limits.MAX_REQUIREMENTS:
        raise policy_error(f"{where}: expected a list of 1 to {limits.MAX_REQUIREMENTS} requirements")
    result: list[Requirement] = []
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            raise policy_error(f"{where}[{number}]: a requirement must be an object")
        reader = _Reader(item, f"{where}[{number}]")
        kind = reader.text("type")
        if kind not in set(RequirementType):
            raise reader.error(f"unknown requirement type {kind[:60]!r}")
        result.append(_PARSERS[RequirementType(kind)](reader))
        reader.end()
    return tuple(result)


def _check_scope(transport: str, scope: str, where: str) -> None:
    if not scope:
        return
    if transport in _UNSCOPED_TRANSPORTS:
        raise policy_error(f'{where}: {transport} has no scope but ""')
    if transport in _PATH_TRANSPORTS and (not scope.startswith("/") or scope == "/" or _untidy(scope)):
        raise policy_error(f"{where}: must be an absolute, tidy path and not '/'")
    if transport == "docker" and "*" in scope and (not scope.startswith("*.") or "*" in scope[1:]):
        raise policy_error(f"{where}: a wildcard is written *.example.com, once and in front")
    if transport == "docker" and scope.startswith("*.") and "/" in scope:
        raise policy_error(f"{where}: a wildcard covers registries, not repositories")


def _untidy(path: str) -> bool:
    return any(part in ("", ".", "..") for part in path[1:].split("/"))


def _transports(value: JsonValue, where: str) -> Mapping[str, Mapping[str, tuple[Requirement, ...]]]:
    if not isinstance(value, dict):
        raise policy_error(f"{where}: 'transports' must be an object")
    result: dict[str, Mapping[str, tuple[Requirement, ...]]] = {}
    for transport, scopes in value.items():
        here = f"{where}: transports.{transport[:60]}"
        if transport not in _TRANSPORTS:
            raise policy_error(f"{here}: unknown transport")
        if not isinstance(scopes, dict):
            raise policy_error(f"{here}: must be an object of scopes")
        parsed: dict[str, tuple[Requirement, ...]] = {}
        for scope, requirements in scopes.items():
            at = f"{here}[{scope[:200]!r}]"
            _check_scope(transport, scope, at)
            parsed[scope] = _requirements(requirements, at)
        result[transport] = MappingProxyType(parsed)
    return MappingProxyType(result)


def parse(data: bytes, *, source: str) -> TrustPolicy:
    """Parse a policy file that was read from `source`; raises UsageError for anything not understood."""
    try:
        document = parse_object(data, what=source, limit=limits.MAX_POLICY_BYTES)
    except ImageError as error:
        raise policy_error(error.message) from error
    reader = _Reader(document, source)
    if not reader.has("default"):
        raise reader.error("'default' is missing")
    default = _requirements(reader.pop("default"), f"{source}: default")
    transports = _transports(reader.pop("transports"), source) if reader.has("transports") else {}
    reader.end()
    return TrustPolicy(source=source, default=default, transports=transports)
