"""Find network configurations and plugins in the folders of this host."""

import os
from collections.abc import Iterator, Sequence

from secrun.errors import HostError, NetworkError, UsageError
from secrun.network import builtin, conflist
from secrun.network.conflist import NetworkConfig
from secrun.network.limits import MAX_CONFIG_BYTES, MAX_PLUGIN_SECONDS, PLUGIN_SECONDS
from secrun.paths import Layout
from secrun.record import record

# An earlier folder hides networks of the same name in later ones.
CONFIG_FOLDERS = ("/etc/secrun/net.d", "/usr/lib/secrun/net.d", "/etc/cni/net.d")
PLUGIN_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin")
_SUFFIXES = (".conflist", ".conf", ".json")
_PACKAGE_HINT = "install containernetworking-plugins, or start the pod with --net=none"


@record
class Places:
    """Where configurations and plugins are looked for, in this order, and how long a plugin may take."""

    configs: tuple[str, ...] = CONFIG_FOLDERS
    plugins: tuple[str, ...] = PLUGIN_FOLDERS
    plugin_seconds: int = PLUGIN_SECONDS


def places(configs: str, plugins: str, seconds: float) -> Places:
    """Read lists of folders separated by colons; empty ones mean the usual folders.

    Raises UsageError for a time limit that is none.
    """
    if not 1 <= seconds <= MAX_PLUGIN_SECONDS:
        raise UsageError(
            f"network.timeout is {seconds:g} s, expected 1 to {MAX_PLUGIN_SECONDS}", code="usage-network"
        )
    return Places(
        configs=tuple(filter(None, configs.split(":"))) or CONFIG_FOLDERS,
        plugins=tuple(filter(None, plugins.split(":"))) or PLUGIN_FOLDERS,
        plugin_seconds=int(seconds),
    )


@record
class Candidate:
    """A configuration file: the network's name, or what is wrong with the file."""

    path: str
    name: str
    problem: NetworkError | None = None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise NetworkError(f"{path}: {error.strerror}", code="network-config") from error


def _look(path: str) -> Candidate:
    try:
        name = conflist.name_of(conflist.parse_document(_read(path), path))
    except NetworkError as error:
        return Candidate(path=path, name="", problem=error)
    if not name:
        return Candidate(path=path, name="", problem=NetworkError(f"{path} names no network"))
    return Candidate(path=path, name=name)


def candidates(folders: Sequence[str]) -> Iterator[Candidate]:
    """Yield every configuration file in the order in which names are looked up."""
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield from (_look(os.path.join(folder, name)) for name in names if name.endswith(_SUFFIXES))


def _load(path: str) -> NetworkConfig:
    return conflist.parse(_read(path), path)


def find(name: str, layout: Layout, folders: Sequence[str], *, ports: bool = False) -> NetworkConfig:
    """Return the network called `name`; raises NetworkError if there is none.

    A file that cannot be read might be the one that is meant, so it is an error unless the name was found
    before it.
    """
    known: list[str] = []
    for candidate in candidates(folders):
        if candidate.name == name:
            return _load(candidate.path)
        if candidate.problem is not None:
            raise candidate.problem
        known.append(candidate.name)
    if name == builtin.NAME:
        return builtin.default_network(layout, ports=ports)
    raise NetworkError(
        f"there is no network called {name!r}",
        hint=f"known: {', '.join(sorted({*known, builtin.NAME}))}; folders: {' '.join(folders)}",
        code="network-unknown",
    )


def survey(layout: Layout, folders: Sequence[str]) -> tuple[list[NetworkConfig], list[NetworkError]]:
    """Return every network that a pod can join, and what is wrong with files that are none."""
    found: dict[str, NetworkConfig] = {}
    problems: list[NetworkError] = []
    for candidate in candidates(folders):
        try:
            if candidate.problem is not None:
                raise candidate.problem
            if candidate.name not in found:
                found[candidate.name] = _load(candidate.path)
        except NetworkError as error:
            problems.append(error)
    found.setdefault(builtin.NAME, builtin.default_network(layout, ports=True))
    return [found[name] for name in sorted(found)], problems


def all_names(folders: Sequence[str]) -> tuple[str, ...]:
    """Return the names of all networks, `default` first; raises NetworkError for a damaged file."""
    names = [builtin.NAME]
    for candidate in candidates(folders):
        if candidate.problem is not None:
            raise candidate.problem
        names.append(candidate.name)
    return tuple(dict.fromkeys(names))


def plugin_path(program: str, folders: Sequence[str]) -> str | None:
    """Return where a plugin is, None if it is in no folder."""
    for folder in folders:
        path = os.path.join(folder, program)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def check_plugins(config: NetworkConfig, folders: Sequence[str]) -> None:
    """Raise HostError unless every plugin of the network is installed."""
    missing = [program for program in config.programs if plugin_path(program, folders) is None]
    if missing:
        raise HostError(
            f"network {config.name} needs the CNI plugin {missing[0]!r}: it is not in {':'.join(folders)}",
            hint=_PACKAGE_HINT,
            code="host-cni-plugin",
        )
