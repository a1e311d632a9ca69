"""From the options about confinement and limits to the records of a request."""

import re

from secrun.cli.table import Arguments
from secrun.errors import UsageError
from secrun.pod import request, security
from secrun.pod.security import SecurityRequest
from secrun.record import replace
from secrun.stage1.manifest import Limits
from secrun_policies.confine import RLIMITS

_NUMBERS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_SHARES, _WEIGHTS, _BLKIO = (2, 262_144), (1, 10_000), (10, 1_000)


def _between(name: str, value: int | None, bounds: tuple[int, int]) -> int | None:
    low, high = bounds
    if value is not None and not low <= value <= high:
        raise UsageError(f"{name} {value} is not between {low} and {high}")
    return value


def _swap(args: Arguments, memory: int | None) -> int | None:
    """Return the swap that --memory-swap leaves beside --memory; raises UsageError."""
    text = args.text("memory_swap")
    if text is None:
        return None
    if text == "-1":
        return -1
    total = request.size(text)
    if memory is None or total < memory:
        raise UsageError(
            f"--memory-swap {text} is memory and swap together, and needs a smaller --memory",
            hint="-1 allows any swap",
        )
    return total - memory


def _cpu_weight(args: Arguments) -> int | None:
    shares = _between("--cpu-shares", args.integer("cpu_shares"), _SHARES)
    weight = _between("--cpu-weight", args.integer("cpu_weight"), _WEIGHTS)
    if shares is None:
        return weight
    if weight is not None:
        raise UsageError("--cpu-shares and --cpu-weight say the same thing: give one")
    return request.cpu_weight(shares)


def _reservation(args: Arguments, memory: int | None) -> int | None:
    """Return what --memory-reservation keeps for the app; raises UsageError."""
    text = args.text("memory_reservation")
    if text is None:
        return None
    kept = request.size(text)
    if memory is not None and kept > memory:
        raise UsageError(f"--memory-reservation {text} is more than --memory")
    return kept


def _numbers(args: Arguments, name: str) -> str:
    """Check a list of numbers and ranges such as 0-2,5; raises UsageError."""
    text = args.text(name) or ""
    if text:
        pairs = [_NUMBERS.fullmatch(part) for part in text.split(",")]
        if any(pair is None or int(pair[2] or pair[1]) < int(pair[1]) for pair in pairs):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {text[:80]!r} is not a list of numbers", hint="e.g. 0-2,5")
    return text


def limits(args: Arguments) -> Limits:
    """Read the limits of an app; raises UsageError."""
    memory, cpus = args.text("memory"), args.text("cpus")
    pids = args.integer("pids_limit")
    if pids is not None and pids < 1:
        raise UsageError(f"--pids-limit {pids}: at least 1 is needed")
    memory_bytes = request.memory(memory) if memory else None
    blkio = _between("--blkio-weight", args.integer("blkio_weight"), _BLKIO)
    return Limits(
        memory_bytes=memory_bytes,
        cpu_millis=request.cpus(cpus) if cpus else None,
        pids=pids,
        swap_bytes=_swap(args, memory_bytes),
        cpu_weight=_cpu_weight(args),
        io_weight=None if blkio is None else 1 + (blkio - 10) * 9999 // 990,
        memory_low_bytes=_reservation(args, memory_bytes),
        cpus=_numbers(args, "cpuset_cpus"),
        memory_nodes=_numbers(args, "cpuset_mems"),
    )


def _hard_limits() -> dict[str, int]:
    """Return the limits that this process was started with: what a pod inherits at most."""
    import resource

    names = (name for name in RLIMITS if hasattr(resource, name))
    found = {name: resource.getrlimit(getattr(resource, name))[1] for name in names}
    return {name: value for name, value in found.items() if value != resource.RLIM_INFINITY}


def _seccomp(args: Arguments, asked: SecurityRequest) -> str | None:
    words = args.text("seccomp")
    if words is None:
        return asked.seccomp
    if asked.seccomp is not None:
        raise UsageError("--seccomp and --security-opt seccomp= say the same thing: give one")
    if not words.startswith("mode="):
        raise UsageError(
            f"--seccomp {words[:80]!r} does not begin with mode=retain or mode=remove",
            hint="a file is given by --security-opt seccomp=FILE",
        )
    return words


def asked(args: Arguments) -> SecurityRequest:
    """Read all that an app's options say about its confinement; raises UsageError."""
    security.userns(args.text("userns"))
    found = security.security_options(args.many("security_opt"))
    caps = security.capabilities(
        args.many("cap_add"), args.many("cap_drop"), args.many("caps_retain"), args.many("caps_remove")
    )
    rlimits = tuple(security.ulimit(text) for text in args.many("ulimit"))
    security.raised(rlimits, _hard_limits() if rlimits else {})
    score = args.integer("oom_score_adj")
    return replace(
        found,
        profile=args.text("profile"),
        seccomp=_seccomp(args, found),
        capabilities=caps.capabilities,
        cap_add=caps.cap_add,
        cap_drop=caps.cap_drop,
        sysctls=tuple(security.sysctl(text) for text in args.many("sysctl")),
        rlimits=rlimits,
        oom_score_adj=None
        if score is None
        else security.oom_score_adj(score, security.inherited_oom_score()),
        devices=tuple(security.device(text) for text in args.many("device")),
        tmpfs=tuple(security.tmpfs(text) for text in args.many("tmpfs")),
        read_only_tmpfs=args.flag("read_only_tmpfs"),
        privileged=args.flag("privileged"),
    )
