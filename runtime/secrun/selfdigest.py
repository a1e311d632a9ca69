"""What secrun itself is made of: one digest over every file of it that runs, or decides what runs.

A log names it first, so that a verifier knows which code measured all the rest. It covers secrun's four
packages with their data, the agent, and the init of a guest; not the interpreter and the libraries that
they use.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import HostError
from secrun.record import row
from secrun.stage1.agent import agent_path, stage0_path

PACKAGES = ("secrun", "secrun_kvm", "secrun_policies", "secrun_attest")
# Listed under names of their own: a distribution keeps them elsewhere.
_PROGRAMS = (("agent/secrun-agent", agent_path), ("agent/secrun-stage0", stage0_path))
# A source tree and a wheel hold these in two places; the names are those of the wheel.
_DATA = (
    ("secrun_policies", "data/seccomp", "seccomp"),
    ("secrun_policies", "data/selinux", "selinux"),
)
# Byte code of sources that are listed themselves; Python checks it against them.
_CACHE = "__pycache__"
_SKIPPED = frozenset({_CACHE, "_agent"})


@row
class _File:
    name: str
    """As in a wheel, the same on every machine."""
    path: str
    facts: os.stat_result


def _walk(folder: Path, prefix: str) -> Iterator[_File]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in _SKIPPED:
                continue
            name = f"{prefix}/{entry.name}"
            facts = entry.stat()
            if stat.S_ISREG(facts.st_mode):
                yield _File(name, entry.path, facts)
            elif entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), name)
            else:
                raise HostError(
                    f"{entry.path} is neither a file nor a folder",
                    hint="install secrun anew",
                    code="host-self",
                )


def package_folder(package: str) -> Path | None:
    """Return where one of secrun's packages lies; None if it is not installed."""
    spec = PathFinder.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _files() -> list[_File]:
    found: dict[str, _File] = {}
    folders = {package: folder for package in PACKAGES if (folder := package_folder(package)) is not None}
    for package, folder in folders.items():
        found.update((item.name, item) for item in _walk(folder, package))
    for package, inside, beside in _DATA:
        if package in folders and not (folders[package] / inside).is_dir():
            data = _walk(folders[package].parent / beside, f"{package}/{inside}")
            found.update((item.name, item) for item in data)
    for name, find in _PROGRAMS:
        program = str(find())
        found[name] = _File(name, program, os.stat(program))
    return [found[name] for name in sorted(found)]


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def runtime_digest() -> Digest:
    """Return the digest of this installation of secrun: the same wherever the same version is installed.

    It is that of a JSON list of [name, SHA-256], sorted by name. Times, owners and modes do not count. Takes
    some ten milliseconds; raises HostError if a part is missing.
    """
    from secrun.jsonio import JsonValue, canonical

    listing: list[JsonValue] = [[item.name, _sha256(item.path)] for item in _files()]
    return Digest.of(canonical([["secrun-runtime", 1], *listing]))


def fingerprint() -> str:
    """Return a text that changes with any file of this installation; a millisecond or two.

    It comes from sizes, times and inodes alone: a reason to take the digest again, never a proof.
    """
    found = hashlib.sha256()
    for item in _files():
        facts = item.facts
        seen = (item.path, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
        found.update(repr(seen).encode())
    return found.hexdigest()
