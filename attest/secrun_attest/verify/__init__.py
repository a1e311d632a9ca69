"""The verifier: bytes, session, policy and time in; a verdict or a typed rejection out. No I/O, no TPM.

The checks and their order are listed in docs/verifier.md; the first that fails ends the appraisal.
"""

import hashlib
from dataclasses import dataclass

from secrun_attest.errors import FormatError
from secrun_attest.events import parse_event
from secrun_attest.evidence import Evidence, parse_evidence
from secrun_attest.policy import Policy
from secrun_attest.record import Bank, Epoch
from secrun_attest.rejection import Code, RejectedError
from secrun_attest.sentlog import events_of
from secrun_attest.verify import checks
from secrun_attest.verify.judge import (
    Appraisal,
    Status,
    check_policy,
    judge_host,
    judge_pods,
    says_software,
)
from secrun_attest.verify.machine import Machine
from secrun_attest.verify.session import Enrolment, Session
from secrun_attest.verify.state import State, load_state
from secrun_attest.wire import Attest, Public, Signature, parse_attest, parse_signature

__all__ = [
    "Appraisal",
    "Code",
    "Enrolment",
    "RejectedError",
    "Session",
    "State",
    "Status",
    "Verdict",
    "appraise",
    "load_state",
]

_ORDER = [Status.AFFIRMING, Status.WARNING, Status.CONTRAINDICATED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The evidence is genuine; this is what the policy says of what it shows, and the state to keep.

    `channel_key` is the thumbprint that the quote binds, if any.
    """

    host: Appraisal
    pods: tuple[tuple[str, Appraisal], ...]
    state: State
    policy_digest: bytes
    head: bytes
    channel_key: str | None = None

    @property
    def status(self) -> Status:
        """The worst of the host and its pods."""
        every = [self.host.status, *(appraisal.status for _, appraisal in self.pods)]
        return max(every, key=_ORDER.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    evidence: Evidence
    public: Public
    attest: Attest
    signature: Signature


def appraise(
    evidence_bytes: bytes, session: Session | None, policy: Policy, state: State | None, now: int
) -> Verdict:
    """Make the 18 checks in order; raises RejectedError at the first that fails and nothing else.

    `state` is what the last appraisal of this host returned, None if there was none; `now` is in seconds
    since 1970. A verdict that is not affirming keeps its state too: the log is genuine either way.
    """
    parsed = _check_format(evidence_bytes)
    evidence, attest = parsed.evidence, parsed.attest
    session = checks.check_session(evidence, session, now)
    enrolment = checks.check_enrolled(evidence, parsed.public, session.enrolment)
    checks.check_key(parsed.public)
    checks.check_signature(parsed.public, evidence.quote, parsed.signature)
    quote = checks.check_quote(attest)
    checks.check_signer(attest, enrolment)
    checks.check_binding(attest, evidence, session)
    checks.check_selection(quote, policy)
    values = checks.check_values(quote, evidence, parsed.public, policy)
    known = checks.check_epoch(attest, evidence, state)
    base = checks.check_baseline(evidence, values, policy, known)
    checks.check_log(evidence, policy, base, known)
    pcrs = checks.check_replay(evidence, values, base, policy)
    machine = _check_meaning(evidence, base, enrolment, known)
    _check_contents(evidence, machine)
    software = says_software(enrolment, machine, evidence.header)
    check_policy(policy, enrolment, software, session, now)
    host = judge_host(policy, values, machine, software=bool(software))
    pods = judge_pods(policy, machine.pods.values())
    _check_state(session, enrolment, state)
    new = State(
        host=enrolment.host,
        ak=enrolment.ak_name,
        epoch=evidence.header.epoch,
        clock=attest.clock,
        recnum=evidence.log_from + len(evidence.records),
        pcrs=tuple(sorted(pcrs.items())),
        machine=machine,
    )
    return Verdict(
        host=host,
        pods=pods,
        state=new,
        policy_digest=policy.digest,
        head=pcrs[policy.bank],
        channel_key=evidence.header.channel_key,
    )


def _check_format(data: bytes) -> _Parsed:
    """1: limits, strict JSON and base64, TPM structures, no member that we do not know."""
    try:
        evidence = parse_evidence(data)
        return _Parsed(
            evidence=evidence,
            public=checks.read_public(evidence.ak_pub),
            attest=parse_attest(evidence.quote),
            signature=parse_signature(evidence.signature),
        )
    except FormatError as error:
        raise RejectedError(Code.FORMAT, error.message) from error


def _check_meaning(
    evidence: Evidence, base: dict[Bank, bytes], enrolment: Enrolment, state: State | None
) -> Machine:
    """15: the events' own numbers agree with the log and the TPM, and their story can have happened."""
    machine = Machine() if state is None else state.machine.copy()
    epoch = same = evidence.header.epoch
    for recnum, data in events_of(evidence.records):
        try:
            event = parse_event(data)
        except FormatError as error:
            raise RejectedError(Code.SEM, f"record {recnum}: {error.message}") from error
        if event.seq != recnum or (event.epoch is not same and event.epoch != epoch):
            got = f"seq {event.seq} of {_name(event.epoch)}"
            raise RejectedError(Code.SEM, f"record {recnum} of {_name(epoch)} says it is {got}")
        same = event.epoch  # one object for most events: there is nothing to compare
        machine.apply(event)
    # A log without LogOpen measured neither: both comparisons fail.
    if state is None and machine.baseline != base:
        raise RejectedError(Code.SEM, "LogOpen measured another baseline than base_pcr")
    if machine.ak != enrolment.ak_name:
        raise RejectedError(Code.SEM, f"LogOpen measured the key {machine.ak.hex()}, which is not this one")
    return machine


def _name(epoch: Epoch) -> str:
    return f"epoch {epoch.reset}-{epoch.restart}, boot {epoch.boot_id}"


def _check_contents(evidence: Evidence, machine: Machine) -> None:
    """16: manifests in the bundle are those that were measured."""
    measured = {image.manifest for image in machine.images.values()}
    measured.update(pod.manifest for pod in machine.pods.values())
    for digest, data in evidence.contents:
        if hashlib.sha256(data).digest() != digest:
            raise RejectedError(Code.CONTENT, f"content sha256:{digest.hex()} has another digest")
        if digest not in measured:
            raise RejectedError(Code.CONTENT, f"content sha256:{digest.hex()} was not measured")


def _check_state(session: Session, enrolment: Enrolment, state: State | None) -> None:
    """18: nobody else appraised this host since the session began."""
    if state is not None and (state.host, state.ak) != (enrolment.host, enrolment.ak_name):
        raise RejectedError(Code.STATE, f"the state is that of host {state.host!r} or of another key")
    got = None if state is None else state.digest()
    if got != session.state_digest:
        raise RejectedError(Code.STATE, "the host was appraised by another session meanwhile")
