"""The power goes while a pod runs, and another waits; then the same disk and the same TPM boot again."""

import base64
import hashlib
import json
from pathlib import Path

from vmhost.kit import (
    IDLE,
    LAYOUT,
    RELAXED,
    STORE,
    after_the_power_cut,
    attest_status,
    check,
    events,
    eventually,
    from_outside,
    hand_out,
    host_is_as_it_was,
    life,
    nothing_remains,
    run,
    secrun,
    status,
    tool,
)


def logs() -> dict[str, str]:
    """Digest each log there is, by its name."""
    found = (STORE / "measure").glob("*.cel")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def before() -> dict:
    """What the first boot saw last. It went through the test: an fsync would save more than this note."""
    return json.loads(base64.b64decode(from_outside("note")))


@check
def a_sleep_is_told_to_the_log_that_goes_on() -> str:
    """Whoever started the machine wakes it when it is asleep: an alarm may ring before, and wakes nobody."""
    before = attest_status()["epoch"]
    Path("/sys/power/state").write_text("mem")
    assert run("echo", "awake") == "awake\n"
    names = [operation for operation, _ in events()]
    assert names.count("LogOpen") == names.count("Resume") == 1
    return f"{before} {attest_status()['epoch']}"


@check
def the_host_is_as_it_was() -> str:
    return host_is_as_it_was()


@check
def a_pod_runs_and_another_waits_when_the_power_goes() -> str:
    waits = secrun("prepare", *RELAXED, LAYOUT, "--", "echo", "late").strip()
    runs = secrun("run", "-d", *RELAXED, LAYOUT, "--", *IDLE).strip()
    eventually(lambda: secrun("logs", runs) == "up\n", "the first line of the log")
    said = json.dumps({"waits": waits, "runs": runs, "epoch": attest_status()["epoch"], "logs": logs()})
    hand_out("note.json", said)
    return said


@after_the_power_cut
def the_machine_comes_up_again() -> str:
    assert tool("systemctl", "--failed", "--no-legend", "--plain") == ""
    assert logs() == before()["logs"]
    states = {uuid: status(uuid)["state"] for uuid in secrun("list", "-q").split()}
    assert states == {before()["waits"]: "prepared", before()["runs"]: "exited"}
    return f"{states}"


@after_the_power_cut
def gc_cleans_the_pod_that_ran_and_the_log_is_told_of_no_end() -> None:
    secrun("gc", "--grace-period=0s")
    assert secrun("list", "-q").split() == [before()["waits"]]
    assert life(before()["runs"]) == []


@after_the_power_cut
def a_new_epoch_has_a_log_of_its_own_and_the_old_one_is_kept() -> str:
    old, new = before()["epoch"].split("-", 2), attest_status()["epoch"].split("-", 2)
    assert int(new[0]) == int(old[0]) + 1
    assert new[2] != old[2]
    now = logs()
    assert before()["logs"].items() <= now.items()
    assert len(now) == len(before()["logs"]) + 1
    return f"{old} {new} {now}"


@after_the_power_cut
def a_pod_prepared_before_runs_and_is_prepared_again_in_the_new_log() -> None:
    waits = before()["waits"]
    assert secrun("run-prepared", waits) == "late\n"
    assert life(waits) == ["PodPrepare", "PodStart", "PodExit"]
    secrun("rm", waits)
    names = [operation for operation, _ in events()]
    assert names == ["LogOpen", "ImageAdmit", "PodPrepare", "PodStart", "PodExit", "PodGC"]


@after_the_power_cut
def evidence_of_the_new_epoch_is_given_to_a_verifier() -> None:
    hand_out("second.json", secrun("attest", "evidence", "--nonce", from_outside("nonce")))


@after_the_power_cut
def the_host_is_as_it_was_again() -> str:
    nothing_remains()
    return host_is_as_it_was()
