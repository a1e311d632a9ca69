"""Network configurations: CNI specification 1.1.0, section 1, and the older forms that it still names."""

import re
from collections.abc import Mapping, Sequence

from secrun.digest import Digest
from secrun.errors import ImageError, NetworkError
from secrun.jsonio import JsonObject, JsonValue, parse_object
from secrun.network.limits import MAX_CONFIG_BYTES, MAX_PLUGINS
from secrun.record import record

# Before 0.3.0 there were no chains and results had another shape.
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_CHECK_SINCE = "0.4.0"
_GC_SINCE = "1.1.0"
# Section 1: network names must be usable as file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
# A plugin's type is looked up as a file in the folders of CNI_PATH.
_TYPE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")


@record
class Plugin:
    """One plugin of a chain: its configuration as written, and what is read from it here."""

    type: str
    ipam: str
    """The plugin that hands out addresses; empty if none is named."""
    capabilities: frozenset[str]
    config: Mapping[str, JsonValue]


@record
class NetworkConfig:
    """A network: the chain of plugins that connects a pod to it."""

    name: str
    version: str
    source: str
    plugins: tuple[Plugin, ...]
    document: bytes
    """The configuration in one spelling."""
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def digest(self) -> Digest:
        """Digest of the configuration in one spelling."""
        return Digest.of(self.document)

    @property
    def programs(self) -> tuple[str, ...]:
        """Every plugin that the chain runs, addresses included, each once."""
        words = [word for plugin in self.plugins for word in (plugin.type, plugin.ipam) if word]
        return tuple(dict.fromkeys(words))

    @property
    def checks(self) -> bool:
        """Tell whether CHECK may be called."""
        return self.since(_CHECK_SINCE) and not self.disable_check

    @property
    def collects(self) -> bool:
        """Tell whether GC may be called."""
        return self.since(_GC_SINCE) and not self.disable_gc

    def since(self, version: str) -> bool:
        """Tell whether the configuration is of `version` or later."""
        return VERSIONS.index(self.version) >= VERSIONS.index(version)

    def capable(self, capability: str) -> bool:
        """Tell whether some plugin takes `capability`."""
        return any(capability in plugin.capabilities for plugin in self.plugins)


def _bad(source: str, problem: str) -> NetworkError:
    return NetworkError(
        f"{source}: {problem}",
        hint="a CNI network configuration is expected; docs/networking.md",
        code="network-config",
    )


def spelled(value: JsonValue) -> bytes:
    """Return JSON in one spelling; unlike canonical JSON of secrun's own it may hold fractions."""
    import json

    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _text(document: Mapping[str, JsonValue], key: str, source: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise _bad(source, f"{key} is a {type(value).__name__}, expected a string")
    return value


def _flag(document: Mapping[str, JsonValue], key: str, source: str) -> bool:
    """Take a boolean; libcni accepts it as a string too."""
    value = document.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _bad(source, f"{key} is a {type(value).__name__}, expected true or false")
    return value


def _object(document: Mapping[str, JsonValue], key: str, source: str) -> JsonObject:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise _bad(source, f"{key} is a {type(value).__name__}, expected an object")
    return value


def _type(document: Mapping[str, JsonValue], source: str, *, needed: bool) -> str:
    found = _text(document, "type", source)
    if not found and not needed:
        return ""
    if not _TYPE.match(found):
        raise _bad(source, f"type {found[:80]!r} is not a plugin's name")
    return found


def _plugin(value: JsonValue, source: str) -> Plugin:
    if not isinstance(value, dict):
        raise _bad(source, f"a plugin is a {type(value).__name__}, expected an object")
    capabilities = _object(value, "capabilities", source)
    for name, wanted in capabilities.items():
        if not isinstance(wanted, bool):
            raise _bad(source, f"capabilities.{name[:80]} is not true or false")
    return Plugin(
        type=_type(value, source, needed=True),
        ipam=_type(_object(value, "ipam", source), source, needed=False),
        capabilities=frozenset(name for name, wanted in capabilities.items() if wanted),
        config=value,
    )


def _version(document: Mapping[str, JsonValue], source: str) -> str:
    """Return the newest version that the configuration and secrun both know."""
    offered = document.get("cniVersions", [])
    if not isinstance(offered, list) or not all(isinstance(item, str) for item in offered):
        raise _bad(source, "cniVersions is not a list of strings")
    words = [_text(document, "cniVersion", source), *offered]
    known = [word for word in VERSIONS if word in words]
    if not known:
        given = ", ".join(str(word)[:20] for word in words if word) or "none"
        raise _bad(source, f"cniVersion is {given}, secrun knows {', '.join(VERSIONS)}")
    return known[-1]


def name_of(document: Mapping[str, JsonValue]) -> str:
    """Return the network's name, empty if it has none that is valid."""
    name = document.get("name")
    return name if isinstance(name, str) and _NAME.match(name) else ""


def from_document(document: Mapping[str, JsonValue], source: str) -> NetworkConfig:
    """Read a configuration: a chain, or one plugin on its own; raises NetworkError naming `source`."""
    name = name_of(document)
    if not name:
        raise _bad(source, f"name {str(document.get('name'))[:80]!r} is not a network's name")
    listed: JsonValue = document.get("plugins")
    alone = listed is None
    items: Sequence[JsonValue] = [dict(document)] if alone else listed if isinstance(listed, list) else []
    if not items or len(items) > MAX_PLUGINS:
        raise _bad(source, f"plugins is not a list of 1 to {MAX_PLUGINS} plugins")
    return NetworkConfig(
        name=name,
        version=_version(document, source),
        source=source,
        plugins=tuple(_plugin(item, source) for item in items),
        document=spelled(dict(document)),
        disable_check=_flag(document, "disableCheck", source),
        disable_gc=_flag(document, "disableGC", source),
    )


def parse_document(data: bytes, source: str) -> JsonObject:
    """Parse a configuration file as far as JSON goes; raises NetworkError naming `source`."""
    try:
        return parse_object(data, what=source, limit=MAX_CONFIG_BYTES)
    except ImageError as error:
        raise NetworkError(error.message, code="network-config") from error


def parse(data: bytes, source: str) -> NetworkConfig:
    """Parse a configuration; raises NetworkError naming `source`."""
    return from_document(parse_document(data, source), source)
