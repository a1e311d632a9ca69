"""What an app can see and do, asked from inside."""

import os
import re
from pathlib import Path

from support.secrun import Secrun


def status_of(secrun: Secrun, *options: str) -> dict[str, str]:
    text = secrun.run("cat", "/proc/self/status", options=options).out
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


# capabilities(7): the numbers of podman's default set, beyond which no app may have anything.
PODMAN = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31))


def test_the_kernel_says_that_an_app_is_confined(secrun: Secrun):
    status = status_of(secrun)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) & ~PODMAN == 0, name


def test_capabilities_can_be_dropped_and_added_by_name(secrun: Secrun):
    assert int(status_of(secrun, "--cap-drop=all")["CapEff"], 16) == 0
    assert int(status_of(secrun, "--cap-drop=all", "--cap-add=CAP_CHOWN")["CapEff"], 16) == 1


def test_root_inside_is_a_high_uid_outside(secrun: Secrun):
    inside, outside, count = map(int, secrun.run("cat", "/proc/self/uid_map").out.split())
    assert (inside, count) == (0, 65536)
    assert outside >= 0x80000


def test_an_app_sees_only_its_own_processes(secrun: Secrun):
    pids = [name for name in secrun.run("ls", "/proc").out.split() if name.isdigit()]
    assert len(pids) == 1


def test_kernel_secrets_are_masked_and_settings_cannot_be_written(secrun: Secrun):
    writes = "echo 1 > /proc/sys/kernel/panic; echo b > /proc/sysrq-trigger"
    script = f"cat /proc/kcore /proc/keys /proc/kallsyms /proc/timer_list 2>/dev/null | wc -c; {writes}"
    result = secrun.run("sh", "-c", script, code=None)
    assert result.out.split() == ["0"]
    assert result.err.count("can't create") == 2


def test_no_mount_is_possible(secrun: Secrun):
    result = secrun.run("mount", "-t", "tmpfs", "none", "/tmp", code=None)
    assert result.code != 0
    assert re.search("permi|Operation not permitted", result.err)


def test_devices_of_the_host_are_not_there(secrun: Secrun):
    names = set(secrun.run("ls", "/dev").out.split())
    assert names <= {
        *("console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr"),
        *("stdin", "stdout", "tty", "urandom", "zero"),
    }  # fmt: skip


def test_nothing_of_the_machinery_is_mounted_in_the_app(secrun: Secrun):
    mounts = [line.split()[4] for line in secrun.run("cat", "/proc/self/mountinfo").out.splitlines()]
    assert not [
        path for path in mounts if path.startswith(("/pod", "/rw", "/host", "/images", "/run/secrun"))
    ]


def test_an_entered_command_is_confined_like_the_app(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000", options=("--user=app", "--cap-add=CAP_NET_RAW"))
    try:
        status, of_app = (
            dict(
                line.split(":\t", 1)
                for line in secrun("enter", uuid, "--", "cat", f"/proc/{pid}/status").out.splitlines()
                if ":\t" in line
            )
            for pid in ("self", "1")
        )
        same = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters")
        for name in (*same, "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[name] == of_app[name], name
        # capabilities(7): 13 is CAP_NET_RAW.
        assert int(status["CapEff"], 16) == 1 << 13
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["CapBnd"], 16) & ~PODMAN == 1 << 13
        assert status["Uid"].split()[0] == "1000"
        show = "for kind in net ipc uts mnt pid user cgroup; do readlink /proc/$1/ns/$kind; done"
        mine, apps = (secrun("enter", uuid, "--", "sh", "-c", show, "sh", pid).out for pid in ("self", "1"))
        assert mine == apps
        assert len(mine.split()) == 7
        assert secrun("enter", uuid, "--", "cat", "/proc/self/cgroup").out == (
            secrun("enter", uuid, "--", "cat", "/proc/1/cgroup").out
        )
        assert secrun("enter", "--user=0", uuid, "--", "id", "-u").out == "0\n"
    finally:
        secrun.discard(uuid)


def test_the_apps_processes_run_in_the_pods_cgroup_on_the_host(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000")
    try:
        from secrun.stage1 import cgroups

        group = cgroups.host().pod(uuid)
        pids = [
            pid for base, _, _ in os.walk(group) for pid in Path(base, "cgroup.procs").read_text().split()
        ]
        commands = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
        assert {"sleep", "systemd", "secrun-agent", "systemd-nspawn"} <= commands
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in pids}
        assert {uid for uid in owners if uid} == {secrun.status(uuid)["uid_base"]}
    finally:
        secrun.discard(uuid)


def test_stage1_holds_no_shell(secrun: Secrun):
    uuid = secrun.detach("sleep", "1000")
    try:
        root = Path(f"/proc/{_systemd(secrun, uuid)}/root")
        for name in ("bin/sh", "bin/bash", "bin/dash", "bin/busybox", "usr/bin/python3", "usr/bin/apt"):
            assert not (root / name).exists(), name
    finally:
        secrun.discard(uuid)


def _systemd(secrun: Secrun, uuid: str) -> str:
    from secrun.stage1 import cgroups

    for base, _, _ in os.walk(cgroups.host().pod(uuid)):
        for pid in Path(base, "cgroup.procs").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                return pid
    raise AssertionError("no systemd in the pod's cgroup")
