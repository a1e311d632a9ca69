"""What is demanded of an image: by policy, key ring and rules, before any signature is looked at."""

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun import config
from secrun.digest import Digest
from secrun.errors import DeniedError, UsageError
from secrun.jsonio import JsonObject, JsonValue, canonical
from secrun.record import record
from secrun.trust import limits
from secrun.trust.admission import NO_POLICY, Admission, Decision, Subject
from secrun.trust.places import POLICY_PATHS, RULES_NAME
from secrun.trust.policy import TrustPolicy, parse
from secrun.trust.policyreader import policy_error
from secrun.trust.requirement import (
    IdentityMatch,
    Material,
    Requirement,
    RequirementType,
    SignedIdentity,
)
from secrun.trust.ring import KeyRing, RingKey

if TYPE_CHECKING:
    from secrun.trust.rules import Rule

_REJECT = Requirement(type=RequirementType.REJECT)
_NOTHING = TrustPolicy(source=NO_POLICY, default=(_REJECT,))
# A prefix of the ring vouches for names below it; which name a signature is for must still be that image's.
_RING_IDENTITY = SignedIdentity(match=IdentityMatch.REPOSITORY)


def read_policy(path: Path | None, *, defaults: Sequence[Path] = POLICY_PATHS) -> TrustPolicy:
    """Read the policy at `path`, else the first of `defaults` that exists, else one that rejects everything.

    Raises UsageError for a file that cannot be read or understood.
    """
    for candidate in (path,) if path else defaults:
        data = _read(candidate, limits.MAX_POLICY_BYTES)
        if data is not None:
            return parse(data, source=str(candidate))
    if path:
        raise policy_error(f"{path}: no such file")
    return _NOTHING


def _read(path: Path, limit: int) -> bytes | None:
    """Return a file's first bytes, one more than `limit`; None if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise policy_error(f"{path}: {error.strerror}") from error
    try:
        with os.fdopen(fd, "rb", closefd=False) as stream:
            return stream.read(limit + 1)
    except OSError as error:
        raise policy_error(f"{path}: {error.strerror}") from error
    finally:
        os.close(fd)


@record
class Opened:
    """The bytes of all files that a plan names, and the certificate files of its trust stores."""

    keys: Mapping[Material, bytes]
    stores: Mapping[str, tuple[Material, ...]]


@record
class Plan:
    """The requirements for one image, all of which must hold, and the keys that they name."""

    subject: Subject
    policy_source: str
    scope: str
    requirements: tuple[Requirement, ...]
    rule: "Rule | None" = None

    @property
    def hopeless(self) -> bool:
        """Whether no signature could help: then nothing need be downloaded."""
        return any(item.type is RequirementType.REJECT for item in self.requirements)

    @property
    def asks_for_signatures(self) -> bool:
        """Whether an image's signatures decide."""
        return any(item.signed for item in self.requirements) or bool(self.rule and self.rule.demands)

    @property
    def demanded(self) -> int:
        """How many demands only a signature can meet."""
        return sum(item.signed for item in self.requirements) + (len(self.rule.demands) if self.rule else 0)

    def opened(self) -> Opened:
        """Read all files that are named; raises DeniedError for one that cannot be read."""
        return Opened(keys=self.key_files(), stores=self.stores())

    @property
    def labels(self) -> tuple[str, ...]:
        """The requirements in words."""
        demands = self.rule.demands if self.rule else ()
        return (*(str(item.type) for item in self.requirements), *(item.label for item in demands))

    def _materials(self) -> list[Material]:
        found = [material for item in self.requirements for material in item.materials]
        for demand in self.rule.demands if self.rule else ():
            found += demand.keys
            found += [demand.trusted_root] if demand.trusted_root else []
            found += [material for store in demand.stores for material in _store(store)]
        return found

    def key_files(self) -> dict[Material, bytes]:
        """Read all key files; raises DeniedError for one that cannot be read: its rule cannot hold."""
        return {material: _material(material) for material in self._materials()}

    def stores(self) -> dict[str, tuple[Material, ...]]:
        """Return the certificate files of each trust store that is named."""
        named = [store for demand in (self.rule.demands if self.rule else ()) for store in demand.stores]
        return {store: tuple(_store(store)) for store in named}

    def inputs(self, digests: frozenset[Digest], keys: Mapping[Material, bytes], signatures: str) -> str:
        """Return the digest of all that decides: whoever has the same need not check again."""
        materials: list[JsonValue] = [
            [item.path, str(Digest.of(data))] for item, data in sorted(keys.items(), key=_by_path)
        ]
        decisive: JsonObject = {
            "version": 1,
            "subject": self.subject.name,
            "digests": [str(item) for item in sorted(digests)],
            "policy": self.policy_source,
            "scope": self.scope,
            "requirements": [item.to_json() for item in self.requirements],
            "rule": self._rule_json(),
            "keys": materials,
            "signatures": signatures,
        }
        return str(Digest.of(canonical(decisive)))

    def _rule_json(self) -> JsonValue:
        # A record's repr names every field, and there is nothing in a rule but words and numbers.
        return repr(self.rule) if self.rule else ""


def _by_path(item: tuple[Material, bytes]) -> tuple[str, bytes]:
    return item[0].path, item[1]


def _store(folder: str) -> list[Material]:
    """Return the certificate files of a Notation trust store (a folder of .crt and .pem files)."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise _unreadable(folder, error.strerror or "unreadable") from error
    found = [Material(path=f"{folder}/{name}") for name in names if name.endswith((".crt", ".pem", ".cer"))]
    if not 0 < len(found) <= limits.MAX_CERTIFICATES:
        raise _unreadable(folder, f"holds no certificate or more than {limits.MAX_CERTIFICATES}")
    return found


def _unreadable(path: str, why: str) -> DeniedError:
    return DeniedError(
        f"{path}, which the trust policy names: {why}",
        hint="until it can be read nothing is admitted under this rule; correct the path or the policy",
        code="denied-policy-key",
    )


def _material(material: Material) -> bytes:
    if material.data or not material.path:
        return material.data
    try:
        with open(material.path, "rb") as stream:
            data = stream.read(limits.MAX_KEY_BYTES + 1)
    except OSError as error:
        raise _unreadable(material.path, error.strerror or "unreadable") from error
    if not data or len(data) > limits.MAX_KEY_BYTES:
        raise _unreadable(material.path, f"is empty or larger than {limits.MAX_KEY_BYTES} bytes")
    return data


@record
class TrustContext:
    """All that decides about images on this host."""

    policy: TrustPolicy
    ring: KeyRing
    rules: "tuple[Rule, ...]" = ()

    def plan(self, subject: Subject) -> Plan:
        """Return what is demanded of an image: of policy and key ring, the most specific scope decides."""
        scope, requirements = _of_policy(self.policy, subject)
        rule = _of_rules(self.rules, subject)
        source = self.policy.source
        if rule is not None and rule.instead:
            return Plan(
                subject=subject, policy_source=rule.source, scope=rule.scope, requirements=(), rule=rule
            )
        prefix, keys = self.ring.for_name(subject.repository)
        if keys and _ring_wins(scope, prefix, subject):
            label = f"{subject.transport}:{prefix}" if prefix else "default"
            return Plan(
                subject=subject,
                policy_source=str(self.ring.folder),
                scope=label,
                requirements=(_of_ring(keys),),
                rule=rule,
            )
        return Plan(subject=subject, policy_source=source, scope=scope, requirements=requirements, rule=rule)


def _of_policy(policy: TrustPolicy, subject: Subject) -> tuple[str, tuple[Requirement, ...]]:
    scopes = policy.transports.get(subject.transport)
    if scopes is None:
        return "default", policy.default
    for scope in (*subject.scopes, ""):
        if scope in scopes:
            return f"{subject.transport}:{scope}", scopes[scope]
    return "default", policy.default


def _of_rules(rules: "Sequence[Rule]", subject: Subject) -> "Rule | None":
    by_scope = {rule.scope: rule for rule in rules}
    names = (*(f"{subject.transport}:{scope}" for scope in (*subject.scopes, "")), "default")
    return next((by_scope[name] for name in names if name in by_scope), None)


def _ring_wins(scope: str, prefix: str, subject: Subject) -> bool:
    """Tell whether the ring is more specific than the policy; at the same scope the policy decides.

    Keys for any image stand where the policy has nothing but its default.
    """
    if scope == "default":
        return True
    if not prefix:
        return False
    order = {f"{subject.transport}:{word}": number for number, word in enumerate((*subject.scopes, ""))}
    return order[f"{subject.transport}:{prefix}"] < order[scope]


def _of_ring(keys: Sequence[RingKey]) -> Requirement:
    return Requirement(
        type=RequirementType.KEY_RING,
        keys=tuple(key.material for key in keys),
        identity=_RING_IDENTITY,
    )


def load(policy: Path | None, ring: Path, *, places: Sequence[Path] = config.PLACES) -> TrustContext:
    """Read policy, key ring and rules; raises UsageError for what cannot be read or understood."""
    rules: tuple[Rule, ...] = ()
    if config.files(RULES_NAME, (ring, *places)):
        from secrun.trust import (
            rules as rules_module,
        )  # most hosts have none, and it loads what they do not need

        rules = rules_module.load(ring, places)
    return TrustContext(policy=read_policy(policy), ring=KeyRing(ring), rules=rules)


def load_for(subject: Subject, policy: Path | None, ring: Path) -> TrustContext:
    """Like `load`; what cannot be used denies the image that is asked about."""
    try:
        return load(policy, ring)
    except UsageError as error:
        raise DeniedError(
            f"{subject.name} is not admitted: {error.message}", hint=error.hint, code="denied-policy"
        ) from error


def unsigned(plan: Plan) -> Admission:
    """Return the decision where no signature is asked for, or none would help; pure."""
    objections = ["the policy rejects every image there"] if plan.hopeless else []
    # No requirement at all cannot come out of the parser; should it ever, it admits nothing.
    accepted = bool(plan.requirements) and not objections and not plan.asks_for_signatures
    return Admission(
        decision=Decision.ACCEPT if accepted else Decision.REJECT,
        policy_source=plan.policy_source,
        scope=plan.scope,
        requirement_types=plan.labels,
        bypass=False,
        reason="; ".join(objections),
        rule=plan.rule.source if plan.rule else "",
    )


def check_stage1(plan: Plan, flavour: str) -> None:
    """Raise DeniedError if a rule lets the image run in other flavours of stage1 only; "" is not asked."""
    rule = plan.rule
    if rule is None or not rule.stage1 or not flavour or flavour in rule.stage1:
        return
    raise DeniedError(
        f"{plan.subject.name} may not run in stage1 {flavour}: {rule.source} (scope {rule.scope}) admits "
        f"{', '.join(rule.stage1)}",
        hint=f"run it with --stage1={rule.stage1[0]}",
        code="denied-stage1",
    )
