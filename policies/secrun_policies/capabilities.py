"""Capabilities by name: the kernel's list, secrun's default set, and how requests change it."""

from collections.abc import Iterable
from typing import NamedTuple

from secrun_policies.errors import PolicyError, near

# linux/capability.h; the position is the number.
KNOWN = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
    "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(KNOWN)}

# Podman's default without SETFCAP and SETPCAP; docs/confinement.md says what each is for.
DEFAULT = frozenset({
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
    "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT",
})  # fmt: skip

_ALL = "ALL"
_NAMES = frozenset(KNOWN)


class Granted(NamedTuple):
    """The capabilities of one app: the bounding set, what its first process holds, what was added."""

    bounding: tuple[str, ...]
    effective: tuple[str, ...]
    ambient: tuple[str, ...]
    added: tuple[str, ...]


def parse_name(text: str) -> str:
    """Return the kernel's name for `text`: any case, with or without CAP_; raises PolicyError if unknown."""
    upper = text.upper()
    name = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if name not in _NAMES:
        raise PolicyError(
            f"unknown capability {text[:80]!r}",
            hint=near(name, _NAMES) or "capabilities(7) lists them",
            code="policy-capability",
        )
    return name


def parse_set(texts: Iterable[str], known: frozenset[str]) -> frozenset[str]:
    """Parse names, where `all` stands for `known`, the host's own list."""
    result: set[str] = set()
    for text in texts:
        if text.upper() == _ALL:
            result |= known
        else:
            result.add(parse_name(text))
    return frozenset(result)


def of_host(last: int) -> frozenset[str]:
    """Return the capabilities of a kernel whose highest number is `last` (sys/kernel/cap_last_cap)."""
    return frozenset(KNOWN[: last + 1])


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Sort by name, so that equal sets have one spelling."""
    return tuple(sorted(names))


def grant(
    add: Iterable[str],
    drop: Iterable[str],
    *,
    uid: int,
    known: frozenset[str],
    withheld: frozenset[str] = frozenset(),
) -> Granted:
    """Decide an app's sets: (default, or none after `drop` all) + `add` - `drop`.

    A named `add` wins over `drop` all and a named `drop` over `add` all, so `--cap-drop=all --cap-add=X`
    and `--cap-add=all --cap-drop=X` mean what they say. Under no_new_privs a process of another user
    than 0 can never gain a capability, so it gets only what was asked for by name, as ambient ones.
    `withheld` are those that the pod as a whole cannot have. Raises PolicyError for unknown names, for a
    name both added and dropped, and for one that the host lacks or the pod withholds.
    """
    add, drop = tuple(add), tuple(drop)
    added, dropped = parse_set(add, known), parse_set(drop, known)
    named_add, named_drop = parse_set(add, frozenset()), parse_set(drop, frozenset())
    if both := named_add & named_drop:
        raise PolicyError(f"{', '.join(sorted(both))} is both added and dropped", code="policy-capability")
    if missing := named_add - known:
        raise PolicyError(
            f"this kernel does not know {', '.join(sorted(missing))}", code="policy-capability"
        )
    if denied := named_add & withheld:
        raise PolicyError(
            f"{', '.join(sorted(denied))} cannot be had in this pod's network",
            hint="it belongs to the host's user namespace; --net=none gives the pod one of its own",
            code="policy-capability",
        )
    added -= withheld
    base = DEFAULT - withheld if uid == 0 else frozenset[str]()
    bounding = ((base | added) - (dropped - named_add)) - named_drop
    wanted = bounding & added
    return Granted(
        bounding=ordered(bounding),
        effective=ordered(bounding),
        ambient=ordered(wanted) if uid != 0 else (),
        added=ordered(bounding - DEFAULT if uid == 0 else wanted),
    )
