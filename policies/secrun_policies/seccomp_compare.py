"""Whether one filter lets through more than another: computed on bit patterns, never by trying; pure."""

from typing import TypeAlias

from secrun_policies.seccomp import MAX_VALUE, Action, Comparison, Operator
from secrun_policies.seccomp_resolve import (
    MAX_PIECES,
    Box,
    FlatRule,
    SeccompFilter,
    box_of_args,
    is_open,
    minus,
)

EVERYTHING = "*"
_OPEN = (Action.ALLOW, Action.LOG)

_Conditions: TypeAlias = list[tuple[Comparison, ...]]


def _allowed(filter_: SeccompFilter) -> dict[str, _Conditions]:
    result: dict[str, _Conditions] = {}
    for rule in filter_.rules:
        if rule.action in _OPEN:
            for name in rule.names:
                result.setdefault(name, []).append(rule.args)
    return result


def _cut(box: Box, bits: int) -> Box:
    """Keep the low `bits` of each pattern."""
    low = MAX_VALUE >> (64 - bits)
    return {index: (mask & low, value & low) for index, (mask, value) in box.items() if mask & low}


def _covered(args: tuple[Comparison, ...], others: _Conditions, bits: int) -> bool:
    """Tell whether every call under `args` is one of `others`; False where that cannot be shown."""
    if () in others or args in others:
        return True
    box = box_of_args(args)
    # What is compared by size could be any value.
    rest: list[Box] = [_cut(box, bits) if box is not None else {}]
    for other in others:
        rest = [piece for item in rest for piece in _without(item, other, bits)]
        if len(rest) > MAX_PIECES:
            return False
    return not rest


def _without(box: Box, other: tuple[Comparison, ...], bits: int) -> list[Box]:
    """Return what of `box` is not under `other`, which may have one test for inequality."""
    unequal = [item for item in other if item.op is Operator.NE]
    taken = box_of_args(tuple(item for item in other if item.op is not Operator.NE))
    if taken is None or len(unequal) > 1:
        return [box]
    pieces = minus(box, _cut(taken, bits))
    for item in unequal:
        equal = _cut({**taken, item.argument: (MAX_VALUE, item.value)}, bits)
        pieces += [both] if (both := _and(box, equal)) is not None else []
    return pieces


def _and(left: Box, right: Box) -> Box | None:
    """Return what is in both boxes; None if nothing is."""
    result = dict(left)
    for index, (mask, value) in right.items():
        known, held = result.get(index, (0, 0))
        if (held ^ value) & mask & known:
            return None
        result[index] = (mask | known, value | held)
    return result


def wider(filter_: SeccompFilter, reference: SeccompFilter, *, bits: int = 64) -> tuple[str, ...]:
    """Return the calls of which `filter_` lets through more than `reference`; ("*",) if everything.

    With `bits=32` only the low halves of arguments are looked at, as the kernel does for most of them. May
    name a call too much where comparisons by size cannot be compared, never one too little.
    """
    if is_open(filter_):
        same = is_open(reference) and _refusals(reference) <= _refusals(filter_)
        return () if same else (EVERYTHING,)
    if is_open(reference):
        refused = {name for rule in reference.rules if rule.action not in _OPEN for name in rule.names}
        return tuple(sorted(refused & set(_allowed(filter_))))
    known = _allowed(reference)
    return tuple(
        sorted(
            name
            for name, conditions in _allowed(filter_).items()
            if not all(_covered(args, known.get(name, []), bits) for args in conditions)
        )
    )


def _refusals(filter_: SeccompFilter) -> frozenset[tuple[str, tuple[Comparison, ...]]]:
    return frozenset(
        (name, rule.args) for rule in filter_.rules if rule.action not in _OPEN for name in rule.names
    )


def opened_for(filter_: SeccompFilter, inner: SeccompFilter) -> SeccompFilter:
    """Return `filter_` with every call let through of which `inner` lets more through."""
    names = wider(inner, filter_)
    if not names:
        return filter_
    rules = [
        rule._replace(names=left)
        for rule in filter_.rules
        if (left := tuple(name for name in rule.names if name not in names))
    ]
    return filter_._replace(rules=(*rules, FlatRule(action=Action.ALLOW, errno=None, args=(), names=names)))
