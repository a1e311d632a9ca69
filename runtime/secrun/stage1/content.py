"""What a stage1 image holds: the recipe, and the files of this host that it asks for.

No shell, no package manager, no journal, bus, udev or generator: systemd, crun, the agent, and what they
link to. Everything else a pod needs comes with the pod.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from secrun import __version__
from secrun.errors import HostError
from secrun.image.rootfs.model import FileKind, PathSource, TreeEntry
from secrun.record import record

# Bumped whenever the same inputs give another tree.
RECIPE_VERSION = 1

# From Debian's packages, by where they are in the image. systemd-shutdown ends a pod: PID 1 executes it.
PROGRAMS = (
    Path("/usr/lib/systemd/systemd"),
    Path("/usr/lib/systemd/systemd-shutdown"),
    Path("/usr/bin/crun"),
)
AGENT = Path("/usr/bin/secrun-agent")

# What systemd-nspawn and the guest's stage0 mount onto, and where the pod's own parts appear.
FOLDERS = (
    "dev", "etc", "etc/systemd", "host", "images", "pod", "proc", "root", "run", "rw", "sys", "tmp", "usr",
    "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "var", "volumes",
)  # fmt: skip

LINKS = {
    "bin": "usr/bin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "sbin": "usr/sbin",
    # systemd's settings belong to the pod: timeouts of its end, no status output.
    "etc/systemd/system.conf": "/pod/system.conf",
    # systemd and nspawn look for both names.
    "etc/os-release": "../usr/lib/os-release",
}

TEXTS = {
    "usr/lib/os-release": f'ID=secrun-stage1\nNAME="secrun stage1"\nVERSION_ID={__version__}\n',
    # Empty: systemd mounts the pod's UUID over it (machine-id(5)).
    "etc/machine-id": "",
}


@record
class Input:
    """One file of this host: where its bytes are, and its name in the image without the leading slash."""

    source: Path
    target: str


@record
class Contents:
    """The whole recipe for one host: files to copy, and links between their names."""

    inputs: tuple[Input, ...]
    links: tuple[tuple[str, str], ...]


def _below_usr(path: Path) -> str:
    """Return the name in a merged /usr: on Debian /lib and /usr/lib are one folder."""
    text = str(path).lstrip("/")
    return text if text.startswith("usr/") else f"usr/{text}"


def contents(agent: Path) -> Contents:
    """Find what the programs need on this host; raises HostError naming what is missing."""
    for program in PROGRAMS:
        if not program.is_file():
            raise HostError(
                f"{program} is not installed",
                hint="apt install systemd systemd-container crun",
                code="host-program",
            )
    from secrun.stage1.elf import closure  # only builds need it, every start imports this module

    asked = {*PROGRAMS, *closure((*PROGRAMS, agent))}
    real = {path: Path(os.path.realpath(path)) for path in asked}
    files = {_below_usr(path): source for path, source in real.items()}
    files[_below_usr(AGENT)] = agent
    # The loader has two names: the one in programs and the one that libraries ask for.
    links = [
        (target, f"/{_below_usr(source)}")
        for target, source in sorted(files.items())
        if target != _below_usr(source) and _below_usr(source) in files
    ]
    for target, _ in links:
        del files[target]
    return Contents(
        inputs=tuple(Input(source=source, target=target) for target, source in sorted(files.items())),
        links=tuple(links),
    )


def _folders(names: Iterable[str]) -> list[str]:
    """Return every folder that has to exist for `names`, parents included."""
    result = set(FOLDERS)
    for name in names:
        parts = name.split("/")[:-1]
        result.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    return sorted(result)


def _entry(path: str, kind: FileKind, mode: int) -> TreeEntry:
    return TreeEntry(path=path.encode(), kind=kind, mode=mode, uid=0, gid=0, mtime_ns=0)


def _file(item: Input) -> TreeEntry:
    facts = os.stat(item.source)
    if not stat.S_ISREG(facts.st_mode):
        raise HostError(f"{item.source} is not a regular file", code="host-program")
    return TreeEntry(
        path=item.target.encode(),
        kind=FileKind.FILE,
        # Owner, setuid and group bits of the host mean nothing here.
        mode=0o755 if facts.st_mode & 0o111 else 0o644,
        uid=0,
        gid=0,
        mtime_ns=0,
        size=facts.st_size,
        source=PathSource(item.source),
    )


def entries(what: Contents) -> list[TreeEntry]:
    """Return the tree to pack; owner, mode and time of every entry are fixed by the recipe."""
    links = {**LINKS, **dict(what.links)}
    names = [*(item.target for item in what.inputs), *links, *TEXTS]
    result = [_entry("", FileKind.DIRECTORY, 0o755)]
    result += [_entry(name, FileKind.DIRECTORY, 0o755) for name in _folders(names)]
    result += [
        TreeEntry(
            path=name.encode(),
            kind=FileKind.SYMLINK,
            mode=0o777,
            uid=0,
            gid=0,
            mtime_ns=0,
            target=target.encode(),
        )
        for name, target in links.items()
    ]
    for name, text in TEXTS.items():
        data = text.encode()
        result.append(
            TreeEntry(
                path=name.encode(),
                kind=FileKind.FILE,
                mode=0o644,
                uid=0,
                gid=0,
                mtime_ns=0,
                size=len(data),
                source=data,
            )
        )
    return result + [_file(item) for item in what.inputs]
