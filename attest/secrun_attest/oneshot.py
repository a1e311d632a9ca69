"""Appraise evidence without an enrolment: the caller itself names the keys that it accepts.

Who holds such a key is the host that its evidence says it is. That the key is a hardware TPM's is the word
of whoever named it: nothing here looks at an endorsement certificate.
"""

from dataclasses import dataclass

from secrun_attest.errors import FormatError
from secrun_attest.evidence import parse_evidence
from secrun_attest.policy import Policy
from secrun_attest.rejection import Code, RejectedError
from secrun_attest.verify import Enrolment, Session, State, Verdict, appraise
from secrun_attest.wire import Hierarchy, name_of, parse_public

# The session begins and ends with the call; how fresh the nonce is only the caller knows.
_LIFETIME = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the caller asked and whom: its nonce, whom the answer is meant for, the Names of keys it accepts.

    `parent` is the qualified name of the keys' parent, None for primary keys. `software` says that the keys
    are software TPMs', whatever the hosts say.
    """

    nonce: bytes
    keys: frozenset[bytes]
    audience: str = ""
    parent: bytes | None = None
    software: bool = False


def appraise_once(
    evidence: bytes, question: Question, policy: Policy, state: State | None, now: int
) -> Verdict:
    """Make all checks with a session of this one moment; raises RejectedError.

    `state` is that of the last verdict on this host, None at the first; `now` is in seconds since 1970.
    """
    host, name = _signer(evidence)
    session = Session(
        nonce=question.nonce,
        issued=now,
        expires=now + _LIFETIME,
        audience=question.audience,
        enrolment=_enrolment(host, name, question, policy),
        state_digest=None if state is None else state.digest(),
    )
    return appraise(evidence, session, policy, state, now)


def _signer(evidence: bytes) -> tuple[str, bytes]:
    """Return the host and the key that evidence says it is of; the checks come later."""
    try:
        parsed = parse_evidence(evidence)
        return parsed.header.host, name_of(parse_public(parsed.ak_pub))
    except FormatError as error:
        raise RejectedError(Code.FORMAT, error.message) from error


def _enrolment(host: str, name: bytes, question: Question, policy: Policy) -> Enrolment | None:
    if not question.keys:
        return None
    endorsement = Hierarchy.ENDORSEMENT in policy.hierarchies
    return Enrolment(
        host=host,
        # A key that nobody named fails the check against any of those that were.
        ak_name=name if name in question.keys else min(question.keys),
        hierarchy=Hierarchy.ENDORSEMENT if endorsement else Hierarchy.PLATFORM,
        parent=question.parent,
        software=question.software,
    )
