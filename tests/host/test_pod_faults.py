"""Whatever is killed, whenever: `secrun gc` restores a clean host."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
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
    "measuring-PodPrepare",
    "measured-PodPrepare",
    "run-folder",
    "uid-range",
    "cgroup",
    "attach-socket",
    "mount-namespace",
    "images-mounted",
    "measuring-PodStart",
    "measured-PodStart",
    "before-waiter",
    "cleaned-up",
    "exit-written",
    "measuring-PodExit",
    "measured-PodExit",
)

# What a machine has made in place of mounted images.
MACHINE_POINTS = ("machine-folder", "images-mounted", "machine-written")
_PLACE = POINTS.index("images-mounted")
OPTIONS = {"nspawn": (), "kvm": ("--stage1=kvm", "--accel=tcg")}
INSTANTS = {"nspawn": POINTS, "kvm": (*POINTS[:_PLACE], *MACHINE_POINTS, *POINTS[_PLACE + 1 :])}
EVERY = [(flavour, point) for flavour, points in INSTANTS.items() for point in points]


def run_with_fault(secrun: Secrun, tmp_path: Path, point: str, *options: str) -> tuple[int, list[str]]:
    passed = tmp_path / "points"
    roots = ["--root", str(secrun.root), "--run-root", str(secrun.run_root)]
    words = [*roots, "run", "--net=none", *options, *RELAXED, secrun.image, "--", "true"]
    argv = faults.argv(str(passed), point, words)
    done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
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
    assert list(secrun.root.glob("pods/*/*")) == []
    assert list(secrun.root.glob("scratch/*")) == []


@pytest.mark.parametrize("flavour", INSTANTS)
def test_the_list_of_instants_is_complete(secrun: Secrun, tmp_path, flavour):
    code, passed = run_with_fault(secrun, tmp_path, "", *OPTIONS[flavour])
    assert code == 0
    assert tuple(passed) == INSTANTS[flavour]
    clean_up(secrun)


@pytest.mark.parametrize(("flavour", "point"), EVERY)
def test_killed_at_any_instant_gc_leaves_a_clean_host(secrun: Secrun, tmp_path, flavour, point):
    clean_up(secrun)
    before = footprint(str(secrun.root))
    code, passed = run_with_fault(secrun, tmp_path, point, *OPTIONS[flavour])
    # Whoever kills the finishing program after one of its writes finds that the waiter ran another. A guest
    # may be gone before its waiter has started one ahead: then the waiter is it, and is killed.
    ahead = flavour == "nspawn" or passed.count("cleaned-up") == 2
    again = ahead and point in ("exit-written", "measured-PodExit")
    assert code == (0 if again else -signal.SIGKILL)
    assert point in passed
    uuids = [pod["uuid"] for pod in secrun.pods()]
    clean_up(secrun)
    assert_nothing_is_left(secrun, before, uuids)


@pytest.mark.parametrize("option", ["--rm", "-d"])
@pytest.mark.parametrize("point", POINTS)
def test_a_pod_that_removes_itself_or_is_detached_is_cleaned_up_as_well(
    secrun: Secrun, tmp_path, point, option
):
    clean_up(secrun)
    before = footprint(str(secrun.root))
    run_with_fault(secrun, tmp_path, point, option)
    uuids = [pod["uuid"] for pod in secrun.pods()]
    for uuid in uuids:
        # A detached pod outlives its caller.
        eventually(lambda uuid=uuid: secrun.status(uuid)["state"] not in ("running", "preparing"), "its end")
    assert point in (tmp_path / "points").read_text().split()
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


@pytest.fixture
def small(secrun: Secrun, tmp_path: Path) -> Iterator[Secrun]:
    """A root on a file system of 64 MB that holds the busybox image and a stage1, and little else."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    try:
        other = Secrun(root=disk / "root", run_root=disk / "run")
        layout = secrun.root.parent / "layout"
        image = other("fetch", "--insecure-options=image", f"oci:{layout}:busybox").out.split()[-1]
        other("stage1", "build")
        yield dataclasses.replace(other, image=image)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb") as stream, contextlib.suppress(OSError):
        while True:
            os.write(stream.fileno(), bytes(65536))
    with filler.open("ab") as stream, contextlib.suppress(OSError):
        while True:
            os.write(stream.fileno(), bytes(4096))
    return filler


def test_a_full_disk_stops_the_preparation_and_loses_nothing(small: Secrun):
    filler = fill(small.root.parent)
    result = small("run", *RELAXED, small.image, "--", "true", code=125)
    assert "No space left" in result.err
    assert small.pods() == []
    filler.unlink()
    assert small.run("echo", "works again").out == "works again\n"


def synced(secrun: Secrun, tmp_path: Path, *words: str) -> set[str]:
    """Run a command; name what it flushes to disk in the pod's folder, a temporary file by its last name."""
    trace, pod = tmp_path / "trace", tmp_path / "uuid"
    argv = secrun.argv(*words, *RELAXED, f"--uuid-file-save={pod}", secrun.image, "--", "true")
    strace = ["strace", "-y", "-e", "trace=fsync", "-o", trace]
    subprocess.run([*strace, *argv], check=True, capture_output=True)
    found = re.findall(
        rf"fsync\(\d+<[^>]*/{pod.read_text().strip()}(?:/([^>]*))?>\) += 0", trace.read_text()
    )
    return {re.sub(r"\.(\w+)\.\d+\.tmp$", r"\1", name) for name in found}


def test_a_prepared_pod_outlives_a_loss_of_power_with_all_its_files(secrun: Secrun, tmp_path: Path):
    flushed = synced(secrun, tmp_path, "prepare")
    folder = secrun.root / "pods/prepared" / (tmp_path / "uuid").read_text().strip()
    there = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert there >= {"manifest", "flavour", "filter.bpf", "config/system.conf"}
    # Whoever finds its marker empty asks the log.
    assert there - {"measured"} <= flushed
    secrun("rm", folder.name)


def test_a_loss_of_power_leaves_of_any_pod_what_gc_needs(secrun: Secrun, tmp_path: Path):
    assert {"flavour", "manifest", ""} <= synced(secrun, tmp_path, "run", "--rm")


def test_an_app_that_fills_the_disk_is_told_and_can_be_removed(small: Secrun):
    command = ("sh", "-c", "cat /dev/zero > /big; echo code $?")
    result = small("run", *RELAXED, small.image, "--", *command, code=None)
    assert "No space left" in result.err
    assert "code 1" in result.out
    small("gc", "--grace-period=0s")
    assert small.pods() == []
    assert small.run("echo", "works again").out == "works again\n"


def test_a_disk_that_is_full_holds_no_app_up_and_what_its_log_lost_is_told(small: Secrun):
    disk, script = small.root.parent, "trap 'exit 7' TERM; while :; do echo word; sleep 0.01; done"
    words = ("--name=app", small.image, "--", "sh", "-c", script)
    uuid = small("run", "-d", *RELAXED, *words).out.strip()

    def lost() -> int:
        (app,) = small.status(uuid)["apps"]
        return app["log_lost_bytes"]

    filler = fill(disk)
    eventually(lost, "a loss")
    assert "app-app-log-lost=" in small("status", uuid).out
    filler.unlink()
    # Two entries after it, the last of which is whole: the app went on, and no half entry is in the way.
    told = r"word\n(?:word\n)*secrun: \d+ bytes of the log are lost: it could not be written\nword\nword\n"
    everything = lambda: "".join(json.loads(line)["text"] + "\n" for line in shown(small, uuid))  # noqa: E731
    eventually(lambda: re.match(told, everything()), "the end of the loss")
    known = lost()
    filler = fill(disk)
    eventually(lambda: lost() > known, "another loss")
    small("stop", uuid, code=None)
    filler.unlink()
    small("gc", "--mark-only")
    assert small.status(uuid)["exit_code"] == 7
    small("rm", uuid)


def shown(secrun: Secrun, uuid: str) -> list[str]:
    """Return the lines of a log, both streams in their order, as JSON."""
    return secrun("logs", "--format=json", uuid).out.splitlines()


@pytest.mark.parametrize("remove", [True, False])
def test_a_start_that_fails_after_the_mounts_leaves_nothing_behind(secrun: Secrun, tmp_path: Path, remove):
    """A damaged rootfs image is found when stage1 is already mounted and the cgroup is made."""
    other = Secrun(root=tmp_path / "root", run_root=tmp_path / "run")
    image = other("fetch", "--insecure-options=image", f"oci:{secrun.root.parent / 'layout'}:busybox")
    (rootfs,) = (other.root / "rootfs").glob("*.erofs")
    with rootfs.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\xff")
    before = footprint(str(tmp_path))
    saved = ("--uuid-file-save", tmp_path / "uuid", *(("--rm",) if remove else ()))
    result = other("run", *RELAXED, *saved, image.out.split()[-1], "--", "true", code=125)
    assert "does not have the verity root" in result.err
    uuid = (tmp_path / "uuid").read_text().strip()
    assert not cgroups.host().pod(uuid).exists()
    assert [pod["exit_code"] for pod in other.pods()] == ([] if remove else [125])
    clean_up(other)
    assert other.pods() == []
    assert [line for line in leaks_since(before, str(tmp_path)) if "cgroups" not in line] == []


def test_a_caller_that_is_interrupted_leaves_a_detached_pod_alone(secrun: Secrun, tmp_path: Path):
    """Ctrl-C between fork and readiness: what has become of the pod is whole and can be collected."""
    clean_up(secrun)
    before = footprint(str(secrun.root))
    words = secrun.argv("run", "-d", *RELAXED, secrun.image, "--", "sleep", "1000")
    with subprocess.Popen(
        ["env", "--default-signal=INT", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        eventually(lambda: [pod for pod in secrun.pods() if pod["state"] == "running"], "a running pod")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert b"Errno" not in said
    assert b"No such file" not in said
    uuids = [str(pod["uuid"]) for pod in secrun.pods()]
    secrun("stop", "--force", *uuids)
    clean_up(secrun)
    assert_nothing_is_left(secrun, before, uuids)
