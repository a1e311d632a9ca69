"""Whether an image may be used: asked before anything is downloaded, decided once its digest is fixed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import ImageError, StateError
from secrun.fields import Fields
from secrun.image import identity
from secrun.image.entries import Entry
from secrun.image.options import FetchOptions
from secrun.image.reference import Origin
from secrun.image.store import ImageStore
from secrun.jsonio import canonical, parse_object
from secrun.record import record, replace
from secrun.trust import plan as plans
from secrun.trust.admission import BYPASS, Admission, Decision, require
from secrun.trust.plan import Plan

if TYPE_CHECKING:
    from secrun.image.source import ImageSource
    from secrun.trust.signatures import SignatureSet

_MAX_ADMISSION_BYTES = 256 * 1024


@record
class Verdict:
    """A decision, and the signatures that it is about: a blob and its digest, empty if none were needed."""

    admission: Admission
    signatures: str = ""
    document: bytes = b""


class Admitter:
    """Decides for one command: policy, rules and keys are read when the first image is asked about."""

    def __init__(self, store: ImageStore, options: FetchOptions) -> None:
        self._store = store
        self._options = options
        self._context: plans.TrustContext | None = None

    def plan(self, reference: Origin, given: str = "") -> Plan | None:
        """Return what is demanded of an image, None if no policy is asked; raises DeniedError.

        `given` is what an app container image calls itself.
        """
        if self._options.insecure_image:
            return None
        subject = identity.subject(reference, given)
        if self._context is None:
            self._context = plans.load_for(subject, self._options.policy, self._store.layout.trust)
        plan = self._context.plan(subject)
        plans.check_stage1(plan, self._options.stage1)
        return plan

    def before(self, reference: Origin) -> Plan | None:
        """Like `plan`, but an image that nothing could admit is refused before anything is downloaded."""
        plan = self.plan(reference)
        if plan is not None and (plan.hopeless or not plan.asks_for_signatures):
            require(plans.unsigned(plan), plan.subject)
        return plan

    def fetched(self, plan: Plan | None, source: ImageSource, manifest: Digest, root: Digest) -> Verdict:
        """Decide on what is being fetched, whose digests are fixed; raises DeniedError, RegistryError."""
        if plan is None:
            return Verdict(admission=BYPASS)
        if not plan.asks_for_signatures:
            return Verdict(admission=require(plans.unsigned(plan), plan.subject))
        from secrun.image.finding import signature_bytes
        from secrun.trust import judge

        document = signature_bytes(source, judge.kinds_of(plan), (manifest, root))
        digest = str(Digest.of(document))
        admission = self._judge(plan, frozenset((manifest, root)), document, digest)
        return Verdict(admission=require(admission, plan.subject), signatures=digest, document=document)

    def signed(self, plan: Plan | None, image: Digest, found: SignatureSet) -> None:
        """Refuse an image of which only its ID and its signatures are known; raises DeniedError."""
        if plan is None:
            return
        if not plan.asks_for_signatures or plan.hopeless:
            require(plans.unsigned(plan), plan.subject)
            return
        document = found.to_bytes()
        require(self._judge(plan, frozenset((image,)), document, str(Digest.of(document))), plan.subject)

    def _judge(self, plan: Plan, digests: frozenset[Digest], document: bytes, digest: str) -> Admission:
        from secrun.image.judging import judged

        return judged(plan, digests, document, digest, time.time())

    def stored(self, entry: Entry, reference: Origin) -> Admission:
        """Decide on a stored image; raises DeniedError.

        The last decision stands while policy, keys and signatures are the same: nothing is checked again.
        """
        admission = self.judged(entry, reference)
        subject = identity.subject(reference, entry.given)
        return admission if admission.bypass else require(admission, subject)

    def judged(self, entry: Entry, reference: Origin, *, anew: bool = False) -> Admission:
        """Return the decision on a stored image, whatever it is; `anew` does not believe the last one."""
        plan = self.plan(reference, entry.given)
        if plan is None:
            return BYPASS
        if not plan.asks_for_signatures or plan.hopeless:
            return plans.unsigned(plan)
        digests = frozenset((entry.digest, entry.source_digest))
        last = None if anew else last_admission(entry)
        if last is not None and last.decision is Decision.ACCEPT and last.inputs:
            now = time.time()
            same = last.inputs == plan.inputs(digests, plan.key_files(), entry.signatures)
            if same and (not last.expires or now < last.expires):
                return last
        admission = self._judge(plan, digests, self._store.signature_bytes(entry), entry.signatures)
        if admission.decision is Decision.ACCEPT and entry.reference == str(reference):
            self._remember(entry, admission)
        return admission

    def _remember(self, entry: Entry, admission: Admission) -> None:
        self._store.revise(entry, replace(entry, admission=canonical(admission.to_json()).decode()))


def last_admission(entry: Entry) -> Admission | None:
    """Return the last decision on a stored image; None if an older version of secrun wrote it."""
    what = f"admission of {entry.reference}"
    try:
        document = parse_object(entry.admission.encode(), what=what, limit=_MAX_ADMISSION_BYTES)
        return Admission.from_fields(Fields(document, what))
    except (ImageError, StateError):
        return None
