"""Check 17: is what happened what the policy wants? One appraisal of the host and one of each pod."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from secrun_attest.evidence import Header
from secrun_attest.policy import Machines, Policy
from secrun_attest.rejection import Code, RejectedError
from secrun_attest.tpm import TpmKind
from secrun_attest.verify.machine import App, Machine, Pod, PodState, VirtualMachine
from secrun_attest.verify.session import Enrolment, Session


class Status(StrEnum):
    """Tiers of AR4SI (draft-ietf-rats-ar4si), from good to bad."""

    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


class Claim(StrEnum):
    """Members of the AR4SI trustworthiness vector that secrun fills."""

    INSTANCE = "instance-identity"
    HARDWARE = "hardware"
    EXECUTABLES = "executables"
    CONFIGURATION = "configuration"


# AR4SI values (draft-ietf-rats-ar4si, 2.3): 2 to 31 affirm, 32 to 95 warn, 96 and more contraindicate.
APPROVED = 2
GENERIC_WARNING = 32
UNRECOGNISED = 33
BAD = 96


class Finding(NamedTuple):
    """One thing that the policy has to say about a claim."""

    claim: Claim
    value: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What the policy says of the host or of one pod: the worst value of each claim, and why.

    `operations` are those of the events about it and `unmeasured` the options that let something by;
    `entries` counts how often somebody entered the pod. They are facts, whatever the policy says of them.
    """

    status: Status
    vector: tuple[tuple[Claim, int], ...]
    reasons: tuple[str, ...] = field(default=())
    operations: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    entries: int = 0


def appraisal(
    findings: Iterable[Finding],
    *,
    operations: Iterable[str],
    unmeasured: Iterable[str],
    entries: int = 0,
) -> Appraisal:
    """Join findings: each claim takes its worst value, the status is that of the worst claim."""
    found = list(findings)
    vector: dict[Claim, int] = {}
    for finding in found:
        vector[finding.claim] = max(vector.get(finding.claim, 0), finding.value)
    reasons = tuple(finding.reason for finding in found if finding.reason)
    return Appraisal(
        status=_status(max(vector.values())),
        vector=tuple(vector.items()),
        reasons=reasons,
        operations=tuple(sorted(operations)),
        unmeasured=tuple(sorted(unmeasured)),
        entries=entries,
    )


def _status(value: int) -> Status:
    if value >= BAD:
        return Status.CONTRAINDICATED
    return Status.WARNING if value >= GENERIC_WARNING else Status.AFFIRMING


def says_software(enrolment: Enrolment, machine: Machine, header: Header) -> str:
    """Return who says that the TPM is software, empty if nobody does. Nobody can make hardware of it."""
    if enrolment.software:
        return "the enrolment"
    if machine.tpm is TpmKind.SOFTWARE:
        return "LogOpen"
    return "the header" if header.tpm is TpmKind.SOFTWARE else ""


def check_policy(policy: Policy, enrolment: Enrolment, software: str, session: Session, now: int) -> None:
    """17a: the policy is in force and allows this key at all; raises RejectedError E_POLICY.

    `software` is what `says_software` returned.
    """
    if not policy.not_before <= now < policy.not_after:
        when = f"from {policy.not_before} to {policy.not_after}"
        raise RejectedError(Code.POLICY, f"policy {policy.id!r} is valid {when}, now is {now}")
    if now - session.issued > policy.max_age:
        age = now - session.issued
        raise RejectedError(Code.POLICY, f"the nonce is {age} s old, the policy allows {policy.max_age} s")
    if enrolment.hierarchy not in policy.hierarchies:
        raise RejectedError(Code.POLICY, f"keys of the {enrolment.hierarchy.name} hierarchy are not allowed")
    if policy.keys is not None and enrolment.ak_name not in policy.keys:
        raise RejectedError(Code.POLICY, f"the key {enrolment.ak_name.hex()} is not in the policy's list")
    if software and not policy.software_tpm:
        raise RejectedError(
            Code.POLICY, f"{software} says that the TPM is software; the policy does not allow it"
        )


def judge_host(policy: Policy, values: dict[int, bytes], machine: Machine, *, software: bool) -> Appraisal:
    """17b: platform and runtime against their reference values; nothing to compare with is a warning."""
    return appraisal(
        _host(policy, values, machine, software=software),
        operations=machine.operations,
        unmeasured=machine.unmeasured,
    )


def _host(
    policy: Policy, values: dict[int, bytes], machine: Machine, *, software: bool
) -> Iterator[Finding]:
    yield Finding(claim=Claim.INSTANCE, value=APPROVED, reason="")
    if not software:
        yield Finding(claim=Claim.HARDWARE, value=APPROVED, reason="")
    yield from _platform(policy, values)
    yield from _runtime(policy, machine)
    yield Finding(claim=Claim.CONFIGURATION, value=APPROVED, reason="")
    for operation in sorted(machine.operations & policy.workload.forbidden_operations):
        reason = f"the log holds {operation}, which the policy forbids"
        yield Finding(claim=Claim.CONFIGURATION, value=BAD, reason=reason)
    yield from _bypassed(machine.unmeasured)


def _bypassed(options: Iterable[str]) -> Iterator[Finding]:
    """Never pass over an option that let something by; a policy may forbid it altogether."""
    for option in sorted(options):
        reason = f"option {option!r} let something by"
        yield Finding(claim=Claim.CONFIGURATION, value=GENERIC_WARNING, reason=reason)


def _platform(policy: Policy, values: dict[int, bytes]) -> Iterator[Finding]:
    if not policy.platform.pcrs:
        yield Finding(
            claim=Claim.EXECUTABLES, value=UNRECOGNISED, reason="no reference values for the platform's PCRs"
        )
    for index, allowed in policy.platform.pcrs:
        if values[index] in allowed:
            yield Finding(claim=Claim.EXECUTABLES, value=APPROVED, reason="")
        else:
            reason = f"PCR {index} is {values[index].hex()}, which is not a reference value"
            yield Finding(claim=Claim.EXECUTABLES, value=BAD, reason=reason)


def _runtime(policy: Policy, machine: Machine) -> Iterator[Finding]:
    allowed = policy.runtime.binaries
    if not allowed:
        yield Finding(claim=Claim.EXECUTABLES, value=UNRECOGNISED, reason="no reference values for secrun")
        return
    for binary in machine.runtimes:
        good = binary in allowed
        reason = "" if good else f"secrun sha256:{binary.hex()} is not a reference value"
        yield Finding(claim=Claim.EXECUTABLES, value=APPROVED if good else BAD, reason=reason)


def judge_pods(policy: Policy, pods: Iterable[Pod]) -> tuple[tuple[str, Appraisal], ...]:
    """17c: each pod's images, machine, relaxations and entries against the policy."""
    known: dict[Pod, Appraisal] = {}
    return tuple((pod.uuid, _judge_pod(policy, pod, known)) for pod in pods)


def _judge_pod(policy: Policy, pod: Pod, known: dict[Pod, Appraisal]) -> Appraisal:
    # Most pods are copies of others. What is replaced here no policy speaks of.
    machine = None if pod.machine is None else pod.machine._replace(pod_root=b"")
    copy = pod._replace(uuid="", state=PodState.EXITED, manifest=b"", machine=machine)
    if (found := known.get(copy)) is None:
        found = known[copy] = judge_pod(policy, copy)
    return found


def judge_pod(policy: Policy, pod: Pod) -> Appraisal:
    """Judge one pod by all but its name, state, manifest and own image."""
    return appraisal(
        _pod(policy, pod), operations=pod.operations, unmeasured=pod.unmeasured, entries=pod.entries
    )


def _pod(policy: Policy, pod: Pod) -> Iterator[Finding]:
    workload = policy.workload
    yield Finding(claim=Claim.CONFIGURATION, value=APPROVED, reason="")
    for operation in sorted(pod.operations & workload.forbidden_operations):
        yield Finding(claim=Claim.CONFIGURATION, value=BAD, reason=f"{operation} is forbidden")
    for relaxation in pod.relaxations + tuple(item for app in pod.apps for item in app.relaxations):
        if workload.forbids(relaxation):
            reason = f"relaxation {relaxation!r} is forbidden"
            yield Finding(claim=Claim.CONFIGURATION, value=BAD, reason=reason)
    yield from _bypassed(pod.unmeasured)
    yield from _stage1(policy, pod)
    yield from _machine(policy.runtime.machines, pod.machine)
    if not pod.apps:
        yield Finding(claim=Claim.EXECUTABLES, value=BAD, reason="the pod names no app")
    for app in pod.apps:
        yield _app(policy, app)


def _stage1(policy: Policy, pod: Pod) -> Iterator[Finding]:
    """Compare the pod's own system; a pod without one has nothing that a list could allow."""
    allowed, stage1 = policy.runtime.stage1, pod.stage1
    if not allowed:
        reason = "no reference values for stage1"
        yield Finding(claim=Claim.EXECUTABLES, value=UNRECOGNISED, reason=reason)
    elif stage1 is None:
        yield Finding(claim=Claim.EXECUTABLES, value=BAD, reason="the pod names no stage1")
    elif stage1.digest in allowed or stage1.tree in allowed:
        yield Finding(claim=Claim.EXECUTABLES, value=APPROVED, reason="")
    else:
        what = f"stage1 sha256:{stage1.digest.hex()} with tree sha256:{stage1.tree.hex()}"
        yield Finding(claim=Claim.EXECUTABLES, value=BAD, reason=f"{what} is not a reference value")


def _machine(rules: Machines, machine: VirtualMachine | None) -> Iterator[Finding]:
    """Compare accelerator, kernel, initramfs and command line, or tell that there must be a machine."""
    if machine is None:
        if rules.required:
            reason = "the pod has no virtual machine, the policy requires one"
            yield Finding(claim=Claim.CONFIGURATION, value=BAD, reason=reason)
        return
    if machine.accelerator not in rules.accelerators:
        reason = f"accelerator {machine.accelerator!r} is not one of {', '.join(sorted(rules.accelerators))}"
        yield Finding(claim=Claim.CONFIGURATION, value=BAD, reason=reason)
    yield _guest(rules, machine)


def _guest(rules: Machines, machine: VirtualMachine) -> Finding:
    if not rules.guests:
        reason = "no reference values for guest kernels"
        return Finding(claim=Claim.EXECUTABLES, value=UNRECOGNISED, reason=reason)
    what = f"guest kernel sha256:{machine.kernel.hex()} with initrd sha256:{machine.initrd.hex()}"
    guest = rules.guest(kernel=machine.kernel, initrd=machine.initrd)
    if guest is None:
        return Finding(claim=Claim.EXECUTABLES, value=BAD, reason=f"{what} is not a reference value")
    if not guest.command_lines:
        reason = f"{what}: no reference values for its command line"
        return Finding(claim=Claim.EXECUTABLES, value=UNRECOGNISED, reason=reason)
    if machine.command_line not in guest.command_lines:
        reason = f"{what}: the command line {machine.command_line!r} is not a reference value"
        return Finding(claim=Claim.EXECUTABLES, value=BAD, reason=reason)
    return Finding(claim=Claim.EXECUTABLES, value=APPROVED, reason="")


def _app(policy: Policy, app: App) -> Finding:
    workload, image = policy.workload, app.image
    what = f"app {app.name!r}: image {image.reference!r} sha256:{image.manifest.hex()}"
    if workload.empty:
        reason = f"{what}: no reference values for images"
        return Finding(claim=Claim.EXECUTABLES, value=UNRECOGNISED, reason=reason)
    # A glob trusts the host's trust policy to have checked who signed what has this name.
    reference = None if image.bypassed else image.reference
    root = app.verity_root
    if workload.allows(reference=reference, manifest=image.manifest, tree=image.tree, verity_root=root):
        return Finding(claim=Claim.EXECUTABLES, value=APPROVED, reason="")
    past = ", admitted past the host's trust policy," if image.bypassed else ""
    content = f"tree sha256:{image.tree.hex()} and verity root {root.hex() or 'unknown'}"
    reason = f"{what} with {content}{past} is not a reference value"
    return Finding(claim=Claim.EXECUTABLES, value=BAD, reason=reason)
