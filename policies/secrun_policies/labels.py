"""SELinux labels of a pod: what may be asked for, and which types the host's policy has for it.

Pure: texts in, contexts out. A context is `user:role:type:range` (the SELinux notebook, "Security Context");
the pair of categories that keeps one pod from another is not decided here but taken when the pod starts.
"""

import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple

from secrun_policies.errors import PolicyError, near

_CODE = "policy-label"
# Names of policy types are C identifiers with dots (checkpolicy's scanner).
# Not compiled here: every start loads this module, and most need none of them.
_TYPE = r"[A-Za-z][A-Za-z0-9_.]{0,127}\Z"
_LEVEL = r"s\d{1,2}(:c\d{1,4}(,c\d{1,4}){0,7})?\Z"
_CONTEXT = r"([A-Za-z0-9_.-]+):([A-Za-z0-9_.-]+):([A-Za-z0-9_.-]+):(s[0-9a-z:,.-]+)\Z"
_ASSIGNMENT = r'\s*([a-z_]+)\s*=\s*"?([^"\s]+)"?\s*\Z'
_KINDS = ("disable", "level", "type")
# lxc_contexts(5) has a handful of lines.
MAX_CONTEXT_FILE_BYTES = 64 * 1024
# What refpolicy builds by default, and no policy in use has less.
CATEGORIES = 1024

# Of policies/selinux/secrun.cil.
OWN_RUNTIME = "system_u:system_r:secrun_t:s0"
OWN_PROCESS = "system_u:system_r:secrun_pod_t:s0"
OWN_OPEN = "system_u:system_r:secrun_open_t:s0"
OWN_FILE = "system_u:object_r:secrun_file_t:s0"
OWN_MACHINE = "system_u:system_r:secrun_vm_t:s0"
OWN_MACHINE_FILE = "system_u:object_r:secrun_vm_file_t:s0"
OWN_SHARE = "system_u:system_r:secrun_share_t:s0"
OWN_BRIDGE = "system_u:system_r:secrun_bridge_t:s0"
OWN_STORE = "system_u:object_r:secrun_var_t:s0"
OWN_RUN = "system_u:object_r:secrun_run_t:s0"


class LabelRequest(NamedTuple):
    """What was asked of a pod's label; None and off mean: what the policy says, and a pair of its own."""

    disable: bool = False
    type: str | None = None
    level: str | None = None

    @property
    def relaxations(self) -> tuple[str, ...]:
        """Name what was asked for that weakens the pod."""
        found = ["label:disable"] if self.disable else []
        found += [f"label:type:{self.type}"] if self.type else []
        found += [f"label:level:{self.level}"] if self.level else []
        return tuple(found)


class LabelKind(StrEnum):
    """What is labelled: the processes of a container, or a virtual machine."""

    CONTAINER = "container"
    MACHINE = "machine"


class Contexts(NamedTuple):
    """The contexts of one pod but for its categories; an empty `runtime` leaves secrun's own alone."""

    process: str
    file: str
    runtime: str = ""


def parse_option(text: str) -> LabelRequest:
    """Parse what follows `label=` in --security-opt (podman-run(1)); raises PolicyError."""
    kind, colon, value = text.partition(":")
    if kind == "disable" and not colon:
        return LabelRequest(disable=True)
    if kind == "type" and re.match(_TYPE, value):
        return LabelRequest(type=value)
    if kind == "level" and re.match(_LEVEL, value):
        return LabelRequest(level=value)
    if kind in _KINDS and colon:
        raise PolicyError(
            f"--security-opt label={text[:80]}: {value[:60]!r} is no {kind}",
            hint="e.g. label=type:container_t, label=level:s0:c1,c2, label=disable",
            code=_CODE,
        )
    raise PolicyError(
        f"--security-opt label={text[:80]} is not known",
        hint=near(kind, _KINDS) or "label=disable, label=type:TYPE or label=level:LEVEL",
        code=_CODE,
    )


def merge(requests: Iterable[LabelRequest]) -> LabelRequest:
    """Join what was asked in several places: a pod has one label; raises PolicyError if they differ."""
    result = LabelRequest()
    for item in requests:
        for name in ("type", "level"):
            before, now = getattr(result, name), getattr(item, name)
            if before is not None and now is not None and before != now:
                raise PolicyError(
                    f"two labels are asked for one pod: {name} {before} and {name} {now}", code=_CODE
                )
        result = LabelRequest(
            disable=result.disable or item.disable,
            type=item.type or result.type,
            level=item.level or result.level,
        )
    if result.disable and (result.type or result.level):
        raise PolicyError("label=disable leaves nothing for label=type or label=level", code=_CODE)
    return result


def parse_assignments(text: str) -> dict[str, str]:
    """Read lxc_contexts(5): lines `name = "context"`; others are comments."""
    matches = (re.match(_ASSIGNMENT, line) for line in text.splitlines())
    return {match[1]: match[2] for match in matches if match}


def with_level(context: str, level: str) -> str:
    """Return a context at another level; raises PolicyError if it has none."""
    match = re.match(_CONTEXT, context)
    if match is None:
        raise PolicyError(
            f"{context[:80]!r} is no SELinux context with a level",
            hint="the host's policy needs MCS: `sestatus` shows its status",
            code=_CODE,
        )
    return f"{match[1]}:{match[2]}:{match[3]}:{level}"


def with_type(context: str, name: str) -> str:
    """Return a context with another type; raises PolicyError if it is none."""
    match = re.match(_CONTEXT, context)
    if match is None:
        raise PolicyError(f"{context[:80]!r} is no SELinux context with a level", code=_CODE)
    return f"{match[1]}:{match[2]}:{name}:{match[4]}"


def level_of(context: str) -> str:
    """Return the level of a context, empty if it has none."""
    match = re.match(_CONTEXT, context)
    return match[4] if match else ""


class HostContexts(NamedTuple):
    """What the host's policy names, unread files being empty, and which contexts it defines."""

    lxc: str
    defined: Callable[[str], bool]


def _candidates(kind: LabelKind, host: HostContexts) -> list[Contexts]:
    """Return what a pod of this kind may get, the best first.

    Types of the host for machines (virtual_domain_context(5)) fit a libvirtd, which starts its helpers and
    labels its images by itself; only the module's know what secrun's starter, bridge and daemons need.
    """
    if kind is LabelKind.MACHINE:
        return [Contexts(process=OWN_MACHINE, file=OWN_FILE)]
    names = parse_assignments(host.lxc)
    named = Contexts(process=names.get("process", ""), file=names.get("file", ""))
    return [named, Contexts(process=OWN_PROCESS, file=OWN_FILE)]


def choose(kind: LabelKind, asked: LabelRequest, host: HostContexts) -> Contexts | None:
    """Return the contexts of a pod: the host's if its policy defines them, else secrun's module's.

    None if the policy has neither. Raises PolicyError if it does not define what was asked for. Nothing
    inside a machine has a label, so label=disable leaves its emulator the one it has.
    """
    runtime = OWN_RUNTIME if host.defined(OWN_RUNTIME) else ""
    if kind is LabelKind.MACHINE:
        asked = asked._replace(disable=False)
    for found in _candidates(kind, host):
        if found.process and found.file and host.defined(found.process) and host.defined(found.file):
            return _asked_for(asked, found._replace(runtime=runtime), host)
    return None


def _asked_for(asked: LabelRequest, found: Contexts, host: HostContexts) -> Contexts:
    if asked.disable:
        # With secrun's domain its pods need one that it may enter; elsewhere they stay in the caller's.
        return found._replace(process=OWN_OPEN if found.runtime else "")
    process, file = found.process, found.file
    if asked.type is not None:
        process = with_type(process, asked.type)
    if asked.level is not None:
        process, file = with_level(process, asked.level), with_level(file, asked.level)
    for context in (process, file):
        if not host.defined(context):
            raise PolicyError(
                f"the SELinux policy of this host does not define {context}",
                hint="see seinfo -t, or install the policy that has it",
                code=_CODE,
            )
    return found._replace(process=process, file=file)
