"""What readers of pods are told: logs, manifests, lists, images in use."""

import json
import os
import re
import subprocess

import pytest

from support.secrun import Secrun

RELAXED = ("--pull=never", "--insecure-options=image")


def test_following_a_log_ends_with_the_pod(secrun: Secrun):
    uuid = secrun.detach(
        "sh", "-c", "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; echo err >&2"
    )
    with subprocess.Popen(
        secrun.argv("logs", "--follow", uuid), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as follower:
        assert follower.stdout.readline() == b"one\n"
        secrun("enter", uuid, "--", "touch", "/go")
        out, err = follower.communicate(timeout=30)
    assert (follower.returncode, out, err) == (0, b"two\n", b"err\n")
    secrun("rm", uuid)


def test_logs_with_time_and_stream_by_tail_and_as_json(secrun: Secrun):
    script = "for i in 1 2 3; do echo line $i; done; echo oops >&2"
    secrun("run", *RELAXED, "--uuid-file-save", secrun.root / "uuid", secrun.image, "--", "sh", "-c", script)
    uuid = (secrun.root / "uuid").read_text().strip()
    stamped = secrun("logs", "--timestamps", uuid)
    assert re.fullmatch(r"(\S+Z stdout line \d\n){3}", stamped.out)
    assert re.fullmatch(r"\S+Z stderr oops\n", stamped.err)
    tail = secrun("logs", "--tail=2", uuid)
    assert (tail.out, tail.err) == ("line 3\n", "oops\n")
    rows = [json.loads(line) for line in secrun("logs", "--format=json", uuid).out.splitlines()]
    assert [(row["stream"], row["text"]) for row in rows] == [
        ("stdout", "line 1"),
        ("stdout", "line 2"),
        ("stdout", "line 3"),
        ("stderr", "oops"),
    ]
    secrun("rm", uuid)


def test_a_manifest_names_variables_but_holds_no_values(secrun: Secrun):
    uuid = secrun("prepare", "-e", "TOKEN=hunter2", *RELAXED, secrun.image, "--", "true").out.strip()
    text = secrun("cat-manifest", uuid).out
    (app,) = json.loads(text)["apps"]
    assert "TOKEN" in app["env_names"]
    assert "hunter2" not in text
    assert app["capabilities"] == sorted(app["capabilities"])
    assert json.loads(text)["relaxations"] == ["insecure-options:image"]
    secrun("rm", uuid)


def test_a_value_of_the_environment_is_on_no_command_line(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000", options=("-e", "TOKEN=hunter2"))
    try:
        seen = b""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as stream:
                    seen += stream.read()
            except OSError:
                continue
        assert uuid.encode() in seen
        assert b"hunter2" not in seen
    finally:
        secrun.discard(uuid)


def test_an_image_that_a_pod_needs_cannot_be_removed(secrun: Secrun):
    uuid = secrun("prepare", *RELAXED, secrun.image, "--", "true").out.strip()
    refused = secrun("image", "rm", secrun.image, code=None)
    assert refused.code != 0
    assert "pod" in refused.err
    secrun("run-prepared", "--rm", uuid)


@pytest.mark.parametrize("words", [("--full",), ("--quiet",), ("--no-legend",), ()])
def test_lists_of_pods_name_each_pod_once(secrun: Secrun, words):
    uuid = secrun("prepare", *RELAXED, secrun.image, "--", "true").out.strip()
    out = secrun("list", *words).out
    assert out.count(uuid[:8]) == 1
    assert ("UUID" in out) is (words in (("--full",), ()))
    secrun("rm", uuid)


def test_a_host_that_runs_pods_passes_the_doctor(secrun: Secrun):
    found = json.loads(secrun("doctor", "--format=json").out)
    assert [item for item in found["problems"] if item["fatal"]] == []


def test_versions_are_told(secrun: Secrun):
    found = json.loads(secrun("version", "--format=json").out)
    assert re.fullmatch(r"\d+\.\d+\.\d+", found["secrun"])
    assert re.match(r"\d+", found["systemd"])
    assert re.match(r"\d+\.\d+", found["crun"])
