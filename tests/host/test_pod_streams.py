"""Pods without a terminal, their stop signals, and what is removed under somebody who has entered."""

import os
import signal
import subprocess

from support.secrun import Secrun, eventually
from support.terminals import killed_in_the_end


def test_a_pod_that_was_given_no_streams_ends(secrun: Secrun):
    argv = secrun.argv(
        "run", "--rm", *secrun.pod_options, secrun.image, "--", "sh", "-c", "cat; echo x; exit 6"
    )
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv]
    with killed_in_the_end(closed, start_new_session=True) as process:
        assert process.wait(60) == 6


def test_a_pod_ends_while_its_input_does_not(secrun: Secrun):
    read, write = os.pipe()
    argv = secrun.argv(
        "run", "--rm", "-i", *secrun.pod_options, secrun.image, "--", "sh", "-c", "read line; echo $line"
    )
    try:
        with killed_in_the_end(argv, stdin=read, stdout=subprocess.PIPE) as process:
            os.write(write, b"first\nsecond\n")
            assert process.communicate(timeout=60)[0] == b"first\n"
            assert process.returncode == 0
    finally:
        os.close(read)
        os.close(write)


def test_the_stop_signal_is_the_one_that_was_asked_for(pods: Secrun):
    script = "trap 'echo quit; exit 9' QUIT; trap 'exit 1' TERM; echo up; while :; do sleep 0.05; done"
    uuid = pods.detach("sh", "-c", script, options=("--stop-signal=SIGQUIT", "--stop-timeout=60"))
    try:
        eventually(lambda: "up" in pods("logs", uuid).out, "the first line")
        pods("stop", uuid)
        assert pods.status(uuid)["exit_code"] == 9
        assert pods("logs", uuid).out == "up\nquit\n"
    finally:
        pods.discard(uuid)


def test_who_has_entered_a_pod_that_is_removed_is_told(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000")
    argv = secrun.argv("enter", "-i", uuid, "--", "sh", "-c", "echo in; exec cat")
    with killed_in_the_end(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as entered:
        assert entered.stdout is not None
        assert entered.stdout.readline() == b"in\n"
        assert "is running" in secrun("rm", uuid, code=125).err
        secrun("rm", "--force", uuid)
        assert entered.wait(60) in (125, 128 + signal.SIGKILL)
    assert uuid not in {pod["uuid"] for pod in secrun.pods()}
