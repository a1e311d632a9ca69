"""The options about confinement: what is understood, and what is refused with which reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.cli import confinement
from secrun.cli.options import APP
from secrun.cli.parse import parse_verb
from secrun.cli.table import Verb
from secrun.errors import SecrunError, UsageError
from secrun.fields import Fields
from secrun.pod import security
from secrun.stage1.manifest import Limits
from secrun.stage1.security import AppSecurity, Device, Tmpfs
from secrun_policies.confine import UNLIMITED, Rlimit

VERB = Verb(words=("run",), summary="", handler="", options=APP, takes_apps=True)


def asked(*words: str):
    return confinement.asked(parse_verb("run", VERB, [*words, "image"]))


def limits(*words: str) -> Limits:
    return confinement.limits(parse_verb("run", VERB, [*words, "image"]))


def test_nothing_said_is_nothing_asked():
    assert asked() == security.SecurityRequest()
    assert limits() == Limits()


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (("--security-opt=seccomp=./x.json",), "seccomp", "./x.json"),
        (("--security-opt=seccomp:strict",), "seccomp", "strict"),
        (("--seccomp=mode=retain,read",), "seccomp", "mode=retain,read"),
        (("--security-opt=no-new-privileges",), "new_privileges", False),
        (("--security-opt=no-new-privileges:false",), "new_privileges", True),
        (("--security-opt=no-new-privileges=true",), "new_privileges", False),
        (("--security-opt=mask=/a:/b", "--security-opt=mask=/c"), "mask", ("/a", "/b", "/c")),
        (("--security-opt=unmask=ALL",), "unmask", ("ALL",)),
        (
            ("--security-opt=label=disable", "--security-opt=label=level:s0:c1,c2"),
            "labels",
            ("disable", "level:s0:c1,c2"),
        ),
        (("--caps-retain=KILL,CHOWN", "--caps-retain=FOWNER"), "capabilities", ("KILL", "CHOWN", "FOWNER")),
        (("--caps-remove=KILL,CHOWN",), "cap_drop", ("KILL", "CHOWN")),
        (("--cap-add=KILL",), "cap_add", ("KILL",)),
        (("--privileged",), "privileged", True),
        (("--profile=strict",), "profile", "strict"),
        (("--sysctl=net/ipv4/ip_forward=1",), "sysctls", (("net.ipv4.ip_forward", "1"),)),
        (("--ulimit=core=0",), "rlimits", (Rlimit("RLIMIT_CORE", 0, 0),)),
        (("--ulimit=nofile=1:2",), "rlimits", (Rlimit("RLIMIT_NOFILE", 1, 2),)),
        (("--oom-score-adj=900",), "oom_score_adj", 900),
        (("--device=/dev/null:/dev/zap:rw",), "devices", (Device(source="/dev/null", target="/dev/zap"),)),
        (("--device=/dev/null",), "devices", (Device(source="/dev/null", target="/dev/null"),)),
        (("--tmpfs=/a//b",), "tmpfs", (Tmpfs(target="/a/b"),)),
        (
            ("--tmpfs=/a:size=1m,mode=700,ro,exec",),
            "tmpfs",
            (Tmpfs(target="/a", size="1m", mode="700", read_only=True, executable=True),),
        ),
        (("--userns=auto",), "profile", None),
    ],
)
def test_each_option_is_understood(words, field, value):
    assert getattr(asked(*words), field) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--security-opt=seccomp",), "seccomp needs a value"),
        (("--security-opt=seccomp=a", "--security-opt=seccomp=b"), "given twice"),
        (("--security-opt=seccomp=strict", "--seccomp=mode=retain,read"), "say the same thing"),
        (("--seccomp=/file",), "does not begin with mode="),
        (("--security-opt=no-new-privileges=maybe",), "expected true or false"),
        (("--security-opt=apparmor=x",), "not by AppArmor"),
        (("--security-opt=systempaths=unconfined",), "use unmask=ALL"),
        (("--security-opt=sekkomp=x",), "is not known"),
        (("--security-opt=label=typ:x",), "label=typ:x is not known"),
        (("--caps-retain=KILL", "--cap-drop=all"), "exclude one another"),
        (("--caps-retain=KILL", "--caps-remove=KILL"), "exclude one another"),
        (("--sysctl=net.x",), "not NAME=VALUE"),
        (("--ulimit=nofile",), "not NAME=SOFT"),
        (("--ulimit=nofiles=1",), "no such limit"),
        (("--oom-score-adj=1001",), "between -1000 and 1000"),
        (("--oom-score-adj=-1000",), "less than secrun's own"),
        (("--device=null",), "not HOST"),
        (("--device=/dev/null:/x:r",), "cannot be enforced"),
        (("--device=/etc/passwd",), "not a device node"),
        (("--device=/dev/none-such",), "No such file"),
        (("--device=/dev/null:/../x",), "absolute path without .."),
        (("--tmpfs=x",), "absolute path"),
        (("--tmpfs=/",), "would hide the app's root"),
        (("--tmpfs=/a:dev",), "option 'dev' is not known"),
        (("--userns=host",), "always has a user namespace"),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_reason(words, said):
    with pytest.raises(UsageError, match=said):
        asked(*words)


def test_a_limit_above_the_hosts_is_refused(monkeypatch):
    monkeypatch.setattr(confinement, "_hard_limits", lambda: {"RLIMIT_NOFILE": 100})
    assert asked("--ulimit=nofile=100").rlimits
    with pytest.raises(UsageError, match="nofile: 101 is above this host's 100"):
        asked("--ulimit=nofile=101")
    with pytest.raises(UsageError, match="nofile: unlimited is above"):
        asked("--ulimit=nofile=-1")
    assert asked("--ulimit=core=unlimited").rlimits[0].hard == UNLIMITED


def test_limits_in_words_of_either_cgroup_version():
    got = limits("--memory=64m", "--memory-swap=100m", "--cpu-shares=1024", "--blkio-weight=500")
    assert (got.swap_bytes, got.cpu_weight, got.io_weight) == (36 << 20, 39, 4950)
    assert limits("--memory-swap=-1").swap_bytes == -1
    assert limits("--cpu-weight=10000").cpu_weight == 10000
    assert (limits("--cpu-shares=2").cpu_weight, limits("--cpu-shares=262144").cpu_weight) == (1, 10000)
    assert (limits("--blkio-weight=10").io_weight, limits("--blkio-weight=1000").io_weight) == (1, 10000)
    assert set(got.controllers) == {"memory", "cpu", "io"}


@pytest.mark.parametrize(
    "words",
    [
        ("--memory-swap=64m",),
        ("--memory=64m", "--memory-swap=32m"),
        ("--cpu-shares=1",),
        ("--cpu-weight=0",),
        ("--cpu-shares=2", "--cpu-weight=2"),
        ("--blkio-weight=1001",),
        ("--pids-limit=0",),
    ],
)
def test_limits_that_have_no_meaning(words):
    with pytest.raises(UsageError):
        limits(*words)


WORDS = st.text(alphabet="abkmz019:=,/.-_", max_size=20)


@pytest.mark.parametrize("parse", [security.ulimit, security.sysctl, security.tmpfs, security.device])
@given(text=WORDS)
def test_any_word_is_understood_or_refused(parse, text):
    try:
        parse(text)
    except SecrunError as error:
        assert error.message  # noqa: PT017 - most texts raise nothing


@given(
    st.lists(st.one_of(WORDS, WORDS.map("seccomp={}".format), WORDS.map("label=type:{}".format)), max_size=3)
)
def test_any_security_option_is_understood_or_refused(words):
    try:
        security.security_options(words)
    except UsageError as error:
        assert "--security-opt" in error.message  # noqa: PT017 - most raise nothing


def test_the_manifests_part_survives_being_written():
    whole = AppSecurity(seccomp="x", devices=(Device(source="/dev/null", target="/x"),), privileged=True)
    assert AppSecurity.from_fields(Fields(whole.to_json(), "t")) == whole
    assert AppSecurity.from_fields(Fields(AppSecurity().to_json(), "t")) == AppSecurity()


def test_processors_and_memory_that_are_kept_are_limits_too():
    found = limits("--cpuset-cpus=0-2,5", "--cpuset-mems=0", "--memory=64m", "--memory-reservation=32m")
    assert (found.cpus, found.memory_nodes, found.memory_low_bytes) == ("0-2,5", "0", 32 << 20)
    assert set(found.controllers) == {"memory", "cpuset"}
    assert Limits.from_fields(Fields(found.to_json(), "limits")) == found


@pytest.mark.parametrize("text", ["a", "1-", "-1", "2-1", "1,,2", "1 2", "99999"])
def test_what_is_no_list_of_processors_is_refused(text):
    with pytest.raises(UsageError, match=r"--cpuset-cpus .* is not a list of numbers"):
        limits(f"--cpuset-cpus={text}")


def test_more_cannot_be_kept_than_may_be_had():
    with pytest.raises(UsageError, match="is more than --memory"):
        limits("--memory=64m", "--memory-reservation=65m")
