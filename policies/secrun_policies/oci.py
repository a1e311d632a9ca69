"""Write a confinement as an OCI runtime configuration (runtime-spec 1.1: config.md, config-linux.md)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from secrun_policies.jsonvalue import JsonObject, JsonValue
from secrun_policies.seccomp_resolve import FlatRule, SeccompFilter

if TYPE_CHECKING:
    from secrun_policies.capabilities import Granted
    from secrun_policies.confine import Confinement, Rlimit


def _strings(items: Iterable[str]) -> list[JsonValue]:
    return list(items)


def process_fields(
    granted: "Granted",
    *,
    no_new_privileges: bool,
    rlimits: "tuple[Rlimit, ...]",
    oom_score_adj: int | None = None,
) -> JsonObject:
    """Return the members of `process` that confine.

    The inheritable set holds nothing but the ambient one: more of it would survive into programs with
    inheritable file capabilities (CVE-2022-24769).
    """
    score: JsonObject = {} if oom_score_adj is None else {"oomScoreAdj": oom_score_adj}
    return {
        **score,
        "capabilities": {
            "bounding": _strings(granted.bounding),
            "effective": _strings(granted.effective),
            "permitted": _strings(granted.effective),
            "inheritable": _strings(granted.ambient),
            "ambient": _strings(granted.ambient),
        },
        "noNewPrivileges": no_new_privileges,
        "rlimits": [{"type": item.name, "soft": item.soft, "hard": item.hard} for item in rlimits],
    }


def _rule(rule: FlatRule) -> JsonObject:
    result: JsonObject = {"names": _strings(rule.names), "action": rule.action.value}
    if rule.errno is not None:
        result["errnoRet"] = rule.errno
    if rule.args:
        result["args"] = [
            {"index": item.argument, "value": item.value, "valueTwo": item.value_two, "op": item.op.value}
            for item in rule.args
        ]
    return result


def seccomp_section(seccomp: SeccompFilter) -> JsonObject:
    """Return `linux.seccomp`."""
    result: JsonObject = {"defaultAction": seccomp.default_action.value}
    if seccomp.default_errno is not None:
        result["defaultErrnoRet"] = seccomp.default_errno
    result["architectures"] = [seccomp.architecture.value]
    result["syscalls"] = [_rule(rule) for rule in seccomp.rules]
    return result


def linux_fields(
    seccomp: SeccompFilter | None,
    masked: tuple[str, ...],
    readonly: tuple[str, ...],
    sysctls: tuple[tuple[str, str], ...] = (),
) -> JsonObject:
    """Return the members of `linux` that confine; without a filter there is no `seccomp` member."""
    result: JsonObject = {"maskedPaths": _strings(masked), "readonlyPaths": _strings(readonly)}
    if seccomp is not None:
        result["seccomp"] = seccomp_section(seccomp)
    if sysctls:
        result["sysctl"] = dict(sysctls)
    return result


def to_oci(confinement: "Confinement") -> tuple[JsonObject, JsonObject]:
    """Return the members to merge into `process` and into `linux` of the app's config.json."""
    process = process_fields(
        confinement.capabilities,
        no_new_privileges=confinement.no_new_privileges,
        rlimits=confinement.rlimits,
        oom_score_adj=confinement.oom_score_adj,
    )
    return process, linux_fields(
        confinement.seccomp, confinement.masked_paths, confinement.readonly_paths, confinement.sysctls
    )
