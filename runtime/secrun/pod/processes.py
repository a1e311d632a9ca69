"""What runs in a pod and what it uses, as the host's kernel tells it (proc(5), cgroups(7)).

A pod with a machine is one machine to the host: what runs inside is known to the guest's kernel alone.
"""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from secrun.errors import StateError, UsageError
from secrun.record import record
from secrun.stage1 import cgroups
from secrun.stage1.manifest import PodManifest
from secrun.stage1.uidrange import SIZE as POD_IDS

_PROC = Path("/proc")
_APP_GROUP = re.compile(r"/app-([^/]+)\.service(?:/|\Z)")
# A name in a table; the whole command line is in JSON, as long as this.
MAX_COMMAND_BYTES = 4096
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@record
class Process:
    """One process of a pod; `app` is empty for those of stage1."""

    pid: int
    app: str
    uid: int | None
    """Its user inside the pod; None for a process that is no user of the pod."""
    cpu_seconds: float
    rss_bytes: int
    command: str


@record
class Usage:
    """What a pod, or one app of it, has used until now; None where the host does not count it."""

    name: str
    """The app; empty for the whole pod."""
    cpu_usec: int
    memory_bytes: int
    memory_source: str
    """`cgroup`, which counts the page cache too, or `pss` where no memory controller is on."""
    pids: int
    read_bytes: int | None
    written_bytes: int | None


def _group(manifest: PodManifest) -> Path:
    group = cgroups.host().pod(manifest.uuid)
    if not group.is_dir():
        raise _not_running(manifest)
    return group


def _not_running(manifest: PodManifest) -> StateError:
    return StateError(f"pod {manifest.uuid} has no control group: it does not run", code="state-not-running")


def _groups(top: Path) -> Iterator[Path]:
    """Yield `top` and every group below it; one that goes away meanwhile has no processes."""
    for base, _, _ in os.walk(top):
        yield Path(base)


def _pids(group: Path) -> list[int]:
    try:
        return [int(word) for word in (group / "cgroup.procs").read_text().split()]
    except OSError:
        # Gone, or a threaded group (EOPNOTSUPP), whose processes are its parent's.
        return []


def _inside(uid: int, base: int | None) -> int | None:
    return uid - base if base is not None and base <= uid < base + POD_IDS else None


def _process(pid: int, app: str, base: int | None) -> Process | None:
    """Read one process; None if it has ended meanwhile."""
    folder = _PROC / str(pid)
    try:
        stat = (folder / "stat").read_bytes()
        with (folder / "cmdline").open("rb") as stream:
            words = stream.read(MAX_COMMAND_BYTES)
        uid = (folder).stat().st_uid
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = rest.split()
    # proc(5) counts from 1 and begins with the name: utime is 14, stime 15, rss 24.
    return Process(
        pid=pid,
        app=app,
        uid=_inside(uid, base),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        rss_bytes=int(fields[21]) * _PAGE,
        command=_printable(words.rstrip(b"\0").replace(b"\0", b" ")) or f"[{_printable(name)}]",
    )


def _printable(raw: bytes) -> str:
    """Return what a process calls itself with nothing in it that moves a terminal's cursor."""
    text = raw.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)


def processes(manifest: PodManifest, base: int | None) -> list[Process]:
    """Return the processes of a running pod, apps first; `base` is the pod's first host uid.

    Raises UsageError for a pod with a machine, StateError if the pod does not run.
    """
    if manifest.machine is not None:
        raise UsageError(
            f"pod {manifest.uuid} is a machine of its own: its processes are not the host's",
            hint="secrun stats shows what the machine uses; secrun enter looks inside",
            code="usage-machine",
        )
    top = _group(manifest)
    found = []
    for group in _groups(top):
        match = _APP_GROUP.search(f"/{group.relative_to(top)}")
        for pid in _pids(group):
            process = _process(pid, match.group(1) if match else "", base)
            if process is not None:
                found.append(process)
    return sorted(found, key=lambda item: (not item.app, item.app, item.pid))


def _cpu_usec(group: Path) -> int | None:
    """Return the processor time of a group (cgroups(7), cpu.stat); None if it is gone."""
    try:
        words = (group / "cpu.stat").read_text().split()
    except FileNotFoundError:
        return None
    except OSError as error:
        # Removed while it was read.
        if error.errno != errno.ENODEV:
            raise
        return None
    return int(words[words.index("usage_usec") + 1])


def _memory(group: Path, pids: list[int]) -> tuple[int, str]:
    try:
        return int((group / "memory.current").read_text()), "cgroup"
    except OSError:
        return sum(map(_pss, pids)), "pss"


def _pss(pid: int) -> int:
    """Return a process's share of memory in bytes (proc_pid_smaps(5)); 0 if it has ended."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _io(group: Path) -> tuple[int | None, int | None]:
    """Add up io.stat over all devices; None if the controller is not on."""
    try:
        words = (group / "io.stat").read_text().split()
    except OSError:
        return None, None
    read = sum(int(word[7:]) for word in words if word.startswith("rbytes="))
    return read, sum(int(word[7:]) for word in words if word.startswith("wbytes="))


def _usage(group: Path, name: str) -> Usage | None:
    used = _cpu_usec(group)
    if used is None:
        return None
    pids = [pid for inner in _groups(group) for pid in _pids(inner)]
    memory, source = _memory(group, pids)
    read, written = _io(group)
    return Usage(
        name=name,
        cpu_usec=used,
        memory_bytes=memory,
        memory_source=source,
        pids=len(pids),
        read_bytes=read,
        written_bytes=written,
    )


def usage(manifest: PodManifest) -> list[Usage]:
    """Return what a running pod uses: the whole first, then each app that runs.

    A machine is counted whole, its emulator and helpers included. Raises StateError if the pod does not run.
    """
    top = _group(manifest)
    found = [_usage(top, "")]
    for group in _groups(top):
        match = _APP_GROUP.search(f"/{group.relative_to(top)}")
        if match and group.name == f"app-{match.group(1)}.service":
            found.append(_usage(group, match.group(1)))
    if found[0] is None:
        raise _not_running(manifest)
    return [item for item in found if item is not None]
