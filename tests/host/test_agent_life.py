"""An app that begins again, and one that is asked how it is, by the shim with the real crun."""

import json
import struct
import time

import pytest

from host.agent_kit import (
    AGAIN,
    ATTACH,
    ERROR,
    EXIT,
    GO,
    HOLD,
    RESTART,
    STARTED,
    STATE,
    STDIN,
    STDOUT,
    STOP,
    WANT_STDERR,
    WANT_STDOUT,
    Frames,
    Running,
    Stage,
    eventually,
    exit_of,
    joined,
)

PATIENCE = 60.0
# Counts its runs in its root, which it keeps.
COUNT = "echo x >> /runs; echo run $(wc -l < /runs); "


def state(stage: Stage) -> dict:
    text = (stage.kept / "state").read_text()
    value = json.loads(text)
    assert json.dumps(value, sort_keys=True, separators=(",", ":")) == text
    return value


def health(stage: Stage) -> dict:
    return state(stage)["health"]


def start(stage: Stage, script: str, *options: str, check: str = "") -> tuple[Running, Frames]:
    """Start an app and attach to it; `check` is the command that tells how it is."""
    if check:
        process = {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", check],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        }
        (stage.top / "pod" / "apps" / stage.app / "health.json").write_text(json.dumps(process))
        options = ("--health-program", "sh", "--health-interval", "100", *options)
    running = stage.start(["sh", "-c", script], *options)
    return running, stage.foreground()


def rest(frames: Frames) -> list[tuple[int, bytes]]:
    return list(iter(lambda: frames.receive(PATIENCE), None))


def until(frames: Frames, kind: int) -> bytes:
    """Return the payload of the next frame of a kind, whatever comes before it."""
    while (frame := frames.receive(PATIENCE)) is not None:
        if frame[0] == kind:
            return frame[1]
    raise AssertionError("the peer closed")


def counts(frames: list[tuple[int, bytes]]) -> list[int]:
    return [struct.unpack("<I", payload)[0] for kind, payload in frames if kind == AGAIN]


# --- beginning again


def test_a_failing_app_begins_again_until_it_succeeds_in_the_root_that_it_has(stage: Stage) -> None:
    script = COUNT + "[ $(wc -l < /runs) -ge 3 ]"
    process, frames = start(stage, script, "--restart", "on-failure")
    seen = rest(frames)
    assert process.wait() == 0
    assert joined(seen, STDOUT) == b"run 1\nrun 2\nrun 3\n"
    assert [kind for kind, _ in seen].count(STARTED) == 1
    assert counts(seen) == [1, 2]
    assert exit_of(seen) == (0, 0, "")
    assert stage.record()["code"] == 0
    assert [text for _, _, text in stage.log()] == [b"run 1", b"run 2", b"run 3"], "one log of all runs"
    record = state(stage)
    assert (record["restarts"], record["waiting"], record["last"]["code"]) == (2, False, 0)


def test_the_count_of_on_failure_is_the_end_of_it(stage: Stage) -> None:
    process, frames = start(stage, COUNT + "exit 7", "--restart", "on-failure:1")
    seen = rest(frames)
    assert process.wait() == 7
    assert joined(seen, STDOUT) == b"run 1\nrun 2\n"
    assert exit_of(seen) == (7, 0, "")


def test_success_ends_an_app_that_begins_again_on_failure_only(stage: Stage) -> None:
    process, frames = start(stage, COUNT, "--restart", "on-failure")
    assert joined(rest(frames), STDOUT) == b"run 1\n"
    assert process.wait() == 0


def test_an_app_that_always_begins_again_ends_when_it_is_stopped(stage: Stage) -> None:
    process, frames = start(
        stage, COUNT + "[ $(wc -l < /runs) -lt 2 ] || exec sleep 1000", "--restart", "always"
    )
    until(frames, AGAIN)
    frames.until_output(b"run 2")
    frames.send(STOP)
    assert exit_of(rest(frames))[:2] == (143, 15)
    assert process.wait() == 143


def test_a_stop_between_two_runs_ends_it_with_the_code_of_the_last(stage: Stage) -> None:
    process, frames = start(stage, "exit 5", "--restart", "always")
    # The next run is 3.2 s away then.
    eventually(lambda: (stage.kept / "state").exists() and state(stage)["restarts"] >= 5, PATIENCE)
    eventually(lambda: state(stage)["waiting"], PATIENCE)
    frames.send(STOP)
    assert exit_of(rest(frames)) == (5, 0, "")
    assert process.wait() == 5


def test_pauses_grow(stage: Stage) -> None:
    process, frames = start(stage, "exit 1", "--restart", "on-failure:4")
    began = time.monotonic()
    assert counts(rest(frames)) == [1, 2, 3, 4]
    # 100, 200, 400 and 800 ms.
    assert time.monotonic() - began >= 1.5
    assert process.wait() == 1


def test_a_program_that_is_missing_is_looked_for_again(stage: Stage) -> None:
    process = stage.start(["nothing"], "--restart", "on-failure:2")
    seen = rest(stage.foreground())
    assert exit_of(seen) == (127, 0, "program nothing not found in image")
    assert process.wait() == 127
    assert state(stage)["restarts"] == 2


def test_input_goes_to_the_run_that_is_there(stage: Stage) -> None:
    stage.start(["sh", "-c", "read line; echo got $line; exit 1"], "--restart", "on-failure:1", "--stdin")
    frames = stage.foreground(stdin=True)
    until(frames, STARTED)
    frames.send(STDIN, b"one\n")
    assert b"got one" in frames.until_output(b"got one")
    until(frames, AGAIN)
    frames.send(STDIN, b"two\n")
    seen = rest(frames)
    assert b"got two" in joined(seen, STDOUT)
    assert exit_of(seen)[0] == 1


# --- a restart that is asked for


def test_a_restart_ends_the_app_in_order_and_begins_it_whatever_its_policy(stage: Stage) -> None:
    script = 'trap "echo bye; exit 0" TERM; ' + COUNT + "while :; do sleep 0.05; done"
    process, frames = start(stage, script)
    frames.until_output(b"run 1")
    client = stage.connect()
    client.send(RESTART)
    assert struct.unpack("<I", client.expect(AGAIN, PATIENCE))[0] == 1
    assert client.receive(PATIENCE) is None, "nothing more is said"
    assert b"bye" in frames.until_output(b"run 2")
    assert (state(stage)["restarts"], state(stage)["last"]["code"]) == (1, 0)
    frames.send(STOP)
    assert exit_of(rest(frames))[:2] == (0, 0)
    assert process.wait() == 0


def test_an_app_that_does_not_end_is_killed_for_its_restart(stage: Stage) -> None:
    script = 'trap "" TERM; ' + COUNT + "while :; do sleep 0.05; done"
    process, frames = start(stage, script, "--stop-timeout", "200")
    frames.until_output(b"run 1")
    client = stage.connect()
    client.send(RESTART)
    client.expect(AGAIN, PATIENCE)
    frames.until_output(b"run 2")
    assert state(stage)["last"]["code"] == 137
    frames.send(STOP)
    assert rest(frames)[-1][1][0] == 137
    assert process.wait() == 137


def test_a_restart_ends_a_pause(stage: Stage) -> None:
    _, frames = start(stage, COUNT + "exit 1", "--restart", "always")
    eventually(lambda: (stage.kept / "state").exists() and state(stage)["restarts"] >= 3, PATIENCE)
    eventually(lambda: state(stage)["waiting"], PATIENCE)
    client = stage.connect()
    client.send(RESTART)
    client.expect(AGAIN, PATIENCE)
    frames.send(STOP)
    rest(frames)


def test_a_restart_of_what_has_not_started_or_is_being_stopped_is_refused(stage: Stage) -> None:
    process = stage.start(["sh", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.05; done'])
    frames = stage.accept()
    early = stage.connect()
    early.send(RESTART)
    assert early.expect(ERROR) == b"the app has not started"
    frames.send(ATTACH, struct.pack("<BHH", WANT_STDOUT | WANT_STDERR, 0, 0))
    frames.until_output(b"ready")
    frames.send(STOP)
    late = stage.connect()
    late.send(RESTART)
    assert late.expect(ERROR) == b"the pod is being stopped"
    process.close()


# --- an app that is held


@pytest.mark.parametrize("first", [ATTACH, GO])
def test_each_run_of_a_held_app_waits_to_be_let_go(stage: Stage, first: int) -> None:
    stage.start([*HOLD, "sh", "-c", COUNT + "exit 3"], "--hold", "--restart", "on-failure:1")
    frames = stage.accept()
    if first == GO:
        frames.send(GO)
        assert b"out of place" in frames.expect(ERROR)
        return
    frames.send(ATTACH, struct.pack("<BHH", WANT_STDOUT | WANT_STDERR, 0, 0))
    frames.until_output(b"run 1")
    until(frames, AGAIN)
    with pytest.raises(TimeoutError):
        frames.receive(1.0)
    frames.send(GO)
    seen = rest(frames)
    assert joined(seen, STDOUT) == b"run 2\n"
    assert exit_of(seen)[0] == 3


# --- health


def test_a_check_tells_how_the_app_is(stage: Stage) -> None:
    script = "touch /well; exec sleep 1000"
    check = "echo looked; [ -e /well ]"
    _, frames = start(stage, script, "--health-retries", "2", check=check)
    until(frames, STARTED)
    eventually(lambda: (stage.kept / "state").exists() and health(stage)["state"] == "healthy", PATIENCE)
    last = health(stage)["checks"][-1]
    assert (last["code"], last["late"], last["output"]) == (0, False, "looked")
    assert 0 < last["started_ns"] <= last["ended_ns"]
    assert exit_of(stage.execute(["sh", "-c", "rm /well"]).rest())[0] == 0
    eventually(lambda: health(stage)["state"] == "unhealthy", PATIENCE)
    assert health(stage)["failures"] >= 2
    eventually(lambda: len(health(stage)["checks"]) == 5, PATIENCE)
    frames.send(STOP)
    assert exit_of(rest(frames))[0] == 143, "to be unhealthy is told, no more"


def test_what_a_check_says_is_bounded_and_without_control_characters(stage: Stage) -> None:
    _, frames = start(stage, "exec sleep 1000", check="printf '\\033[2J'; yes | head -c 100000; exit 1")
    until(frames, STARTED)
    eventually(lambda: (stage.kept / "state").exists() and health(stage)["checks"], PATIENCE)
    stage_state = (stage.kept / "state").read_text()
    assert len(stage_state) < 8192
    assert health(stage)["checks"][0]["output"].startswith("?[2J")
    frames.send(STOP)
    rest(frames)


def test_a_check_that_takes_too_long_has_failed(stage: Stage) -> None:
    options = ("--health-timeout", "200", "--health-retries", "1", "--health-on-failure", "kill")
    process, frames = start(stage, "exec sleep 1000", *options, check="sleep 1000")
    assert exit_of(rest(frames))[:2] == (137, 9)
    assert process.wait() == 137
    check = health(stage)["checks"][-1]
    assert (check["late"], check["code"]) == (True, 137)


def test_an_unhealthy_app_is_killed_and_its_policy_brings_it_back(stage: Stage) -> None:
    script = COUNT + "exec sleep 1000"
    options = ("--health-retries", "1", "--health-on-failure", "kill", "--restart", "on-failure")
    _, frames = start(stage, script, *options, check="[ $(wc -l < /runs) -ge 2 ]")
    until(frames, AGAIN)
    eventually(lambda: health(stage)["state"] == "healthy", PATIENCE)
    assert state(stage)["last"]["code"] == 137
    assert state(stage)["restarts"] >= 1
    frames.send(STOP)
    assert exit_of(rest(frames))[0] == 143


def test_an_unhealthy_app_begins_again_without_a_policy_if_that_is_its_action(stage: Stage) -> None:
    script = COUNT + "exec sleep 1000"
    options = ("--health-retries", "1", "--health-on-failure", "restart")
    _, frames = start(stage, script, *options, check="[ $(wc -l < /runs) -ge 2 ]")
    until(frames, AGAIN)
    eventually(lambda: health(stage)["state"] == "healthy", PATIENCE)
    assert state(stage)["last"]["code"] == 143, "it was asked to end, with its own signal"
    frames.send(STOP)
    rest(frames)


def test_an_unhealthy_app_is_stopped_for_good_if_that_is_its_action(stage: Stage) -> None:
    options = ("--health-retries", "1", "--health-on-failure", "stop", "--restart", "always")
    process, frames = start(stage, "exec sleep 1000", *options, check="exit 1")
    seen = rest(frames)
    assert (exit_of(seen)[0], counts(seen)) == (143, [])
    assert process.wait() == 143


def test_the_start_period_forgives(stage: Stage) -> None:
    options = ("--health-retries", "1", "--health-start-period", "600000", "--health-on-failure", "kill")
    _, frames = start(stage, "exec sleep 1000", *options, check="exit 1")
    until(frames, STARTED)
    eventually(lambda: (stage.kept / "state").exists() and len(health(stage)["checks"]) >= 3, PATIENCE)
    assert (health(stage)["state"], health(stage)["failures"]) == ("starting", 0)
    frames.send(STOP)
    assert exit_of(rest(frames))[0] == 143


def test_a_check_whose_program_is_missing_has_failed_and_says_so(stage: Stage) -> None:
    options = ("--health-program", "nothing", "--health-interval", "100")
    process = {"user": {"uid": 0, "gid": 0}, "args": ["nothing"], "env": ["PATH=/bin"], "cwd": "/"}
    (stage.top / "pod" / "apps" / stage.app / "health.json").write_text(json.dumps(process))
    stage.start(["sleep", "1000"], *options)
    frames = stage.foreground()
    until(frames, STARTED)
    eventually(lambda: (stage.kept / "state").exists() and health(stage)["checks"], PATIENCE)
    check = health(stage)["checks"][0]
    assert (check["code"], check["output"]) == (127, "program nothing not found in image")
    frames.send(STOP)
    rest(frames)


def test_in_a_guest_the_host_is_told_and_writes_it_down(stage: Stage) -> None:
    process, frames = start(stage, "exit 1", "--no-log", "--restart", "on-failure:1")
    seen = rest(frames)
    assert process.wait() == 1
    texts = [json.loads(payload) for kind, payload in seen if kind == STATE]
    assert [text["restarts"] for text in texts][-1] == 1
    assert texts[-1]["last"]["code"] == 1
    assert seen[-1][0] == EXIT
    assert not (stage.kept / "state").exists()
