"""Pods that run while somebody looks at them, enters them and stops them, whatever isolates them.

One pod of two apps is shared by all tests that leave it as it is.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.stage1 import cgroups
from support.confined import CAPABILITIES, PODMAN, status_of
from support.secrun import Secrun, eventually
from support.terminals import at_a_terminal, expect, resize

IDENTITY = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters")
SPEAK = "for i in 1 2 3; do echo line $i; done; echo oops >&2; sleep 100000"
# What stays on the host beside a pod's own processes.
HOST_SIDE = {
    "nspawn": {"systemd-nspawn", "systemd", "secrun-agent", "sleep", "sh"},
    "kvm": {"secrun-agent", "qemu-system-x86"},
}


@pytest.fixture(scope="module")
def resident(pods: Secrun) -> Iterator[str]:
    """The UUID of a pod that runs: `web` has said something, `db` is another user with a capability."""
    options = ("--user=app", "--workdir=/etc", "-e", "TOKEN=hunter2", "--cap-add=CAP_NET_RAW")
    apps = (
        *("--name", "web", pods.image, "--", "sh", "-c", SPEAK, "---"),
        *("--name", "db", *options, pods.image, "--", "sleep", "100000"),
    )
    uuid = pods("run", "-d", *pods.pod_options, *apps).out.strip()
    yield uuid
    pods.discard(uuid)


def test_a_running_pod_is_shown_with_its_apps(pods: Secrun, resident):
    status = pods.status(resident)
    assert (status["state"], status["stage1"], status["exit_code"]) == ("running", pods.flavour, None)
    assert [(app["name"], app["exit_code"]) for app in status["apps"]] == [("web", None), ("db", None)]
    assert {"started:web", "started:db"} <= {mark["name"] for mark in status["timing"]}
    assert "state=running" in pods("status", resident[:13]).out
    assert resident[:8] in pods("list").out
    assert "is running" in pods("rm", resident, code=125).err


def test_logs_with_time_and_stream_by_tail_and_as_json(pods: Secrun, resident):
    eventually(lambda: "oops" in pods("logs", resident, "web").err, "the last line")
    stamped = pods("logs", "--timestamps", resident, "web")
    assert re.fullmatch(r"(\S+Z stdout line \d\n){3}", stamped.out)
    assert re.fullmatch(r"\S+Z stderr oops\n", stamped.err)
    tail = pods("logs", "--tail=2", resident, "web")
    assert (tail.out, tail.err) == ("line 3\n", "oops\n")
    rows = [json.loads(line) for line in pods("logs", "--format=json", resident, "web").out.splitlines()]
    assert [(row["stream"], row["text"]) for row in rows] == [
        *(("stdout", f"line {number}") for number in (1, 2, 3)),
        ("stderr", "oops"),
    ]


def test_an_entered_command_has_its_streams_its_code_and_what_was_asked(pods: Secrun, resident):
    script = "cat; echo err >&2; exit 9"
    entered = pods("enter", "-i", "--app=web", resident, "--", "sh", "-c", script, code=9, stdin="through\n")
    assert (entered.out, entered.err) == ("through\n", "err\n")
    asked = ("--app=db", "--user=0", "--workdir=/tmp", "-e", "X=a b")
    assert pods("enter", *asked, resident, "--", "sh", "-c", 'id -u; pwd; echo "$X"').out == "0\n/tmp\na b\n"
    assert pods("enter", "--app=db", resident, "--", "sh", "-c", 'id -u; pwd; echo "$TOKEN"').out == (
        "1000\n/etc\nhunter2\n"
    )
    assert "nope" in pods("enter", "--app=web", resident, "--", "nope", code=127).err
    killed = ("sh", "-c", "kill -KILL $$")
    assert pods("enter", "--app=web", resident, "--", *killed, code=None).code == 128 + signal.SIGKILL


def test_an_entered_command_is_confined_like_the_app(pods: Secrun, resident):
    def look(*words: str) -> str:
        return pods("enter", "--app=db", resident, "--", *words).out

    both = look("cat", "/proc/self/status", "/proc/1/status").split("Name:\t")[1:]
    status, of_app = map(status_of, both)
    for name in (*IDENTITY, *CAPABILITIES):
        assert status[name] == of_app[name], name
    # capabilities(7): 13 is CAP_NET_RAW.
    assert int(status["CapEff"], 16) == 1 << 13
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapBnd"], 16) & ~PODMAN == 1 << 13
    assert status["Uid"].split()[0] == "1000"
    kinds = "for kind in net ipc uts mnt pid user cgroup; do readlink /proc/$1/ns/$kind; done"
    show = f"{kinds}; cat /proc/$1/cgroup"
    mine, apps = (look("sh", "-c", show, "sh", pid) for pid in ("self", "1"))
    assert mine == apps
    assert mine.count(":[") == 7


def test_entering_with_a_terminal_follows_its_size_and_returns_the_code(pods: Secrun, resident):
    script = "stty size; read x; stty size; read y; exit 9"
    argv = pods.argv("enter", "-i", "-t", "--app=web", resident, "--", "sh", "-c", script)
    with at_a_terminal(argv, size=(20, 70)) as (terminal, process):
        expect(terminal, b"20 70")
        resize(terminal, 21, 71)
        process.send_signal(signal.SIGWINCH)
        os.write(terminal, b"\n")
        expect(terminal, b"21 71")
        os.write(terminal, b"\n")
        assert process.wait(60) == 9


def test_a_terminal_without_a_size_gets_the_usual_one(pods: Secrun, resident):
    argv = pods.argv("enter", "-t", "--app=web", resident, "--", "stty", "size")
    with at_a_terminal(argv) as (terminal, process):
        expect(terminal, b"24 80")
        assert process.wait(60) == 0


def test_apps_of_one_pod_meet_on_its_loopback(pods: Secrun, resident):
    serve = ("/bin/busybox", "nc", "-l", "-p", "9000", "-e", "/bin/busybox", "cat")
    argv = pods.argv("enter", "--app=web", resident, "--", *serve)
    ask = "until echo hello | /bin/busybox nc 127.0.0.1 9000 2>/dev/null; do sleep 0.1; done"
    with subprocess.Popen(argv) as server:
        try:
            assert pods("enter", "--app=db", resident, "--", "sh", "-c", ask).out == "hello\n"
            assert server.wait(60) == 0
        finally:
            server.kill()


def test_a_value_of_the_environment_is_on_no_command_line(pods: Secrun, resident):
    seen = b""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as stream:
                seen += stream.read()
        except OSError:
            continue
    assert resident.encode() in seen
    assert b"hunter2" not in seen


def test_no_interpreter_stays_on_the_host_and_nobody_is_its_root(pods: Secrun, resident):
    pid = pods.status(resident)["pid"]
    assert os.readlink(f"/proc/{pid}/exe").endswith("secrun-agent")
    group = cgroups.host().pod(resident)
    pids = [pid for base, _, _ in os.walk(group) for pid in Path(base, "cgroup.procs").read_text().split()]
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
    assert names <= HOST_SIDE[pods.flavour]
    assert names >= HOST_SIDE[pods.flavour] - {"sh"}
    base = pods.status(resident)["uid_base"]
    owners = {Path(f"/proc/{pid}").stat().st_uid for pid in pids}
    if pods.flavour == "nspawn":
        # nspawn itself waits outside of the pod's user namespace.
        assert {uid for uid in owners if uid} == {base, base + 1000}
    else:
        assert owners == {base, base + 1}


def test_following_a_log_and_waiting_end_with_the_pod(pods: Secrun):
    script = "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; echo err >&2; exit 2"
    uuid = pods.detach("sh", "-c", script)
    assert "has not exited within 0.2s" in pods("status", "--wait=0.2s", uuid, code=125).err
    following = pods.argv("logs", "--follow", uuid)
    with subprocess.Popen(following, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout.readline() == b"one\n"
        pods("enter", uuid, "--", "touch", "/go")
        out, err = follower.communicate(timeout=60)
    assert (follower.returncode, out, err) == (0, b"two\n", b"err\n")
    assert "exit-code=2" in pods("status", "--wait", uuid).out
    pods("rm", uuid)


def test_stopping_a_pod_lets_its_app_end_in_order(pods: Secrun):
    uuid = pods.detach("sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done")
    try:
        eventually(lambda: "up" in pods("logs", uuid).out, "the first log line")
        assert pods("stop", uuid).out.strip() == uuid
        status = pods.status(uuid)
        assert (status["state"], status["exit_code"], status["error"]) == ("exited", 3, "")
        assert pods("logs", uuid).out == "up\nbye\n"
        assert pods("stop", uuid).out.strip() == uuid
    finally:
        pods.discard(uuid)


@pytest.mark.parametrize(("words", "options"), [(("--force",), ()), ((), ("--stop-timeout=1",))])
def test_an_app_that_will_not_end_is_killed_by_force_or_after_its_timeout(pods: Secrun, words, options):
    uuid = pods.detach("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done", options=options)
    eventually(lambda: "up" in pods("logs", uuid).out, "the app's beginning")
    pods("stop", *words, uuid)
    assert pods.status(uuid)["exit_code"] == 137
    pods("rm", uuid)
