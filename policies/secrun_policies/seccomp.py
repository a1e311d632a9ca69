"""Seccomp profiles in the format of Docker and Podman, read strictly.

One thing is stronger here than there: the rules of one syscall are ordered and the first that matches
decides. libseccomp knows no order, so `seccomp_resolve` turns ordered rules into disjoint ones.
"""

import re
from enum import StrEnum
from typing import NamedTuple

from secrun_policies import capabilities
from secrun_policies.errors import PolicyError, near
from secrun_policies.jsonvalue import (
    JsonObject,
    JsonValue,
    as_list,
    as_number,
    as_object,
    as_text,
    only,
    parse,
)

# Errno values are at most 4095 (linux/err.h, MAX_ERRNO); arguments are six registers of 64 bits.
MAX_ERRNO = 4095
ARGUMENTS = 6
MAX_VALUE = (1 << 64) - 1
# Podman's profile has 35 entries and 470 names; compiling costs time for every rule.
MAX_RULES = 512
MAX_NAMES = 1024

_SYSCALL = re.compile(r"[a-z_][a-z0-9_]{0,63}\Z")
_KERNEL = re.compile(r"([0-9]{1,3})\.([0-9]{1,4})\Z")


class Action(StrEnum):
    """What the kernel does with a call; the names are libseccomp's."""

    ALLOW = "SCMP_ACT_ALLOW"
    ERRNO = "SCMP_ACT_ERRNO"
    KILL = "SCMP_ACT_KILL"
    KILL_THREAD = "SCMP_ACT_KILL_THREAD"
    KILL_PROCESS = "SCMP_ACT_KILL_PROCESS"
    TRAP = "SCMP_ACT_TRAP"
    LOG = "SCMP_ACT_LOG"

    # Enum's own runs in Python, and verdicts are hashed for each of 400 names.
    __hash__ = str.__hash__


class Operator(StrEnum):
    """How an argument is compared, as 64-bit unsigned numbers."""

    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


class Architecture(StrEnum):
    """The system call tables that secrun runs programs of."""

    X86_64 = "SCMP_ARCH_X86_64"
    AARCH64 = "SCMP_ARCH_AARCH64"


# The names of the shipped profiles; files are named by their path.
DEFAULT_PROFILE = "default"
STRICT_PROFILE = "strict"

# uname(2) machine -> table, and the Go names that profiles use in includes.arches.
MACHINES = {"x86_64": Architecture.X86_64, "aarch64": Architecture.AARCH64}
_GO_ARCHES = {"amd64": Architecture.X86_64, "arm64": Architecture.AARCH64}
# Known to the format, of no host that secrun runs on: a rule for them never applies.
_OTHER_ARCHES = frozenset({
    "x32", "x86", "386", "arm", "mips", "mips64", "mips64n32", "mipsel", "mipsel64", "mipsel64n32", "ppc",
    "ppc64", "ppc64le", "riscv64", "s390", "s390x", "loong64",
})  # fmt: skip
_OTHER_TABLES = frozenset(
    f"SCMP_ARCH_{name}"
    for name in (
        "X86", "X32", "ARM", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC",
        "PPC64", "PPC64LE", "RISCV64", "S390", "S390X", "LOONGARCH64", "PARISC", "PARISC64",
    )
)  # fmt: skip


class Comparison(NamedTuple):
    """One test of one argument; for MASKED_EQ `value` is the mask and `value_two` the result."""

    argument: int
    op: Operator
    value: int
    value_two: int = 0


class Applies(NamedTuple):
    """When a rule is part of the filter: every field that is not empty must hold."""

    caps: frozenset[str] = frozenset()
    arches: frozenset[str] = frozenset()
    min_kernel: tuple[int, int] = (0, 0)


class Rule(NamedTuple):
    """One entry of a profile: names, what to do, for which arguments, and when it applies."""

    names: tuple[str, ...]
    action: Action
    errno: int | None
    args: tuple[Comparison, ...]
    includes: Applies
    excludes: Applies


class SeccompProfile(NamedTuple):
    """A parsed profile; calls without a rule get the default action."""

    default_action: Action
    default_errno: int | None
    architectures: tuple[Architecture, ...]
    rules: tuple[Rule, ...]
    name: str


def _enum_value(value: JsonValue, kind: type[Action] | type[Operator], what: str) -> str:
    text = as_text(value, what)
    known = frozenset(member.value for member in kind)
    if text not in known:
        raise PolicyError(
            f"{what} is {text[:80]!r}",
            hint=near(text, known) or f"expected one of {', '.join(sorted(known))}",
            code="policy-seccomp",
        )
    return text


def _errno(given: JsonObject, key: str, action: Action, what: str) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    if action is not Action.ERRNO:
        raise PolicyError(f"{what}: {key} has no meaning for {action}", code="policy-seccomp")
    return as_number(value, f"{what}: {key}", low=0, high=MAX_ERRNO)


def _comparison(value: JsonValue, what: str) -> Comparison:
    given = as_object(value, what)
    only(given, frozenset({"index", "value", "valueTwo", "op"}), what)
    return Comparison(
        argument=as_number(given.get("index"), f"{what}: index", low=0, high=ARGUMENTS - 1),
        op=Operator(_enum_value(given.get("op"), Operator, f"{what}: op")),
        value=as_number(given.get("value"), f"{what}: value", low=0, high=MAX_VALUE),
        value_two=as_number(given.get("valueTwo", 0), f"{what}: valueTwo", low=0, high=MAX_VALUE),
    )


def _comparisons(value: JsonValue, what: str) -> tuple[Comparison, ...]:
    result = tuple(_comparison(item, f"{what}: argument") for item in as_list(value, f"{what}: args"))
    if len({item.argument for item in result}) != len(result):
        raise PolicyError(
            f"{what} tests one argument twice",
            hint="libseccomp joins tests with and, one per argument: use one rule per test",
            code="policy-seccomp",
        )
    return tuple(sorted(result))


def _applies(value: JsonValue, what: str) -> Applies:
    given = as_object(value, what)
    only(given, frozenset({"caps", "arches", "minKernel"}), what)
    arches = frozenset(as_text(item, f"{what}: arches") for item in as_list(given.get("arches"), what))
    for name in sorted(arches):
        if name not in _GO_ARCHES and name not in _OTHER_ARCHES:
            raise PolicyError(f"{what} names the unknown architecture {name[:80]!r}", code="policy-seccomp")
    caps = (as_text(item, f"{what}: caps") for item in as_list(given.get("caps"), what))
    minimum = (0, 0)
    if (text := given.get("minKernel")) is not None:
        if not (match := _KERNEL.match(as_text(text, f"{what}: minKernel"))):
            raise PolicyError(f"{what}: minKernel is {text!r}, expected such as 4.8", code="policy-seccomp")
        minimum = (int(match[1]), int(match[2]))
    return Applies(
        caps=frozenset(capabilities.parse_name(name) for name in caps), arches=arches, min_kernel=minimum
    )


def _rule(value: JsonValue, what: str) -> Rule:
    given = as_object(value, what)
    known = frozenset({
        "names", "action", "errnoRet", "errno", "args", "includes", "excludes", "comment",
    })  # fmt: skip
    only(given, known, what)
    names = tuple(as_text(name, f"{what}: name") for name in as_list(given.get("names"), f"{what}: names"))
    if not names:
        raise PolicyError(f"{what} names no syscall", code="policy-seccomp")
    for name in names:
        if not _SYSCALL.match(name):
            raise PolicyError(f"{what}: {name[:80]!r} is not the name of a syscall", code="policy-seccomp")
    action = Action(_enum_value(given.get("action"), Action, f"{what}: action"))
    return Rule(
        names=names,
        action=action,
        errno=_errno(given, "errnoRet", action, what),
        args=_comparisons(given.get("args"), what),
        includes=_applies(given.get("includes"), f"{what}: includes"),
        excludes=_applies(given.get("excludes"), f"{what}: excludes"),
    )


def _architecture(text: str) -> Architecture | None:
    known = frozenset(item.value for item in Architecture)
    if text in known:
        return Architecture(text)
    if text not in _OTHER_TABLES:
        raise PolicyError(
            f"unknown architecture {text[:80]!r}", hint=near(text, known), code="policy-seccomp"
        )
    return None


def _architectures(given: JsonObject) -> tuple[Architecture, ...]:
    """Read archMap; subarchitectures are checked and left out: the compat tables stay closed."""
    result = list[Architecture]()
    for item in as_list(given.get("archMap"), "archMap"):
        entry = as_object(item, "archMap entry")
        only(entry, frozenset({"architecture", "subArchitectures"}), "archMap entry")
        for sub in as_list(entry.get("subArchitectures"), "subArchitectures"):
            _architecture(as_text(sub, "subArchitectures entry"))
        table = _architecture(as_text(entry.get("architecture"), "archMap architecture"))
        if table in result:
            raise PolicyError(f"archMap names {table} twice", code="policy-seccomp")
        if table is not None:
            result.append(table)
    return tuple(result)


def _reject_contradictions(rules: tuple[Rule, ...]) -> None:
    """Two verdicts for one call under one condition: one of them is a mistake.

    The same verdict twice changes nothing and occurs in profiles that distributions ship.
    """
    conditions: dict[tuple[tuple[Comparison, ...], Applies, Applies], int] = {}
    seen: dict[tuple[str, int], tuple[Action, int | None]] = {}
    for rule in rules:
        verdict = (rule.action, rule.errno)
        # Hashed once per rule, not once per name.
        condition = conditions.setdefault((rule.args, rule.includes, rule.excludes), len(conditions))
        for name in rule.names:
            if seen.setdefault((name, condition), verdict) != verdict:
                raise PolicyError(
                    f"two rules decide {name} differently under the same condition",
                    hint="remove one of them",
                    code="policy-seccomp-duplicate",
                )


def parse_profile(data: bytes, *, name: str) -> SeccompProfile:
    """Parse a profile file; raises PolicyError naming the entry that is not understood.

    Format: github.com/moby/profiles seccomp, which is OCI runtime-spec linux.seccomp with conditions.
    """
    what = f"seccomp profile {name}"
    given = parse(data, what=what)
    known = frozenset({
        "defaultAction", "defaultErrnoRet", "defaultErrno", "archMap", "syscalls", "comment",
    })  # fmt: skip
    only(given, known, what)
    action = Action(_enum_value(given.get("defaultAction"), Action, f"{what}: defaultAction"))
    entries = as_list(given.get("syscalls"), f"{what}: syscalls")
    if len(entries) > MAX_RULES:
        raise PolicyError(
            f"{what} has {len(entries)} rules, the limit is {MAX_RULES}", code="policy-seccomp"
        )
    rules = tuple(_rule(item, f"{what}: rule {number}") for number, item in enumerate(entries, 1))
    if sum(len(rule.names) for rule in rules) > MAX_NAMES:
        raise PolicyError(f"{what} names more than {MAX_NAMES} syscalls", code="policy-seccomp")
    _reject_contradictions(rules)
    return SeccompProfile(
        default_action=action,
        default_errno=_errno(given, "defaultErrnoRet", action, what),
        architectures=_architectures(given),
        rules=rules,
        name=name,
    )


def holds(applies: Applies, *, caps: frozenset[str], table: Architecture, kernel: tuple[int, int]) -> bool:
    """Tell whether every condition of an `includes` section is met."""
    tables = {_GO_ARCHES.get(name) for name in applies.arches}
    return applies.caps <= caps and (not applies.arches or table in tables) and kernel >= applies.min_kernel


def excluded(
    applies: Applies, *, caps: frozenset[str], table: Architecture, kernel: tuple[int, int]
) -> bool:
    """Tell whether any condition of an `excludes` section is met."""
    return (
        bool(applies.caps & caps)
        or table in {_GO_ARCHES.get(name) for name in applies.arches}
        or (applies.min_kernel > (0, 0) and kernel >= applies.min_kernel)
    )
