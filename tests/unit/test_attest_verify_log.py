"""Checks 11 to 18: each way to cheat with time, log, story or state ends at its own check."""

import hashlib
import json
from dataclasses import replace

import pytest

from secrun_attest.errors import FormatError
from secrun_attest.evidence import build_evidence, parse_evidence
from secrun_attest.policy import parse_policy
from secrun_attest.record import Bank, Epoch, Operation
from secrun_attest.rejection import Code
from secrun_attest.verify import Status, appraise, load_state
from support.attest_bench import (
    BOOT,
    IMAGE,
    NOW,
    POD,
    POD_DIGEST,
    STAGE1,
    TREE,
    Ak,
    Host,
    enrolled,
    firmware_log,
    policy,
    policy_document,
    raw,
    session,
    sha,
    usual_host,
)
from support.attest_refusal import edited, refused

OTHER_POD = "99999999-2222-4333-8444-555555555555"


def first_pass(**changes):
    host = usual_host(**changes)
    return host, appraise(host.evidence(), session(host), policy(), None, NOW).state


def later(host, state, **changes):
    return session(host, state_digest=state.digest(), **changes)


def test_only_new_records_are_needed_after_the_first_time():
    host, state = first_pass()
    state = load_state(state.dump())
    host.pod(OTHER_POD)
    verdict = appraise(host.evidence(begin=5), later(host, state), policy(), state, NOW)
    assert [uuid for uuid, _ in verdict.pods] == [POD, OTHER_POD]
    assert (verdict.status, verdict.state.recnum) == (Status.AFFIRMING, 8)
    assert len(state.machine.pods) == 1  # the old state is as it was


def test_no_new_record_is_fine_too():
    host, state = first_pass()
    assert appraise(host.evidence(begin=5), later(host, state), policy(), state, NOW).state.recnum == 5


def test_a_state_survives_storage():
    _, state = first_pass()
    assert load_state(state.dump()) == state
    assert load_state(state.dump()).digest() == state.digest()


@pytest.mark.parametrize(
    ("reset", "restart", "now_restart", "boot"),
    [
        (6, 9, 9, BOOT),  # before the last reset
        (7, 1, 1, BOOT),  # before the last restart
        (7, 1, 2, BOOT),  # a log of a life that ended
        (7, 2, 2, BOOT.replace("1", "2")),  # two machines with one TPM's counters
    ],
)
def test_an_epoch_never_comes_back(reset, restart, now_restart, boot):
    host, state = first_pass()
    twin = usual_host(
        ak=host.ak,
        epoch=Epoch(reset=reset, restart=restart, boot_id=boot),
        restart=now_restart,
        clock=2_000_000,
    )
    assert refused(twin.bundle(), later(host, state), state=state) is Code.EPOCH


def test_a_resume_that_was_seen_is_not_undone():
    host, state = first_pass()
    host.restart = 3
    state = appraise(host.evidence(begin=5), later(host, state), policy(), state, NOW).state
    host.restart = 2
    assert refused(host.bundle(begin=5), later(host, state), state=state) is Code.EPOCH


@pytest.mark.parametrize("changes", [{"reset": 8}, {"restart": 1}])
def test_the_log_must_be_of_the_signed_epoch(changes):
    host = usual_host()
    host.restart = changes.pop("restart", 2)
    assert refused(host.bundle(**changes), session(host)) is Code.EPOCH


def test_the_clock_goes_up_unless_the_tpm_says_it_is_not_sure():
    host, state = first_pass()
    host.clock -= 500
    assert refused(host.bundle(begin=5), later(host, state), state=state) is Code.EPOCH
    host.safe = 0
    assert appraise(host.evidence(begin=5), later(host, state), policy(), state, NOW).state.recnum == 5


@pytest.mark.parametrize(
    ("reset", "restart"),
    [(8, 0), (7, 3)],  # reset; and restart, where only the restart count tells that PCRs began anew
)
def test_a_new_epoch_begins_a_new_log(reset, restart):
    host, state = first_pass()
    new = usual_host(
        ak=host.ak, epoch=Epoch(reset=reset, restart=restart, boot_id=BOOT), restart=restart, clock=2_000_000
    )
    verdict = appraise(new.evidence(), later(host, state), policy(), state, NOW)
    assert verdict.state.epoch.reset == reset
    assert verdict.state.recnum == 5


def test_a_resume_keeps_the_epoch():
    host, state = first_pass()
    host.restart = 3
    host.measure(Operation.RESUME)
    assert appraise(host.evidence(begin=5), later(host, state), policy(), state, NOW).state.recnum == 6


def test_what_lay_in_the_pcr_before_must_be_explained():
    dirty = {bank: b"\x01" * hashlib.new(bank).digest_size for bank in Bank}
    host = usual_host(base=dirty)
    assert refused(host.bundle(), session(host)) is Code.BASELINE


def test_the_base_must_hold_the_pinned_bank():
    host = usual_host()
    evidence = edited(host.evidence(), ("log", "base_pcr", "sha256"), ...)
    assert refused(evidence, session(host)) is Code.BASELINE


def with_firmware(events):
    log = firmware_log(events, tuple(str(bank) for bank in Bank))
    static = {}
    for index in range(8):
        static[index] = bytes(32)
        for pcr, kind, data in events:
            if pcr == index and kind != 3:
                static[index] = hashlib.sha256(static[index] + hashlib.sha256(data).digest()).digest()
    return {"firmware": log, "static": static}


def rules_for(host):
    return policy(platform={"pcrs": {"7": [host.static[7].hex()]}})


def test_a_firmware_log_explains_static_pcrs_and_the_baseline():
    events = [(0, 1, b"crtm"), (4, 3, b"no action"), (7, 0x80000001, b"secure boot"), (15, 6, b"volume key")]
    base = {
        bank: hashlib.new(
            bank, bytes(hashlib.new(bank).digest_size) + hashlib.new(bank, b"volume key").digest()
        ).digest()
        for bank in Bank
    }
    host = usual_host(**with_firmware(events), base=base)
    assert appraise(host.evidence(), session(host), rules_for(host), None, NOW).status is Status.AFFIRMING
    zero = usual_host(**with_firmware(events))
    assert refused(zero.bundle(), session(zero), rules_for(zero)) is Code.BASELINE


def test_a_firmware_log_that_does_not_fit_is_refused():
    host = usual_host(**with_firmware([(0, 1, b"crtm")]))
    good = host.bundle()
    assert refused(replace(good, firmware_log=None), session(host), rules_for(host)) is Code.BASELINE
    host.static[4] = raw("boot loader of somebody else")
    assert refused(host.bundle(), session(host), rules_for(host)) is Code.BASELINE


@pytest.mark.parametrize(
    "damage",
    [
        lambda log: log[:-1],
        lambda log: log + b"\xff" * 16,
        lambda log: log[:24] + b"X" + log[25:],
        lambda log: log[:56] + b"\xff\xff\xff\xff" + log[60:],
        lambda log: log[32:],
        lambda log: b"",
        lambda log: log.replace(b"\x0b\0\x20\0", b"\x0b\0\x21\0"),
        lambda log: log.replace(b"\x0c\0\x30\0", b"\x0b\0\x20\0"),
    ],
)
def test_a_damaged_firmware_log_is_refused(damage):
    host = usual_host(**with_firmware([(0, 1, b"crtm")]))
    host.firmware = damage(host.firmware)
    assert refused(host.bundle(), session(host), rules_for(host)) is Code.BASELINE


def test_incremental_evidence_goes_on_where_the_last_ended():
    host, state = first_pass()
    host.pod(OTHER_POD)
    good = host.bundle(begin=5)
    base = tuple((bank, bytes(len(value))) for bank, value in good.base_pcr)
    assert refused(replace(good, base_pcr=base), later(host, state), state=state) is Code.BASELINE
    assert refused(host.bundle(begin=6), later(host, state), state=state) is Code.BASELINE


def relogged(host, records, **changes):
    """Return evidence whose header honestly names these records."""
    host.records = records
    return replace(host.bundle(), **changes)


def test_records_may_not_be_dropped_added_swapped_or_moved():
    for change in (
        lambda records: records[:-1],
        lambda records: records[1:],
        lambda records: [*records, records[-1]],
        lambda records: [records[0], records[2], records[1], *records[3:]],
    ):
        host = usual_host()
        good = host.bundle()
        assert refused(replace(good, records=tuple(change(good.records))), session(host)) is Code.LOG_RECNUM
        quoted = host.pcr()
        host.records = [replace(record, recnum=number) for number, record in enumerate(change(host.records))]
        assert refused(host.bundle(values={15: quoted}), session(host)) is Code.REPLAY


def test_the_header_names_the_records_sent():
    host = usual_host()
    header = replace(host.header(), log_sha256=bytes(32))
    assert refused(host.bundle(header=header), session(host)) is Code.LOG_DIGEST
    header = replace(host.header(), log_count=6)
    assert refused(host.bundle(header=header), session(host)) is Code.LOG_RECNUM
    assert refused(replace(host.bundle(), log_from=1), session(host)) is Code.LOG_RECNUM


def one_changed(host, **changes):
    return [*host.records[:2], replace(host.records[2], **changes), *host.records[3:]]


def test_every_record_is_of_the_pinned_pcr_and_of_a_known_kind():
    host = usual_host()
    assert refused(relogged(host, one_changed(host, pcr=14)), session(host)) is Code.LOG_PCR
    host = usual_host()
    assert refused(relogged(host, one_changed(host, recnum=3)), session(host)) is Code.LOG_RECNUM
    for change in ({"content_type": "ima_template"}, {"event_type": "EV_NO_ACTION"}):
        host = usual_host()
        assert refused(relogged(host, one_changed(host, **change)), session(host)) is Code.LOG_CONTENT


@pytest.mark.parametrize(
    "change",
    [lambda digests: digests[:-1], lambda digests: (), lambda digests: (*digests[:-1], digests[1])],
)
def test_every_record_has_one_digest_for_each_bank(change):
    host = usual_host()
    good = host.bundle()
    shown = list(good.records)
    shown[2] = replace(shown[2], digests=change(shown[2].digests))
    assert refused(replace(good, records=tuple(shown)), session(host)) is Code.LOG_BANK


@pytest.mark.parametrize("bank", [0, 1, 2, 3])
def test_a_changed_event_under_an_old_digest_shows_in_every_bank(bank):
    host = usual_host()
    digests = list(host.records[2].digests)
    digests[bank] = (digests[bank][0], bytes(len(digests[bank][1])))
    assert (
        refused(relogged(host, one_changed(host, digests=tuple(digests))), session(host)) is Code.LOG_DIGEST
    )


def test_the_log_must_give_exactly_the_quoted_pcr():
    host = usual_host()
    assert refused(host.bundle(values={15: raw("elsewhere")}), session(host)) is Code.REPLAY
    before = host.pcr(upto=4)
    assert refused(host.bundle(values={15: before}), session(host)) is Code.REPLAY


def story(*steps):
    host = Host()
    for step in steps:
        step(host)
    return refused(host.bundle(), session(host))


def op(operation, **fields):
    return lambda host: host.measure(operation, **fields)


START = op(Operation.POD_START, pod=POD)
EXIT = op(Operation.POD_EXIT, pod=POD, status=0)
EXEC = op(Operation.POD_EXEC, pod=POD, app="web")
GC = op(Operation.POD_GC, pod=POD)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [Host.admit],
        [Host.open, Host.open],
        [Host.open, Host.prepare],
        [Host.open, START],
        [Host.open, Host.admit, START],
        [Host.open, Host.admit, Host.prepare, Host.prepare],
        [Host.open, Host.admit, Host.prepare, EXEC],
        [Host.open, Host.admit, Host.prepare, EXIT],
        [Host.open, Host.admit, Host.prepare, START, START],
        [Host.open, Host.admit, Host.prepare, START, GC],
        [Host.open, Host.admit, Host.pod, EXEC],
        [Host.open, Host.admit, Host.pod, START],
        [Host.open, Host.admit, Host.pod, EXIT],
        [Host.open, Host.admit, Host.pod, GC, GC],
        [Host.open, Host.admit, lambda host: host.prepare(tree=sha("another"))],
        [Host.open, op(Operation.UNMEASURED, pod=POD)],
        [Host.open, op(Operation.IMAGE_ADMIT, reference="x")],
        [Host.open, lambda host: host.measure(Operation.CHECKPOINT, seq=7)],
        [
            Host.open,
            lambda host: host.measure(Operation.CHECKPOINT, epoch=Epoch(reset=7, restart=3, boot_id=BOOT)),
        ],
        [lambda host: host.open(ak=Ak().name.hex())],
        [lambda host: host.open(baseline={"sha256": "00" * 32})],
        [Host.open, lambda host: host.log(b"hello")],
        [Host.open, lambda host: host.log(b"LEAA\xff\xff\xff\xff")],
    ],
)
def test_a_story_that_cannot_have_happened_is_refused(steps):
    assert story(*steps) is Code.SEM


def test_a_pod_may_be_entered_and_removed():
    host = Host()
    for step in (Host.open, Host.admit, Host.prepare, START, EXEC, EXEC, EXIT, GC):
        step(host)
    verdict = appraise(host.evidence(), session(host), policy(), None, NOW)
    assert verdict.status is Status.AFFIRMING
    assert verdict.state.machine.pods[POD].entries == 2


def test_manifests_in_the_bundle_are_those_measured():
    host = usual_host()
    good = host.bundle()
    digest, _ = good.contents[0]
    assert refused(replace(good, contents=((digest, b"{}"),)), session(host)) is Code.CONTENT
    other = (hashlib.sha256(b"{}").digest(), b"{}")
    assert refused(replace(good, contents=(other,)), session(host)) is Code.CONTENT


@pytest.mark.parametrize(
    "changes",
    [
        {"not_after": NOW},
        {"not_before": NOW + 1},
        {"max_age": 4},
        {"hierarchies": ["platform"]},
        {"keys": [Ak().name.hex()]},
    ],
)
def test_a_policy_may_refuse_the_key_or_the_time(changes):
    host = usual_host()
    assert refused(host.bundle(), session(host), policy(**changes)) is Code.POLICY


def test_a_software_tpm_needs_leave_and_claims_no_hardware():
    host = usual_host()
    asked = session(host, enrolment=enrolled(host, software=True))
    assert refused(host.bundle(), asked) is Code.POLICY
    verdict = appraise(host.evidence(), asked, policy(software_tpm=True), None, NOW)
    assert "hardware" not in dict(verdict.host.vector)


def _prepare(host, app):
    """Prepare a pod that is relaxed itself and in its app."""
    fields = {"name": "web", "image": IMAGE, "tree": TREE} | app
    host.measure(
        Operation.POD_PREPARE,
        pod=POD,
        manifest=POD_DIGEST,
        stage1=STAGE1,
        apps=[fields],
        relaxations=["seccomp"],
    )


@pytest.mark.parametrize(
    ("changes", "host_status", "pod_status"),
    [
        ({"platform": {"pcrs": {}}}, Status.WARNING, Status.AFFIRMING),
        ({"platform": {"pcrs": {"7": [raw("other").hex()]}}}, Status.CONTRAINDICATED, Status.AFFIRMING),
        ({"runtime": {"binaries": []}}, Status.WARNING, Status.AFFIRMING),
        ({"runtime": {"binaries": [sha("other")]}}, Status.CONTRAINDICATED, Status.AFFIRMING),
        ({"workload": {"manifests": []}}, Status.AFFIRMING, Status.WARNING),
        ({"workload": {"manifests": [sha("other")]}}, Status.AFFIRMING, Status.CONTRAINDICATED),
        ({"workload": {"manifests": [], "trees": [sha("tree")]}}, Status.AFFIRMING, Status.AFFIRMING),
        (
            {"workload": {"manifests": [], "references": ["docker://registry.example/*"]}},
            Status.AFFIRMING,
            Status.AFFIRMING,
        ),
        (
            {"workload": {"manifests": [], "references": ["docker://other/*"]}},
            Status.AFFIRMING,
            Status.CONTRAINDICATED,
        ),
        ({"workload": {"forbidden_operations": ["PodExec"]}}, Status.AFFIRMING, Status.CONTRAINDICATED),
        ({"workload": {"forbidden_operations": ["Denied"]}}, Status.CONTRAINDICATED, Status.AFFIRMING),
        ({"workload": {"forbidden_relaxations": ["cap:*"]}}, Status.AFFIRMING, Status.CONTRAINDICATED),
        ({"workload": {"forbidden_relaxations": ["seccomp"]}}, Status.AFFIRMING, Status.CONTRAINDICATED),
        ({"workload": {"forbidden_relaxations": ["network"]}}, Status.AFFIRMING, Status.AFFIRMING),
    ],
)
def test_reference_values_decide_and_their_lack_is_a_warning(changes, host_status, pod_status):
    host = Host()
    host.open()
    host.admit()
    apps = {"relaxations": ["cap:SYS_ADMIN"]}
    _prepare(host, apps)
    START(host)
    EXEC(host)
    host.measure(Operation.DENIED, pod=OTHER_POD)
    host.prepare("77777777-2222-4333-8444-555555555555")
    verdict = appraise(host.evidence(), session(host), policy(**changes), None, NOW)
    assert (verdict.host.status, dict(verdict.pods)[POD].status) == (host_status, pod_status)
    every = [verdict.host, *(one for _, one in verdict.pods)]
    assert all(bool(one.reasons) == (one.status is not Status.AFFIRMING) for one in every)


def test_a_state_that_somebody_else_moved_is_not_overwritten():
    host, state = first_pass()
    assert refused(host.bundle(begin=5), session(host), state=state) is Code.STATE
    assert refused(host.bundle(), later(host, state)) is Code.STATE
    asked = later(host, replace(state, host="other"))
    assert refused(host.bundle(begin=5), asked, state=replace(state, host="other")) is Code.STATE


def test_evidence_reads_back_as_written():
    good = usual_host(**with_firmware([(0, 1, b"crtm")])).bundle()
    assert parse_evidence(build_evidence(good)) == good


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"surprise": 1},
        {"bank": "sha1"},
        {"pcr": 14},
        {"selection": [15, 0]},
        {"selection": [15, 15]},
        {"hierarchies": ["owner"]},
        {"software_tpm": 1},
        {"platform": {"pcrs": {"15": [raw("x").hex()]}}},
        {"platform": {"pcrs": {"9": [raw("x").hex()]}}},
        {"platform": {"pcrs": {"7": ["00" * 48]}}},
        {"workload": {"manifests": [raw("x").hex()]}},
        {"workload": {"surprise": []}},
    ],
)
def test_a_policy_that_means_nothing_is_refused(changes):
    with pytest.raises(FormatError):
        parse_policy(json.dumps(policy_document(**changes)).encode())
