"""--systemd: an image with its own init, systemd inside an app, runs whatever isolates the pod."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.secrun import Secrun, eventually
from support.systemimage import system_image
from support.terminals import at_a_terminal, expect

HALT = 37  # SIGRTMIN+3 (systemd(1), SIGNALS)


@pytest.fixture(scope="module")
def image(secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = tmp_path_factory.mktemp("system") / "layout"
    system_image(layout)
    return secrun("fetch", "--insecure-options=image", f"oci:{layout}:system").out.split()[-1]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the host in which the image's service says that it was stopped."""
    folder = tmp_path_factory.mktemp("kept")
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def system(pods: Secrun, image: str, kept: Path) -> Iterator[str]:
    """The UUID of a pod whose app is a system."""
    (kept / "stopped").unlink(missing_ok=True)
    options = ("--systemd=true", "--pids-limit=60") if pods.flavour == "kvm" else ("--systemd=true",)
    words = ("run", "-d", *pods.pod_options, *options, f"--volume={kept}:/kept", "--name=sys", image)
    uuid = pods(*words).out.strip()
    eventually(lambda: inside(pods, uuid, "systemctl", "is-system-running") == "running\n", "its boot")
    yield uuid
    pods.discard(uuid)


def inside(pods: Secrun, uuid: str, *words: str) -> str:
    return pods("enter", "--app=sys", uuid, "--", *words, code=None).out


def test_its_services_run_in_control_groups_of_the_apps_own(pods: Secrun, system: str):
    assert inside(pods, system, "systemctl", "show", "--value", "-p", "ControlGroup", "hello") == (
        "/system.slice/hello.service\n"
    )
    members = "/sys/fs/cgroup/system.slice/hello.service/cgroup.procs"
    (service,) = inside(pods, system, "cat", members).split()
    assert "Uid:\t1000\t" in inside(pods, system, "cat", f"/proc/{service}/status")
    groups = inside(pods, system, "cat", "/proc/self/cgroup", "/proc/1/cgroup").splitlines()
    assert [line for line in groups if line.startswith("0::")] == ["0::/init.scope"] * 2


def test_its_journal_has_what_services_say(pods: Secrun, system: str):
    assert inside(pods, system, "journalctl", "--unit=hello", "--output=cat", "--grep=from the service") == (
        "from the service\n"
    )
    assert inside(pods, system, "systemctl", "--failed", "--no-legend", "--plain") == ""


def test_it_finds_what_systemd_expects_of_its_container(pods: Secrun, system: str):
    mounts = dict(line.split()[1:3] for line in inside(pods, system, "cat", "/proc/mounts").splitlines())
    for folder in ("/run", "/run/lock", "/tmp", "/var/log/journal"):
        assert mounts[folder] == "tmpfs", folder
    assert mounts["/sys/fs/cgroup"] == "cgroup2"
    assert "container=secrun" in inside(pods, system, "cat", "/proc/1/environ").split("\0")


def test_what_is_relaxed_for_it_is_named_and_measured(pods: Secrun, system: str):
    (app,) = json.loads(pods("cat-manifest", system).out)["apps"]
    assert app["systemd"] is True
    assert app["relaxations"] == ["capability:CAP_SETPCAP", "control-group:sys"]
    assert app["stop_signal"] == HALT
    status = pods.status(system)
    assert status["apps"][0]["enforced"]["verdict"] == "held"
    assert "control-group" in pods("policy", "explain", system).out


def test_all_of_its_processes_are_counted_as_the_apps(pods: Secrun, system: str):
    rows = json.loads(pods("stats", "--format=json", "--interval=0.1s", system).out)["pods"]
    if pods.flavour == "kvm":
        return  # a machine is counted as a whole
    (app,) = (row for row in rows if row["app"] == "sys")
    # Its init, its journal, its service, and the shim beside them.
    assert app["pids"] >= 4


def test_limits_hold_above_what_it_may_divide(guests: Secrun, image: str):
    """A limit is the unit's: the system sees none of it, and cannot lift it."""
    script = (
        "cd /sys/fs/cgroup; cat pids.max; echo +pids >cgroup.subtree_control 2>&1; i=0; "
        "while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done"
    )
    options = ("--systemd=always", "--pids-limit=20", "--entrypoint=")
    failed = guests.run("sh", "-c", script, options=options, code=None)
    assert failed.out.splitlines()[0] == "max"
    assert "can't fork" in failed.err


def test_stopping_halts_it_in_good_order(pods: Secrun, system: str, kept: Path):
    """The last: it ends the pod."""
    pods("stop", system)
    assert (kept / "stopped").read_text() == "stopped in order\n"
    status = pods.status(system)
    assert (status["state"], status["exit_code"]) == ("exited", 0)


def test_its_console_is_the_terminal(secrun: Secrun, image: str, tmp_path: Path):
    """An init closes what it was given, and opens the console when it has something to say."""
    saved = tmp_path / "uuid"
    options = (*secrun.pod_options, "--rm", "-i", "-t", "--systemd=true", f"--uuid-file-save={saved}")
    with at_a_terminal(secrun.argv("run", *options, image)) as (terminal, process):
        expect(terminal, b"Started")
        secrun("stop", f"--uuid-file={saved}")
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--systemd=true",), "not known as an init"),
        (("--systemd=always", "--user=1000"), "runs as user 1000"),
        (("--systemd=maybe",), "maybe"),
    ],
)
def test_what_is_no_system_is_refused(secrun: Secrun, options, problem):
    assert problem in secrun.run("sh", options=options, code=2).err


def test_an_app_that_is_none_cannot_divide_its_control_group(secrun: Secrun):
    make = ("mkdir", "/sys/fs/cgroup/own")
    assert "can't create directory" in secrun.run(*make, code=1).err
    assert secrun.run(*make, options=("--systemd=always",)).err == ""
