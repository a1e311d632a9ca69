"""The table of reboots on a real TPM: the log, the evidence before and after, the verifier's state."""

import shutil

import pytest

from secrun_attest.errors import LogError
from secrun_attest.evidence import parse_evidence
from secrun_attest.rejection import Code
from secrun_attest.verify import RejectedError, Status, load_state


def logs(attested):
    return sorted(path.name for path in attested.source.directory.glob("*.cel"))


def before(attested):
    """Run a pod and attest; return the state that the verifier keeps."""
    pod = attested.run_pod()
    verdict = attested.attest()
    assert (verdict.status, [uuid for uuid, _ in verdict.pods]) == (Status.AFFIRMING, [pod])
    return pod, load_state(verdict.state.dump())


def test_after_a_sleep_the_log_goes_on_and_only_new_records_are_sent(attested):
    first, state = before(attested)
    attested.tpm.resume()
    second = attested.run_pod()
    verdict = attested.attest(state)
    assert verdict.status is Status.AFFIRMING
    assert [uuid for uuid, _ in verdict.pods] == [first, second]
    assert len(logs(attested)) == 1
    # LogOpen, three records of each pod, and Resume.
    assert verdict.state.recnum == state.recnum + 4 == 8
    assert verdict.state.epoch == state.epoch
    assert verdict.state.clock.restart == state.clock.restart + 1


@pytest.mark.parametrize("row", ["restart", "reset", "power_cut"])
def test_after_a_reboot_a_new_log_begins_that_is_appraised_from_its_start(attested, row):
    first, state = before(attested)
    attested.reboot(getattr(attested.tpm, row))
    second = attested.run_pod()
    verdict = attested.attest(state, whole=True)
    assert verdict.status is Status.AFFIRMING
    assert [uuid for uuid, _ in verdict.pods] == [second]
    assert len(logs(attested)) == 2
    now, then = verdict.state.clock, state.clock
    assert (now.reset, now.restart) == (
        (then.reset, then.restart + 1) if row == "restart" else (then.reset + 1, 0)
    )
    assert now.safe == (row != "power_cut")
    # Back in order: the new state is one to go on from.
    third = attested.run_pod()
    later = attested.attest(verdict.state)
    assert [uuid for uuid, _ in later.pods] == [second, third]
    # What was shown before the reboot is not believed after it.
    assert first not in dict(later.pods)


def test_one_state_outlives_all_of_them_in_a_row(attested):
    _, state = before(attested)
    for row in ("resume", "reset", "resume", "restart", "power_cut", "restart", "resume", "reset"):
        if row == "resume":
            attested.tpm.resume()
        else:
            attested.reboot(getattr(attested.tpm, row))
        attested.run_pod()
        verdict = attested.attest(state, whole=row != "resume")
        assert verdict.status is Status.AFFIRMING
        state = verdict.state
    assert len(logs(attested)) == 6


def test_a_new_kernel_under_a_running_tpm_goes_on_with_the_log(attested):
    first, state = before(attested)
    attested.reboot(lambda: None)
    second = attested.run_pod()
    verdict = attested.attest(state)
    assert [uuid for uuid, _ in verdict.pods] == [first, second]
    assert len(logs(attested)) == 1


def test_a_log_that_was_deleted_is_not_begun_anew_under_the_same_pcr(attested):
    before(attested)
    shutil.rmtree(attested.source.directory)
    with pytest.raises(LogError) as caught:
        attested.run_pod()
    assert caught.value.code == "log-baseline"


def test_evidence_from_before_a_reboot_is_refused_after_it(attested):
    old = attested.evidence(attested.challenge()) if attested.run_pod() else b""
    attested.reboot(attested.tpm.reset)
    attested.run_pod()
    state = attested.attest().state
    with pytest.raises(RejectedError) as caught:
        attested.judged(old, state)
    assert caught.value.reason is Code.EPOCH
    assert parse_evidence(old).header.epoch.reset == state.epoch.reset - 1
