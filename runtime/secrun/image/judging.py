"""Weigh signatures without rights: the bytes are strangers', and so may be whoever parses them.

A process that was forked for this one image, that has the keys and the bytes and nothing else, says what it
found. Its word counts for the image whose digests root computed and under the plan that root made, and for
nothing else: both are part of what the decision must repeat.
"""

import os
from collections.abc import Mapping, Sequence

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.fields import Fields
from secrun.image import apart
from secrun.jsonio import JsonObject, JsonValue
from secrun.record import replace
from secrun.trust.admission import Admission, Decision
from secrun.trust.plan import Opened, Plan
from secrun.trust.requirement import Material, Requirement
from secrun.trust.signatures import Candidate, SignatureKind, SignatureSet
from secrun.trust.verdict import Verified

_WHAT = "answer of the process that checks signatures"


def _preload(kinds: frozenset[SignatureKind]) -> None:
    """Import what the check imports when it needs it; a library that is missing is told by the check."""
    import contextlib

    from secrun.trust import (  # noqa: F401
        bundle,
        chain,
        cosign,
        detached,
        notation,
        openpgp,
        rekor,
        sct,
        trustedroot,
    )

    with contextlib.suppress(ImportError):
        if kinds - {SignatureKind.OPENPGP}:
            from cryptography import exceptions, x509  # noqa: F401
            from cryptography.hazmat.backends.openssl import backend  # noqa: F401
            from cryptography.hazmat.primitives import hashes, serialization  # noqa: F401
            from cryptography.hazmat.primitives.asymmetric import (  # noqa: F401
                ec,
                ed25519,
                padding,
                rsa,
                utils,
            )
            from cryptography.x509 import certificate_transparency, oid, verification  # noqa: F401
        if SignatureKind.OPENPGP in kinds:
            import pysequoia  # noqa: F401


def judged(plan: Plan, digests: frozenset[Digest], signatures: bytes, digest: str, now: float) -> Admission:
    """Return the decision on the image of these digests, whose signatures are a document of that digest.

    Raises DeniedError if a key of the policy cannot be used, HostError if a library is missing, ImageError
    if the decision is not about what was asked. Forks where root asks.
    """
    from secrun.trust import judge

    opened = plan.opened()

    def body() -> JsonObject:
        found = judge.judge(
            plan,
            digests,
            SignatureSet.from_bytes(signatures),
            signatures_digest=digest,
            now=now,
            opened=opened,
        )
        return {
            "admission": found.to_json(),
            "reason": found.reason,
            "proofs": _proofs(plan, found, SignatureSet.from_bytes(signatures)),
        }

    kinds = frozenset(judge.kinds_of(plan))
    # Loaded here once, for the check and for its confirmation.
    _preload(kinds)
    fields = Fields(apart.run(body, lambda: None), _WHAT)
    found = Admission.from_fields(fields.object("admission"))
    found = replace(found, reason=fields.text("reason"))
    proofs = [Candidate.from_fields(item) for item in fields.objects("proofs")]
    fields.end()
    _bound(found, plan, plan.inputs(digests, opened.keys, digest))
    _confirm(plan, digests, found, proofs, opened)
    return found


def _confirmable(plan: Plan, found: Admission) -> list[tuple[Requirement, Verified]]:
    """Return what a plan demands and by what it was met, where the caller can look itself."""
    from secrun.trust import judge

    if found.decision is not Decision.ACCEPT:
        return []
    signed = [item for item in plan.requirements if item.signed]
    # Demands of rules come behind those of the policy.
    met = zip(signed, found.signatures, strict=False)
    return [(demand, item) for demand, item in met if judge.confirmable(demand, item)]


def _proofs(plan: Plan, found: Admission, signatures: SignatureSet) -> list[JsonValue]:
    by_digest = {item.digest: item for item in signatures.candidates}
    return [by_digest[item.digest].to_json() for _, item in _confirmable(plan, found)]


def _confirm(
    plan: Plan, digests: frozenset[Digest], found: Admission, proofs: Sequence[Candidate], opened: Opened
) -> None:
    """Look for ourselves at signatures of cosign's by keys, the commonest form; raises ImageError.

    The key's signature comes first: what it is over is parsed only if a trusted key has signed it.
    """
    from secrun.trust import judge
    from secrun.trust.faults import SignatureFaultError

    met = _confirmable(plan, found)
    if [item.digest for _, item in met] != [item.digest for item in proofs]:
        raise ImageError("the process that checks signatures proves nothing", code="image-worker")
    for (demand, _), candidate in zip(met, proofs, strict=True):
        try:
            judge.confirm(plan, digests, demand, candidate, opened)
        except SignatureFaultError as error:
            raise ImageError(
                f"the process that checks signatures let in what is not signed: {error.reason}",
                hint="an image in that registry may be hostile: do not use it",
                code="image-worker",
            ) from error


def weighed(
    fd: int, signature: bytes, image: Digest, keys: Mapping[Material, bytes], now: float
) -> SignatureSet:
    """Find out who signed the open file `fd`, which holds the image `image`; forks where root asks.

    Raises DeniedError if a key cannot be used.
    """
    # Whoever looks owns nothing; the folder around the file is closed to everybody.
    os.fchmod(fd, 0o644)

    def body() -> JsonObject:
        from secrun.trust import detached
        from secrun.trust.faults import SignatureFaultError

        try:
            found = detached.weigh(f"/proc/self/fd/{fd}", signature, image, keys, now)
        except SignatureFaultError as error:
            return {"fault": f"the detached signature: {error.reason}"}
        return {"candidate": found.to_json()}

    kinds = frozenset((SignatureKind.OPENPGP,))
    fields = Fields(apart.run(body, lambda: _preload(kinds), readable=(fd,)), _WHAT)
    searched = (SignatureKind.APPC,)
    if fields.has("fault"):
        return SignatureSet(faults=(fields.text("fault"),), searched=searched)
    found = Candidate.from_fields(fields.object("candidate"))
    if (found.kind, found.subject, found.payload) != (SignatureKind.APPC, image, signature):
        raise ImageError("the process that checks signatures judged something else", code="image-worker")
    return SignatureSet(candidates=(found,), searched=searched)


def _bound(found: Admission, plan: Plan, inputs: str) -> None:
    """Raise ImageError unless a decision is about this plan and these bytes."""
    told = (
        found.policy_source,
        found.scope,
        found.requirement_types,
        found.rule,
        found.inputs,
        found.bypass,
    )
    rule = plan.rule.source if plan.rule else ""
    if told != (plan.policy_source, plan.scope, plan.labels, rule, inputs, False):
        raise ImageError("the process that checks signatures judged something else", code="image-worker")
    accepted = found.decision is Decision.ACCEPT
    if accepted and (plan.hopeless or len(found.signatures) != plan.demanded):
        raise ImageError("the process that checks signatures let in what cannot be", code="image-worker")
