"""A host with a real TPM: what it measures, the evidence it gives, and what a verifier makes of it."""

import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from secrun_attest.collect import Challenge, Source, collect
from secrun_attest.evidence import parse_evidence
from secrun_attest.logfile import EventLog
from secrun_attest.record import Bank, Operation
from secrun_attest.tpm import TpmClock
from secrun_attest.tss import Tss
from secrun_attest.verify import Enrolment, Session, State, Verdict, appraise
from support.attest_bench import (
    AUDIENCE,
    HOST,
    IMAGE,
    IMAGE_MANIFEST,
    NOW,
    POD_DIGEST,
    POD_MANIFEST,
    REFERENCE,
    RUNTIME,
    SELECTION,
    TREE,
    policy,
    sha,
)
from support.swtpm import Swtpm

PCR = 15
STAGE1 = {"digest": sha("stage1"), "tree": sha("stage1 tree")}


class ShortTpm:
    """A TPM for a log that nobody closes: each call opens a connection of its own."""

    def __init__(self, tcti: str) -> None:
        self.tcti = tcti

    def clock(self) -> TpmClock:
        with Tss(self.tcti) as tss:
            return tss.clock()

    def read_pcr(self, pcr: int) -> Mapping[Bank, bytes]:
        with Tss(self.tcti) as tss:
            return tss.read_pcr(pcr)

    def extend(self, pcr: int, digests: Mapping[Bank, bytes]) -> None:
        with Tss(self.tcti) as tss:
            tss.extend(pcr, digests)


def rules(**changes):
    """The policy of the tests: a software TPM's PCR 7 is zero."""
    return policy(platform={"pcrs": {"7": ["00" * 32]}}, software_tpm=True, **changes)


class AttestedHost:
    """One host; `boot` is the kernel's id of its boot. `serial` makes each nonce another one."""

    def __init__(self, folder: Path, tpm: Swtpm) -> None:
        self.tpm = tpm
        self.source = Source(tcti=tpm.tcti, directory=folder / "measure", pcr=PCR)
        self.serial = 0
        self.boot = str(uuid.uuid4())
        with tpm.tss() as tss:
            self.key = tss.create_ak()

    def log(self) -> EventLog:
        """The log as a new process sees it."""
        opening = {
            "runtime": {"version": "1", "digest": RUNTIME},
            "ak": self.key.name.hex(),
            "tpm": {"kind": "software"},
            "mode": "strict",
        }
        tpm = ShortTpm(self.source.tcti)
        return EventLog(
            self.source.directory,
            tpm,
            PCR,
            opening=opening,
            baseline=self.source.baseline,
            boot_id=lambda: self.boot,
        )

    def run_pod(self) -> str:
        """Measure a pod from its image to its start; return its id."""
        log, pod = self.log(), str(uuid.uuid4())
        verdict = {"policy": "/etc/containers/policy.json", "bypass": False}
        image = {"reference": REFERENCE, "manifest": IMAGE, "tree": TREE, "verdict": verdict}
        log.append(Operation.IMAGE_ADMIT, image)
        app = {"name": "web", "image": IMAGE, "tree": TREE, "relaxations": []}
        prepared = {"pod": pod, "manifest": POD_DIGEST, "apps": [app], "relaxations": [], "stage1": STAGE1}
        log.append(Operation.POD_PREPARE, prepared)
        log.append(Operation.POD_START, {"pod": pod})
        return pod

    def reboot(self, how) -> None:
        """Take the TPM through `how`, after which the kernel has another boot id."""
        how()
        self.boot = str(uuid.uuid4())

    def challenge(self, since: int = 0) -> Challenge:
        self.serial += 1
        nonce = self.serial.to_bytes(32, "big")
        return Challenge(nonce=nonce, audience=AUDIENCE, bank=Bank.SHA256, pcrs=SELECTION, since=since)

    def evidence(self, challenge: Challenge, **more) -> bytes:
        contents = (IMAGE_MANIFEST, POD_MANIFEST)
        return collect(self.source, challenge, host=HOST, contents=contents, agent="secrun 1", **more)

    def enrolment(self) -> Enrolment:
        return Enrolment(host=HOST, ak_name=self.key.name)

    def judged(self, evidence: bytes, state: State | None = None, **changes) -> Verdict:
        """What a verifier says who gave the nonce in this evidence and knows this host's key."""
        session = Session(
            nonce=parse_evidence(evidence).nonce,
            issued=NOW - 5,
            expires=NOW + 55,
            audience=AUDIENCE,
            enrolment=self.enrolment(),
            state_digest=None if state is None else state.digest(),
        )
        return appraise(evidence, replace(session, **changes), rules(), state, NOW)

    def attest(self, state: State | None = None, *, whole: bool = False) -> Verdict:
        """Answer a challenge of a verifier that keeps `state`, with the whole log if it is new to it."""
        since = 0 if state is None or whole else state.recnum
        evidence = self.evidence(self.challenge(since))
        return self.judged(evidence, state)
