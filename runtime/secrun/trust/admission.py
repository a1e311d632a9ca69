"""The decision on an image: what the policy said, who signed, and what it was decided from."""

from enum import StrEnum
from typing import TYPE_CHECKING, Self

from secrun.dockername import DockerName
from secrun.errors import DeniedError
from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import record

if TYPE_CHECKING:
    from secrun.trust.verdict import Verified

# What a policy that does not exist is called.
NO_POLICY = "no policy file"


class Decision(StrEnum):
    """What the policy said."""

    ACCEPT = "accept"
    REJECT = "reject"


@record
class Subject:
    """What is asked about: a transport, and the scopes that cover the image, the most specific first.

    `docker` is the image's name in a registry, None where the transport gives it none; `appc` is the name of
    an app container image, without version.
    """

    name: str
    transport: str
    scopes: tuple[str, ...]
    docker: DockerName | None = None
    appc: str = ""

    @property
    def repository(self) -> str:
        """The name that prefixes of keys are held against, empty if there is none."""
        return self.docker.repository if self.docker else self.appc


@record
class Admission:
    """The decision on one image and all that led to it; `bypass` says that no policy was asked.

    `signatures` are those that let it in, one per requirement. `rule` is the file of secrun's own rule, if
    one applies. `inputs` is the digest of policy, keys, image and its signatures: as long as it is the same,
    and until `expires` (seconds since 1970, 0 for never), the decision is.
    """

    decision: Decision
    policy_source: str
    scope: str
    requirement_types: tuple[str, ...]
    bypass: bool
    reason: str = ""
    signatures: "tuple[Verified, ...]" = ()
    rule: str = ""
    inputs: str = ""
    expires: int = 0

    def to_json(self) -> JsonObject:
        """Return the decision with all that led to it, as the store and the command line show it."""
        return {
            "decision": str(self.decision),
            "policy": self.policy_source,
            "scope": self.scope,
            "requirements": list(self.requirement_types),
            "bypass": self.bypass,
            "signatures": [item.to_json() for item in self.signatures],
            "rule": self.rule,
            "inputs": self.inputs,
            "expires": self.expires,
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
            signatures=_signatures(fields.objects("signatures")),
            rule=fields.text("rule"),
            inputs=fields.text("inputs"),
            expires=fields.integer("expires"),
        )
        fields.end()
        return admission


def _signatures(items: tuple[Fields, ...]) -> "tuple[Verified, ...]":
    if not items:
        return ()
    from secrun.trust.verdict import Verified  # who has no signed image need not load it

    return tuple(Verified.from_fields(item) for item in items)


BYPASS = Admission(
    decision=Decision.ACCEPT,
    policy_source="",
    scope="",
    requirement_types=(),
    bypass=True,
    reason="--insecure-options=image",
)


def require(admission: Admission, subject: Subject) -> Admission:
    """Return `admission` if it accepts; raises DeniedError that names policy, scope and the next step."""
    if admission.decision is Decision.ACCEPT:
        return admission
    if admission.policy_source == NO_POLICY:
        raise DeniedError(
            f"{subject.name} is not admitted: there is no trust policy, and no trusted key covers it",
            hint="trust its signer's key (secrun trust add --prefix REGISTRY/NAME KEY) or write "
            "/etc/containers/policy.json (containers-policy.json(5)) that begins with "
            '{"default": [{"type": "reject"}]}',
            code="denied-no-policy",
        )
    raise DeniedError(
        f"{subject.name} is not admitted by {admission.policy_source} (scope {admission.scope}): "
        f"{admission.reason}",
        hint=_next_step(admission),
        code="denied-image",
    )


def _next_step(admission: Admission) -> str:
    signed = any(word not in ("insecureAcceptAnything", "reject") for word in admission.requirement_types)
    if signed or admission.rule:
        return (
            "have it signed by whom the rule names (secrun sign), or trust its signer (secrun trust add); "
            "after that secrun fetch asks again"
        )
    return "change the policy, or bypass it for once with --insecure-options=image"
