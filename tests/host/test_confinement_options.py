"""Each option about confinement, asked of the kernel inside a real pod."""

import json

import pytest

from support.secrun import Secrun


def read(secrun: Secrun, script: str, *options: str, code: int | None = 0) -> str:
    return secrun.run("sh", "-c", script, options=options, code=code).out


def status_of(secrun: Secrun, *options: str) -> dict[str, str]:
    lines = read(secrun, "cat /proc/self/status", *options).splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_rkts_capabilities_are_exactly_what_they_say(secrun: Secrun):
    kept = status_of(secrun, "--caps-retain=CAP_KILL,CHOWN")
    assert int(kept["CapEff"], 16) == int(kept["CapBnd"], 16) == 1 << 5 | 1
    removed = status_of(secrun, "--caps-remove=CAP_KILL")
    default = status_of(secrun)
    assert int(default["CapEff"], 16) & ~int(removed["CapEff"], 16) == 1 << 5


def test_kernel_files_are_masked_and_unmasked_by_name(secrun: Secrun):
    script = "wc -c < /proc/interrupts; wc -c < /etc/hostname; echo x > /proc/irq/default_smp_affinity"
    assert read(secrun, script, code=None).split()[0] == "0"
    opened = read(secrun, script, "--security-opt=unmask=/proc/interrupts", code=None).split()
    assert int(opened[0]) > 0
    hidden = read(secrun, script, "--security-opt=mask=/etc/hostname", code=None).split()
    assert hidden[:2] == ["0", "0"]


def test_settings_of_the_pods_own_network(secrun: Secrun):
    script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert read(secrun, script) == "1024\n"
    assert read(secrun, script, "--sysctl=net.ipv4.ip_unprivileged_port_start=80") == "80\n"
    for name in ("kernel.panic=1", "kernel.shmmax=1"):
        refused = secrun.run("true", options=(f"--sysctl={name}",), code=2)
        assert "only net.* can be set" in refused.err
    shared = secrun.run("true", options=("--sysctl=net.ipv4.ip_forward=1", "--net=host"), code=2)
    assert "it is not the pod's own" in shared.err


def test_limits_of_processes(secrun: Secrun):
    script = "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj"
    out = read(secrun, script, "--ulimit=nofile=100:200", "--ulimit=core=0", "--oom-score-adj=700")
    assert out.split() == ["100", "200", "0", "700"]
    assert "core-dumps" in json.dumps(relaxations(secrun, "--ulimit=core=100"))


def relaxations(secrun: Secrun, *options: str) -> list[str]:
    relaxed = ("--pull=never", "--insecure-options=image", *options)
    uuid = secrun("prepare", *relaxed, secrun.image, "--", "true").out.strip()
    manifest = json.loads(secrun("cat-manifest", uuid).out)
    secrun("rm", uuid)
    found: list[str] = manifest["apps"][0]["relaxations"]
    return found


def test_a_device_is_there_for_every_user_and_nothing_else_is(secrun: Secrun):
    script = "head=$(dd if=/dev/zap bs=4 count=1 2>/dev/null | wc -c); ls /dev | wc -l; echo $head"
    base = int(read(secrun, "ls /dev | wc -l"))
    for user in ("root", "app"):
        out = read(secrun, script, "--device=/dev/zero:/dev/zap", f"--user={user}").split()
        assert out == [str(base + 1), "4"]
    assert relaxations(secrun, "--device=/dev/zero:/dev/zap") == ["device:/dev/zero"]


def test_folders_in_memory(secrun: Secrun):
    script = "touch /a/x && busybox grep ' /a ' /proc/mounts"
    out = read(secrun, script, "--tmpfs=/a:size=1m,mode=700", "--read-only")
    assert "tmpfs" in out
    for word in ("nosuid", "nodev", "noexec", "size=1024k", "mode=700"):
        assert word in out
    script = "for f in /run /tmp /var/tmp; do touch $f/x || exit 1; done; touch /x"
    assert secrun.run("sh", "-c", script, options=("--read-only", "--read-only-tmpfs"), code=1)


def test_a_filter_of_ones_own(secrun: Secrun, tmp_path):
    profile = tmp_path / "profile.json"
    rules = [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    given = f"--security-opt=seccomp={profile}"
    refused = secrun.run("mkdir", "/x", options=(given,), code=1)
    assert "not supported" in refused.err, "the error that the file names"
    assert relaxations(secrun, given) == [f"seccomp-profile:{profile}"]
    assert relaxations(secrun, "--seccomp=mode=remove,mkdir,mkdirat") == [], "less is no relaxation"
    removed = secrun.run("mkdir", "/x", options=("--seccomp=mode=remove,errno=EPERM,mkdir,mkdirat",), code=1)
    assert "not permitted" in removed.err
    killed = secrun.run("mkdir", "/x", options=("--seccomp=mode=remove,mkdir,mkdirat",), code=None)
    assert killed.code == 128 + 31, "SIGSYS"
    profile.write_text(
        '{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["mkdri"],"action":"SCMP_ACT_ALLOW"}]}'
    )
    unknown = secrun.run("true", options=(given,), code=2)
    assert "unknown syscalls: mkdri" in unknown.err


def test_the_strict_filter_and_profile(secrun: Secrun):
    status = status_of(secrun, "--profile=strict")
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert secrun.run("chmod", "700", "/tmp", options=("--profile=strict",)).code == 0
    refused = secrun.run(
        "busybox", "chroot", "/", "true", options=("--security-opt=seccomp=strict",), code=1
    )
    assert "chroot" in refused.err
    assert secrun.run("busybox", "chroot", "/", "true").code == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--security-opt=label=type:x_t",), 125, "needs SELinux"),
        (("--ulimit=nofile=99999999",), 2, "above this host's"),
        (("--device=/dev/zero:/dev/zap:r",), 2, "cannot be enforced"),
        (("--userns=host",), 2, "always has a user namespace"),
        (("--oom-score-adj=-999",), 2, "less than secrun's own"),
        (("--cap-add=FLY",), 2, "unknown capability"),
        (("--security-opt=seccomp=/no/such",), 2, "cannot read the seccomp profile"),
        (("--read-only-tmpfs",), 2, "without --read-only"),
        (("--privileged",), 120, "no rule allows it"),
        (("--tmpfs=/proc",), 2, "would hide what the app needs"),
        (("--cpu-shares=2",), 125, "cgroup2 controller"),
    ],
)
def test_what_cannot_be_had_says_why(secrun: Secrun, options, code, said):
    assert said in secrun.run("true", options=options, code=code).err
