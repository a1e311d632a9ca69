"""From a profile to one filter: conditions decided, ordered rules made disjoint, ready for libseccomp.

libseccomp has neither an order of rules nor a "not equal under a mask", and the kernel reads most arguments
as 32-bit numbers while the filter sees 64-bit registers: "allow if not TIOCSTI" with a plain comparison is
passed by setting an upper bit (CVE-2019-10063). Here a condition is a box of bit patterns, one per argument,
and `a - b` is computed exactly; so an ordered profile says what it means.
"""

from typing import NamedTuple, TypeAlias

from secrun_policies.errors import PolicyError
from secrun_policies.seccomp import (
    MAX_VALUE,
    Action,
    Architecture,
    Comparison,
    Operator,
    Rule,
    SeccompProfile,
    excluded,
    holds,
)

# (mask, value): the bits of an argument that are fixed, and to what. value is 0 outside mask.
_Pattern: TypeAlias = tuple[int, int]
# What is asked of each argument; an empty one holds always.
Box: TypeAlias = dict[int, _Pattern]
_Verdict: TypeAlias = tuple[Action, int | None, tuple[Comparison, ...]]

# One syscall's conditions grow by at most 32 pieces per excluded number; beyond this a profile is unusable.
MAX_PIECES = 256


class FlatRule(NamedTuple):
    """One rule of a resolved filter: no condition is left but the arguments."""

    action: Action
    errno: int | None
    args: tuple[Comparison, ...]
    names: tuple[str, ...]


class SeccompFilter(NamedTuple):
    """A filter for one table of syscalls, as OCI runtime-spec linux.seccomp expresses it."""

    default_action: Action
    default_errno: int | None
    architecture: Architecture
    rules: tuple[FlatRule, ...]


def is_open(filter_: SeccompFilter) -> bool:
    """Tell whether a filter lets through what it does not name."""
    return filter_.default_action in (Action.ALLOW, Action.LOG)


def box_of_args(args: tuple[Comparison, ...]) -> Box | None:
    """Return a condition as bit patterns, or None if an order comparison is in it."""
    result: Box = {}
    for item in args:
        if item.op is Operator.EQ:
            result[item.argument] = (MAX_VALUE, item.value)
        elif item.op is Operator.MASKED_EQ:
            if item.value_two & ~item.value:
                raise PolicyError(
                    f"a test never matches: {item.value_two:#x} has bits outside the mask {item.value:#x}",
                    code="policy-seccomp",
                )
            result[item.argument] = (item.value, item.value_two)
        else:
            return None
    return result


def _disjoint(left: Box, right: Box) -> bool:
    for index, (mask, value) in left.items():
        other_mask, other_value = right.get(index, (0, 0))
        if (value ^ other_value) & mask & other_mask:
            return True
    return False


def minus(left: Box, right: Box) -> list[Box]:
    """Return disjoint boxes that together are `left` without `right`."""
    if _disjoint(left, right):
        return [left]
    result = list[Box]()
    rest = dict(left)
    for index, (other_mask, other_value) in sorted(right.items()):
        mask, value = rest.get(index, (0, 0))
        free = other_mask & ~mask
        while free:
            bit = 1 << (free.bit_length() - 1)
            free ^= bit
            mask |= bit
            result.append({**rest, index: (mask, value | (~other_value & bit))})
            value |= other_value & bit
        rest[index] = (mask, value)
    return result


def _comparisons(box: Box) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(argument=index, op=Operator.MASKED_EQ, value=mask, value_two=value)
        for index, (mask, value) in sorted(box.items())
        if mask
    )


def _same_verdict(left: Rule, right: Rule) -> bool:
    return (left.action, left.errno) == (right.action, right.errno)


def _never_both(left: Rule, right: Rule) -> bool:
    """Tell whether an equality in one rule contradicts a test of the same argument in the other."""
    for one, two in ((left, right), (right, left)):
        tests = {item.argument: item for item in two.args}
        for item in one.args:
            other = tests.get(item.argument)
            if item.op is Operator.EQ and other is not None and not matches(other, item.value):
                return True
    return False


def matches(test: Comparison, value: int) -> bool:
    """Evaluate one comparison as the kernel does, on an unsigned 64-bit register."""
    match test.op:
        case Operator.MASKED_EQ:
            return value & test.value == test.value_two
        case Operator.EQ:
            return value == test.value
        case Operator.NE:
            return value != test.value
        case Operator.LT:
            return value < test.value
        case Operator.LE:
            return value <= test.value
        case Operator.GE:
            return value >= test.value
        case Operator.GT:
            return value > test.value


def _pieces(name: str, rule: Rule, earlier: list[Rule]) -> list[tuple[Comparison, ...]]:
    """Return the argument tests under which `rule` decides although `earlier` rules come first."""
    conflicting = [
        other for other in earlier if not _same_verdict(other, rule) and not _never_both(other, rule)
    ]
    if not conflicting:
        return [rule.args]
    boxes = [_box_of(name, rule)]
    for other in conflicting:
        taken = _box_of(name, other)
        boxes = [rest for piece in boxes for rest in minus(piece, taken)]
        if len(boxes) > MAX_PIECES:
            raise PolicyError(
                f"the rules for {name} need more than {MAX_PIECES} comparisons", code="policy-seccomp-order"
            )
    return [_comparisons(piece) for piece in boxes]


def _box_of(name: str, rule: Rule) -> Box:
    try:
        box = box_of_args(rule.args)
    except PolicyError as error:
        raise PolicyError(f"rule for {name}: {error.message}", code=error.code) from error
    if box is None:
        raise PolicyError(
            f"the rules for {name} overlap and one compares by size: their order cannot be expressed",
            hint="use SCMP_CMP_EQ or SCMP_CMP_MASKED_EQ",
            code="policy-seccomp-order",
        )
    return box


def _flatten(name: str, rules: list[Rule]) -> list[_Verdict]:
    """Make the ordered rules of one syscall disjoint; what an earlier rule covers disappears."""
    if len(rules) == 1:
        return [(rules[0].action, rules[0].errno, rules[0].args)]
    result: dict[_Verdict, None] = {}
    earlier = list[Rule]()
    for rule in rules:
        for args in _pieces(name, rule, earlier):
            result[rule.action, rule.errno, args] = None
        earlier.append(rule)
        if not rule.args:
            break
    whole = {(action, errno) for action, errno, args in result if not args}
    return [verdict for verdict in result if not verdict[2] or verdict[:2] not in whole]


def _in_force(
    profile: SeccompProfile, caps: frozenset[str], table: Architecture, kernel: tuple[int, int]
) -> dict[str, list[Rule]]:
    result: dict[str, list[Rule]] = {}
    for rule in profile.rules:
        if holds(rule.includes, caps=caps, table=table, kernel=kernel) and not excluded(
            rule.excludes, caps=caps, table=table, kernel=kernel
        ):
            for name in rule.names:
                result.setdefault(name, []).append(rule)
    return result


def resolve(
    profile: SeccompProfile, *, caps: frozenset[str], table: Architecture, kernel: tuple[int, int]
) -> SeccompFilter:
    """Return the filter for an app with the bounding set `caps` on this kernel (major, minor).

    Raises PolicyError if the profile is not for this architecture or its order cannot be expressed.
    """
    if profile.architectures and table not in profile.architectures:
        raise PolicyError(f"seccomp profile {profile.name} has no {table}", code="policy-seccomp")
    default = (profile.default_action, profile.default_errno)
    merged: dict[_Verdict, list[str]] = {}
    for name, rules in sorted(_in_force(profile, caps, table, kernel).items()):
        for verdict in _flatten(name, rules):
            # A rule that repeats the default action is refused by libseccomp (EACCES) and changes nothing.
            if verdict[:2] != default:
                merged.setdefault(verdict, []).append(name)
    return SeccompFilter(
        default_action=profile.default_action,
        default_errno=profile.default_errno,
        architecture=table,
        rules=tuple(
            FlatRule(action=action, errno=errno, args=args, names=tuple(names))
            for (action, errno, args), names in merged.items()
        ),
    )
