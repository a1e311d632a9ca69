"""Runs inside the test machine: each check is a function, and one line of JSON tells how it went.

`guest.py DEVICE` runs every check in a process of its own and reports to DEVICE; `guest.py NAME` runs one.
The checks build on each other in their order: one fetches the image, the last looks for what stayed.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CHECK_SECONDS = 180
WAIT_SECONDS = 60
STORE = Path("/var/lib/secrun")
CGROUPS = Path("/sys/fs/cgroup/secrun")
LAYOUT = "oci:/opt/secrun-test/images:busybox"
RELAXED = ("--insecure-options=image", "--pull=never")
SHARED = Path("/run/shared-uuid")
LIMITS = ("--memory=64m", "--cpus=0.5", "--pids-limit=20")
# The unit's shim is one process more than the app's.
LIMITS_SET = {
    "memory.max": str(64 << 20),
    "memory.swap.max": "0",
    "pids.max": "21",
    "cpu.max": "50000 100000",
}
IDLE = ("sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.2; done")

CHECKS: dict[str, Callable[[], object]] = {}


def check(function: Callable[[], object]) -> Callable[[], object]:
    CHECKS[function.__name__] = function
    return function


def tool(*words: str, code: int | None = 0) -> str:
    done = subprocess.run(
        words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    assert code is None or done.returncode == code, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def secrun(*words: str, code: int | None = 0) -> str:
    return tool("secrun", *words, code=code)


def run(*words: str, options: tuple[str, ...] = (), code: int | None = 0) -> str:
    return secrun("run", "--rm", *RELAXED, *options, LAYOUT, "--", *words, code=code)


def status(uuid: str) -> dict[str, object]:
    return json.loads(secrun("status", "--format=json", uuid))


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {WAIT_SECONDS} s"
        time.sleep(0.1)


def limits(uuid: str) -> dict[str, str]:
    """Read the limits of the one app's unit in the pod's cgroup."""
    (unit,) = (CGROUPS / uuid).rglob("app-*.service")
    return {name: (unit / name).read_text().strip() for name in LIMITS_SET}


def commands() -> Iterator[str]:
    """Name the program of each process."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            yield path.read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended


def remains() -> list[str]:
    """List what a pod could have left on this host."""
    found = [str(path) for path in CGROUPS.glob("*/")]
    found += tool("losetup", "--list", "--noheadings").splitlines()
    mounts = Path("/proc/mounts").read_text().splitlines()
    found += [line for line in mounts if re.search("secrun|erofs", line)]
    found += [name for name in commands() if name.startswith(("secrun", "crun", "systemd-nspawn"))]
    found += secrun("list", "-q").split()
    return found


def nothing_remains() -> None:
    eventually(lambda: not remains(), "the end of everything")


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
    options = (f"--volume={volume}:/v", "--user=1000:1000")
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
def too_much_memory_kills_the_program() -> None:
    run("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1", options=("--memory=64m",), code=137)


@check
def too_many_processes_are_refused() -> str:
    script = "i=0; while [ $i -lt 20 ]; do sleep 60 & i=$((i+1)); echo child $i; done"
    said = run("sh", "-c", f"{{ {script}; }} 2>&1", options=("--pids-limit=10",), code=None)
    assert "child 9\n" in said
    assert "child 10\n" not in said
    return said


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
def its_images_are_mounted_by_loop_devices() -> str:
    used = tool("losetup", "--list", "--noheadings", "--output", "RO,AUTOCLEAR,BACK-FILE").splitlines()
    assert [line.split()[:2] for line in used] == [["1", "1"]] * 2, used
    assert not re.search("secrun|erofs", Path("/proc/mounts").read_text())
    return "\n".join(used)


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


def started_service(name: str, *options: str) -> str:
    """Start a pod as a transient service; return its UUID once the app's first line is in the journal."""
    saved = Path(f"/run/{name}-uuid")
    words = ("run", *options, *RELAXED, f"--uuid-file-save={saved}", LAYOUT, "--", *IDLE)
    tool("systemd-run", f"--unit={name}", "--quiet", "/usr/local/bin/secrun", *words)
    journal = ("journalctl", f"--unit={name}", "--output=cat")
    eventually(lambda: "up" in tool(*journal).splitlines(), "the app's line in the journal")
    return saved.read_text().strip()


@check
def a_service_is_its_pod_and_stops_with_it() -> str:
    uuid = started_service("web", "--rm")
    assert (CGROUPS / uuid).is_dir()
    begin = time.monotonic()
    tool("systemctl", "stop", "web")
    seconds = time.monotonic() - begin
    assert not (CGROUPS / uuid).exists()
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


@check
def the_host_is_as_it_was() -> str:
    nothing_remains()
    assert tool("systemctl", "--failed", "--no-legend", "--plain") == ""
    log = tool("dmesg", "--level=emerg,alert,crit,err")
    # The out-of-memory kill was asked for.
    left = [line for line in log.splitlines() if "Memory cgroup out of memory" not in line]
    assert not left, left
    return log


def report(name: str) -> dict[str, object]:
    """Run one check in a process of its own."""
    begin = time.monotonic()
    argv = [sys.executable, "-B", __file__, name]
    try:
        done = subprocess.run(
            argv,
            check=False,
            timeout=CHECK_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        passed, said = done.returncode == 0, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        passed, said = False, f"no end after {CHECK_SECONDS} s: {error.output!r} {error.stderr!r}"
    seconds = round(time.monotonic() - begin, 2)
    return {"name": name, "passed": passed, "seconds": seconds, "said": said[-4000:]}


def main(word: str) -> None:
    if word in CHECKS:
        print(CHECKS[word]() or "")
        return
    with open(word, "w") as out:
        for name in CHECKS:
            print(json.dumps(report(name)), file=out, flush=True)
        print(json.dumps({"name": "end"}), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
