"""What a verifier makes of pods in virtual machines, and of the root hashes that guests enforce."""

import json

import pytest

from secrun_attest.ear import Issuer, claims
from secrun_attest.errors import FormatError
from secrun_attest.policy import parse_policy
from secrun_attest.policywrite import dump_policy
from secrun_attest.rejection import Code
from secrun_attest.verdictjson import verdict_json
from secrun_attest.verify import RejectedError, Status, appraise, load_state
from support.attest_bench import (
    GUEST,
    IMAGE,
    MACHINE,
    NOW,
    POD,
    ROOT,
    TREE,
    Host,
    policy,
    policy_document,
    session,
    sha,
)

OTHER_ROOT = "22" * 32
KNOWN = {"guests": [GUEST]}
PAIR = {"manifest": IMAGE, "tree": TREE}


def host_of(machine=MACHINE, **app):
    host = Host()
    host.open()
    host.admit()
    host.prepare(machine=machine, **({} if machine is None else {"verity_root": ROOT}) | app)
    return host


def judged(host, machines=KNOWN, **rules):
    verdict = appraise(
        host.evidence(), session(host), policy(runtime={"machines": machines}, **rules), None, NOW
    )
    assert verdict.host.status is Status.AFFIRMING
    return verdict


def pod_of(verdict):
    return dict(verdict.pods)[POD]


# Each rule: what of a machine and a policy it alone speaks against, and what it says.
RULES = {
    "accelerator": (MACHINE | {"accelerator": "tcg"}, KNOWN, "configuration", 96, "accelerator 'tcg'"),
    "another accelerator": (
        MACHINE,
        KNOWN | {"accelerators": ["tcg"]},
        "configuration",
        96,
        "accelerator 'kvm' is not one of tcg",
    ),
    "no machine": (None, KNOWN | {"required": True}, "configuration", 96, "has no virtual machine"),
    "no guests": (MACHINE, {}, "executables", 33, "no reference values for guest kernels"),
    "kernel": (MACHINE | {"kernel": sha("x")}, KNOWN, "executables", 96, "guest kernel sha256:"),
    "initrd": (MACHINE | {"initrd": sha("x")}, KNOWN, "executables", 96, "guest kernel sha256:"),
    "command line": (
        MACHINE | {"command_line": "console=ttyS0 quiet init=/bin/sh"},
        KNOWN,
        "executables",
        96,
        "the command line 'console=ttyS0 quiet init=/bin/sh' is not",
    ),
    "no command lines": (
        MACHINE,
        {"guests": [GUEST | {"command_lines": []}]},
        "executables",
        33,
        "no reference values for its command line",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_machine_that_is_not_what_the_policy_knows_speaks_against_its_pod(rule):
    machine, machines, claim, value, reason = RULES[rule]
    found = pod_of(judged(host_of(machine), machines))
    assert dict(found.vector)[claim] == value
    assert [text for text in found.reasons if reason in text] == list(found.reasons)


@pytest.mark.parametrize("rule", RULES)
def test_without_the_rules_for_machines_nothing_else_notices(rule, monkeypatch):
    machine, machines, *_ = RULES[rule]
    monkeypatch.setattr("secrun_attest.verify.judge._machine", lambda *_: iter(()))
    assert pod_of(judged(host_of(machine), machines)).status is Status.AFFIRMING


@pytest.mark.parametrize(
    ("machine", "machines"),
    [
        (MACHINE, KNOWN),
        (MACHINE, KNOWN | {"required": True}),
        (MACHINE | {"accelerator": "tcg"}, KNOWN | {"accelerators": ["kvm", "tcg"]}),
        (MACHINE | {"vtpm": True, "vcpus": 4}, KNOWN),
        (None, KNOWN),
        (None, {}),
    ],
)
def test_a_machine_that_the_policy_knows_is_affirmed(machine, machines):
    assert pod_of(judged(host_of(machine), machines)).status is Status.AFFIRMING


def test_a_kernel_boots_with_its_own_initramfs_alone():
    other = {"kernel": sha("k2"), "initrd": sha("i2"), "command_lines": GUEST["command_lines"]}
    mixed = MACHINE | {"initrd": other["initrd"]}
    known = {"guests": [GUEST, other]}
    assert pod_of(judged(host_of(mixed), known)).status is Status.CONTRAINDICATED
    assert pod_of(judged(host_of(MACHINE | {**other, "command_lines": 0}), known)).status is Status.AFFIRMING


def test_copies_of_a_pod_differ_in_the_root_of_their_own_image_alone():
    host = host_of()
    host.prepare(pod="other", machine=MACHINE | {"pod_root": "33" * 32}, verity_root=ROOT)
    host.prepare(pod="emulated", machine=MACHINE | {"accelerator": "tcg"}, verity_root=ROOT)
    found = {uuid: appraisal.status for uuid, appraisal in judged(host).pods}
    assert found == {
        POD: Status.AFFIRMING,
        "other": Status.AFFIRMING,
        "emulated": Status.CONTRAINDICATED,
    }


@pytest.mark.parametrize("machine", [MACHINE, None])
def test_an_image_is_held_to_the_root_hash_that_was_computed_of_it(machine):
    # The hash of a pod without a machine is the one that its image was admitted with.
    host = host_of(machine)
    for root, status in ((ROOT, Status.AFFIRMING), (OTHER_ROOT, Status.CONTRAINDICATED)):
        workload = {"manifests": [], "images": [PAIR | {"verity_root": root}]}
        found = pod_of(judged(host, workload=workload))
        assert found.status is status
        assert any(f"verity root {ROOT}" in text for text in found.reasons) == (root != ROOT)


def test_a_guest_that_enforces_another_root_hash_than_was_admitted_is_seen():
    workload = {"manifests": [], "images": [PAIR | {"verity_root": ROOT}]}
    host = host_of(verity_root=OTHER_ROOT)
    assert pod_of(judged(host, workload=workload)).status is Status.CONTRAINDICATED


@pytest.mark.parametrize("name", [name for name in MACHINE if name != "pod_blocks"])
def test_a_machine_that_lacks_something_or_says_nonsense_is_refused(name):
    for machine in ({**MACHINE, name: []}, {key: value for key, value in MACHINE.items() if key != name}):
        with pytest.raises(RejectedError) as caught:
            judged(host_of(machine))
        assert (caught.value.reason, name in caught.value.message) == (Code.SEM, True)


@pytest.mark.parametrize("root", ["", "00", "XX" * 32, 1])
def test_a_root_hash_that_is_none_is_refused(root):
    with pytest.raises(RejectedError) as caught:
        judged(host_of(verity_root=root))
    assert caught.value.reason is Code.SEM


def test_verdict_token_and_state_show_the_machine_and_the_root_hashes():
    host = host_of()
    verdict = judged(host)
    (pod,) = verdict_json(verdict, policy())["pods"]
    said = {name: value for name, value in MACHINE.items() if name != "pod_blocks"}
    assert (pod["machine"], pod["apps"][0]["verity_root"]) == (said, ROOT)
    issuer = Issuer(developer="example", build="1", key_id="k")
    token = claims(verdict, session(host), issuer, now=NOW, token_id="t")
    assert token["submods"][f"pod:{POD}"]["secrun_machine"] == said
    assert load_state(verdict.state.dump()) == verdict.state
    # A pod without one says so.
    plain = judged(host_of(None))
    assert verdict_json(plain, policy())["pods"][0]["machine"] is None
    assert "secrun_machine" not in claims(plain, session(host), issuer, now=NOW, token_id="t")["submods"]


def test_rules_for_machines_read_back_as_written():
    machines = {"required": True, "accelerators": ["kvm", "tcg"], "guests": [GUEST]}
    images = [PAIR | {"verity_root": ROOT}, PAIR | {"tree": sha("x")}]
    found = policy(runtime={"machines": machines}, workload={"images": images})
    again = json.loads(dump_policy(found))
    assert again["runtime"]["machines"] == machines
    assert sorted(again["workload"]["images"], key=str) == sorted(images, key=str)


@pytest.mark.parametrize(
    "machines",
    [
        {"surprise": 1},
        {"required": 1},
        {"accelerators": []},
        {"accelerators": ["hvf"]},
        {"guests": [{}]},
        {"guests": [GUEST | {"command_lines": [1]}]},
        {"guests": [GUEST | {"surprise": 1}]},
        {"guests": [GUEST, GUEST | {"command_lines": []}]},
    ],
)
def test_rules_for_machines_that_mean_nothing_are_refused(machines):
    with pytest.raises(FormatError):
        parse_policy(json.dumps(policy_document(runtime={"machines": machines})).encode())
