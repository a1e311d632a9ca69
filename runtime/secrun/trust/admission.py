"""Decide whether an image may be used: most specific scope first, all its requirements must hold."""

import errno
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Self

from secrun.errors import DeniedError
from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import record
from secrun.trust import limits
from secrun.trust.policy import Requirement, RequirementType, TrustPolicy, parse, policy_error

# containers-policy.json(5); the second place is where distributions put their default.
POLICY_PATHS = (Path("/etc/containers/policy.json"), Path("/usr/share/containers/policy.json"))


class Decision(StrEnum):
    """What the policy said."""

    ACCEPT = "accept"
    REJECT = "reject"


@record
class Subject:
    """What is asked about: a transport, and the scopes that cover the image, the most specific first."""

    name: str
    transport: str
    scopes: tuple[str, ...]


@record
class Admission:
    """The decision on one image and all that led to it; `bypass` says that no policy was asked."""

    decision: Decision
    policy_source: str
    scope: str
    requirement_types: tuple[str, ...]
    bypass: bool
    reason: str = ""

    def to_json(self) -> JsonObject:
        """Return the decision with all that led to it, as the store and the command line show it."""
        return {
            "decision": str(self.decision),
            "policy": self.policy_source,
            "scope": self.scope,
            "requirements": list(self.requirement_types),
            "bypass": self.bypass,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what `to_json` writes; raises StateError."""
        decision = fields.text("decision")
        if decision not in tuple(Decision):
            fields.unexpected("decision", decision, "accept or reject")
        admission = cls(
            decision=Decision(decision),
            policy_source=fields.text("policy"),
            scope=fields.text("scope"),
            requirement_types=fields.texts("requirements"),
            bypass=fields.flag("bypass"),
        )
        fields.end()
        return admission


BYPASS = Admission(
    decision=Decision.ACCEPT,
    policy_source="",
    scope="",
    requirement_types=(),
    bypass=True,
    reason="--insecure-options=image",
)


def load(path: Path | None, *, defaults: Sequence[Path] = POLICY_PATHS) -> TrustPolicy:
    """Read the policy at `path`, else the first of `defaults` that exists.

    Raises DeniedError if there is none: without a policy nothing is admitted. Raises UsageError for a file
    that cannot be read or understood.
    """
    for candidate in (path,) if path else defaults:
        data = _read(candidate)
        if data is not None:
            return parse(data, source=str(candidate))
    if path:
        raise policy_error(f"{path}: no such file")
    raise DeniedError(
        f"no trust policy: neither {' nor '.join(str(default) for default in defaults)} exists",
        hint='write one (containers-policy.json(5)) that begins with {"default": [{"type": "reject"}]}',
        code="denied-no-policy",
    )


def _read(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise policy_error(f"{path}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as stream:
        try:
            return stream.read(limits.MAX_POLICY_BYTES + 1)
        except OSError as error:
            raise policy_error(f"{path}: {error.strerror}") from error


def _applicable(policy: TrustPolicy, subject: Subject) -> tuple[str, tuple[Requirement, ...]]:
    scopes = policy.transports.get(subject.transport)
    if scopes is None:
        return "default", policy.default
    for scope in (*subject.scopes, ""):
        if scope in scopes:
            return f"{subject.transport}:{scope}", scopes[scope]
    return "default", policy.default


def _objection(requirement: Requirement) -> str:
    """Say why a requirement is not met; empty if it is."""
    if requirement.type is RequirementType.ACCEPT:
        return ""
    if requirement.type is RequirementType.REJECT:
        return "the policy rejects every image there"
    return (
        f"the policy demands {requirement.type}, and this version of secrun does not understand "
        f"{requirement.type} signatures yet"
    )


def decide(policy: TrustPolicy, subject: Subject) -> Admission:
    """Return the decision of `policy` on `subject`; pure."""
    scope, requirements = _applicable(policy, subject)
    objections = [objection for requirement in requirements if (objection := _objection(requirement))]
    # An empty list cannot come out of the parser; should it ever, it admits nothing.
    accepted = bool(requirements) and not objections
    return Admission(
        decision=Decision.ACCEPT if accepted else Decision.REJECT,
        policy_source=policy.source,
        scope=scope,
        requirement_types=tuple(str(requirement.type) for requirement in requirements),
        bypass=False,
        reason="; ".join(objections),
    )


def admit(subject: Subject, *, policy: Path | None, bypass: bool) -> Admission:
    """Return the admission of `subject`; raises DeniedError (exit 120) unless it is accepted."""
    if bypass:
        return BYPASS
    return require(decide(load(policy), subject), subject)


def require(admission: Admission, subject: Subject) -> Admission:
    """Return `admission` if it accepts; raises DeniedError that names policy and scope."""
    if admission.decision is Decision.ACCEPT:
        return admission
    raise DeniedError(
        f"{subject.name} is not admitted by {admission.policy_source} (scope {admission.scope}): "
        f"{admission.reason}",
        hint="change the policy, or bypass it for once with --insecure-options=image",
        code="denied-image",
    )
