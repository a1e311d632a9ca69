"""Pods on a Debian host of its own: confinement, limits, loop mounts, services, what stays behind.

One check fetches the image for all; some share a pod.
"""

import json
import os
import re
import time
from pathlib import Path

from vmhost.kit import (
    IDLE,
    LAYOUT,
    RELAXED,
    STORE,
    check,
    eventually,
    group,
    nothing_remains,
    run,
    secrun,
    started_service,
    status,
    tool,
)

SHARED = Path("/run/shared-uuid")
LIMITS = ("--memory=64m", "--cpus=0.5", "--pids-limit=20")
# The unit's shim is one process more than the app's.
LIMITS_SET = {
    "memory.max": str(64 << 20),
    "memory.swap.max": "0",
    "pids.max": "21",
    "cpu.max": "50000 100000",
}


def in_unit(uuid: str, name: str) -> str:
    """Read a file of the one app's unit in the pod's cgroup."""
    (unit,) = group(uuid).rglob("app-*.service")
    return (unit / name).read_text().strip()


def limits(uuid: str) -> dict[str, str]:
    return {name: in_unit(uuid, name) for name in LIMITS_SET}


@check
def this_is_a_plain_debian_host() -> str:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert tool("stat", "-f", "-c", "%T", "/sys/fs/cgroup").strip() == "cgroup2fs"
    assert tool("systemctl", "--failed", "--no-legend", "--plain") == ""
    return f"{os.uname().release} {tool('systemctl', '--version').split()[2]}"


@check
def the_doctor_finds_nothing_fatal() -> str:
    return secrun("doctor")


@check
def an_image_is_fetched() -> str:
    return secrun("fetch", "--insecure-options=image", LAYOUT)


@check
def anyone_may_fetch_into_a_folder_of_their_own() -> None:
    home = Path("/srv/home")
    home.mkdir()
    os.chown(home, 1000, 1000)
    user = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups")
    places = (f"--root={home}/root", f"--run-root={home}/run")
    tool(*user, "secrun", *places, "fetch", "--insecure-options=image", LAYOUT)
    ours, theirs = (sorted(folder.glob("*.erofs")) for folder in (home / "root/rootfs", STORE / "rootfs"))
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


@check
def an_app_is_confined_and_its_exit_code_is_ours() -> str:
    begin = time.monotonic()
    script = "cat /proc/self/status /proc/self/uid_map; readlink /proc/self/ns/user; exit 7"
    text = run("sh", "-c", script, code=7)
    facts = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16)
    assert int(facts["CapBnd"], 16).bit_count() <= 11, facts["CapBnd"]
    inside, outside, count = map(int, text.splitlines()[-2].split())
    assert (inside, count) == (0, 65536)
    assert outside >= 0x80000
    assert text.splitlines()[-1] != os.readlink("/proc/self/ns/user")
    return f"{time.monotonic() - begin:.2f} s from start to removal, emulated"


@check
def a_volume_on_ext4_maps_its_owners() -> None:
    volume = Path("/srv/volume")
    volume.mkdir()
    os.chown(volume, 1000, 1000)
    script = "stat -c %u /v; echo hello >/v/file; stat -c %u /v/file"
    options = (f"--volume={volume}:/v:Z", "--user=1000:1000")
    assert run("sh", "-c", script, options=options).split() == ["1000", "1000"]
    made = (volume / "file").stat()
    assert (made.st_uid, made.st_gid, (volume / "file").read_text()) == (1000, 1000, "hello\n")


@check
def two_apps_share_a_network() -> None:
    show = ("--", "readlink", "/proc/self/ns/net")
    said = secrun("run", "--rm", *RELAXED, LAYOUT, "--name=a", *show, "---", LAYOUT, "--name=b", *show)
    first, second = said.split()
    assert first == second != os.readlink("/proc/self/ns/net")


@check
def too_much_memory_kills_the_app_that_takes_it() -> None:
    hungry = ("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
    words = (
        "--memory=64m",
        LAYOUT,
        "--name=hungry",
        "--",
        *hungry,
        "---",
        LAYOUT,
        "--name=idle",
        "--",
        *IDLE,
    )
    saved = Path("/run/hungry-uuid")
    secrun("run", *RELAXED, f"--uuid-file-save={saved}", *words, code=137)
    apps = {app["name"]: app["exit_code"] for app in status(saved.read_text().strip())["apps"]}
    # The other one was stopped in order.
    assert apps == {"hungry": 137, "idle": 0}
    secrun("rm", saved.read_text().strip())


def cpu_share(uuid: str) -> float:
    """Return how much of one CPU the app takes, over a while."""

    def usage() -> tuple[float, float]:
        facts = dict(line.split() for line in in_unit(uuid, "cpu.stat").splitlines())
        return int(facts["usage_usec"]) / 1e6, time.monotonic()

    (used, begin), _ = usage(), time.sleep(6)
    more, end = usage()
    return (more - used) / (end - begin)


@check
def too_many_processes_are_refused_and_too_much_time() -> str:
    """The pod waits for a file: what starts an app counts until it has ended, and may be slow here."""
    gate = Path("/srv/gate")
    gate.mkdir()
    script = "i=0; while [ $i -lt 20 ]; do sleep 60 & i=$((i+1)); echo child $i; done"
    script = f"while [ ! -e /gate/open ]; do :; done; {{ {script}; }} 2>&1"
    options = (f"--volume={gate}:/gate:Z", "--pids-limit=10", "--cpus=0.5")
    uuid = secrun("run", "-d", *RELAXED, *options, LAYOUT, "--", "sh", "-c", script).strip()
    # The shell and its shim.
    eventually(lambda: in_unit(uuid, "pids.current") == "2", "the end of what started the app")
    shares: list[float] = []

    def held() -> bool:
        shares.append(cpu_share(uuid))
        return 0.85 * 0.5 <= shares[-1] <= 1.15 * 0.5

    # A busy host takes the processor away from both sides of the measurement.
    eventually(held, "half a CPU for the app")
    (gate / "open").touch()
    eventually(lambda: status(uuid)["state"] == "exited", "the end of the pod")
    said = secrun("logs", uuid)
    secrun("rm", uuid)
    assert "child 9\n" in said, said
    assert "child 10\n" not in said, said
    return f"{shares} of a CPU\n{said}"


# The next checks share one pod, started as from a login: a scope that ends while the pod goes on.


@check
def a_pod_outlives_the_scope_it_was_started_from() -> None:
    trap = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.2; done"
    words = ("secrun", "run", "-d", *RELAXED, LAYOUT, *LIMITS, "--", "sh", "-c", trap)
    uuid = tool("systemd-run", "--scope", "--quiet", "--slice=user.slice", *words).strip()
    SHARED.write_text(uuid)
    assert uuid in secrun("list", "-q")
    assert status(uuid)["state"] == "running"
    eventually(lambda: secrun("logs", uuid) == "up\n", "the first line of the log")


@check
def systemd_shows_it_as_a_scope_of_its_own() -> str:
    uuid = SHARED.read_text()
    show = ("systemctl", "show", "--property=ActiveState,Slice,Delegate,Description", f"secrun-{uuid}.scope")
    wanted = {"ActiveState=active", "Slice=machine.slice", "Delegate=yes", f"Description=secrun pod {uuid}"}
    assert set(tool(*show).splitlines()) == wanted
    said = tool("systemctl", "status", "--no-pager", f"secrun-{uuid}.scope")
    for name in ("systemd-nspawn", "app-images.service", "trap 'echo bye"):
        assert name in said, said
    return said


@check
def its_images_are_checked_by_the_kernel_block_by_block() -> str:
    """Each is a dm-verity device on a read-only loop device, with the root hash that the manifest has."""
    manifest = json.loads(secrun("cat-manifest", SHARED.read_text()))
    names = {path.read_text().strip(): path.parents[1] for path in Path("/sys/block").glob("dm-*/dm/name")}
    assert sorted(names) == [f"secrun-{SHARED.read_text()}-{number}" for number in range(2)]
    tables = [tool("dmsetup", "table", name) for name in sorted(names)]
    assert all(" verity 1 7:" in table for table in tables), tables
    assert manifest["apps"][0]["image"]["verity_root"] in tables[1]
    used = tool("losetup", "--list", "--noheadings", "--output", "RO,AUTOCLEAR,BACK-FILE").splitlines()
    assert [line.split()[:2] for line in used] == [["1", "1"]] * 2, used
    assert not re.search("secrun|erofs", Path("/proc/mounts").read_text())
    return "\n".join(tables)


@check
def its_limits_reach_the_kernel_and_survive_systemd() -> str:
    assert limits(SHARED.read_text()) == LIMITS_SET
    # A unit with weights comes and goes: systemd turns controllers on for it, and off again.
    tool("systemd-run", "--wait", "--quiet", "--property=CPUWeight=50", "--property=IOWeight=50", "true")
    tool("systemctl", "daemon-reload")
    offered = Path("/sys/fs/cgroup/cgroup.subtree_control").read_text()
    assert {"cpu", "memory", "pids"} <= set(offered.split())
    assert limits(SHARED.read_text()) == LIMITS_SET
    return offered


@check
def it_is_entered_and_stopped() -> None:
    uuid = SHARED.read_text()
    assert secrun("enter", uuid, "--", "sh", "-c", "echo inside; exit 9", code=9) == "inside\n"
    secrun("stop", uuid)
    assert secrun("logs", uuid) == "up\nbye\n"
    assert (status(uuid)["state"], status(uuid)["exit_code"]) == ("exited", 3)
    secrun("rm", uuid)
    nothing_remains()


@check
def a_service_is_its_pod_and_stops_with_it() -> str:
    uuid = started_service("web", "--rm")
    assert group(uuid).is_dir()
    begin = time.monotonic()
    tool("systemctl", "stop", "web")
    seconds = time.monotonic() - begin
    assert not group(uuid).exists()
    said = tool("journalctl", "--unit=web", "--output=cat")
    assert "web.service: Deactivated successfully." in said.splitlines(), said
    nothing_remains()
    return f"stopped in {seconds:.1f} s"


@check
def a_killed_service_leaves_what_gc_cleans() -> None:
    started_service("killed")
    tool("systemctl", "kill", "--signal=SIGKILL", "killed")
    eventually(lambda: tool("systemctl", "is-active", "killed", code=None) == "failed\n", "the failure")
    tool("systemctl", "reset-failed", "killed")
    secrun("gc", "--grace-period=0s")
    nothing_remains()
