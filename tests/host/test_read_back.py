"""What the kernel enforces, read back: stored with the pod, and if asked for before an app begins."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.secrun import Secrun

RELAXED = ("--pull=never", "--insecure-options=image")
STRICT = ("--profile=strict",)


@pytest.fixture
def unmeasured(secrun: Secrun) -> Secrun:
    """Without measurement: a manifest that somebody changed is refused before anything is read back."""
    return Secrun(root=secrun.root, run_root=secrun.run_root, image=secrun.image, options=("--attest=off",))


def enforced(secrun: Secrun, uuid: str) -> dict:
    return {app["name"]: app["enforced"] for app in secrun.status(uuid)["apps"]}


def only(found: dict) -> dict:
    (one,) = found.values()
    return one


def changed(secrun: Secrun, uuid: str, without: str) -> None:
    """Make the pod look as if less had been compiled than its bundle gives."""
    path = secrun.root / "pods" / "prepared" / uuid / "manifest"
    manifest = json.loads(path.read_bytes())
    for app in manifest["apps"]:
        app["capabilities"].remove(without)
    path.write_bytes(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())


def test_what_is_enforced_is_stored_and_shown_while_the_app_runs(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000", options=("--cap-drop=all", "--cap-add=KILL"))
    try:
        found = only(enforced(secrun, uuid))
        assert (found["verdict"], found["differences"]) == ("held", [])
        values = found["values"]
        assert values["CapBnd"] == values["CapEff"] == "0000000000000020"
        assert (values["NoNewPrivs"], values["Seccomp"]) == ("1", "2")
        base = secrun.status(uuid)["uid_base"]
        assert values["uid_map"] == f"0 {base} 65536"
        assert f"/secrun/{uuid}/" in values["cgroup"]
        kernel = Path(f"/proc/{found['pid']}/status").read_text()
        assert f"CapEff:\t{values['CapEff']}" in kernel, "the app itself was read, by its number on the host"
        assert "-enforced=held" in secrun("status", uuid).out
    finally:
        secrun("stop", "--force", uuid)
        secrun("status", "--wait", uuid)
        assert only(enforced(secrun, uuid))["verdict"] == "held", "it stays with the pod"
        secrun("rm", uuid)


def test_an_app_that_takes_more_from_itself_is_no_difference(secrun: Secrun):
    uuid = secrun.detach("busybox", "setpriv", "--nnp", "sleep", "1000")
    try:
        assert only(enforced(secrun, uuid))["verdict"] == "held"
    finally:
        secrun("stop", "--force", uuid)
        secrun("status", "--wait", uuid)
        secrun("rm", uuid)


@pytest.mark.parametrize("user", ["0", "app"])
def test_held_strictly_every_app_is_read_before_it_begins(secrun: Secrun, user):
    for _ in range(3):
        assert secrun.run("true", options=(*STRICT, f"--user={user}")).code == 0, "however short it is"
    result = secrun.run(
        "sh", "-c", "echo $0 $PATH; cat /proc/1/comm; :", options=(*STRICT, f"--user={user}")
    )
    assert result.out == "sh /bin\nsh\n", "the program is the first process, with its own words"


def test_two_apps_each_read_strictly(secrun: Secrun):
    words = ("run", *RELAXED, secrun.image, "--name=a", *STRICT, "--", "echo", "one", "---")
    more = (secrun.image, "--name=b", "--user=app", "--cap-add=NET_RAW", "--", "echo", "two")
    result = secrun(*words, *more)
    assert sorted(result.out.split()) == ["one", "two"]
    uuid = secrun("list", "--quiet").out.split()[-1]
    found = enforced(secrun, uuid)
    assert {name: item["verdict"] for name, item in found.items()} == {"a": "held", "b": "held"}
    assert found["b"]["values"]["CapAmb"] == "0000000000002000"
    secrun("rm", uuid)


def test_streams_terminals_and_entering_work_where_apps_are_held(secrun: Secrun):
    assert secrun.run("cat", options=(*STRICT, "-i"), stdin="typed\n").out == "typed\n"
    assert secrun.run("sh", "-c", "echo bad >&2; exit 7", options=STRICT, code=7).err == "bad\n"
    missing = secrun.run("no-such-program", options=STRICT, code=127)
    assert "no-such-program" in missing.err
    uuid = secrun.detach("sleep", "1000", options=STRICT)
    try:
        assert secrun("enter", uuid, "--", "cat", "/proc/1/comm").out == "sleep\n"
        pty = "import pty,sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
        argv = secrun.argv("enter", "-t", uuid, "--", "stty", "size")
        done = subprocess.run(
            [sys.executable, "-c", pty, *argv], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done
    finally:
        secrun("stop", uuid)
        secrun("status", "--wait", uuid)
        secrun("rm", uuid)
    pty_run = secrun.argv("run", "--rm", *RELAXED, "-t", *STRICT, secrun.image, "--", "stty", "size")
    code = "import pty,sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    done = subprocess.run(
        [sys.executable, "-c", code, *pty_run], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, b"24 80" in done.stdout or b"0 0" in done.stdout) == (0, True), done


def test_a_difference_ends_a_strict_pod_before_its_app_begins(unmeasured: Secrun):
    relaxed = (*RELAXED, *STRICT, "--cap-add=NET_RAW")
    uuid = unmeasured("prepare", *relaxed, unmeasured.image, "--", "echo", "ran").out.strip()
    changed(unmeasured, uuid, "CAP_NET_RAW")
    result = unmeasured("run-prepared", uuid, code=125)
    assert "ran" not in result.out
    assert "the kernel enforces less than was compiled: " in result.err
    assert "CapBnd is 0000000000002000" in result.err
    status = unmeasured.status(uuid)
    assert status["exit_code"] == 125
    assert "CapBnd" in status["error"]
    found = only(enforced(unmeasured, uuid))
    assert found["verdict"] == "weaker"
    assert {"CapBnd", "CapEff", "CapPrm"} <= set(found["differences"])
    unmeasured("rm", uuid)


def test_a_difference_is_told_where_it_is_not_held_strictly(unmeasured: Secrun):
    relaxed = (*RELAXED, "--cap-add=NET_RAW")
    script = "echo ran; sleep 4"
    uuid = unmeasured("prepare", *relaxed, unmeasured.image, "--", "sh", "-c", script).out.strip()
    changed(unmeasured, uuid, "CAP_NET_RAW")
    result = unmeasured("run-prepared", uuid)
    assert result.out == "ran\n"
    assert "warning: app" in result.err
    assert "enforces less than was compiled: CapBnd is" in result.err
    assert only(enforced(unmeasured, uuid))["verdict"] == "weaker"
    unmeasured("rm", uuid)


def test_a_filter_that_lets_the_agent_not_begin_says_so(secrun: Secrun):
    narrow = "--seccomp=mode=retain,errno=EPERM,write,exit_group"
    result = secrun.run("true", options=(*STRICT, narrow), code=None)
    assert result.code != 0
    assert "ended before it could be read" in result.err


GUEST = (*RELAXED, "--stage1=kvm", "--accel=tcg")


def test_a_guest_reports_what_its_kernel_enforces_before_a_held_app_begins(secrun: Secrun):
    strict = (*STRICT, "--cap-add=NET_RAW", "--user=app")
    uuid = secrun("run", "-d", *GUEST, *strict, secrun.image, "--", "sleep", "1000").out.strip()
    try:
        found = only(enforced(secrun, uuid))
        assert (found["verdict"], found["reported_by"], found["differences"]) == ("held", "guest", [])
        script = (
            "grep -E '^(CapEff|CapAmb|CapBnd|Seccomp_filters|NoNewPrivs):' /proc/1/status; cat /proc/1/comm"
        )
        *kernel, program = secrun("enter", uuid, "--", "sh", "-c", script).out.splitlines()
        assert program == "sleep"
        fields = dict(line.split(":\t") for line in kernel)
        assert fields == {name: found["values"][name] for name in fields}
        assert fields["CapAmb"] == "0000000000002000"
        assert "-enforced=held (reported by the guest)" in secrun("status", uuid).out
        assert "read-back:guest" in json.loads(secrun("cat-manifest", uuid).out)["relaxations"]
    finally:
        secrun.discard(uuid)


def test_a_difference_in_a_guest_ends_a_strict_pod_before_its_app_begins(unmeasured: Secrun):
    words = (*GUEST, *STRICT, "--cap-add=NET_RAW", unmeasured.image, "--", "echo", "ran")
    uuid = unmeasured("prepare", *words).out.strip()
    changed(unmeasured, uuid, "CAP_NET_RAW")
    result = unmeasured("run-prepared", uuid, code=125)
    assert "ran" not in result.out
    assert "the kernel enforces less than was compiled: " in result.err
    assert "CapBnd is 0000000000002000" in unmeasured.status(uuid)["error"]
    assert only(enforced(unmeasured, uuid))["verdict"] == "weaker"
    unmeasured("rm", uuid)


def test_a_rule_may_refuse_the_word_of_a_guest(secrun: Secrun, tmp_path: Path):
    (tmp_path / "policy.d").mkdir()
    rule = '[[rule]]\nname = "proof"\nread_back = "strict"\n'
    (tmp_path / "policy.d" / "a.toml").write_text(rule)
    ruled = dataclasses.replace(secrun, place=tmp_path)
    uuid = ruled("prepare", *GUEST, secrun.image).out.strip()
    assert "read-back:guest" in json.loads(secrun("cat-manifest", uuid).out)["relaxations"]
    secrun("rm", uuid)
    (tmp_path / "policy.d" / "a.toml").write_text(f'{rule}deny_relaxations = ["read-back:*"]\n')
    assert "read-back:guest" in ruled("prepare", *GUEST, secrun.image, code=120).err


def test_a_device_of_the_host_is_refused_by_name_for_a_guest(secrun: Secrun):
    assert "--device" in secrun("prepare", *GUEST, "--device=/dev/full", secrun.image, code=125).err
