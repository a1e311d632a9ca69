"""The check at the end of this tier sees what it is there to see."""

import os
import signal
import subprocess
from pathlib import Path

from support.leaks import footprint, leaks_since
from support.waiting import wait_until


def test_a_mount_is_seen_until_it_is_gone(tmp_path):
    before = footprint(str(tmp_path))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        assert leaks_since(before, str(tmp_path), settle=0) == [f"mounts: {tmp_path} (tmpfs)"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert leaks_since(before, str(tmp_path), settle=0) == []


def test_a_process_is_seen_by_the_mounts_of_its_own_namespace(tmp_path):
    before = footprint(str(tmp_path))
    script = 'mount -t tmpfs tmpfs "$1"; echo ready; exec sleep 60'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout.readline() == "ready\n"
        # The shell says so before it becomes the other program.
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        found = leaks_since(before, str(tmp_path), settle=0)
        os.kill(process.pid, signal.SIGKILL)
    assert found == [f"processes: {process.pid} sleep 60 "]
    assert leaks_since(before, str(tmp_path), settle=5) == []


def test_a_cgroup_and_an_entry_of_run_are_seen(tmp_path):
    mounts = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
    mount = next(path for path in mounts if (path / "cgroup.controllers").exists())
    before = footprint(str(tmp_path))
    group, entry = mount / f"secrun-leak-{os.getpid()}", Path(f"/run/systemd/machines/leak-{os.getpid()}")
    entry.parent.mkdir(parents=True, exist_ok=True)
    group.mkdir()
    entry.touch()
    try:
        found = leaks_since(before, str(tmp_path), settle=0)
        assert set(found) >= {f"cgroups: {group}", f"entries: {entry}"}
    finally:
        group.rmdir()
        entry.unlink()
