"""What a user meets of a pod from its start to its end, the same whatever isolates it.

A guest takes seconds to boot: a test asks one pod for everything that one can tell.
"""

import json
import os
import re
import signal
import subprocess

import pytest

from support.confined import CAPABILITIES, PODMAN, status_of
from support.secrun import Secrun, open_door, wait_for_door
from support.terminals import at_a_terminal, expect, killed_in_the_end

FORBIDDEN = """
mount -t tmpfs none /tmp
echo 1 > /proc/sys/kernel/panic
echo b > /proc/sysrq-trigger
cat /proc/kcore /proc/keys /proc/kallsyms /proc/timer_list 2>/dev/null | wc -c
"""
SECTION = "@@"


def shown(**parts: str) -> str:
    """Return a script that prints the output of each part under its name."""
    return "\n".join(f"echo {SECTION}{name}\n{part}" for name, part in parts.items())


def sections(text: str) -> dict[str, str]:
    """Return what `shown` printed, by name."""
    found = re.split(rf"^{SECTION}(\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_words_variables_and_output_arrive_as_they_are(pods: Secrun):
    odd = "a b\"c'd$HOME%h\\n\ttab\nnewline ü €"
    script = 'cat; echo out; echo err >&2; /bin/busybox seq 100000; printf "%s|%s" "$1" "$X"'
    # Without -i nothing of the caller's standard input is seen.
    result = pods.run("sh", "-c", script, "sh", odd, options=("-e", f"X={odd}"), stdin="not seen")
    lines = "".join(f"{number}\n" for number in range(1, 100_001))
    assert result.out == f"out\n{lines}{odd}|{odd}"
    assert result.err == "err\n"


def test_standard_input_reaches_the_app_whole_and_ends(pods: Secrun):
    text = "".join(f"over the wall {number}\n" for number in range(20_000))
    assert pods.run("cat", options=("-i",), stdin=text).out == text


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("sh", "-c", "exit 255"), 255, ()),
        (("sh", "-c", "trap - TERM; sh -c 'kill -KILL $$'; exit $?"), 137, ("Killed",)),
        (("/no/such/program",), 127, ("/no/such/program", "not found")),
        (("/etc/passwd",), 126, ("/etc/passwd",)),
    ],
)
def test_the_apps_exit_code_is_ours_and_what_cannot_run_is_named(pods: Secrun, command, code, words):
    err = pods.run(*command, code=code).err
    assert all(word in err for word in words), err
    assert words or not err


def test_the_first_failure_ends_the_pod_whose_apps_share_all_but_files(pods: Secrun):
    show = "for kind in net ipc uts mnt pid; do readlink /proc/self/ns/$kind; done"
    # Each lets the other know over the loopback that they share.
    fails = f"touch /mine; {show}; {open_door(9998)}; {wait_for_door(9999)}; exit 5"
    waits = (
        f"trap 'exit 0' TERM; {show}; {wait_for_door(9998)}; ls /mine 2>&1; echo waiting; {open_door(9999)};"
        " while :; do sleep 0.1; done"
    )
    uuid, _ = pods.kept(
        *("--name", "fails", pods.image, "--", "sh", "-c", fails),
        *("---", "--name", "waits", pods.image, "--", "sh", "-c", waits),
        code=5,
    )
    codes = {app["name"]: app["exit_code"] for app in pods.status(uuid)["apps"]}
    assert codes == {"fails": 5, "waits": 0}
    a = pods("logs", uuid, "fails").out.splitlines()
    b = pods("logs", uuid, "waits").out.splitlines()
    assert a[:3] == b[:3]
    assert (a[3] != b[3], a[4] != b[4]) == (True, True)
    assert ("No such file" in b[5], b[6]) == (True, "waiting")
    assert "several apps" in pods("logs", uuid, code=2).err
    pods("rm", uuid)


def test_what_an_app_sees_and_may_do(pods: Secrun):
    """Two apps, one as it comes, one with less; the pod ends well when both have."""
    plain = shown(
        status="cat /proc/self/status",
        proc="ls /proc",
        dev="ls /dev",
        mounts="cat /proc/self/mountinfo",
        forbidden=FORBIDDEN,
        net="ls /sys/class/net",
        route="cat /proc/net/route | wc -l",
        writes="touch /x /tmp/x && rm /etc/passwd && echo written",
    )
    less = shown(
        id="id -u; id -g; pwd; cat /proc/sys/kernel/hostname; echo $HOSTNAME",
        status="cat /proc/self/status",
        writes="touch /x 2>&1",
        passwd="cat /etc/passwd",
    )
    options = ("--user=app", "--workdir=/etc", "--read-only", "--cap-drop=all", "--cap-add=CAP_CHOWN")
    uuid, _ = pods.kept(
        "--hostname=box",
        *("--name", "plain", pods.image, "--", "sh", "-c", plain, "---"),
        *("--name", "less", *options, pods.image, "--", "sh", "-c", less),
    )
    log = pods("logs", uuid, "plain")
    said, refused = sections(log.out), log.err
    _check_plain(said, refused)
    said = sections(pods("logs", uuid, "less").out)
    assert said["id"].split() == ["1000", "1000", "/etc", "box", "box"]
    status = status_of(said["status"])
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16) & ~1) == (1, 0)
    assert "Read-only file system" in said["writes"]
    # What another app of the same image removed is its own loss.
    assert "root:" in said["passwd"]
    pods("rm", uuid)


def _check_plain(said: dict[str, str], refused: str) -> None:
    status = status_of(said["status"])
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for name in CAPABILITIES:
        assert int(status[name], 16) & ~PODMAN == 0, name
    # The shell, and what it runs to look.
    assert len([name for name in said["proc"].split() if name.isdigit()]) == 2
    assert set(said["dev"].split()) <= {
        *("console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr"),
        *("stdin", "stdout", "tty", "urandom", "zero"),
    }  # fmt: skip
    mounts = [line.split()[4] for line in said["mounts"].splitlines()]
    hidden = ("/pod", "/rw", "/host", "/images", "/volumes", "/run/secrun")
    assert not [path for path in mounts if path.startswith(hidden)]
    assert said["forbidden"].split() == ["0"]
    assert re.search("permission denied|Operation not permitted", refused)
    assert refused.count("can't create") == 2
    assert said["net"].split() == ["lo"]
    assert said["route"].strip() in ("0", "1")
    assert said["writes"] == "written\n"


def test_volumes_map_owners_and_can_be_read_only_or_one_file(pods: Secrun, tmp_path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/a").write_text("from the host\n")
    os.chown(tmp_path / "dir/a", 1000, 1000)
    (tmp_path / "one").write_text("one file\n")
    script = shown(
        read="cat /data/a; stat -c %u:%g /data/a; cat /one",
        write="echo new > /data/b; echo more >> /one",
        refused="echo x > /ro/c 2>&1; echo x > /ro-one 2>&1",
        seen="cat /ro/b",
    )
    volumes = (
        *("-v", f"{tmp_path}/dir:/data", "-v", f"{tmp_path}/dir:/ro:ro"),
        *("-v", f"{tmp_path}/one:/one", "-v", f"{tmp_path}/one:/ro-one:ro"),
    )
    result = pods.run("sh", "-c", script, options=volumes)
    said = sections(result.out)
    assert said["read"].splitlines() == ["from the host", "1000:1000", "one file"]
    assert (said["refused"] + result.err).count("Read-only file system") == 2
    assert said["seen"] == "new\n"
    assert (tmp_path / "dir/b").stat().st_uid == 0
    assert not (tmp_path / "dir/c").exists()
    assert (tmp_path / "one").read_text() == "one file\nmore\n"


def test_volumes_of_the_pods_own_and_what_the_image_has_for_them(pods: Secrun):
    """One by name, one without that has the image's content, and one of the host's that is kept."""
    pods("volume", "create", "kept")
    listed = "ls /bin | wc -l; readlink /bin/ls; stat -c '%a %u:%g' /bin /bin/busybox"
    script = shown(
        own="stat -c '%a %u:%g' /here; grep -c ' /bin ' /proc/mounts",
        copied=listed,
        kept="echo mine > /opt/mine",
    )
    options = (
        *("--volume", "shared,kind=empty,mode=2750,uid=7,gid=8", "--mount", "volume=shared,target=/here"),
        *("-v", "/bin", "-v", "kept:/opt"),
    )
    said = sections(pods.run("sh", "-c", script, options=options).out)
    assert said["own"] == "2750 7:8\n1\n"
    assert said["copied"].split()[1:] == ["busybox", "755", "0:0", "755", "0:0"]
    assert int(said["copied"].split()[0]) > 20
    assert (pods.root / "volumes/kept/data/mine").read_text() == "mine\n"
    pods("volume", "rm", "kept")


def test_prepare_then_run_prepared_and_when_each_step_was_reached(pods: Secrun):
    uuid = pods.prepare("sh", "-c", "echo ready; exit 4", options=("--name=app", "-e", "TOKEN=hunter2"))
    assert (pods.status(uuid)["state"], pods.status(uuid)["timing"]) == ("prepared", [])
    text = pods("cat-manifest", uuid).out
    manifest = json.loads(text)
    assert (manifest["uuid"], manifest["flavour"]) == (uuid, pods.flavour)
    assert manifest["apps"][0]["args"][-1] == "echo ready; exit 4"
    assert ("TOKEN" in manifest["apps"][0]["env_names"], "hunter2" in text) == (True, False)
    assert (manifest["machine"] is None) == (pods.flavour == "nspawn")
    result = pods("run-prepared", "--timing", uuid[:13], code=4)
    assert result.out == "ready\n"
    assert "expected prepared" in pods("run-prepared", uuid, code=125).err
    status = pods.status(uuid)
    assert (status["state"], status["exit_code"], status["stage1"]) == ("exited", 4, pods.flavour)
    _check_marks(pods, status["timing"], result.err)
    assert "exit-code=4\n" in pods("status", uuid).out
    pods("rm", uuid)
    assert "no pod matches" in pods("status", uuid, code=2).err


def _check_marks(pods: Secrun, marks: list[dict[str, object]], told: str) -> None:
    host = [mark["name"] for mark in marks if mark["side"] == "host"]
    steps = ["begun", "run-folder", "measured-PodStart", "before-waiter", "started:app", "ended:app"]
    steps += ["stage1-ended", "concluded"]
    assert [name for name in host if name in steps] == steps
    times = [mark["ns"] for mark in marks if mark["side"] == "host" and mark["name"] in steps]
    assert times == sorted(times)
    guest = {mark["name"]: mark["ns"] for mark in marks if mark["side"] == "guest"}
    assert (pods.flavour == "kvm") == ({"stage0", "verity", "systemd"} <= guest.keys())
    assert all(f"  {name} " in told for name in (*steps, *guest)), told


def test_a_terminal_is_a_terminal_with_the_callers_size(pods: Secrun):
    script = "stty size; read x; echo got $x; exit 3"
    argv = pods.argv("run", "--rm", "-i", "-t", *pods.pod_options, pods.image, "--", "sh", "-c", script)
    with at_a_terminal(argv, size=(33, 111)) as (terminal, process):
        expect(terminal, b"33 111")
        os.write(terminal, b"hello\n")
        expect(terminal, b"got hello")
        assert process.wait(60) == 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 6), (signal.SIGINT, 7), (signal.SIGUSR1, 128 + signal.SIGUSR1)]
)
def test_signals_to_secrun_reach_the_app_or_end_it(pods: Secrun, number, code):
    script = "trap 'exit 6' TERM; trap 'exit 7' INT; echo up; while :; do sleep 0.1; done"
    argv = pods.argv("run", "--rm", *pods.pod_options, pods.image, "--", "sh", "-c", script)
    with killed_in_the_end(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(60) == code
