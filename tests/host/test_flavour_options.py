"""Every option of an app and its pod, in both flavours: it does what it says, or is refused by its name."""

import os
import re
from pathlib import Path

import pytest

from host.test_flavour_start import sections, shown
from secrun.cli.options import VERBS
from support.confined import status_of
from support.secrun import Secrun, eventually

HONOURED = (
    *("--hostname=box", "--add-host=db:10.1.2.3", "--dns=9.9.9.9", "--dns-search=example.org"),
    *("--dns-opt=ndots:3", "--env=A=1", "--user=app", "--group-add=7", "--workdir=/etc", "--read-only"),
    *("--read-only-tmpfs", "--tmpfs=/a:size=1m,mode=1777", "--mount=type=tmpfs,target=/m,size=2m"),
    *("--cap-drop=all", "--cap-add=CHOWN", "--security-opt=mask=/etc/passwd"),
    *("--security-opt=no-new-privileges=false", "--ulimit=nofile=100:200", "--oom-score-adj=700"),
    *("--sysctl=net.ipv4.ip_unprivileged_port_start=80", "--seccomp=mode=remove,errno=EPERM,chmod,fchmodat"),
    *("--label=one=1", "--annotation=two=2", "--entrypoint=sh", "--umask=027", "--init", "--userns=auto"),
)


def test_what_is_asked_for_is_what_an_app_finds(pods: Secrun, tmp_path: Path):
    (tmp_path / "env").write_text("# two\nB=2\n")
    script = shown(
        names="cat /proc/sys/kernel/hostname; cat /etc/hosts",
        resolver="cat /etc/resolv.conf",
        env='echo "$A $B"; pwd; id -u; id -G; umask',
        memory="for f in /run /tmp /a /m; do touch $f/x && echo $f; done; touch /x 2>&1; ls -d /vol",
        sizes="busybox df -k /a /m | busybox awk '{print $2}'",
        masked="wc -c < /etc/passwd",
        limits="ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj",
        port="cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        status="cat /proc/self/status",
        filter="busybox chmod 700 /tmp/x 2>&1",
        end="true",
    )
    pods("volume", "create", "kept")
    volume = ("--mount=type=volume,source=kept,target=/vol", f"--env-file={tmp_path}/env")
    uuid, result = pods.kept(*HONOURED, *volume, "--name=app", pods.image, "--", "-c", script)
    said = sections(result.out)
    assert said["names"].startswith("box\n")
    assert re.search(r"^10\.1\.2\.3\s+db$", said["names"], re.MULTILINE)
    for line in ("nameserver 9.9.9.9", "search example.org", "options ndots:3"):
        assert line in said["resolver"]
    assert said["env"].splitlines()[:3] == ["1 2", "/etc", "1000"]
    assert "7" in said["env"].splitlines()[3].split()
    assert said["env"].splitlines()[4] == "0027"
    assert said["memory"].split("\n")[:4] == ["/run", "/tmp", "/a", "/m"]
    assert "/vol\n" in said["memory"]
    assert said["sizes"].split()[1:] == ["1024", "2048"]
    assert said["masked"] == "0\n"
    assert said["limits"].split() == ["100", "200", "700"]
    assert said["port"] == "80\n"
    status = status_of(said["status"])
    assert (status["CapBnd"], status["NoNewPrivs"]) == ("0000000000000001", "0")
    assert "not permitted" in said["filter"]
    manifest = pods("cat-manifest", uuid).out
    assert "one=1" in manifest
    assert "two=2" in manifest
    pods("rm", uuid)
    pods("volume", "rm", "kept")


def test_limits_that_the_hosts_kernel_may_lack_hold_in_a_guest(guests: Secrun):
    limits = {
        "--cpu-weight=50": ("cpu.weight", "50"),
        "--blkio-weight=1000": ("io.weight", "default 10000"),
        "--cpus=0.5": ("cpu.max", "50000 100000"),
        "--memory=64m": ("memory.max", f"{64 << 20}"),
        "--memory-swap=128m": ("memory.swap.max", f"{64 << 20}"),
        "--memory-reservation=16m": ("memory.low", f"{16 << 20}"),
        # The shim is one more.
        "--pids-limit=40": ("pids.max", "41"),
    }
    see = ("--cap-add=SYS_ADMIN", "--security-opt=seccomp=unconfined", "--name=app")
    script = "mkdir /c && mount -t cgroup2 none /c && cd /c/system.slice/app-app.service && tail -n1 "
    files = [name for name, _ in limits.values()]
    out = guests.run("sh", "-c", f"{script} {' '.join(files)}", options=(*limits, *see)).out
    found = dict(re.findall(r"==> (\S+) <==\n(.*)\n", f"{out}\n"))
    assert found == dict(limits.values())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--device=/dev/full",), "--device"),
        (("--net=host",), "--net=host"),
        (("--cpuset-cpus=0",), "--cpuset-cpus"),
        (("--cpuset-mems=0",), "--cpuset-mems"),
        (("--volume={folder}/fifo:/x",), "/fifo"),
    ],
)
def test_what_a_guest_cannot_have_is_refused_by_name(guests: Secrun, tmp_path: Path, options, named):
    os.mkfifo(tmp_path / "fifo")
    options = tuple(option.format(folder=tmp_path) for option in options)
    result = guests.run("true", options=options, code=None)
    assert result.code in (2, 125)
    assert named in result.err


def test_an_app_is_stopped_by_the_signal_that_was_asked_for(pods: Secrun):
    script = "trap 'exit 9' USR1; trap 'exit 8' TERM; echo up; while :; do sleep 0.1; done"
    uuid = pods.detach("sh", "-c", script, options=("--stop-signal=USR1", "--stop-timeout=60"))
    eventually(lambda: "up" in pods("logs", uuid).out, "the app's beginning")
    pods("stop", uuid)
    assert pods.status(uuid)["exit_code"] == 9
    pods("rm", uuid)


# What is told to secrun itself, before a flavour has a say.
BEFORE = {
    *("--detach", "--rm", "--timing", "--pod-manifest", "--uuid-file-save", "--pull", "--platform"),
    *("--tls-verify", "--authfile", "--policy", "--insecure-options", "--stage1"),
    *("--detach-keys", "--no-healthcheck"),
}
# Another way to say what is asked for here: no flavour sees the difference.
SPELLINGS = {
    *("--port", "--hosts-entry", "--env-host", "--unsetenv", "--caps-retain", "--caps-remove"),
    *("--privileged", "--cpu-shares"),
}
# A machine's own, or asked of pods of both flavours by other suites.
ELSEWHERE = {
    "tests/host/test_kvm_pods.py": {"--accel", "--storage", "--vtpm"},
    "tests/host/test_flavour_start.py": {"--interactive", "--tty", "--volume"},
    "tests/host/test_flavour_network.py": {"--net", "--publish"},
    "tests/host/test_flavour_life.py": {
        *("--restart", "--health-cmd", "--health-interval", "--health-timeout", "--health-retries"),
        *("--health-start-period", "--health-on-failure"),
    },
    "tests/host/test_read_back.py": {"--profile"},
    "tests/host/test_secrets.py": {"--secret"},
    "tests/host/test_socket_activation.py": {"--preserve-fds"},
    "tests/host/test_system_containers.py": {"--systemd"},
}


def test_no_option_of_a_pod_is_left_out_here():
    """A new option has to be honoured by both flavours, or refused by name, and shown here to be."""
    text = Path(__file__).read_text()
    top = Path(__file__).parents[2]
    (run,) = (verb for verb in VERBS if verb.words == ("run",))
    spellings = [set(option.flags) for option in run.options]
    for path, flags in ELSEWHERE.items():
        known = (top / path).read_text()
        for names in (names for names in spellings if names & flags):
            assert any(f'"{name}' in known for name in names), (path, names)
    known = BEFORE.union(SPELLINGS, *ELSEWHERE.values())
    left = [names for names in spellings if not names & known]
    assert [names for names in left if not any(f'"{name}' in text for name in names)] == []
