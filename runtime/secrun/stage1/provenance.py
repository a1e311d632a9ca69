"""Which Debian package and version each file of a stage1 image comes from (dpkg-query(1))."""

from collections.abc import Sequence
from pathlib import Path

from secrun.errors import HostError
from secrun.launch import run
from secrun.record import record


@record
class Package:
    """An installed package, with its architecture in the name where several are installed."""

    name: str
    version: str


def _names(path: Path) -> tuple[str, ...]:
    """Return how the package database may know `path`: it keeps names from before /usr was merged."""
    text = str(path)
    return (text, text.removeprefix("/usr")) if text.startswith("/usr/") else (text, f"/usr{text}")


def parse_owners(output: str) -> dict[str, str]:
    """Read `PACKAGE[, PACKAGE]: PATH` lines; diversions and files of several packages are left out."""
    result: dict[str, str] = {}
    for line in output.splitlines():
        package, colon, path = line.partition(": ")
        if colon and path.startswith("/") and "," not in package and " " not in package:
            result[path] = package
    return result


def _versions(packages: Sequence[str]) -> dict[str, str]:
    if not packages:
        return {}
    form = "--showformat=${binary:Package}\\t${Version}\\n"
    output = run(["dpkg-query", "--show", form, *packages]).stdout.decode()
    return dict(line.split("\t", 1) for line in output.splitlines())


def packages_of(paths: Sequence[Path]) -> dict[Path, Package]:
    """Return the package of every path that one owns; nothing is known on a host without dpkg."""
    candidates = {path: _names(path) for path in paths}
    try:
        found = run(
            ["dpkg-query", "--search", *(name for names in candidates.values() for name in names)],
            check=False,  # it fails if any one path is unknown, and still lists the others
        )
    except HostError:
        return {}
    owners = parse_owners(found.stdout.decode("utf-8", "replace"))
    by_path = {
        path: owner for path, names in candidates.items() for name in names if (owner := owners.get(name))
    }
    versions = _versions(sorted(set(by_path.values())))
    # `binary:Package` names the architecture only where it is needed; the search always may.
    short = {name.partition(":")[0]: version for name, version in versions.items()}
    return {
        path: Package(name=owner, version=versions.get(owner, short.get(owner.partition(":")[0], "")))
        for path, owner in by_path.items()
    }
