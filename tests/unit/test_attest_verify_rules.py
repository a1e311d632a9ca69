"""What a log tells of TPM, stage1, entries and bypasses; and every rule is missed when it is gone."""

from dataclasses import replace

import pytest

from secrun_attest.ear import Issuer, claims
from secrun_attest.evidence import build_evidence
from secrun_attest.record import Operation
from secrun_attest.rejection import STEPS, Code
from secrun_attest.tpm import TpmKind
from secrun_attest.verdictjson import rejection_json, verdict_json
from secrun_attest.verify import RejectedError, Status, appraise, load_state
from secrun_attest.verify.machine import Machine
from secrun_attest.wire import parse_quote_body
from support.attest_bench import (
    IMAGE,
    NOW,
    POD,
    REFERENCE,
    ROOT,
    RUNTIME,
    STAGE1,
    TREE,
    Ak,
    Host,
    enrolled,
    policy,
    raw,
    session,
    sha,
    usual_host,
)
from support.attest_refusal import edited

OTHER = sha("other")
SOFTWARE = {"kind": "software", "vendor": "IBM"}


def host_of(*steps, tpm=None):
    """A host whose log is opened and has admitted an image; then come `steps`."""
    host = Host()
    host.open(**({"tpm": tpm} if tpm else {}))
    host.admit()
    for step in steps:
        step(host)
    return host


def op(operation, **fields):
    return lambda host: host.measure(operation, **fields)


START = op(Operation.POD_START, pod=POD)
EXEC = op(Operation.POD_EXEC, pod=POD, app="web", command=sha("sh"))
BYPASS = op(Operation.UNMEASURED, option="image", pod=POD)


def bare(host):
    """Evidence without manifests: a host that ran no pod has none to send."""
    return build_evidence(replace(host.bundle(), contents=()))


def judged(host, **rules):
    return appraise(bare(host), session(host), policy(**rules), None, NOW)


def pod_of(verdict):
    return dict(verdict.pods)[POD]


@pytest.mark.parametrize("digest", [STAGE1["digest"], STAGE1["tree"]])
def test_a_stage1_is_known_by_its_digest_or_its_tree(digest):
    verdict = judged(usual_host(), runtime={"stage1": [OTHER, digest]})
    assert verdict.status is Status.AFFIRMING


@pytest.mark.parametrize(
    ("stage1", "listed", "value", "reason"),
    [
        (STAGE1, [OTHER], 96, "stage1 sha256:"),
        (None, [OTHER], 96, "names no stage1"),
        (STAGE1, [], 33, "no reference values for stage1"),
        (None, [], 33, "no reference values for stage1"),
    ],
)
def test_a_stage1_that_is_not_listed_speaks_against_the_pod(stage1, listed, value, reason):
    host = host_of(lambda host: host.prepare(stage1=stage1))
    verdict = judged(host, runtime={"stage1": listed})
    assert verdict.host.status is Status.AFFIRMING
    assert dict(pod_of(verdict).vector)["executables"] == value
    assert reason in pod_of(verdict).reasons[0]


@pytest.mark.parametrize("stage1", [{}, {"digest": OTHER}, {"digest": OTHER, "tree": "x"}, "x"])
def test_a_stage1_without_its_digests_is_refused(stage1):
    with pytest.raises(RejectedError) as caught:
        judged(host_of(lambda host: host.prepare(stage1=stage1)))
    assert caught.value.reason is Code.SEM


def test_a_log_that_says_the_tpm_is_software_needs_leave_and_claims_no_hardware():
    host = host_of(tpm=SOFTWARE)
    with pytest.raises(RejectedError) as caught:
        judged(host)
    assert caught.value.reason is Code.POLICY
    verdict = judged(host, software_tpm=True)
    assert "hardware" not in dict(verdict.host.vector)
    assert verdict.state.machine.tpm is TpmKind.SOFTWARE


def test_a_log_cannot_make_hardware_of_an_enrolled_software_tpm():
    host = host_of()
    asked = session(host, enrolment=enrolled(host, software=True))
    verdict = appraise(bare(host), asked, policy(software_tpm=True), None, NOW)
    assert "hardware" not in dict(verdict.host.vector)
    assert dict(judged(host).host.vector)["hardware"] == 2


def test_a_header_that_says_the_tpm_is_software_counts_as_much_as_the_log():
    host = host_of()
    header = replace(host.header(), tpm=TpmKind.SOFTWARE)
    data = build_evidence(replace(host.bundle(header=header), contents=()))
    with pytest.raises(RejectedError) as caught:
        appraise(data, session(host), policy(), None, NOW)
    assert caught.value.reason is Code.POLICY
    verdict = appraise(data, session(host), policy(software_tpm=True), None, NOW)
    assert "hardware" not in dict(verdict.host.vector)


@pytest.mark.parametrize("tpm", [{}, {"kind": "firmware"}, {"kind": 1}, "hardware"])
def test_a_log_that_does_not_say_what_its_tpm_is_is_refused(tpm):
    host = Host()
    host.open(tpm=tpm)
    with pytest.raises(RejectedError) as caught:
        judged(host)
    assert caught.value.reason is Code.SEM


def test_an_image_must_be_mounted_as_the_verifier_computed_it():
    pair = {"manifest": IMAGE, "tree": TREE}
    for image, status in (
        (pair, Status.AFFIRMING),
        (pair | {"tree": OTHER}, Status.CONTRAINDICATED),
        (pair | {"manifest": OTHER}, Status.CONTRAINDICATED),
    ):
        verdict = judged(usual_host(), workload={"manifests": [], "images": [image]})
        assert pod_of(verdict).status is status


def test_a_name_counts_only_if_the_hosts_trust_policy_had_its_say():
    def run(**verdict):
        host = Host()
        host.open()
        host.admit(verdict=verdict)
        host.prepare()
        return host

    names = {"manifests": [], "references": [REFERENCE]}
    assert pod_of(judged(run(bypass=False), workload=names)).status is Status.AFFIRMING
    past = judged(run(bypass=True), workload=names)
    assert pod_of(past).status is Status.CONTRAINDICATED
    assert "admitted past the host's trust policy" in pod_of(past).reasons[0]
    assert load_state(past.state.dump()) == past.state
    # What is listed by its digest needs no name.
    assert judged(run(bypass=True)).status is Status.AFFIRMING
    with pytest.raises(RejectedError):
        judged(run(bypass="yes"))


def test_a_bypass_is_a_warning_unless_the_policy_forbids_it():
    host = host_of(Host.prepare, BYPASS)
    assert pod_of(judged(host)).status is Status.WARNING
    assert "option 'image' let something by" in pod_of(judged(host)).reasons
    forbidden = judged(host, workload={"forbidden_operations": ["Unmeasured"]})
    assert pod_of(forbidden).status is Status.CONTRAINDICATED
    of_host = judged(host_of(op(Operation.UNMEASURED, option="measure")))
    assert (of_host.host.status, of_host.host.unmeasured) == (Status.WARNING, ("measure",))


@pytest.mark.parametrize(
    "step", [op(Operation.POD_EXEC, pod=POD, app="db"), op(Operation.UNMEASURED, pod=POD)]
)
def test_an_entry_names_an_app_of_the_pod_and_a_bypass_its_option(step):
    with pytest.raises(RejectedError) as caught:
        judged(host_of(Host.prepare, START, step))
    assert caught.value.reason is Code.SEM


def eventful():
    denied = op(Operation.DENIED, what="run", subject="docker://bad", code="denied-policy")
    return host_of(Host.prepare, START, EXEC, EXEC, BYPASS, denied, denied)


def test_entries_denials_and_bypasses_are_in_verdict_token_and_state():
    host = eventful()
    verdict = judged(host)
    said = verdict_json(verdict, policy())
    (pod,) = said["pods"]
    assert (said["schema"], said["status"]) == ("secrun.dev/verdict/v1", "warning")
    assert said["host"]["denied"] == 2
    assert "Denied" in said["host"]["operations"]
    assert (pod["entries"], pod["unmeasured"], pod["state"]) == (2, ["image"], "started")
    assert pod["operations"] == ["PodExec", "PodPrepare", "PodStart", "Unmeasured"]
    assert pod["stage1"] == STAGE1
    (app,) = pod["apps"]
    assert app == {
        "name": "web",
        "reference": REFERENCE,
        "manifest": IMAGE,
        "tree": TREE,
        "verity_root": ROOT,
        "bypassed": False,
        "relaxations": [],
    }
    issuer = Issuer(developer="example", build="1", key_id="k")
    token = claims(verdict, session(host), issuer, now=NOW, token_id="t")
    module = token["submods"][f"pod:{POD}"]
    assert (module["secrun_entries"], module["secrun_unmeasured"]) == (2, ["image"])
    assert (token["submods"]["host"]["secrun_denied"], token["secrun_tpm"]) == (2, "hardware")
    assert load_state(verdict.state.dump()) == verdict.state


def test_what_was_seen_before_is_still_said_after_an_incremental_appraisal():
    host = eventful()
    state = judged(host).state
    host.measure(Operation.POD_EXIT, pod=POD, code=0)
    host.clock += 10
    asked = session(host, state_digest=state.digest())
    host.measure(Operation.UNMEASURED, option="measure")
    verdict = appraise(host.evidence(begin=state.recnum), asked, policy(), state, NOW)
    assert (pod_of(verdict).entries, pod_of(verdict).unmeasured) == (2, ("image",))
    assert verdict.host.unmeasured == ("measure",)
    assert state.machine.unmeasured == set()  # the old state is as it was


def test_a_rejection_says_check_and_code():
    error = RejectedError(Code.SIG, "wrong key")
    assert rejection_json(error) == {
        "schema": "secrun.dev/verdict/v1",
        "status": "rejected",
        "code": "E_SIG",
        "check": 5,
        "reason": "wrong key",
    }


# Each check: an attack that it alone stops, and what stands in its place when it is taken away. With the
# check the attack ends with its code; without it the same bytes are believed.


def attack(evidence=None, *, rules=None, state=None, host=None, **asked):
    host = host or usual_host()
    data = evidence(host) if evidence else host.bundle()
    return data, session(host, **asked), policy(**(rules or {})), state


def stale_clock():
    host = usual_host()
    state = judged(host).state
    host.clock -= 500
    return attack(lambda host: host.bundle(begin=5), host=host, state=state, state_digest=state.digest())


def dirty_base():
    base = {bank: b"\x01" * len(value) for bank, value in Host().base.items()}
    return attack(host=usual_host(base=base))


ATTACKS = {
    1: lambda: attack(lambda host: edited(host.evidence(), ("surprise",), 1)),
    2: lambda: attack(used=True),
    3: lambda: attack(enrolment=replace(enrolled(host := usual_host()), host="other"), host=host),
    4: lambda: attack(host=usual_host(ak=Ak(attributes=0x00040072))),
    5: lambda: attack(lambda host: replace(host.bundle(), signature=Ak().sign(b"other"))),
    6: lambda: attack(lambda host: host.bundle(magic=0xFF544348)),
    7: lambda: attack(lambda host: host.bundle(signer=host.ak.qualified(b"\x40\x00\x00\x01"))),
    8: lambda: attack(audience="another"),
    9: lambda: attack(lambda host: host.bundle(selections=[(0xC, (15,))])),
    10: lambda: attack(lambda host: host.bundle(digest_=bytes(32))),
    11: stale_clock,
    12: dirty_base,
    13: lambda: attack(lambda host: host.bundle(header=replace(host.header(), log_sha256=bytes(32)))),
    14: lambda: attack(lambda host: host.bundle(values={15: raw("elsewhere")})),
    15: lambda: attack(bare, host=host_of(START)),
    16: lambda: attack(lambda host: replace(host.bundle(), contents=((bytes(32), b"{}"),))),
    17: lambda: attack(rules={"max_age": 4}),
    18: lambda: attack(state_digest=bytes(32)),
}


def honest_machine(*_):
    return Machine(opened=True, tpm=TpmKind.HARDWARE, runtimes=(raw("secrun"),))


CHECKS = "secrun_attest.verify.checks"
REMOVED = {
    1: ("secrun_attest.fields.Fields.done", lambda _: None),
    2: (f"{CHECKS}.check_session", lambda _evidence, asked, _now: asked),
    3: (f"{CHECKS}.check_enrolled", lambda _evidence, _public, enrolment: enrolment),
    4: (f"{CHECKS}.check_key", lambda _: None),
    5: (f"{CHECKS}.check_signature", lambda *_: None),
    6: (f"{CHECKS}.check_quote", lambda attest: parse_quote_body(attest.body)),
    7: (f"{CHECKS}.check_signer", lambda *_: None),
    8: (f"{CHECKS}.check_binding", lambda *_: None),
    9: (f"{CHECKS}.check_selection", lambda *_: None),
    10: (f"{CHECKS}.check_values", lambda _quote, evidence, *_: dict(evidence.pcr_values[0][1])),
    11: (f"{CHECKS}.check_epoch", lambda _attest, _evidence, state: state),
    12: (f"{CHECKS}.check_baseline", lambda evidence, *_: dict(evidence.base_pcr)),
    13: (f"{CHECKS}.check_log", lambda *_: None),
    14: (f"{CHECKS}.check_replay", lambda _evidence, _values, base, _policy: base),
    15: ("secrun_attest.verify._check_meaning", honest_machine),
    16: ("secrun_attest.verify._check_contents", lambda *_: None),
    17: ("secrun_attest.verify.check_policy", lambda *_: None),
    18: ("secrun_attest.verify._check_state", lambda *_: None),
}


def outcome(case):
    evidence, asked, rules, state = case
    data = evidence if isinstance(evidence, bytes) else build_evidence(evidence)
    try:
        appraise(data, asked, rules, state, NOW)
    except RejectedError as error:
        return error.step
    return "believed"


@pytest.mark.parametrize("step", range(1, 19))
def test_every_check_stops_an_attack_that_nothing_else_stops(step, monkeypatch):
    assert outcome(ATTACKS[step]()) == step
    monkeypatch.setattr(*REMOVED[step])
    assert outcome(ATTACKS[step]()) == "believed"


def test_every_code_belongs_to_one_of_the_checks_attacked():
    assert set(STEPS.values()) == set(ATTACKS) == set(REMOVED)


JUDGE = "secrun_attest.verify.judge"


def nothing(*_):
    return iter(())


JUDGEMENTS = {
    "stage1": (f"{JUDGE}._stage1", nothing, lambda: judged(usual_host(), runtime={"stage1": [OTHER]})),
    "bypass of a pod": (f"{JUDGE}._bypassed", nothing, lambda: judged(host_of(Host.prepare, BYPASS))),
    "bypass of the host": (
        f"{JUDGE}._bypassed",
        nothing,
        lambda: judged(host_of(op(Operation.UNMEASURED, option="x"))),
    ),
    "platform": (f"{JUDGE}._platform", nothing, lambda: judged(usual_host(), platform={"pcrs": {}})),
    "runtime": (f"{JUDGE}._runtime", nothing, lambda: judged(usual_host(), runtime={"binaries": []})),
    "image": (
        "secrun_attest.policy.Workload.allows",
        lambda *_, **__: True,
        lambda: judged(usual_host(), workload={"manifests": [OTHER]}),
    ),
    "relaxation": (
        "secrun_attest.policy.Workload.forbids",
        lambda *_: False,
        lambda: judged(
            host_of(lambda host: host.prepare(relaxations=("seccomp",))),
            workload={"forbidden_relaxations": ["*"]},
        ),
    ),
}


@pytest.mark.parametrize("rule", JUDGEMENTS)
def test_every_judgement_decides_a_verdict_that_nothing_else_decides(rule, monkeypatch):
    target, replacement, verdict = JUDGEMENTS[rule]
    assert verdict().status is not Status.AFFIRMING
    monkeypatch.setattr(target, replacement)
    assert verdict().status is Status.AFFIRMING


def test_software_is_what_anybody_says(monkeypatch):
    host = host_of(tpm=SOFTWARE)
    monkeypatch.setattr("secrun_attest.verify.says_software", lambda *_: "")
    assert dict(judged(host).host.vector)["hardware"] == 2


def test_the_runtime_of_the_bench_is_listed():
    assert judged(usual_host(), runtime={"binaries": [RUNTIME]}).status is Status.AFFIRMING
