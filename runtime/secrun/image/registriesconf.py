"""Where registries really are: containers-registries.conf(5), version 2, read strictly."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from secrun import config, dockername
from secrun.dockername import DockerName
from secrun.errors import DeniedError, ImageError, UsageError
from secrun.image.reference import RegistryReference
from secrun.record import field, record
from secrun.tables import Taker

# Machine-made lists of mirrors are long; this file is read at each fetch.
_MAX_BYTES = 4 * 1024 * 1024
_MAX_REGISTRIES = 10_000
_SYSTEM = Path("/etc/containers/registries.conf")


@record
class Mirror:
    """A place that may have the images of a registry."""

    location: str
    insecure: bool
    by_digest: bool = True
    by_tag: bool = True


@record
class Registry:
    """What is set for images whose name begins with `prefix`; an empty location leaves it as it is."""

    prefix: str
    location: str
    insecure: bool
    blocked: bool
    source: str
    mirrors: tuple[Mirror, ...] = ()


@record
class Endpoint:
    """One place to ask for an image, in the order of asking."""

    reference: RegistryReference
    insecure: bool = False


@record
class RegistriesConf:
    """All settings: registries, short names, and where to look for names without a registry."""

    registries: tuple[Registry, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    search: tuple[str, ...] = ()

    def endpoints(self, reference: RegistryReference) -> tuple[Endpoint, ...]:
        """Return where to ask for `reference`: mirrors, then the place; raises DeniedError if blocked."""
        found = self._find(reference)
        if found is None:
            return (Endpoint(reference=reference),)
        if found.blocked:
            raise DeniedError(
                f"{reference} is not fetched: {found.source} blocks {found.prefix}",
                hint="take `blocked` out of the file, or use another registry",
                code="denied-registry",
            )
        by_digest = reference.digest is not None
        mirrors = [item for item in found.mirrors if (item.by_digest if by_digest else item.by_tag)]
        places = [(item.location, item.insecure) for item in mirrors]
        places.append((found.location, found.insecure))
        return tuple(
            Endpoint(reference=_moved(reference, found.prefix, location), insecure=insecure)
            for location, insecure in places
        )

    def _find(self, reference: RegistryReference) -> Registry | None:
        """Return the table with the longest prefix; a wildcard is shorter than any name without one."""
        scopes = [reference.name, *dockername.parents(reference.repository)]
        scopes += dockername.wildcards(reference.domain)
        by_prefix = {item.prefix: item for item in self.registries}
        return next((by_prefix[scope] for scope in scopes if scope in by_prefix), None)

    def expand(self, word: str) -> str:
        """Return the name that a short one stands for, empty if for none; raises UsageError if for several.

        Aliases come first. Of several registries to search none is taken: any of them could be somebody
        else's (`short-name-mode` cannot allow it here).
        """
        try:
            name = dockername.parse(f"docker.io/{word}")
        except ImageError:
            return ""
        rest = f"{f':{name.tag}' if name.tag else ''}{f'@{name.digest}' if name.digest else ''}"
        short = word[: len(word) - len(rest)] if rest else word
        if target := self.aliases.get(short):
            return f"{target}{rest}"
        if len(self.search) > 1:
            raise UsageError(
                f"{word[:200]!r} could be in {' or '.join(self.search)}",
                hint="write the registry in front of it, or an alias into registries.conf",
                code="usage-short-name",
            )
        return f"{self.search[0]}/{word}" if self.search else ""


def _moved(reference: RegistryReference, prefix: str, location: str) -> RegistryReference:
    """Replace a prefix of a reference by where it lies; raises UsageError if that makes no reference."""
    if not location:
        return reference
    # A wildcard stands for the registry alone, which its location replaces.
    length = len(reference.domain) if prefix.startswith("*.") else len(prefix)
    name = location + reference.name[length:]
    try:
        found = dockername.parse(name)
    except ImageError as error:
        raise _bad(f"location {location!r} makes {name[:200]!r} of {reference}: {error.message}") from error
    return RegistryReference(
        domain=found.domain, path=found.path, tag=found.tag, digest=found.digest, explicit=reference.explicit
    )


def _bad(why: str) -> UsageError:
    return UsageError(
        f"registries.conf: {why}",
        hint="see containers-registries.conf(5); version 1 of the format is not read",
        code="usage-registries",
    )


def _prefix(text: str, where: str) -> str:
    """Check a prefix; raises UsageError."""
    word = text.rstrip("/")
    if word.startswith("*."):
        if "/" in word or "*" in word[1:] or not dockername.is_registry(word[2:]):
            raise _bad(f"{where}: prefix {text[:100]!r}: a wildcard is *.HOST")
        return word
    return _location(word, where)


def _location(text: str, where: str) -> str:
    word = text.rstrip("/")
    try:
        name: DockerName | None = None if dockername.is_registry(word) else dockername.parse(word)
    except ImageError as error:
        raise _bad(f"{where}: {text[:100]!r}: {error.message}") from error
    if name is not None and str(name) != word:
        raise _bad(f"{where}: {text[:100]!r} is not written in full: {name}")
    return word


def _mirror(taker: Taker, *, digests_only: bool) -> Mirror:
    location = _location(taker.text("location"), taker.where)
    insecure = taker.flag("insecure")
    mode = taker.text("pull-from-mirror", "") or ("digest-only" if digests_only else "all")
    if mode not in ("all", "digest-only", "tag-only"):
        raise taker.error(f"pull-from-mirror is {mode[:40]!r}, expected all, digest-only or tag-only")
    if digests_only and mode != "digest-only":
        raise taker.error("pull-from-mirror and mirror-by-digest-only exclude each other")
    taker.end()
    return Mirror(
        location=location, insecure=insecure, by_digest=mode != "tag-only", by_tag=mode != "digest-only"
    )


def _registry(taker: Taker, source: str) -> Registry:
    location, prefix = taker.text("location", ""), taker.text("prefix", "")
    if not prefix and not location:
        raise taker.error("prefix or location must be given")
    digests_only = taker.flag("mirror-by-digest-only")
    mirrors = tuple(
        _mirror(item, digests_only=digests_only) for item in taker.tables("mirror", limit=_MAX_REGISTRIES)
    )
    place = _location(location, taker.where) if location else ""
    checked = _prefix(prefix, taker.where) if prefix else place
    if not place and not checked.startswith("*."):
        place = checked
    found = Registry(
        prefix=checked,
        location=place,
        insecure=taker.flag("insecure"),
        blocked=taker.flag("blocked"),
        source=source,
        mirrors=mirrors,
    )
    taker.end()
    return found


def _alias(name: str, target: str, source: str) -> str:
    """Check what a short name stands for; empty takes it back."""
    if not target:
        return ""
    first = target.partition("/")[0]
    try:
        whole = dockername.parse(target)
    except ImageError as error:
        raise _bad(f"{source}: alias {name[:80]!r}: {error.message}") from error
    if not dockername.is_domain(first) or not whole.bare:
        raise _bad(f"{source}: alias {name[:80]!r} must be REGISTRY/NAME without a tag")
    return target


def parse(tree: Mapping[str, object], source: str) -> RegistriesConf:
    """Parse one file; raises UsageError for what is not understood."""
    taker = Taker(tree, source, _bad)
    if taker.has("registries"):
        raise _bad(f"{source} is of version 1")
    registries = tuple(_registry(item, source) for item in taker.tables("registry", limit=_MAX_REGISTRIES))
    prefixes = [item.prefix for item in registries]
    if len(set(prefixes)) != len(prefixes):
        raise _bad(f"{source}: two tables have the same prefix")
    aliases = {name: _alias(name, target, source) for name, target in taker.words("aliases").items()}
    search = tuple(_location(word, source) for word in taker.texts("unqualified-search-registries"))
    mode = taker.text("short-name-mode", "")
    if mode not in ("", "enforcing", "permissive", "disabled"):
        raise _bad(f"{source}: short-name-mode is {mode[:40]!r}")
    # Which helpers know credentials is read from auth.json.
    taker.texts("credential-helpers")
    taker.tables("additional-layer-store-auth-helper", limit=0)
    taker.end()
    return RegistriesConf(registries=registries, aliases=aliases, search=search)


def merge(parts: Sequence[RegistriesConf]) -> RegistriesConf:
    """Join a file and its drop-ins: a later table replaces the earlier one of its prefix."""
    registries: dict[str, Registry] = {}
    aliases: dict[str, str] = {}
    search: tuple[str, ...] = ()
    for part in parts:
        registries |= {item.prefix: item for item in part.registries}
        aliases |= part.aliases
        search = part.search or search
    return RegistriesConf(registries=tuple(registries.values()), aliases=aliases, search=search)


def files(environ: Mapping[str, str]) -> list[Path]:
    """Return the files to read: the user's, or the system's, then the drop-ins beside it by name."""
    if named := environ.get("CONTAINERS_REGISTRIES_CONF"):
        return [Path(named)]
    home = environ.get("HOME", "")
    own = Path(home, ".config/containers/registries.conf")
    main = own if home and own.exists() else _SYSTEM
    folder = main.with_name("registries.conf.d")
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [*([main] if main.exists() else []), *(folder / name for name in names if name.endswith(".conf"))]


def load(environ: Mapping[str, str]) -> RegistriesConf:
    """Read all settings; raises UsageError."""
    paths = files(environ)
    return merge([parse(config.read(path, limit=_MAX_BYTES), str(path)) for path in paths])
