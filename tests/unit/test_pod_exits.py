"""How a pod's end is told from what its apps, or their absence, left behind."""

import json
import os

import pytest

from secrun.errors import StateError
from secrun.pod import exits, inside, log
from secrun.pod.exits import AppExit
from secrun.stage1.podfiles import PodFiles


def ended(name, code, when=1):
    return AppExit(name=name, code=code, finished_ns=when)


@pytest.mark.parametrize(
    ("apps", "status", "code"),
    [
        ([ended("a", 0)], 0, 0),
        ([ended("a", 7)], 0, 7),
        ([ended("a", 3, when=20), ended("b", 4, when=10)], 0, 4),
        ([ended("a", 0), ended("b", 143)], 0, 143),
        ([ended("a", 5), ended("b", None)], 0, 5),
        ([ended("a", None)], 137, 137),
        ([ended("a", None)], 1, 125),
        ([ended("a", 0), ended("b", None)], 0, 125),
    ],
)
def test_the_pods_code_is_that_of_the_first_failing_app(apps, status, code):
    assert exits.pod_code(apps, status) == code


@pytest.fixture
def files(tmp_path):
    (tmp_path / "rw" / "apps" / "web").mkdir(parents=True)
    return PodFiles(tmp_path)


def write_record(files, value):
    record = files.rw / "apps" / "web" / "exit"
    record.write_text(value if isinstance(value, str) else json.dumps(value))


GOOD = {"code": 7, "signal": 0, "error": "", "error_code": "", "started_ns": 1, "finished_ns": 2}


def test_a_good_record_is_taken(files):
    write_record(files, GOOD)
    assert exits.read_app(files, "web") == AppExit(name="web", code=7, started_ns=1, finished_ns=2)


def test_no_record_means_no_code(files):
    assert exits.read_app(files, "web").code is None


@pytest.mark.parametrize(
    "value",
    ["", "{", "[]", "x" * 100_000, {**GOOD, "code": "0"}, {**GOOD, "code": -1}, {**GOOD, "code": 256}, {}],
)
def test_a_record_that_was_tampered_with_is_never_success(files, value):
    write_record(files, value)
    assert exits.read_app(files, "web").code == exits.RUNTIME_FAILED


def test_an_error_text_cannot_drive_the_terminal(files):
    write_record(files, {**GOOD, "error": "\x1b[2Jgone\nline"})
    assert exits.read_app(files, "web").error == "?[2Jgone?line"


@pytest.mark.parametrize("where", ["exit", "web"])
def test_links_in_the_pods_folder_are_not_followed(files, tmp_path, where):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "exit").write_text(json.dumps(GOOD))
    app = files.rw / "apps" / "web"
    if where == "exit":
        (app / "exit").symlink_to(outside / "exit")
    else:
        app.rmdir()
        app.symlink_to(outside)
    assert exits.read_app(files, "web").code == exits.RUNTIME_FAILED


def test_a_fifo_in_place_of_a_file_does_not_hang(files):
    os.mkfifo(files.rw / "apps" / "web" / "log")
    with pytest.raises(StateError, match="not a regular file"):
        inside.open_regular(files.rw, "apps", "web", "log")


def test_the_log_is_read_over_its_rotation_and_its_tail_alone(files):
    app = files.rw / "apps" / "web"
    (app / "log.1").write_bytes(b"2026-01-01T00:00:00.1Z stdout F one\n")
    (app / "log").write_bytes(
        b"2026-01-01T00:00:00.2Z stderr P tw\n2026-01-01T00:00:00.3Z stderr F o\nnonsense\n"
    )
    texts = [(line.stream, line.partial, line.text) for line in log.history(files, "web", None)]
    assert texts == [("stdout", False, b"one"), ("stderr", True, b"tw"), ("stderr", False, b"o")]
    assert [line.text for line in log.history(files, "web", 1)] == [b"o"]


def test_an_exit_survives_its_own_bytes():
    value = exits.PodExit(code=3, finished_ns=9, error="e", apps=(ended("a", None), ended("b", 3)))
    assert exits.PodExit.from_bytes(value.to_bytes()) == value


def test_stage1_tells_why_it_ended_in_the_last_words_of_its_supervisor(files):
    assert exits.tail(files) == "it printed nothing"
    files.stage1_log.write_text("one\n\x1b[2Jtwo\n")
    assert exits.tail(files) == "one; ?[2Jtwo"
    files.stage1_log.write_text("x" * 5000 + "\n" * 900 + "secrun: the guest refused \x07 it\n")
    assert exits.tail(files) == "the guest refused ? it"
