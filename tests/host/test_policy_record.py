"""Recording what a workload really calls, and running it under nothing else."""

import json
from pathlib import Path

import pytest

from support.secrun import Result, Secrun

RELAXED = ("--pull=never", "--insecure-options=image")
SERVICE = "echo started; mkdir /x; cat /etc/hostname > /x/y; exit 3"


def record(
    secrun: Secrun, output: Path, *words: str, options: tuple[str, ...] = (), code: int = 0
) -> Result:
    return secrun(
        *("policy", "record", *RELAXED, *options, "-o", output, "--", secrun.image, *words), code=code
    )


@pytest.fixture
def recorded(secrun: Secrun, tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    result = record(secrun, path, "sh", "-c", SERVICE, code=3)
    assert result.out == "started\n", "the workload ran as ever, and its exit code is ours"
    return path


def names(path: Path) -> set[str]:
    return {name for rule in json.loads(path.read_bytes())["syscalls"] for name in rule["names"]}


def test_what_was_recorded_is_enough_and_nothing_else_is_there(secrun: Secrun, recorded: Path):
    assert {"execve", "mkdir", "write", "exit_group", "clone"} <= names(recorded)
    assert not {"symlink", "socket", "chmod", "unlink"} & names(recorded)
    given = (f"--security-opt=seccomp={recorded}",)
    assert secrun.run("sh", "-c", SERVICE, options=given, code=3).out == "started\n"
    other = secrun.run(
        "sh", "-c", f"{SERVICE.removesuffix('; exit 3')}; chmod 700 /x", options=given, code=1
    )
    assert "chmod" in other.err
    held = (*given, "--caps-retain=DAC_OVERRIDE", "--read-only", "--tmpfs=/x")
    assert secrun.run("sh", "-c", "echo started", options=held).out == "started\n"


def test_a_recorded_profile_is_no_relaxation(secrun: Secrun, recorded: Path):
    given = (*RELAXED, f"--security-opt=seccomp={recorded}")
    uuid = secrun("prepare", *given, secrun.image, "--", "true").out.strip()
    (app,) = json.loads(secrun("cat-manifest", uuid).out)["apps"]
    secrun("rm", uuid)
    assert app["relaxations"] == []
    assert app["security"]["seccomp"] == str(recorded)


def test_conditions_on_arguments_stay(recorded: Path):
    rules = json.loads(recorded.read_bytes())["syscalls"]
    clone = [rule for rule in rules if "clone" in rule["names"]]
    assert any(rule.get("args") for rule in clone), "no namespaces"
    assert any(rule["action"] == "SCMP_ACT_ERRNO" and rule["names"] == ["clone"] for rule in clone)


def test_what_the_profile_refuses_is_refused_while_recording(secrun: Secrun, tmp_path: Path):
    path = tmp_path / "profile.json"
    record(secrun, path, "sh", "-c", "mount -t tmpfs x /tmp || exit 5", code=5)
    assert "mount" not in {
        name
        for rule in json.loads(path.read_bytes())["syscalls"]
        for name in rule["names"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "includes" not in rule
    }


def test_two_recordings_of_one_workload_are_the_same_bytes(secrun: Secrun, tmp_path: Path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        record(secrun, path, "true")
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_many_processes_and_a_held_app_are_recorded(secrun: Secrun, tmp_path: Path):
    path = tmp_path / "profile.json"
    script = "for i in 1 2 3 4 5 6 7 8; do (echo $i | cat) & done; wait"
    result = record(secrun, path, "sh", "-c", script, options=("--profile=strict",))
    assert sorted(result.out.split()) == list("12345678")
    given = ("--profile=strict", f"--security-opt=seccomp={path}")
    assert len(secrun.run("sh", "-c", script, options=given).out.split()) == 8


def test_what_cannot_be_recorded(secrun: Secrun, tmp_path: Path):
    path = tmp_path / "profile.json"
    assert "no image" in secrun("policy", "record", "-o", path, code=2).err
    unconfined = ("--security-opt=seccomp=unconfined",)
    assert "asks about nothing" in record(secrun, path, "true", options=unconfined, code=2).err
    guest = record(secrun, path, "true", options=("--stage1=kvm",), code=2)
    assert "cannot be recorded" in guest.err
    missing = record(secrun, path, "no-such-program", code=127)
    assert "nothing was recorded" in missing.err
    assert not path.exists()
    assert secrun("list", "--quiet").out == "", "nothing stays behind"
