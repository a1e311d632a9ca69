"""Pods as a user meets them: started, watched, stopped, removed."""

import os
import subprocess

import pytest

from support.secrun import Secrun
from support.terminals import at_a_terminal, expect

RELAXED = ("--pull=never", "--insecure-options=image")


def test_what_an_app_writes_is_gone_with_its_pod(secrun: Secrun):
    secrun.run("sh", "-c", "echo x > /bin/sh2; rm /etc/passwd")
    assert "root" in secrun.run("sh", "-c", "ls /bin/sh2 2>/dev/null; cat /etc/passwd").out


def test_user_workdir_hostname_and_entrypoint(secrun: Secrun):
    options = ("--user=app", "--workdir=/etc", "--hostname=box")
    script = "id -u; id -g; pwd; cat /proc/sys/kernel/hostname; echo $HOSTNAME"
    assert secrun.run("sh", "-c", script, options=options).out.split() == [
        "1000",
        "1000",
        "/etc",
        "box",
        "box",
    ]
    assert (
        secrun.run("-c", "echo by entry point", options=("--entrypoint=/bin/sh",)).out == "by entry point\n"
    )
    assert secrun.run("x", options=('--entrypoint=["echo", "two words"]',)).out == "two words x\n"


def test_the_hosts_network_is_given_only_by_name(secrun: Secrun):
    host = os.readlink("/proc/self/ns/net")
    assert secrun.run("readlink", "/proc/self/ns/net").out.strip() != host
    result = secrun.run("readlink", "/proc/self/ns/net", options=("--net=host",))
    assert result.out.strip() == host
    uuid = secrun("prepare", "--net=host", *RELAXED, secrun.image, "--", "true").out.strip()
    assert "network:host" in secrun.status(uuid)["relaxations"]
    secrun("rm", uuid)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["nope"], 127, ["nope", "not found"]),
        (["/bin"], 126, ["/bin"]),
    ],
)
def test_a_program_that_cannot_run_is_named(secrun: Secrun, command, code, words):
    result = secrun.run(*command, code=code)
    assert all(word in result.err for word in words), result.err


def test_a_pod_prepared_away_from_a_terminal_has_one_of_some_size_from_the_start(secrun: Secrun):
    script = "stty size; read x; stty size"
    uuid = secrun("prepare", "-i", "-t", *RELAXED, secrun.image, "--", "sh", "-c", script).out.strip()
    argv = secrun.argv("run-prepared", "--rm", uuid)
    with at_a_terminal(argv, size=(33, 111)) as (terminal, process):
        # What it begins with was decided when it was prepared; the caller's own comes with the caller.
        expect(terminal, b"\r\n")
        os.write(terminal, b"\n")
        expect(terminal, b"33 111")
        assert process.wait(60) == 0


def test_gc_keeps_what_is_young_and_removes_what_is_due(secrun: Secrun):
    secrun("run", *RELAXED, "--uuid-file-save", secrun.root / "uuid", secrun.image, "--", "true")
    uuid = (secrun.root / "uuid").read_text().strip()
    prepared = secrun("prepare", *RELAXED, secrun.image).out.strip()
    running = secrun.detach("sleep", "1000")
    secrun("gc", "--mark-only")
    assert secrun.status(uuid)["state"] == "exited garbage"
    secrun("gc")
    assert {pod["uuid"] for pod in secrun.pods()} >= {uuid, prepared, running}
    secrun("gc", "--grace-period=0s", "--expire-prepared=0s")
    left = {pod["uuid"] for pod in secrun.pods()}
    assert running in left
    assert not left & {uuid, prepared}
    secrun.discard(running)


def test_twenty_pods_started_at_once_all_run_with_ranges_of_their_own(secrun: Secrun):
    argv = secrun.argv("run", "--rm", *RELAXED, secrun.image, "--", "cat", "/proc/self/uid_map")
    started = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(20)]
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 20, outputs
    bases = {int(out.split()[1]) for out, _ in outputs}
    assert all(base % 65536 == 0 and base >= 0x80000 for base in bases)


def test_live_pods_never_share_a_uid_range(secrun: Secrun):
    uuids = [secrun.detach("sleep", "1000") for _ in range(5)]
    try:
        assert len({secrun.status(uuid)["uid_base"] for uuid in uuids}) == 5
    finally:
        secrun("stop", "--force", *uuids)
        secrun("rm", *uuids)


def test_a_container_has_no_machine_to_speak_of(secrun: Secrun):
    asked = ("--accel=tcg", "--storage=64m", "--vtpm")
    for option in asked:
        told = secrun("run", *RELAXED, option, secrun.image, code=125).err
        assert option.partition("=")[0] in told
        assert "--stage1=kvm" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory=1m", "IMAGE"], "least that works"),
        (["--pids-limit=0", "IMAGE"], "at least 1"),
        (["--name=UPPER", "IMAGE"], "cannot be an app's name"),
        (["--user=nobody-knows", "IMAGE"], "not in the image's /etc/passwd"),
        (["--cap-add=CAP_MAGIC", "IMAGE"], "unknown capability"),
        (["-v", "/no/such/dir:/x", "IMAGE"], "does not exist"),
        (["--stage1=moon", "IMAGE"], "unknown stage1 flavour"),
        (["IMAGE", "---", "IMAGE"], "two apps are called"),
        (["IMAGE", "stray"], "stray"),
    ],
)
def test_requests_without_meaning_are_refused_before_anything_starts(secrun: Secrun, words, message):
    before = len(secrun.pods())
    filled = [secrun.image if word == "IMAGE" else word for word in words]
    assert message in secrun("run", *RELAXED, *filled, code=2).err
    assert len(secrun.pods()) == before


def test_a_limit_that_this_host_cannot_set_is_refused_by_name(secrun: Secrun):
    from secrun.stage1 import cgroups

    offered = cgroups.host().controllers()
    for option, controller in (("--memory=64m", "memory"), ("--cpus=1", "cpu"), ("--pids-limit=9", "pids")):
        result = secrun.run("true", options=(option,), code=0 if controller in offered else 125)
        assert controller in offered or f"controller '{controller}', which is missing" in result.err
