"""The policy files of this host: read in the order of UAPI.6, digested, and parsed into one set.

`policy.d/*.toml` of /etc/secrun, /run/secrun and /usr/lib/secrun; a name in an earlier place hides the same
name in a later one, and an empty file or a link to /dev/null hides it altogether.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun import config
from secrun.errors import UsageError
from secrun.jsonio import canonical
from secrun_policies.errors import PolicyError

if TYPE_CHECKING:
    from secrun_policies.rules import PolicySet, Profile

FOLDER = "policy.d"
# As one file's limit in secrun_policies.policyfile, which is not loaded where there is no file.
_MAX_BYTES = 256 * 1024
_MAX_FILES = 256


def _files(places: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    """Yield every file that says something; raises UsageError for one that cannot be read."""
    for number, path in enumerate(config.drop_ins(FOLDER, places)):
        if number >= _MAX_FILES:
            raise UsageError(f"more than {_MAX_FILES} policy files in {path.parent}", code="usage-policy")
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_BYTES + 1)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", code="usage-policy") from error
        if data:
            yield path, data


def _digest(files: Sequence[tuple[Path, bytes]]) -> str:
    """Return the digest over names and contents, the same on every host; empty without files."""
    if not files:
        return ""
    rows = [[path.name, hashlib.sha256(data).hexdigest()] for path, data in files]
    return f"sha256:{hashlib.sha256(canonical([list(row) for row in rows])).hexdigest()}"


def digest(places: Sequence[Path] | None = None) -> str:
    """Return the digest of the policy in force; empty if there is none. Raises UsageError."""
    return _digest(list(_files(config.PLACES if places is None else places)))


def load(places: Sequence[Path] | None = None) -> "PolicySet":
    """Return the policy in force; raises UsageError for a file that is not understood."""
    from secrun_policies.rules import PolicySet  # whoever only wants the digest need not know it

    files = list(_files(config.PLACES if places is None else places))
    if not files:
        return PolicySet()
    from secrun_policies import policyfile

    try:
        parsed = [policyfile.parse(data, file=str(path)) for path, data in files]
    except PolicyError as error:
        raise UsageError(error.message, hint=error.hint, code="usage-policy") from error
    found = PolicySet(
        profiles=tuple(item for file in parsed for item in file.profiles),
        rules=tuple(item for file in parsed for item in file.rules),
        cases=tuple(item for file in parsed for item in file.cases),
        sources=tuple(str(path) for path, _ in files),
        digest=_digest(files),
    )
    _no_name_twice("profile", [(item.name, item.source) for item in found.profiles])
    _no_name_twice("rule", [(item.name, item.source) for item in found.rules])
    return found


def _no_name_twice(what: str, names: Sequence[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for name, source in names:
        if name in seen:
            raise UsageError(
                f"{source}: {what} {name} is also in {seen[name]}",
                hint="a file of the same name in an earlier place replaces the whole file",
                code="usage-policy",
            )
        seen[name] = source


def load_profile_file(path: Path) -> "Profile":
    """Return the one profile of a file that was named on the command line; raises UsageError."""
    from secrun_policies import policyfile

    try:
        with path.open("rb") as stream:
            parsed = policyfile.parse(stream.read(_MAX_BYTES + 1), file=str(path))
    except OSError as error:
        raise UsageError(f"--profile {path}: {error.strerror}", code="usage-profile") from error
    except PolicyError as error:
        raise UsageError(error.message, hint=error.hint, code="usage-profile") from error
    if len(parsed.profiles) != 1 or parsed.rules or parsed.cases:
        raise UsageError(
            f"{path} holds {len(parsed.profiles)} profiles and {len(parsed.rules)} rules, "
            "expected one profile and nothing else",
            code="usage-profile",
        )
    return parsed.profiles[0]
