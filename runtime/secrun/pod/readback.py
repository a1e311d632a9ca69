"""What the kernel enforces for the apps of a pod: what to expect, and what the waiter read of it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from secrun.errors import StateError
from secrun.jsonio import JsonObject
from secrun.pod.inside import printable
from secrun.record import record
from secrun_policies.capabilities import NUMBERS

if TYPE_CHECKING:
    from secrun.stage1.manifest import AppManifest, PodManifest
    from secrun.stage1.podfiles import PodFiles

HELD, WEAKER, UNREAD = "held", "weaker", "unread"
_VERDICTS = (HELD, WEAKER, UNREAD)
# 64 apps with some 20 short lines each fit ten times over.
_MAX_BYTES = 1 << 20
_STATUS = "/proc/self/status"


@record
class Enforced:
    """What was read of one app's first process; `values` are empty if it ended too soon."""

    verdict: str
    pid: int
    read_ns: int
    values: Mapping[str, str]
    differences: tuple[str, ...]

    def to_json(self, reported_by: str) -> JsonObject:
        """Return the documented JSON form (docs/state.md)."""
        return {
            "verdict": self.verdict,
            "reported_by": reported_by,
            "pid": self.pid or None,
            "read_ns": self.read_ns,
            "values": dict(self.values),
            "differences": list(self.differences),
        }


def _mask(names: tuple[str, ...]) -> str:
    return f"{sum(1 << NUMBERS[name] for name in names):016x}"


def _own_filters() -> int:
    """Return how many filters this process is under: its children are under them too."""
    with open(_STATUS, encoding="ascii", errors="replace") as stream:
        for line in stream:
            if line.startswith("Seccomp_filters:"):
                return int(line.split()[1])
    return 0


@record
class Kernel:
    """How the kernel under the apps shows them to who reads there."""

    ids: str
    """Their id map, as /proc/PID/uid_map has it."""
    group: str
    """What their control groups are below; in a guest each app has the one of its unit."""
    filters: int = 0
    """The filters that they are under without one of their own."""
    label: str = ""
    """Their SELinux context, if they have one."""
    guest: bool = False


def host(*, uid_base: int, ids: int, group: str, label: str = "") -> Kernel:
    """Return what the host's kernel shows of a pod; `group` is what all of its processes are below.

    The pod's own filter is one at least: where systemd-nspawn makes it, it makes several.
    """
    return Kernel(ids=f"0 {uid_base} {ids}", group=group, filters=_own_filters() + 1, label=label)


def guest() -> Kernel:
    """Return what a guest's kernel shows: its first user namespace, and the units of its systemd."""
    return Kernel(ids="0 0 4294967295", group="/system.slice/", guest=True)


def _tests(app: "AppManifest", kernel: Kernel) -> Iterator[str]:
    """Yield what must hold for an app; it may take more from itself than it was given."""
    bounding = _mask(app.capabilities)
    ambient = _mask(app.capabilities if app.uid else ())
    filters = kernel.filters + (app.security.seccomp_digest is not None)
    for name in ("CapBnd", "CapEff", "CapPrm"):
        yield f"within {name} {bounding}"
    for name in ("CapInh", "CapAmb"):
        yield f"within {name} {ambient}"
    yield f"at-least NoNewPrivs {int(app.security.no_new_privileges)}"
    yield f"at-least Seccomp {2 if filters else 0}"
    yield f"at-least Seccomp_filters {filters}"
    yield f"equal uid_map {kernel.ids}"
    yield f"equal gid_map {kernel.ids}"
    if kernel.guest:
        from secrun.stage1.units import app_unit

        unit = f"{kernel.group}{app_unit(app.name)}"
        yield f"under cgroup {unit}/app" if app.systemd else f"equal cgroup {unit}"
    else:
        yield f"under cgroup {kernel.group}"
    if kernel.label:
        yield f"equal label {kernel.label}"


def expectation(manifest: "PodManifest", kernel: Kernel) -> bytes:
    """Return what the waiter has to compare with, in the agent's words (runtime/agent/src/readback.rs)."""
    lines = ["strict"] if manifest.strict_read_back else []
    lines += ["reported"] if kernel.guest else []
    for app in manifest.apps:
        lines.append(f"app {app.name}")
        lines += _tests(app, kernel)
    return "".join(f"{line}\n" for line in lines).encode()


def parse(data: bytes) -> dict[str, Enforced]:
    """Parse what the waiter wrote, by app; raises StateError."""
    found: dict[str, Enforced] = {}
    current: Enforced | None = None
    name = ""
    for line in data.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(" ")
        words = value.split(" ")
        if key == "app" and len(words) == 4 and words[1] in _VERDICTS:
            name, verdict, pid, stamp = words
            if not pid.isdecimal() or not stamp.isdecimal():
                raise _damaged(line)
            current = Enforced(verdict=verdict, pid=int(pid), read_ns=int(stamp), values={}, differences=())
        elif current is None or not key:
            raise _damaged(line)
        elif key == "differs":
            current = _with(current, differs=value)
        else:
            current = _with(current, key=key, value=printable(value))
        found[name] = current
    return found


def _with(found: Enforced, *, key: str = "", value: str = "", differs: str = "") -> Enforced:
    return Enforced(
        verdict=found.verdict,
        pid=found.pid,
        read_ns=found.read_ns,
        values={**found.values, key: value} if key else found.values,
        differences=(*found.differences, differs) if differs else found.differences,
    )


def _damaged(line: str) -> StateError:
    return StateError(f"what was read back is damaged: {printable(line, 80)}", code="state-corrupt")


def read(files: "PodFiles") -> dict[str, Enforced]:
    """Return what was read of a pod's apps, by name; empty if nothing was, or not yet. Raises StateError."""
    try:
        with files.enforced.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    if len(data) > _MAX_BYTES:
        raise StateError("what was read back is too large", code="state-corrupt")
    return parse(data)


def warnings(files: "PodFiles") -> tuple[str, ...]:
    """Return what an operator must be told of a pod whose apps ran all the same."""
    weaker = {name for name, found in read(files).items() if found.verdict == WEAKER}
    return tuple(f"app {name}: {text}" for name, text in problems(files).items() if name in weaker)


def problems(files: "PodFiles") -> dict[str, str]:
    """Return in words which apps are less confined than compiled, or of which nobody knows."""
    result: dict[str, str] = {}
    for name, found in read(files).items():
        if found.verdict == WEAKER:
            values = ", ".join(f"{key} is {found.values.get(key, 'absent')}" for key in found.differences)
            result[name] = f"the kernel enforces less than was compiled: {values}"
        elif found.verdict == UNREAD:
            result[name] = "it ended before what the kernel enforces could be read"
    return result
