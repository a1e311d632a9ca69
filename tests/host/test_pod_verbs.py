"""Verbs on pods that are not run and stop: who is meant, what is seen, when it was written."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from support.secrun import Secrun, eventually
from support.terminals import killed_in_the_end


@pytest.fixture
def two_apps(secrun: Secrun):
    """A pod with an app that rests and one that works, running."""
    busy = "while :; do :; done"
    uuid = secrun(
        *("run", "-d", *secrun.pod_options, secrun.image, "--name", "rests", "--", "sleep", "1000", "---"),
        *(secrun.image, "--name", "works", "--", "sh", "-c", busy),
    ).out.strip()
    yield uuid
    secrun("rm", "--force", uuid)


def test_a_pod_is_named_by_the_file_that_run_saved(secrun: Secrun, tmp_path: Path):
    saved = tmp_path / "uuid"
    uuid = secrun(
        *("run", "-d", *secrun.pod_options, f"--uuid-file-save={saved}", secrun.image, "--", "sleep", "1000")
    ).out.strip()
    file = f"--uuid-file={saved}"
    assert secrun("status", file).out.startswith(f"uuid={uuid}\nstate=running")
    assert secrun("cat-manifest", file).out == secrun("cat-manifest", uuid).out
    assert secrun("stop", "--force", file).out.strip() == uuid
    assert secrun("rm", file).out.strip() == uuid
    assert "no pod matches" in secrun("status", file, code=2).err


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "holds no UUID"), ("a b", "holds no UUID"), ("x" * 200, "holds no UUID"), (None, "No such file")],
)
def test_a_file_without_a_uuid_is_refused(secrun: Secrun, tmp_path: Path, text, reason):
    file = tmp_path / "uuid"
    if text is not None:
        file.write_text(text)
    assert reason in secrun("status", "--uuid-file", file, code=2).err


@pytest.mark.parametrize(
    "words",
    [("status",), ("stop",), ("rm",), ("rm", "--all", "c0ffee"), ("status", "--uuid-file=/x", "c0ffee")],
)
def test_who_is_meant_must_be_said_once(secrun: Secrun, words):
    assert "[usage-uuid]" in secrun(*words, code=2).err


def test_force_removes_a_pod_that_runs(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000")
    assert "stop it first" in secrun("rm", uuid, code=125).err
    assert secrun("rm", "--force", uuid).out.strip() == uuid
    assert uuid not in secrun("list", "-q").out


def test_all_pods_are_stopped_and_removed(secrun: Secrun):
    prepared = secrun.prepare("true")
    running = [secrun.detach("sleep", "1000") for _ in range(2)]
    assert sorted(secrun("stop", "--all", "--force").out.split()) == sorted(running)
    third = secrun.detach("sleep", "1000")
    removed = secrun("rm", "--all").out.split()
    assert set(removed) >= {prepared, *running}
    assert third not in removed
    assert third in secrun("rm", "--all", "--force").out
    assert secrun("list", "-q").out == ""


def test_pods_are_stopped_and_removed_by_filter_and_those_that_are_gone_may_be_ignored(
    secrun: Secrun, tmp_path: Path
):
    marked = ("--label=fleet=blue",)
    running, other = secrun.detach("sleep", "1000", options=marked), secrun.detach("sleep", "1000")
    prepared = secrun.prepare("true", options=marked)
    assert secrun("stop", "--force", "--filter=label=fleet").out.split() == [running]
    assert secrun.status(running)["exit_code"] == 137
    removed = secrun("rm", "--filter=label=fleet=blue", "--filter=exited=137").out.split()
    assert removed == [running]
    # One that runs is left alone, unless it is killed.
    assert secrun("rm", f"--filter=id={other}").out == ""
    absent = ("--ignore", f"--cidfile={tmp_path}/absent", running)
    assert secrun("rm", *absent, prepared).out.split() == [prepared]
    assert secrun("stop", *absent).out == ""
    assert "is no UUID" in secrun("rm", "--ignore", "../x", code=2).err
    assert "exclude each other" in secrun("rm", "--filter=id=0", "--all", code=2).err
    assert secrun("rm", "--force", f"--filter=id={other}").out.split() == [other]


def test_a_uuid_may_be_shortened_and_in_capitals(secrun: Secrun):
    uuid = secrun.prepare("true")
    assert f"uuid={uuid}" in secrun("status", uuid[:9].upper()).out
    secrun("rm", uuid)


def test_readiness_is_waited_for(secrun: Secrun):
    uuid = secrun.prepare("sleep", "1000")
    assert "was not ready within 0.1 s" in secrun("status", "--wait-ready=0.1s", uuid, code=125).err
    waiting = subprocess.Popen(
        secrun.argv("status", "--wait-ready", uuid), stdout=subprocess.PIPE, text=True
    )
    secrun("run-prepared", "-d", uuid)
    out, _ = waiting.communicate(timeout=60)
    assert "state=running" in out
    secrun("rm", "--force", uuid)


def test_a_pod_that_ended_before_it_was_ready_is_an_error(secrun: Secrun):
    uuid, _ = secrun.kept(secrun.image, "--", "/no/such/program", code=127)
    assert "ended before every app had started" in secrun("status", "--wait-ready", uuid, code=125).err
    secrun("rm", uuid)


def test_lines_are_chosen_by_their_time(secrun: Secrun):
    uuid, _ = secrun.kept(
        secrun.image, "--", "sh", "-c", "echo first; sleep 1.1; echo second; echo third >&2"
    )
    stamps = [json.loads(row)["time"] for row in secrun("logs", "--format=json", uuid).out.splitlines()]
    assert len(stamps) == 3
    assert secrun("logs", f"--since={stamps[1]}", uuid).out == "second\n"
    assert secrun("logs", f"--until={stamps[0]}", uuid).out == "first\n"
    assert secrun("logs", "--since=1h", "--tail=2", uuid).out == "second\n"
    assert secrun("logs", "--until=1h", uuid).out == ""
    assert "neither a duration nor a time" in secrun("logs", "--since=yesterday", uuid, code=2).err
    assert "exclude each other" in secrun("logs", "-f", "--until=1s", uuid, code=2).err
    secrun("rm", uuid)


def test_one_document_tells_all_of_a_pod(secrun: Secrun):
    uuid = secrun.prepare("true")
    (pod,) = json.loads(secrun("inspect", uuid).out)["pods"]
    assert pod["state"] == "prepared"
    assert pod["manifest"] == json.loads(secrun("cat-manifest", uuid).out)
    secrun("rm", uuid)


def test_the_processes_of_a_pod_are_listed_by_app(secrun: Secrun, two_apps: str):
    rows = json.loads(secrun("top", "--format=json", two_apps).out)["processes"]
    by_app = {app: [row["command"] for row in rows if row["app"] == app] for app in ("rests", "works", "")}
    assert "sleep 1000" in by_app["rests"]
    assert "sh -c while :; do :; done" in by_app["works"]
    assert any("systemd" in command for command in by_app[""])
    (sleeper,) = (row for row in rows if row["command"] == "sleep 1000")
    assert sleeper["uid"] == 0
    assert Path(f"/proc/{sleeper['pid']}").stat().st_uid != 0
    table = secrun("top", two_apps).out.splitlines()
    assert table[0].split() == ["PID", "APP", "UID", "TIME", "RSS", "COMMAND"]
    assert len(table) == len(rows) + 1


def test_a_command_line_moves_no_cursor(secrun: Secrun):
    uuid = secrun.detach("sh", "-c", "sleep 1000 && echo '\033[2J'")
    assert "\033" not in secrun("top", uuid).out
    secrun("rm", "--force", uuid)


def test_what_a_pod_uses_is_counted_by_app(secrun: Secrun, two_apps: str):
    rows = json.loads(secrun("stats", "--format=json", "--interval=0.5s", two_apps).out)["pods"]
    used = {row["app"]: row for row in rows}
    assert used["works"]["cpus"] > used["rests"]["cpus"]
    assert used[""]["cpu_usec"] >= used["works"]["cpu_usec"] > 0
    assert used[""]["pids"] > used["rests"]["pids"] >= 2
    assert used[""]["memory_bytes"] > used["works"]["memory_bytes"] > 0
    assert two_apps[:8] in secrun("stats", "--interval=0.1s").out


def test_use_is_followed_until_the_pod_ends(secrun: Secrun, two_apps: str):
    words = secrun.argv("stats", "--follow", "--interval=0.2s", "--format=json", two_apps)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["pods"]
        assert json.loads(following.stdout.readline())["pods"]
        secrun("stop", "--force", two_apps)
        following.stdout.read()
        assert following.wait(60) == 0


@pytest.mark.parametrize("verb", ["top", "stats"])
def test_only_a_pod_that_runs_has_processes(secrun: Secrun, verb: str):
    uuid = secrun.prepare("true")
    assert "is prepared, expected running" in secrun(verb, uuid, code=125).err
    secrun("rm", uuid)


def test_an_interval_of_nothing_is_refused(secrun: Secrun):
    assert "no time to count in" in secrun("stats", "--interval=0s", code=2).err


def test_readers_need_no_lock(secrun: Secrun, two_apps: str):
    """What only looks at a pod keeps nobody from stopping it."""
    secrun("top", two_apps)
    secrun("stats", "--interval=0.1s", two_apps)
    secrun("stop", "--force", two_apps)
    assert secrun.status(two_apps)["state"] == "exited"


def test_labels_and_annotations_are_in_the_manifest(secrun: Secrun):
    marks = ("--label", "team=blue", "--user-annotation", "note=it is mine")
    uuid = secrun("prepare", *marks, *secrun.pod_options, secrun.image, "--", "true").out.strip()
    (app,) = json.loads(secrun("cat-manifest", uuid).out)["apps"]
    assert app["labels"] == ["team=blue"]
    assert app["annotations"] == ["note=it is mine"]
    secrun("rm", uuid)


def test_an_app_is_asked_to_end_by_the_signal_that_was_chosen(secrun: Secrun):
    script = "trap 'echo usr1; exit 3' USR1; echo set; while :; do sleep 0.1; done"
    uuid = secrun.detach("sh", "-c", script, options=("--stop-signal=SIGUSR1",))
    eventually(lambda: "set" in secrun("logs", uuid).out, "the trap")
    secrun("stop", uuid)
    assert secrun("logs", uuid).out == "set\nusr1\n"
    assert secrun.status(uuid)["apps"][0]["exit_code"] == 3
    secrun("rm", uuid)


def test_groups_are_added_and_rkts_spellings_work(secrun: Secrun):
    options = ("--supplementary-gids=7", "--group=9", "--working-dir=/bin", "--set-env=A=b", "--init")
    said = secrun.run("sh", "-c", "id -g; id -G; pwd; echo $A", options=options).out
    assert said == "9\n9 7\n/bin\nb\n"


def test_a_whole_pod_runs_from_a_file(secrun: Secrun, tmp_path: Path):
    file = tmp_path / "pod.json"
    script = "hostname; echo $MODE; touch /x || echo read-only"
    first = {"image": secrun.image, "args": ["sh", "-c", script], "env": ["MODE=fast"], "read-only": True}
    second = {"image": secrun.image, "name": "other", "args": ["sh", "-c", "exit 3"]}
    document = {"schema": "secrun.dev/pod-request/v1", "hostname": "web", "apps": [first]}
    file.write_text(json.dumps(document))
    caller = ("--rm", "--pull=never", "--insecure-options=image", f"--pod-manifest={file}")
    assert secrun("run", *caller).out == "web\nfast\nread-only\n"
    file.write_text(json.dumps({**document, "apps": [{**first, "args": ["sleep", "1000"]}, second]}))
    secrun("run", *caller, code=3)


def test_a_service_manager_is_told_when_a_pod_is_ready(secrun: Secrun, tmp_path: Path):
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(60)
        words = secrun.argv("run", "--rm", *secrun.pod_options, secrun.image, "--", "sleep", "1000")
        with killed_in_the_end(words, env={**os.environ, "NOTIFY_SOCKET": str(address)}) as pod:
            assert manager.recv(100) == b"READY=1\n"
            (uuid,) = secrun("list", "-q").out.split()
            assert secrun.status(uuid)["state"] == "running"
            pod.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1\n"
            assert pod.wait(60) == 143


def test_a_service_manager_that_cannot_be_reached_is_an_error(secrun: Secrun):
    words = ("run", "--rm", *secrun.pod_options, secrun.image, "--", "true")
    said = secrun(*words, code=125, environment={"NOTIFY_SOCKET": "/no/such/socket"}).err
    assert "NOTIFY_SOCKET /no/such/socket: No such file or directory" in said


def test_a_mask_and_variables_that_are_left_out(secrun: Secrun):
    assert "container=secrun" in secrun.run("env").out
    said = secrun.run("sh", "-c", "umask; env", options=("--umask=027", "--unsetenv=container")).out
    assert said.startswith("0027\n")
    assert "container=" not in said


def test_damage_is_told_and_not_waited_for(secrun: Secrun):
    """A pod that runs with a manifest that cannot be read any more."""
    uuid = secrun.detach("sleep", "1000")
    manifest = secrun.root / "pods/run" / uuid / "manifest"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20])
    try:
        assert "pod manifest" in secrun("status", "--wait-ready=60s", uuid, code=125).err
        assert "pod manifest" in secrun("stats", "--interval=0.1s", code=125).err
    finally:
        manifest.write_bytes(whole)
    assert uuid[:8] in secrun("stats", "--interval=0.1s").out
    secrun("rm", "--force", uuid)
