"""What a run of the host tier may not leave behind on the host."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

# A waiter that lost its pod cleans up by itself; this is how long it may take on two busy cores.
SETTLE_SECONDS = 15.0

# Where secrun, nspawn, crun and the network tools keep things outside --root and --run-root.
WATCHED_FOLDERS = (
    "/run/secrun",
    "/var/lib/secrun",
    "/run/netns",
    "/run/crun",
    "/run/systemd/nspawn",
    "/run/systemd/nspawn/propagate",
    "/run/systemd/nspawn/unix-export",
    "/run/systemd/machines",
    "/var/lib/machines",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Everything on this host that a pod could have left, as printable lines."""

    mounts: frozenset[str]
    processes: frozenset[str]
    cgroups: frozenset[str]
    entries: frozenset[str]
    loops: frozenset[str]
    interfaces: frozenset[str]
    rules: frozenset[str]

    def minus(self, before: "Footprint") -> list[str]:
        """List what is here and was not there before."""
        return sorted(
            f"{field.name}: {line}"
            for field in fields(self)
            for line in getattr(self, field.name) - getattr(before, field.name)
        )


def _mounts(marks: tuple[str, ...]) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        words = line.split()
        if any(mark in line for mark in marks) or "nsfs" in words:
            yield f"{words[4]} ({words[words.index('-') + 1]})"


def _sees(entry: Path, marks: tuple[str, ...]) -> bool:
    """Tell whether a process belongs to the run: by its words, its folder or its mounts."""
    texts = [(entry / "cmdline").read_bytes().decode(errors="replace"), os.readlink(entry / "cwd")]
    if os.readlink(entry / "ns/mnt") != os.readlink("/proc/self/ns/mnt"):
        texts.append((entry / "mountinfo").read_text(errors="replace"))
    return any(mark in text for text in texts for mark in marks)


def _processes(marks: tuple[str, ...]) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if _sees(entry, marks):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if words[0].endswith("swtpm"):
                    continue
                yield f"{entry.name} {' '.join(words)[:200]}"
        except OSError:
            continue  # it has ended, or is a zombie: it holds nothing any more


def _foreign(group: str, marks: tuple[str, ...]) -> bool:
    """Tell whether a control group holds processes, and none of them belongs to this run."""
    pids = [
        pid for folder, _, _ in os.walk(group) for pid in Path(folder, "cgroup.procs").read_text().split()
    ]
    return bool(pids) and not any(_sees(Path("/proc", pid), marks) for pid in pids)


def _cgroups(marks: tuple[str, ...]) -> Iterator[str]:
    mounts = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
    mount = next((path for path in mounts if (path / "cgroup.controllers").exists()), None)
    for folder, _, _ in os.walk(mount) if mount else ():
        if "secrun" not in folder or folder == str(mount / "secrun") or "/secrun/tpm-" in folder:
            continue
        try:
            if not _foreign(folder, marks):
                yield folder
        except OSError:
            continue  # it was removed while we looked


def _entries() -> Iterator[str]:
    for folder in WATCHED_FOLDERS:
        if os.path.isdir(folder):
            yield from (os.path.join(folder, name) for name in os.listdir(folder))


def _loops(marks: tuple[str, ...]) -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        text = backing.read_text().strip()
        if any(mark in text for mark in marks):
            yield f"{backing.parts[3]} {text}"


def _rules() -> Iterator[str]:
    """List the firewall's rules, both families."""
    for tool in ("iptables-save", "ip6tables-save"):
        try:
            said = subprocess.run([tool], capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            continue
        yield from (line for line in said.splitlines() if line.startswith("-A"))


def footprint(*marks: str) -> Footprint:
    """Look at the host; a mount, process or loop device counts when it mentions one of `marks`."""
    return Footprint(
        mounts=frozenset(_mounts(marks)),
        processes=frozenset(_processes(marks)),
        cgroups=frozenset(_cgroups(marks)),
        entries=frozenset(_entries()),
        loops=frozenset(_loops(marks)),
        interfaces=frozenset(os.listdir("/sys/class/net")),
        rules=frozenset(_rules()),
    )


def leaks_since(before: Footprint, *marks: str, settle: float = SETTLE_SECONDS) -> list[str]:
    """Return what stayed since `before`, after giving it `settle` seconds to go away."""
    deadline = time.monotonic() + settle
    while True:
        found = footprint(*marks).minus(before)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)
