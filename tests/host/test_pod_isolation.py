"""What an app can see and do, asked from inside."""

import os
from pathlib import Path

from support.confined import status_of
from support.secrun import Secrun


def test_capabilities_can_be_dropped_and_added_by_name(secrun: Secrun):
    for options, wanted in ((("--cap-drop=all",), 0), (("--cap-drop=all", "--cap-add=CAP_CHOWN"), 1)):
        text = secrun.run("cat", "/proc/self/status", options=options).out
        assert int(status_of(text)["CapEff"], 16) == wanted


def test_root_inside_is_a_high_uid_outside(secrun: Secrun):
    inside, outside, count = map(int, secrun.run("cat", "/proc/self/uid_map").out.split())
    assert (inside, count) == (0, 65536)
    assert outside >= 0x80000


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
