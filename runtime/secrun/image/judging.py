"""Weigh signatures without rights: the bytes are strangers', and so may be whoever parses them.

A process that was forked for this one image, that has the keys and the bytes and nothing else, says what it
found. Its word counts for the image whose digests root computed and under the plan that root made, and for
nothing else: both are part of what the decision must repeat.
"""

import os
from collections.abc import Mapping

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.fields import Fields
from secrun.image import apart
from secrun.jsonio import JsonObject
from secrun.record import replace
from secrun.trust.admission import Admission, Decision
from secrun.trust.plan import Plan
from secrun.trust.requirement import Material
from secrun.trust.signatures import Candidate, SignatureKind, SignatureSet

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
        return {"admission": found.to_json(), "reason": found.reason}

    answer = apart.run(body, lambda: _preload(frozenset(judge.kinds_of(plan))))
    fields = Fields(answer, _WHAT)
    found = Admission.from_fields(fields.object("admission"))
    found = replace(found, reason=fields.text("reason"))
    fields.end()
    return _bound(found, plan, plan.inputs(digests, opened.keys, digest))


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


def _bound(found: Admission, plan: Plan, inputs: str) -> Admission:
    """Return a decision if it is about this plan and these bytes; raises ImageError."""
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
    return found
