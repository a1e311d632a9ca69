"""From a filter to one that asks about what it would let through, and from that to a profile; pure."""

import json
from collections.abc import Iterable

from secrun_policies.isolator import only
from secrun_policies.jsonvalue import JsonObject, JsonValue
from secrun_policies.seccomp import Action, Applies, Comparison, Rule, SeccompProfile

NOTIFY = "SCMP_ACT_NOTIFY"
# Not calls that a program decides to make: the kernel makes the first two for it (sigreturn(2),
# restart_syscall(2)), and the others are answered without the kernel on most machines (vdso(7)).
UNSEEN = (
    "restart_syscall",
    "rt_sigreturn",
    "clock_getres",
    "clock_gettime",
    "getcpu",
    "gettimeofday",
    "time",
)


def asking(section: JsonObject, listener: str) -> JsonObject:
    """Return `linux.seccomp` under which the kernel asks at the socket `listener` about what was allowed.

    What is refused is refused as before (runtime-spec 1.1, config-linux.md, seccomp, listenerPath).
    """
    result: JsonObject = {**section, "listenerPath": listener}
    rules = section.get("syscalls")
    asked: list[JsonValue] = []
    for rule in rules if isinstance(rules, list) else ():
        if isinstance(rule, dict) and rule.get("action") == Action.ALLOW.value:
            asked.append({**rule, "action": NOTIFY})
        else:
            asked.append(rule)
    result["syscalls"] = asked
    return result


def tight(base: SeccompProfile, used: Iterable[str]) -> SeccompProfile:
    """Return `base` with nothing but the calls in `used`; its conditions stay."""
    wanted = frozenset(used) | frozenset(UNSEEN)
    return base._replace(rules=only(base, lambda name: name in wanted))


def _test(item: Comparison) -> JsonObject:
    return {"index": item.argument, "value": item.value, "valueTwo": item.value_two, "op": item.op.value}


def _conditions(applies: Applies) -> JsonObject:
    result: JsonObject = {}
    if applies.caps:
        result["caps"] = list[JsonValue](sorted(applies.caps))
    if applies.arches:
        result["arches"] = list[JsonValue](sorted(applies.arches))
    if applies.min_kernel > (0, 0):
        result["minKernel"] = ".".join(map(str, applies.min_kernel))
    return result


def _rule(rule: Rule) -> JsonObject:
    result: JsonObject = {"names": list[JsonValue](sorted(rule.names)), "action": rule.action.value}
    if rule.errno is not None:
        result["errnoRet"] = rule.errno
    if rule.args:
        result["args"] = [_test(item) for item in rule.args]
    for key, applies in (("includes", rule.includes), ("excludes", rule.excludes)):
        if conditions := _conditions(applies):
            result[key] = conditions
    return result


def to_file(profile: SeccompProfile, comment: str) -> bytes:
    """Return a profile in the format that runtimes read, the same bytes every time."""
    document: JsonObject = {"comment": comment, "defaultAction": profile.default_action.value}
    if profile.default_errno is not None:
        document["defaultErrnoRet"] = profile.default_errno
    document["archMap"] = [
        {"architecture": table.value, "subArchitectures": []} for table in profile.architectures
    ]
    document["syscalls"] = [_rule(rule) for rule in profile.rules]
    return json.dumps(document, indent=2).encode() + b"\n"
