"""Whatever is killed, whenever: `secrun gc` restores a clean host."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from secrun.stage1 import cgroups
from support import faults
from support.leaks import footprint, leaks_since
from support.secrun import Secrun, eventually

RELAXED = ("--pull=never", "--insecure-options=image")
# Every instant of a pod's life; a test below holds this list against the program.
POINTS = (
    "images-resolved",
    "preparing",
    "config-written",
    "manifest-written",
    "prepared",
    "run-folder",
    "uid-range",
    "cgroup",
    "attach-socket",
    "mount-namespace",
    "images-mounted",
    "before-waiter",
    "cleaned-up",
    "exit-written",
)


def words(secrun: Secrun, *command: str) -> list[str]:
    roots = ["--root", str(secrun.root), "--run-root", str(secrun.run_root)]
    return [*roots, "run", *RELAXED, secrun.image, "--", *command]


def run_with_fault(secrun: Secrun, tmp_path: Path, point: str) -> tuple[int, list[str]]:
    passed = tmp_path / "points"
    done = subprocess.run(
        faults.argv(str(passed), point, words(secrun, "true")), capture_output=True, timeout=120, check=False
    )
    return done.returncode, passed.read_text().split()


def clean_up(secrun: Secrun) -> None:
    secrun("gc", "--grace-period=0s", "--expire-prepared=0s")


def assert_nothing_is_left(secrun: Secrun, before, uuids) -> None:
    """No pod, and none of the pod's mounts, cgroups, processes or files anywhere."""
    assert secrun.pods() == []
    left = leaks_since(before, str(secrun.root), settle=5)
    # Other workers of this run have pods of their own.
    assert [line for line in left if not line.startswith("cgroups:")] == []
    assert [uuid for uuid in uuids if cgroups.host().pod(uuid).exists()] == []
    for folder in secrun.root.joinpath("pods").iterdir():
        assert list(folder.iterdir()) == []
    assert list(secrun.root.joinpath("scratch").iterdir()) == []


def test_the_list_of_instants_is_complete(secrun: Secrun, tmp_path):
    code, passed = run_with_fault(secrun, tmp_path, "")
    assert code == 0
    assert tuple(passed) == POINTS
    clean_up(secrun)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_instant_gc_leaves_a_clean_host(secrun: Secrun, tmp_path, point):
    clean_up(secrun)
    before = footprint(str(secrun.root))
    code, passed = run_with_fault(secrun, tmp_path, point)
    assert code == -signal.SIGKILL
    assert passed[-1] == point
    uuids = [pod["uuid"] for pod in secrun.pods()]
    clean_up(secrun)
    assert_nothing_is_left(secrun, before, uuids)


@pytest.mark.parametrize("point", ["marked"])
def test_a_gc_that_is_killed_is_finished_by_the_next(secrun: Secrun, tmp_path, point):
    clean_up(secrun)
    before = footprint(str(secrun.root))
    run_with_fault(secrun, tmp_path, "")
    roots = ["--root", str(secrun.root), "--run-root", str(secrun.run_root)]
    argv = faults.argv(str(tmp_path / "gc"), point, [*roots, "gc", "--grace-period=0s"])
    assert subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == -signal.SIGKILL
    uuids = [pod["uuid"] for pod in secrun.pods()]
    clean_up(secrun)
    assert_nothing_is_left(secrun, before, uuids)


@pytest.mark.parametrize(
    "victim", ["secrun-agent wait", "systemd-nspawn", "systemd --unit", "secrun-agent shim"]
)
def test_killing_any_process_of_a_running_pod_ends_it(secrun: Secrun, victim):
    clean_up(secrun)
    before = footprint(str(secrun.root))
    uuid = secrun.detach("sleep", "1000")
    group = cgroups.host().pod(uuid)
    waiter = int(secrun.status(uuid)["pid"])
    pids = [
        int(pid) for base, _, _ in os.walk(group) for pid in Path(base, "cgroup.procs").read_text().split()
    ]
    named = {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in [waiter, *pids]}
    (target,) = [
        pid for pid, text in named.items() if victim in text.split("--", 1)[0] or victim in text[:60]
    ]
    os.kill(target, signal.SIGKILL)
    eventually(lambda: secrun.status(uuid)["state"] == "exited", "the end of the pod")
    uuids = [pod["uuid"] for pod in secrun.pods()]
    clean_up(secrun)
    assert_nothing_is_left(secrun, before, uuids)


def test_a_full_disk_stops_the_preparation_and_loses_nothing(secrun: Secrun, tmp_path):
    """The pods' folder on a tiny file system: ENOSPC is told, the store and other pods are untouched."""
    pods = secrun.root / "pods" / "preparing"
    pods.mkdir(parents=True, exist_ok=True)
    clean_up(secrun)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", pods], check=True)
    try:
        result = secrun("run", *RELAXED, secrun.image, "--", "true", code=125)
        assert "No space left" in result.err
        assert list(pods.iterdir()) == []
    finally:
        subprocess.run(["umount", pods], check=True)
    assert secrun.run("echo", "still works").out == "still works\n"


def test_an_app_that_fills_its_disk_gets_an_error_and_the_pod_can_be_removed(secrun: Secrun, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", small], check=True)
    try:
        other = Secrun(root=small / "root", run_root=small / "run")
        layout = secrun.root.parent / "layout"
        image = other("fetch", "--insecure-options=image", f"oci:{layout}:busybox").out.split()[-1]
        command = ("sh", "-c", "cat /dev/zero > /big; echo code $?")
        result = other("run", *RELAXED, image, "--", *command, code=None)
        assert "No space left" in result.err
        other("gc", "--grace-period=0s")
        assert other.pods() == []
    finally:
        subprocess.run(["umount", "-l", small], check=True)
