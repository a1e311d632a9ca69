"""The policy file of containers-policy.json(5), parsed strictly: what is not understood rejects the file."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from secrun import dockername
from secrun.dockername import DockerName
from secrun.errors import ImageError
from secrun.jsonio import JsonValue, parse_object
from secrun.record import field, record
from secrun.trust import limits
from secrun.trust.policyreader import Reader, policy_error
from secrun.trust.requirement import (
    Fulcio,
    IdentityMatch,
    Material,
    Pki,
    Requirement,
    RequirementType,
    SignedIdentity,
)

Scopes = Mapping[str, tuple[Requirement, ...]]


@record
class TrustPolicy:
    """A whole policy file: requirements by transport and scope; scope "" is a transport's default."""

    source: str
    default: tuple[Requirement, ...]
    transports: Mapping[str, Scopes] = field(default_factory=lambda: MappingProxyType({}))


# containers/image knows these transports, but for `aci`, which is secrun's own and passed over there.
# A policy for another one is a typing error that would never apply.
_TRANSPORTS = frozenset(
    {
        "aci",
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


def _name(reader: Reader, key: str, *, bare: bool) -> str:
    """Take the name of an image, or of a repository if `bare`, written out in full."""
    word = reader.text(key)
    try:
        name = dockername.parse(word)
    except ImageError as error:
        raise reader.error(f"{key!r}: {error.message}") from error
    if name.bare != bare:
        raise reader.error(f"{key!r} must {'not ' if bare else ''}have a tag or digest, got {word[:200]!r}")
    return str(name)


def _prefix(reader: Reader, key: str) -> str:
    """Take HOST[:PORT], a namespace or a repository; like containers/image only what is written in full."""
    word = reader.text(key)
    if dockername.is_registry(word):
        return word
    try:
        name: DockerName | None = dockername.parse(word)
    except ImageError:
        name = None
    if name is None or not name.bare or str(name) != word:
        raise reader.error(f"{key!r} is {word[:200]!r}, expected HOST[:PORT][/NAMESPACE...] in full")
    return word


def _identity(reader: Reader) -> SignedIdentity:
    if not reader.has("signedIdentity"):
        return SignedIdentity()
    inner = reader.object("signedIdentity")
    kind = inner.text("type")
    if kind not in set(IdentityMatch):
        raise inner.error(f"unknown type {kind[:60]!r}")
    match = IdentityMatch(kind)
    reference = prefix = signed = ""
    if match is IdentityMatch.EXACT_REFERENCE:
        reference = _name(inner, "dockerReference", bare=False)
    elif match is IdentityMatch.EXACT_REPOSITORY:
        reference = _name(inner, "dockerRepository", bare=True)
    elif match is IdentityMatch.REMAP:
        prefix, signed = _prefix(inner, "prefix"), _prefix(inner, "signedPrefix")
    inner.end()
    return SignedIdentity(match=match, reference=reference, prefix=prefix, signed_prefix=signed)


def _materials(reader: Reader, stem: str, forms: tuple[str, ...]) -> tuple[Material, ...]:
    """Take at most one of the fields STEM+form: Path, Paths, Data, Datas; empty if none is there."""
    given = [stem + form for form in forms if reader.has(stem + form)]
    if len(given) > 1:
        raise reader.error(f"only one of {', '.join(given)} may be present")
    if not given:
        return ()
    name = given[0]
    words = reader.texts(name) if name.endswith("s") else (reader.text(name),)
    if name.removeprefix(stem).startswith("Data"):
        return tuple(Material(data=reader.decoded(name, word)) for word in words)
    return tuple(Material(path=word) for word in words)


def _material(reader: Reader, stem: str) -> Material:
    found = _materials(reader, stem, ("Path", "Data"))
    if not found:
        raise reader.error(f"one of {stem}Path and {stem}Data must be present")
    return found[0]


def _signed_by(reader: Reader) -> Requirement:
    if reader.text("keyType") != "GPGKeys":
        raise reader.error("'keyType' must be GPGKeys")
    keys = _materials(reader, "key", ("Path", "Paths", "Data"))
    if not keys:
        raise reader.error("one of keyPath, keyPaths and keyData must be present")
    return Requirement(type=RequirementType.SIGNED_BY, keys=keys, identity=_identity(reader))


def _fulcio(reader: Reader) -> Fulcio:
    found = Fulcio(
        authorities=_material(reader, "ca"),
        issuer=reader.text("oidcIssuer"),
        email=reader.text("subjectEmail"),
    )
    reader.end()
    return found


def _pki(reader: Reader) -> Pki:
    intermediates = _materials(reader, "caIntermediates", ("Path", "Data"))
    found = Pki(
        roots=_material(reader, "caRoots"),
        intermediates=intermediates[0] if intermediates else None,
        email=reader.optional_text("subjectEmail"),
        hostname=reader.optional_text("subjectHostname"),
    )
    if not (found.email or found.hostname):
        raise reader.error("subjectEmail or subjectHostname must be present")
    reader.end()
    return found


def _sigstore_signed(reader: Reader) -> Requirement:
    keys = _materials(reader, "key", ("Path", "Paths", "Data", "Datas"))
    fulcio = _fulcio(reader.object("fulcio")) if reader.has("fulcio") else None
    pki = _pki(reader.object("pki")) if reader.has("pki") else None
    if bool(keys) + bool(fulcio) + bool(pki) != 1:
        raise reader.error(
            "exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki must be present"
        )
    rekor = _materials(reader, "rekorPublicKey", ("Path", "Paths", "Data", "Datas"))
    if fulcio and not rekor:
        raise reader.error("fulcio needs one of the rekorPublicKey fields")
    return Requirement(
        type=RequirementType.SIGSTORE_SIGNED,
        keys=keys,
        fulcio=fulcio,
        pki=pki,
        rekor_keys=rekor,
        identity=_identity(reader),
    )


_PARSERS: Mapping[str, Callable[[Reader], Requirement]] = MappingProxyType(
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
        reader = Reader(item, f"{where}[{number}]")
        kind = reader.text("type")
        if kind not in _PARSERS:
            raise reader.error(f"unknown requirement type {kind[:60]!r}")
        result.append(_PARSERS[kind](reader))
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


def _transports(value: JsonValue, where: str) -> Mapping[str, Scopes]:
    if not isinstance(value, dict):
        raise policy_error(f"{where}: 'transports' must be an object")
    result: dict[str, Scopes] = {}
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
    reader = Reader(document, source)
    if not reader.has("default"):
        raise reader.error("'default' is missing")
    default = _requirements(reader.pop("default"), f"{source}: default")
    transports = _transports(reader.pop("transports"), source) if reader.has("transports") else {}
    reader.end()
    return TrustPolicy(source=source, default=default, transports=transports)
