"""Settings from files: UAPI.6 places, TOML, one table of keys; options on the command line come after.

The first `secrun.toml` of /etc/secrun, /run/secrun, /usr/lib/secrun counts, then every drop-in
`secrun.toml.d/*.toml` in the order of its name, of which the first place again hides the others. The
environment may name one file instead of all these, and one more that is read last (`chosen`).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from secrun.errors import UsageError
from secrun.record import row

PLACES = (Path("/etc/secrun"), Path("/run/secrun"), Path("/usr/lib/secrun"))
FILE_NAME = "secrun.toml"
INSTEAD = "SECRUN_CONF"
"""Names the one file that is read instead of all places, as CONTAINERS_CONF does for podman."""
LAST = "SECRUN_CONF_OVERRIDE"
"""Names a file that is read after all others, as CONTAINERS_CONF_OVERRIDE does for podman."""
# Settings are some lines; a larger file was given by mistake.
MAX_BYTES = 256 * 1024

Tree: TypeAlias = "Mapping[str, str | int | bool | float | list[object] | Tree]"


@row
class Setting:
    """One value and where it came from: a file, or a word such as `default`."""

    value: str
    origin: str


def files(name: str, places: Sequence[Path]) -> list[Path]:
    """Return the files that settings called `name` are read from, in order."""
    return [*_main_file(name, places), *drop_ins(f"{name}.d", places)]


def _main_file(name: str, places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        path = place / name
        if os.path.lexists(path):
            yield path
            return


def drop_ins(name: str, places: Sequence[Path]) -> Iterator[Path]:
    """Yield the TOML files of the folders `name` in order; of one name the first place counts."""
    found: dict[str, Path] = {}
    for place in places:
        folder = place / name
        # Path.is_dir costs more than the question, and every start of a pod asks here.
        members = os.listdir(folder) if os.path.isdir(folder) else []
        for member in members:
            if member.endswith(".toml"):
                found.setdefault(member, folder / member)
    for member in sorted(found):
        yield found[member]


def read(path: Path, *, limit: int = MAX_BYTES) -> Tree:
    """Return a TOML file of at most `limit` bytes; raises UsageError."""
    import tomllib

    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", code="usage-config") from error
    if len(data) > limit:
        raise UsageError(f"{path} has more than {limit} bytes", code="usage-config")
    try:
        found: Tree = tomllib.loads(data.decode("utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}", code="usage-config") from error
    return found


def _flatten(tree: Tree, path: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flatten(value, path, f"{key}.")
        elif isinstance(value, str) or type(value) is int:
            yield key, str(value)
        else:
            raise UsageError(
                f"{path}: {key} is a {type(value).__name__}, expected a string or an integer",
                code="usage-config",
            )


def chosen(file: Path | None, environ: Mapping[str, str], places: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return the files to read, in order, each with the origin that its settings get.

    `file`, named on the command line, is read alone. An empty variable counts as none, as for podman
    (containers.conf(5)).
    """
    if file is not None:
        return [(file, str(file))]
    instead, last = environ.get(INSTEAD), environ.get(LAST)
    if instead:
        paths = [(Path(instead), f"{instead} (${INSTEAD})")]
    else:
        paths = [(path, str(path)) for path in files(FILE_NAME, places)]
    return [*paths, (Path(last), f"{last} (${LAST})")] if last else paths


def load(
    keys: Sequence[str],
    file: Path | None = None,
    places: Sequence[Path] = PLACES,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Setting]:
    """Return the settings that files give, by key; `file` is read alone, `environ` may name others.

    Raises UsageError for a file that cannot be read or understood, and for a key that is not one of `keys`.
    """
    found: dict[str, Setting] = {}
    for path, origin in chosen(file, environ or {}, places):
        for key, value in _flatten(read(path), path):
            if key not in keys:
                raise UsageError(
                    f"{path}: unknown key {key!r}",
                    hint=f"known keys: {', '.join(keys)}",
                    code="usage-config",
                )
            found[key] = Setting(value, origin)
    return found
