"""Weigh the signatures of an image against what is demanded; bytes and policy in, verdict out."""

import json
from collections.abc import Callable, Mapping

from secrun.digest import Digest
from secrun.record import record, replace
from secrun.trust import bundle, cosign, detached, notation, openpgp, trustedroot
from secrun.trust.admission import Admission, Decision
from secrun.trust.faults import SignatureFaultError
from secrun.trust.plan import Opened, Plan
from secrun.trust.requirement import Material, Requirement, RequirementType
from secrun.trust.ring import is_openpgp
from secrun.trust.rules import Demand, DemandType
from secrun.trust.signatures import Candidate, SignatureKind, SignatureSet
from secrun.trust.verdict import Case, Verified

# Reasons that one refusal repeats in full; an image may carry a hundred bad signatures.
_SHOWN_REASONS = 5
_Check = Callable[[Candidate], Verified]


@record
class Outcome:
    """Whether one demand is met: by which signature, or why by none."""

    label: str
    verified: Verified | None
    reasons: tuple[str, ...] = ()


def kinds_of(plan: Plan) -> tuple[SignatureKind, ...]:
    """Return the forms of signatures that can matter for a plan."""
    found: set[SignatureKind] = set()
    for item in plan.requirements:
        if item.type is RequirementType.SIGNED_BY:
            found.add(SignatureKind.OPENPGP)
        elif item.type is RequirementType.SIGSTORE_SIGNED:
            found |= {SignatureKind.COSIGN, SignatureKind.BUNDLE}
        elif item.type is RequirementType.KEY_RING:
            found |= _ring_kinds(item)
    for demand in plan.rule.demands if plan.rule else ():
        bundled = demand.type is DemandType.BUNDLE
        found.add(SignatureKind.BUNDLE if bundled else SignatureKind.NOTATION)
    return tuple(sorted(found))


def _ring_kinds(requirement: Requirement) -> set[SignatureKind]:
    found: set[SignatureKind] = set()
    for material in requirement.keys:
        found |= (
            {SignatureKind.OPENPGP}
            if is_openpgp(material.data)
            else {SignatureKind.COSIGN, SignatureKind.BUNDLE}
        )
    return found


def _first(label: str, candidates: tuple[Candidate, ...], check: _Check) -> Outcome:
    """Return the first signature that passes; one is enough, whatever the others are."""
    reasons: list[str] = []
    for candidate in candidates:
        try:
            return Outcome(label=label, verified=check(candidate))
        except SignatureFaultError as error:
            reasons.append(f"{candidate.origin}: {error.reason}")
    return Outcome(label=label, verified=None, reasons=tuple(reasons))


def _meet(requirement: Requirement, signatures: SignatureSet, case: Case) -> Outcome:
    """Hold the signatures against one requirement of policy or ring."""

    def check(candidate: Candidate) -> Verified:
        return _check(candidate, requirement, case)

    kinds = {
        RequirementType.SIGNED_BY: (SignatureKind.OPENPGP,),
        RequirementType.SIGSTORE_SIGNED: (SignatureKind.COSIGN, SignatureKind.BUNDLE),
        RequirementType.KEY_RING: (
            SignatureKind.COSIGN,
            SignatureKind.BUNDLE,
            SignatureKind.OPENPGP,
            SignatureKind.APPC,
        ),
    }[requirement.type]
    return _first(str(requirement.type), signatures.of_kind(*kinds), check)


def _check(candidate: Candidate, requirement: Requirement, case: Case) -> Verified:
    if requirement.type is RequirementType.KEY_RING:
        requirement, case = _narrowed(candidate, requirement, case)
    if candidate.kind is SignatureKind.OPENPGP:
        return openpgp.verify(candidate, requirement, case)
    if candidate.kind is SignatureKind.APPC:
        return detached.verify(candidate, requirement, case)
    if candidate.kind is SignatureKind.BUNDLE:
        return bundle.verify(candidate, requirement, case)
    return cosign.verify(candidate, requirement, case)


def _narrowed(candidate: Candidate, requirement: Requirement, case: Case) -> tuple[Requirement, Case]:
    """Keep the keys of the ring that can have made this form of signature."""
    wanted = candidate.kind in (SignatureKind.OPENPGP, SignatureKind.APPC)
    keys = tuple(item for item in requirement.keys if is_openpgp(item.data) == wanted)
    if not keys:
        raise SignatureFaultError("no trusted key is of its kind")
    # Of files only the keys for any image are asked, and those vouch for the digest under whatever name.
    return replace(requirement, keys=keys), replace(case, any_name=case.name is None)


def _satisfy(
    demand: Demand, signatures: SignatureSet, case: Case, stores: Mapping[str, tuple[Material, ...]]
) -> Outcome:
    """Hold the signatures against one demand of a rule."""
    if demand.type is DemandType.NOTATION:
        anchors = [
            certificate
            for store in demand.stores
            for material in stores[store]
            for certificate in cosign.certificates(material, case)
        ]
        return _first(
            demand.label,
            signatures.of_kind(SignatureKind.NOTATION),
            lambda candidate: notation.verify(candidate, anchors, demand.identities, case),
        )
    return _first(demand.label, signatures.of_kind(SignatureKind.BUNDLE), _bundle_check(demand, case))


def _bundle_check(demand: Demand, case: Case) -> _Check:
    if demand.trusted_root is None:
        requirement = Requirement(type=RequirementType.SIGSTORE_SIGNED, keys=demand.keys)
        return lambda candidate: bundle.verify_by_key(candidate, requirement, demand.predicate, case)
    try:
        root = trustedroot.parse(case.keys[demand.trusted_root])
    except ValueError as error:
        raise cosign.unusable(demand.trusted_root, str(error)) from error
    who = bundle.Keyless(issuer=demand.issuer, identities=demand.identities)
    return lambda candidate: bundle.verify_keyless(candidate, root, who, demand.predicate, case)


def _aged(outcome: Outcome, max_age: int, now: float) -> Outcome:
    """Apply a rule's greatest age; the decision lasts no longer than it."""
    found = outcome.verified
    if found is None or not max_age:
        return outcome
    if not found.signed_at:
        return replace(
            outcome, verified=None, reasons=("it does not say when it was made, and the rule has a max-age",)
        )
    end = found.signed_at + max_age
    if end <= now:
        days = int(now - found.signed_at) // 86400
        return replace(
            outcome, verified=None, reasons=(f"it was made {days} days ago, more than the rule's max-age",)
        )
    return replace(outcome, verified=replace(found, expires=min(end, found.expires or end)))


def outcomes(
    plan: Plan, case: Case, signatures: SignatureSet, stores: Mapping[str, tuple[Material, ...]]
) -> tuple[Outcome, ...]:
    """Return what came of each demand that only a signature can meet."""
    found = [_meet(item, signatures, case) for item in plan.requirements if item.signed]
    if plan.rule:
        found += [_satisfy(demand, signatures, case, stores) for demand in plan.rule.demands]
        found = [_aged(item, plan.rule.max_age, case.now) for item in found]
    return tuple(found)


def _objection(outcome: Outcome, signatures: SignatureSet) -> str:
    """Say why a demand is not met."""
    reasons = [*outcome.reasons, *signatures.faults]
    ring = outcome.label == RequirementType.KEY_RING
    demand = "a trusted key must have signed it" if ring else f"the policy demands {outcome.label}"
    if not reasons:
        return f"{demand}, and the image has no such signature"
    shown = "; ".join(_printable(reason) for reason in reasons[:_SHOWN_REASONS])
    more = f"; and {len(reasons) - _SHOWN_REASONS} more" if len(reasons) > _SHOWN_REASONS else ""
    return f"{demand}, and no signature meets it: {shown}{more}"


def _printable(reason: str) -> str:
    """What signatures say of themselves must not reach a terminal as it is."""
    return reason if reason.isprintable() else json.dumps(reason)


def judge(
    plan: Plan,
    digests: frozenset[Digest],
    signatures: SignatureSet,
    *,
    signatures_digest: str,
    now: float,
    opened: Opened | None = None,
) -> Admission:
    """Return the decision on the image of these digests (manifest, and the index it is from).

    With `opened` no file is read. Raises DeniedError if a key of the policy cannot be used, HostError if a
    library is missing.
    """
    opened = opened or plan.opened()
    keys = opened.keys
    case = _case(plan, digests, opened, now)
    found = () if plan.hopeless else outcomes(plan, case, signatures, opened.stores)
    objections = ["the policy rejects every image there"] if plan.hopeless else []
    objections += [_objection(item, signatures) for item in found if item.verified is None]
    verified = tuple(item.verified for item in found if item.verified is not None)
    accepted = not objections and bool(plan.requirements or found)
    ends = [item.expires for item in verified if item.expires]
    return Admission(
        decision=Decision.ACCEPT if accepted else Decision.REJECT,
        policy_source=plan.policy_source,
        scope=plan.scope,
        requirement_types=plan.labels,
        bypass=False,
        reason="; ".join(objections),
        signatures=verified,
        rule=plan.rule.source if plan.rule else "",
        inputs=plan.inputs(digests, keys, signatures_digest),
        expires=min(ends, default=0),
    )


def _case(plan: Plan, digests: frozenset[Digest], opened: Opened, now: float) -> Case:
    by_digest = bool(plan.rule and plan.rule.bundle_by_digest)
    return Case(name=plan.subject.docker, digests=digests, keys=opened.keys, now=now, by_digest=by_digest)


def confirmable(requirement: Requirement, verified: Verified) -> bool:
    """Tell whether `confirm` can look at what met a requirement: cosign's form, by a key."""
    return bool(requirement.keys) and verified.kind == SignatureKind.COSIGN


def confirm(
    plan: Plan, digests: frozenset[Digest], requirement: Requirement, candidate: Candidate, opened: Opened
) -> None:
    """Check one signature by a key of a requirement; raises SignatureFaultError.

    Nothing is parsed before the key has signed it; entries of logs are not looked at.
    """
    if candidate.kind is not SignatureKind.COSIGN:
        raise SignatureFaultError(f"it is of the form {candidate.kind}")
    case = _case(plan, digests, opened, 0)
    if requirement.type is RequirementType.KEY_RING:
        requirement, case = _narrowed(candidate, requirement, case)
    cosign.verify(candidate, replace(requirement, rekor_keys=()), case)
