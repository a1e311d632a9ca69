"""Policy files on a real host: profiles that apply themselves, rules that no option relaxes."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host.test_measured_pods import events
from support.roots import made
from support.secrun import Secrun

RELAXED = ("--pull=never", "--insecure-options=image")
Write = Callable[[str], Secrun]


@pytest.fixture
def under(secrun: Secrun, tmp_path: Path) -> Write:
    """Return a function that gives the command line with a policy file, the last one written."""
    folder = tmp_path / "etc" / "policy.d"
    folder.mkdir(parents=True)
    command = dataclasses.replace(secrun, place=folder.parent, options=("--attest=off",))

    def write(text: str) -> Secrun:
        (folder / "10-org.toml").write_text(text)
        return command

    return write


def rule(**says: object) -> str:
    lines = ["[[rule]]", 'name = "org"', 'reason = "the handbook says so"']
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in says.items())]) + "\n"


@pytest.mark.parametrize(
    ("says", "options", "said"),
    [
        ({"network": ["none"]}, ("--net=host",), "the network is host, allowed: none"),
        ({"stage1": ["kvm"]}, (), "the stage1 flavour is nspawn, allowed: kvm"),
        ({"capabilities": ["default"]}, ("--cap-add=NET_RAW",), "has CAP_NET_RAW"),
        ({"deny_relaxations": ["seccomp-*"]}, ("--security-opt=seccomp=unconfined",), "seccomp-unconfined"),
        ({"allow_relaxations": ["core-*"]}, ("--security-opt=unmask=ALL",), "unmasked-paths"),
        ({"devices": []}, ("--device=/dev/full",), "device /dev/full, allowed: none"),
        ({"volumes": ["/srv/*"]}, ("--volume=/etc:/x:ro",), "volume /etc, allowed: /srv/*"),
        ({"no_new_privileges": True}, ("--security-opt=no-new-privileges=false",), "may gain privileges"),
        ({"read_only": True}, (), "can write its root file system"),
        ({"root": False}, ("--user=0",), "runs as root"),
        ({"profiles": ["strict"]}, ("--profile=default",), "has the profile default, allowed: strict"),
        ({"privileged": False}, ("--privileged",), "is privileged"),
    ],
)
def test_no_option_relaxes_a_rule(under: Write, says, options, said):
    command = under(rule(**says))
    result = command("run", "--rm", *RELAXED, *options, command.image, "--", "echo", "ran", code=120)
    assert "ran" not in result.out
    assert "rule org (of " in result.err
    assert "10-org.toml)" in result.err
    assert said in result.err
    assert "the handbook says so" in result.err
    assert json.loads(command("list", "--format=json").out)["pods"] == [], "nothing of the pod stays"
    elsewhere = under(rule(images=["docker://other.example/*"], **says))
    if "--privileged" not in options:
        assert elsewhere.run("echo", "ran", options=options).out == "ran\n"


def test_a_denied_pod_is_measured_with_its_rule_and_so_is_the_policy(secrun: Secrun, tmp_path: Path):
    with made(secrun, tmp_path) as root:
        folder = tmp_path / "etc" / "policy.d"
        folder.mkdir(parents=True)
        root.run("true")
        (folder / "a.toml").write_text(rule(network=["none"]))
        ruled = dataclasses.replace(root, place=folder.parent)
        ruled("run", "--rm", *RELAXED, "--net=host", root.image, "--", "true", code=120)
        names = [name for name, _ in events(root)]
        assert names[-2:] == ["PolicyLoad", "Denied"]
        (_, loaded), (_, denied) = events(root)[-2:]
        assert loaded["policy"] == "policy.d"
        assert loaded["digest"] == json.loads(ruled("policy", "show", "--format=json").out)["digest"]
        assert (denied["what"], denied["code"]) == ("policy", "denied-policy")
        assert "rule org" in denied["why"]
        uuid = ruled("prepare", *RELAXED, root.image).out.strip()
        _, prepared = events(root, "PodPrepare")[-1]
        assert prepared["policy"] == loaded["digest"]
        manifest = json.loads(ruled("cat-manifest", uuid).out)
        security = {app["name"]: app["security"] for app in manifest["apps"]}
        assert next(iter(security.values()))["seccomp_digest"].startswith("sha256:")
        text = json.dumps(security, sort_keys=True, separators=(",", ":")).encode()
        assert prepared["confinement"] == f"sha256:{hashlib.sha256(text).hexdigest()}"
        ruled("rm", uuid)


def test_privileged_runs_only_where_a_rule_allows_it(under: Write):
    script = "busybox grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status"
    refused = under("")
    result = refused("run", *RELAXED, "--privileged", refused.image, "--", "true", code=120)
    assert "no rule allows it" in result.err
    granted = under(rule(privileged=True))
    out = granted.run("sh", "-c", script, options=("--privileged",)).out.split()
    status = dict(zip(out[::2], out[1::2], strict=False))
    assert int(status["CapEff:"], 16) >> 21 & 1, "CAP_SYS_ADMIN, in the pod's user namespace"
    assert status["NoNewPrivs:"] == "0"
    plain = granted.run("busybox", "grep", "^NoNewPrivs", "/proc/self/status").out.split()
    assert plain[1] == "1", "what is allowed still has to be asked for"


def test_rules_of_now_hold_for_a_pod_that_was_prepared_before(under: Write):
    command = under("")
    uuid = command("prepare", *RELAXED, "--net=host", command.image, "--", "echo", "ran").out.strip()
    denied = under(rule(network=["none"]))("run-prepared", uuid, code=120)
    assert "ran" not in denied.out
    assert "the network is host" in denied.err
    assert under("")("run-prepared", "--rm", uuid).out == "ran\n"


def test_no_entry(under: Write):
    command = under("")
    uuid = command.detach("sleep", "1000")
    try:
        result = under(rule(enter=False))("enter", uuid, "--", "echo", "in", code=120)
        assert "must not be entered" in result.err
        assert "in\n" not in result.out
        assert under("")("enter", uuid, "--", "echo", "in").out == "in\n"
    finally:
        command("stop", "--force", uuid)
        command("status", "--wait", uuid)
        command("rm", uuid)


PROFILE = """
[profile.careful]
images = ["oci:*:busybox"]
seccomp = "strict"
capabilities = ["KILL"]
read_only = true
read_only_tmpfs = true
ulimits = ["nofile=333"]
"""
SHOW = (
    "busybox grep -E '^(CapEff):' /proc/self/status; ulimit -n; touch /x 2>&1; touch /tmp/x && echo written"
)


def test_a_profile_applies_itself_by_image_and_gives_way_to_options(under: Write):
    command = under(PROFILE)
    out = command.run("sh", "-c", SHOW).out
    assert out.split()[:3] == ["CapEff:", "0000000000000020", "333"]
    assert "Read-only file system" in out
    assert out.endswith("written\n")
    wide = command.run("sh", "-c", SHOW, options=("--profile=default",)).out
    assert "00000000000404fb" in wide
    more = command.run("sh", "-c", SHOW, options=("--cap-add=CHOWN", "--ulimit=nofile=444")).out
    assert more.split()[:3] == ["CapEff:", "0000000000000021", "444"]


def test_show_explain_and_check(under: Write):
    command = under(PROFILE + rule(network=["none"]))
    shown = command("policy", "show").out
    assert "profile strict (built in)" in shown
    assert "rule org (" in shown
    assert "capabilities: CAP_KILL" in shown
    uuid = command("prepare", *RELAXED, command.image, "--cap-add=NET_RAW").out.strip()
    told = json.loads(command("policy", "explain", uuid, "--format=json").out)
    (app,) = told["apps"]
    assert (app["profile"], app["relaxations"]) == ("careful", ["capability:CAP_NET_RAW"])
    assert told["denied_now"] == []
    assert app["rules"][0].startswith("org (")
    assert "relaxations: capability:CAP_NET_RAW" in command("policy", "explain", uuid).out
    later = under(rule(allow_relaxations=[]))
    told = json.loads(later("policy", "explain", uuid, "--format=json").out)
    assert any("capability:CAP_NET_RAW" in denial["text"] for denial in told["denied_now"])
    command("rm", uuid)
    command = under(rule(network=["none"]))
    assert command("policy", "check", *RELAXED, command.image).out.endswith("allowed\n")
    command("policy", "check", *RELAXED, "--net=host", command.image, code=120)
    assert json.loads(command("list", "--format=json").out)["pods"] == [], "nothing is prepared"


def case(name: str, expect: str, *flags: str, rule: str = "") -> str:
    more = f'rule = "{rule}"\n' if rule else ""
    return (
        f'[[test]]\nname = "{name}"\nimage = "registry.example/app:1"\nexpect = "{expect}"\n'
        f"flags = {json.dumps(flags)}\n{more}"
    )


def test_a_policys_own_tests(under: Write):
    good = rule(network=["none"], capabilities=["default"])
    alone = "--net=none"
    cases = case("plain", "allow", alone) + case("host", "deny", "--net=host", rule="org")
    assert under(good + cases)("policy", "test").out.count("ok  ") == 2
    wrong = case("caps", "allow", alone, "--cap-add=SYS_ADMIN") + case("plain", "deny", alone)
    wrong += case("no such", "deny", "--x")
    result = under(good + cases + wrong)("policy", "test", code=1)
    assert result.out.count("FAIL") == 3
    assert "has CAP_SYS_ADMIN" in result.out
    assert "nothing refuses it" in result.out


def test_a_policy_that_is_not_understood_lets_nothing_run(under: Write):
    command = under('[[rule]]\nname = "x"\nnetwrok = ["none"]\n')
    result = command("run", *RELAXED, command.image, "--", "echo", "ran", code=2)
    assert "10-org.toml:3: rule.netwrok is not a known key" in result.err
    assert "ran" not in result.out


@pytest.fixture(autouse=True)
def _nothing_left(secrun: Secrun) -> Iterator[None]:
    yield
    assert json.loads(secrun("list", "--format=json").out)["pods"] == []
