"""The shim with the real crun, as root in namespaces like those of stage1."""

import os
import signal
import struct
import time
from pathlib import Path

import pytest

from host.agent_kit import (
    SIGNAL,
    STARTED,
    STDERR,
    STDOUT,
    STOP,
    Stage,
    eventually,
    exit_of,
    joined,
    run_to_end,
)

# --- the app's life


def test_output_log_record_and_exit_code(stage: Stage) -> None:
    before = time.time_ns()
    code, frames = run_to_end(stage, "sh", "-c", "echo out; echo err >&2; printf rest; exit 7")
    assert code == 7
    assert frames[0][0] == STARTED
    assert joined(frames, STDOUT) == b"out\nrest"
    assert joined(frames, STDERR) == b"err\n"
    assert exit_of(frames) == (7, 0, "")
    record = stage.record()
    assert (record["code"], record["signal"], record["error"], record["error_code"]) == (7, 0, "", "")
    assert before <= record["started_ns"] <= record["finished_ns"] <= time.time_ns()
    assert struct.unpack("<Q", frames[0][1])[0] == record["started_ns"]
    assert sorted(stage.log()) == [
        ("stderr", "F", b"err"),
        ("stdout", "F", b"out"),
        ("stdout", "P", b"rest"),
    ]


def test_runs_without_a_host_socket(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage")
    assert stage.start(["sh", "-c", "echo hi; exit 3"]).wait() == 3
    assert stage.log() == [("stdout", "F", b"hi")]
    assert stage.record()["code"] == 3


def test_a_socket_that_refuses_is_an_error(stage: Stage) -> None:
    assert stage.listener is not None
    stage.listener.close()
    assert stage.start(["true"]).wait() == 125
    assert "attach.sock" in str(stage.record()["error"])


def test_the_image_is_written_through_the_overlay(stage: Stage) -> None:
    code, _ = run_to_end(stage, "sh", "-c", "echo new > /file; rm /bin/yes")
    assert code == 0
    assert (stage.kept / "upper" / "file").read_text() == "new\n"
    assert (stage.image / "bin" / "yes").is_symlink()


def test_streams_of_an_unprivileged_user_can_be_reopened(stage: Stage) -> None:
    process = stage.start(["sh", "-c", "id -u; echo again > /dev/stdout"], uid=1000)
    frames = stage.foreground().rest()
    assert process.wait() == 0, frames
    assert joined(frames, STDOUT) == b"1000\nagain\n"


def test_without_stdin_the_app_reads_nothing(stage: Stage) -> None:
    _, frames = run_to_end(stage, "sh", "-c", "cat; echo end")
    assert joined(frames, STDOUT) == b"end\n"


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_an_app_that_does_not_handle_it(stage: Stage, number: signal.Signals) -> None:
    process = stage.start(["sleep", "1000"])
    peer = stage.foreground()
    peer.expect(STARTED)
    peer.send(SIGNAL, bytes([number]))
    assert exit_of(peer.rest()) == (128 + number, number, "")
    assert process.wait() == 128 + number
    assert stage.record()["signal"] == number


def test_a_handled_signal_reaches_the_handler(stage: Stage) -> None:
    process = stage.start(
        ["sh", "-c", "trap 'echo caught; exit 9' USR1; echo up; while :; do sleep 0.05; done"]
    )
    peer = stage.foreground()
    peer.until_output(b"up\n")
    peer.send(SIGNAL, bytes([signal.SIGUSR1]))
    frames = peer.rest()
    assert joined(frames, STDOUT) == b"caught\n"
    assert process.wait() == 9


def test_stop_sends_the_stop_signal(stage: Stage) -> None:
    script = "trap 'exit 4' QUIT; echo up; while :; do sleep 0.05; done"
    process = stage.start(["sh", "-c", script], "--stop-signal", str(int(signal.SIGQUIT)))
    peer = stage.foreground()
    peer.until_output(b"up\n")
    os.kill(stage.shim_pid(process), signal.SIGTERM)
    assert process.wait() == 4
    assert exit_of(peer.rest())[0] == 4


def test_stop_frame_sends_the_stop_signal_once(stage: Stage) -> None:
    script = "trap 'echo told; told=1' INT; echo up; until [ $told ]; do sleep 0.05; done; sleep 0.3; exit 4"
    process = stage.start(["sh", "-c", script], "--stop-signal", str(int(signal.SIGINT)))
    peer = stage.foreground()
    peer.until_output(b"up\n")
    peer.send(STOP)
    peer.send(STOP)
    frames = peer.rest()
    assert joined(frames, STDOUT) == b"told\n"
    assert process.wait() == 4


def test_stop_kills_what_ignores_it(stage: Stage) -> None:
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    process = stage.start(["sh", "-c", script], "--stop-timeout", "300")
    peer = stage.foreground()
    peer.until_output(b"up\n")
    begun = time.monotonic()
    os.kill(stage.shim_pid(process), signal.SIGTERM)
    assert process.wait() == 137
    assert 0.3 <= time.monotonic() - begun < 9, "the usual ten seconds, not those asked for"
    assert stage.record()["signal"] == signal.SIGKILL


def test_stop_before_the_host_has_answered(stage: Stage) -> None:
    process = stage.start(["true"])
    stage.accept()
    os.kill(stage.shim_pid(process), signal.SIGTERM)
    assert process.wait() == 143
    assert "before it started" in str(stage.record()["error"])


def test_stop_is_not_held_up_by_a_host_that_reads_nothing(stage: Stage) -> None:
    process = stage.start(["yes"])
    stage.foreground()
    eventually(lambda: (stage.kept / "log").exists() and (stage.kept / "log").stat().st_size > 100_000)
    os.kill(stage.shim_pid(process), signal.SIGTERM)
    assert process.wait(60) == 143


# --- why an app does not start


def failing_start(stage: Stage, *argv: str) -> dict[str, int | str]:
    code, frames = run_to_end(stage, *argv)
    record = stage.record()
    assert record["code"] == code
    assert exit_of(frames) == (code, 0, record["error"])
    return record


def test_missing_program(stage: Stage) -> None:
    record = failing_start(stage, "nothing-here")
    assert (record["code"], record["error_code"]) == (127, "not-found")
    assert record["error"] == "program nothing-here not found in image"


def test_missing_program_by_path(stage: Stage) -> None:
    assert failing_start(stage, "/opt/none")["error"] == "program /opt/none not found in image"


def test_program_without_execute_permission(stage: Stage) -> None:
    stage.add_program("/bin/plain", b"\x7fELF", mode=0o644)
    record = failing_start(stage, "plain")
    assert (record["code"], record["error_code"]) == (126, "invoke")
    assert record["error"] == "program plain is not executable"


def test_folder_as_program(stage: Stage) -> None:
    record = failing_start(stage, "/bin")
    assert (record["code"], record["error"]) == (126, "program /bin is a folder")


def test_missing_loader(stage: Stage) -> None:
    stage.add_program("/bin/dynamic", Path("/bin/ls").read_bytes())
    record = failing_start(stage, "dynamic")
    assert (record["code"], record["error_code"]) == (127, "not-found")
    assert "loader /lib64/ld-linux-x86-64.so.2 is missing" in str(record["error"])


def test_missing_interpreter(stage: Stage) -> None:
    stage.add_program("/bin/script", b"#! /usr/bin/python9 -u\n")
    record = failing_start(stage, "/bin/script")
    assert record["code"] == 127
    assert "interpreter /usr/bin/python9 is missing" in str(record["error"])


def test_interpreter_whose_loader_is_missing(stage: Stage) -> None:
    stage.add_program("/bin/python9", Path("/bin/ls").read_bytes())
    stage.add_program("/bin/script", b"#!/bin/python9\n")
    error = str(failing_start(stage, "script")["error"])
    assert "/bin/python9" in error
    assert "loader" in error


def test_a_link_out_of_the_image_is_resolved_inside(stage: Stage) -> None:
    # The host's /usr/bin/env exists; the image's does not.
    (stage.image / "bin" / "outside").symlink_to("../../../../../usr/bin/env")
    assert failing_start(stage, "outside")["error"] == "program outside not found in image"


def test_program_in_no_format(stage: Stage) -> None:
    stage.add_program("/bin/noise", b"\x00\x01\x02\x03" * 100)
    record = failing_start(stage, "noise")
    assert (record["code"], record["error_code"]) == (126, "invoke")
    assert "exec format error" in str(record["error"])


def test_a_program_that_itself_exits_127_is_no_failure_of_ours(stage: Stage) -> None:
    code, _ = run_to_end(stage, "sh", "-c", "nothing-here")
    assert code == 127
    assert stage.record()["error"] == ""


def test_broken_bundle_gives_the_words_of_crun(stage: Stage) -> None:
    process = stage.start(["true"], config="{")
    frames = stage.foreground().rest()
    assert process.wait() == 125
    assert exit_of(frames)[2].startswith("crun: ")
    assert stage.record()["error_code"] == "external"
