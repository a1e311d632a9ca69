"""Rules and profiles: what is selected, what is refused, what an app gets that says nothing."""

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import UsageError
from secrun.pod import policy as applied
from secrun.pod.request import AppRequest
from secrun.pod.security import SecurityRequest
from secrun.record import replace
from secrun.stage1.manifest import Limits
from secrun.stage1.volume import Volume
from secrun_policies.confine import Rlimit
from secrun_policies.rules import (
    STRICT,
    AppView,
    PodView,
    PolicySet,
    Profile,
    ReadBack,
    Rule,
    Selector,
    demands_strict,
    glob,
    judge,
    judge_entry,
    profile_for,
    selects,
    spellings,
)

REFERENCE = "docker://registry.example/pay/api:1"


def app(**changes) -> AppView:
    fields = {
        "name": "api",
        "reference": REFERENCE,
        "labels": (("tier", "gold"),),
        "profile": "default",
        "uid": 0,
        "capabilities": ("CAP_KILL",),
        "seccomp": "default",
        "no_new_privileges": True,
        "read_only": False,
        "privileged": False,
        "relaxations": (),
    }
    return AppView(**{**fields, **changes})


def pod(*apps: AppView, **changes) -> PodView:
    fields = {
        "flavour": "nspawn",
        "network": "none",
        "accelerator": "",
        "relaxations": (),
        "read_back": ReadBack.WARN,
        "apps": apps or (app(),),
    }
    return PodView(**{**fields, **changes})


def rule(**says) -> Rule:
    return Rule(**{"name": "r", "source": "/etc/f.toml", **says})


def refused(seen: PodView, *rules: Rule) -> list[str]:
    return [denial.text for denial in judge(PolicySet(rules=rules), seen)]


@pytest.mark.parametrize(
    ("says", "good", "bad", "text"),
    [
        ({"stage1": ("kvm",)}, pod(flavour="kvm"), pod(), "the stage1 flavour is nspawn, allowed: kvm"),
        ({"network": ("none",)}, pod(), pod(network="host"), "the network is host, allowed: none"),
        ({"accelerator": ("kvm",)}, pod(accelerator="kvm"), pod(accelerator="tcg"), "accelerator is tcg"),
        ({"accelerator": ("none",)}, pod(), pod(accelerator="tcg"), "accelerator is tcg, allowed: none"),
        ({"profiles": ("web",)}, pod(app(profile="web")), pod(), "profile default, allowed: web"),
        ({"seccomp": ("default", "strict")}, pod(), pod(app(seccomp="unconfined")), "filter unconfined"),
        ({"capabilities": ("CAP_KILL",)}, pod(), pod(app(capabilities=("CAP_FOWNER",))), "has CAP_FOWNER"),
        ({"allow_relaxations": ()}, pod(), pod(app(relaxations=("core-dumps:a",))), "allowed: none"),
        (
            {"allow_relaxations": ("capability:*",)},
            pod(app(relaxations=("capability:CAP_BPF",))),
            pod(relaxations=("network:host",)),
            "the pod has the relaxation network:host",
        ),
        (
            {"deny_relaxations": ("seccomp-*",)},
            pod(),
            pod(app(relaxations=("seccomp-unconfined:a",))),
            "seccomp",
        ),
        (
            {"volumes": ("/srv/*",)},
            pod(app(volumes=("/srv/a",))),
            pod(app(volumes=("/etc",))),
            "volume /etc",
        ),
        ({"devices": ()}, pod(), pod(app(devices=("/dev/kvm",))), "device /dev/kvm, allowed: none"),
        ({"limits": ("memory",)}, pod(app(limits=("memory",))), pod(), "no limit of memory"),
        ({"root": False}, pod(app(uid=1)), pod(), "app api runs as root"),
        ({"read_only": True}, pod(app(read_only=True)), pod(), "can write its root file system"),
        ({"no_new_privileges": True}, pod(), pod(app(no_new_privileges=False)), "may gain privileges"),
        ({"privileged": False}, pod(), pod(app(privileged=True)), "is privileged"),
        ({"read_back": ReadBack.STRICT}, pod(read_back=ReadBack.STRICT), pod(), "not read back strictly"),
    ],
)
def test_each_key_refuses_what_it_names_and_nothing_else(says, good, bad, text):
    assert refused(good, rule(**says)) == []
    granted = rule(name="g", privileged=True)
    found = refused(bad, rule(**says), granted)
    assert [text in item for item in found] == [True], found
    elsewhere = rule(**says, select=Selector(images=("other/*",)))
    assert refused(bad, elsewhere, granted) == []


def test_a_denial_names_rule_file_and_reason():
    denial = judge(PolicySet(rules=(rule(network=(), reason="why"),)), pod())[0]
    assert (denial.rule, denial.source, denial.reason) == ("r", "/etc/f.toml", "why")
    error = applied.refusal([denial])
    assert "rule r (of /etc/f.toml): the network is none" in error.message
    assert (error.exit_code, error.hint, error.code) == (120, "why", "denied-policy")


def test_privileged_needs_a_rule_that_grants_it_for_this_image():
    seen = pod(app(privileged=True))
    assert "no rule allows it" in refused(seen)[0]
    assert refused(seen, rule(privileged=True)) == []
    assert refused(seen, rule(privileged=True, select=Selector(images=("other*",))))
    assert refused(seen, rule(privileged=True), rule(name="no", privileged=False)), "a refusal wins"


def test_a_rule_about_one_app_does_not_concern_its_neighbour_but_the_pod():
    meant = Selector(images=("registry.example/pay/*",))
    other = app(name="other", reference="docker://x/y:1", read_only=False)
    both = pod(app(read_only=True), other)
    assert refused(both, rule(read_only=True, select=meant)) == []
    assert refused(both, rule(stage1=("kvm",), select=meant)), "stage1 is the pod's"


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        (REFERENCE, True),
        ("docker://*", True),
        ("registry.example/pay/api:1", True),
        ("registry.example/pay/api", True),
        ("registry.example/pay/*", True),
        ("registry.example/*", True),
        ("registry.example/pay", False),
        ("registry.example/pay/ap", False),
        ("pay/api", False),
        ("*", True),
    ],
)
def test_image_patterns(pattern, matches):
    assert selects(Selector(images=(pattern,)), REFERENCE, ()) is matches


def test_spellings_know_digests_ports_and_other_transports():
    digest = f"@sha256:{'0' * 64}"
    assert spellings(f"docker://r:5000/a/b:1{digest}")[1:] == (f"r:5000/a/b:1{digest}", "r:5000/a/b")
    assert spellings("oci:/srv/images:app")[1:] == ("/srv/images:app", "/srv/images")
    assert spellings("r:5000/a")[2] == "r:5000/a"


def test_exceptions_and_labels_narrow_a_selector():
    chosen = Selector(images=("*",), except_images=("registry.example/pay/*",))
    assert not selects(chosen, REFERENCE, ())
    assert selects(chosen, "docker://x/y:1", ())
    labelled = Selector(labels=(("tier", "g*"),))
    assert selects(labelled, REFERENCE, (("tier", "gold"),))
    assert not selects(labelled, REFERENCE, (("tier", "silver"),))
    assert not selects(labelled, REFERENCE, ())


@given(st.text(alphabet="ab*?/.[", max_size=8), st.text(alphabet="ab/.[", max_size=10))
def test_patterns_mean_what_the_shell_means_without_brackets(pattern, text):
    shell = fnmatch.translate(re.sub(r"\[", "[[]", pattern))
    assert glob(pattern, text) == bool(re.match(shell, text))


def test_entering_is_refused_where_a_rule_says_so():
    policy = PolicySet(rules=(rule(enter=False, select=Selector(images=("registry.example/*",))),))
    both = pod(app(), app(name="b", reference="docker://x/y:1"))
    assert judge_entry(policy, both, "api") is not None
    assert judge_entry(policy, both, "b") is None
    assert judge(policy, both) == (), "the pod itself may run"


def test_a_rule_makes_the_read_back_strict():
    policy = PolicySet(
        rules=(rule(read_back=ReadBack.STRICT, select=Selector(images=("registry.example/*",))),)
    )
    assert demands_strict(policy, [("docker://x/y:1", ()), (REFERENCE, ())])
    assert not demands_strict(policy, [("docker://x/y:1", ())])
    assert not demands_strict(PolicySet(rules=(rule(),)), [(REFERENCE, ())])


# --- profiles


def request(**says) -> AppRequest:
    return AppRequest(image="x", security=SecurityRequest(**says))


WEB = Profile(
    name="web",
    source="/etc/f.toml",
    select=Selector(images=("registry.example/*",)),
    seccomp="strict",
    cap_add=("CAP_NET_ADMIN",),
    cap_drop=("KILL",),
    no_new_privileges=False,
    read_only=True,
    mask=("/proc/cpuinfo",),
    unmask=("/proc/acpi",),
    ulimits=("nofile=64:128", "nproc=5"),
    memory="64m",
    cpus="2",
    pids_limit=7,
)


def test_the_first_profile_that_selects_an_image_is_taken():
    other = WEB._replace(name="other")
    policy = PolicySet(profiles=(Profile(name="named", source="f"), WEB, other))
    assert profile_for(policy, REFERENCE, ()) is WEB
    assert profile_for(policy, "docker://x/y:1", ()) is None


def test_a_profile_fills_in_what_is_not_said():
    got = applied.apply(WEB, request())
    asked = got.security
    assert (asked.profile, asked.seccomp, asked.new_privileges) == ("web", "strict", True)
    assert (asked.cap_add, asked.cap_drop) == (("CAP_NET_ADMIN",), ("CAP_KILL",))
    assert (asked.mask, asked.unmask, got.read_only) == (("/proc/cpuinfo",), ("/proc/acpi",), True)
    assert {limit.name: limit.hard for limit in asked.rlimits} == {"RLIMIT_NOFILE": 128, "RLIMIT_NPROC": 5}
    assert (got.limits.memory_bytes, got.limits.cpu_millis, got.limits.pids) == (64 << 20, 2000, 7)


def test_what_is_said_wins_over_a_profile():
    said = replace(
        request(
            seccomp="default",
            new_privileges=False,
            cap_add=("kill",),
            cap_drop=("net_admin",),
            rlimits=(Rlimit("RLIMIT_NOFILE", 1, 2),),
            mask=("/proc/acpi",),
        ),
        limits=Limits(memory_bytes=10 << 20, pids=3),
    )
    got = applied.apply(WEB, said)
    asked = got.security
    assert (asked.seccomp, asked.new_privileges) == ("default", False)
    assert (asked.cap_add, asked.cap_drop) == (("CAP_KILL",), ("CAP_NET_ADMIN",))
    assert {limit.name: limit.hard for limit in asked.rlimits} == {"RLIMIT_NOFILE": 2, "RLIMIT_NPROC": 5}
    assert (asked.mask, asked.unmask) == (("/proc/cpuinfo", "/proc/acpi"), ())
    assert (got.limits.memory_bytes, got.limits.pids) == (10 << 20, 3)


def test_exact_capabilities_of_a_profile_are_changed_by_flags():
    exact = Profile(name="p", source="f", capabilities=("CAP_KILL", "CAP_CHOWN"))
    assert applied.apply(exact, request()).security.capabilities == ("CAP_CHOWN", "CAP_KILL")
    changed = applied.apply(exact, request(cap_add=("fowner",), cap_drop=("KILL",))).security
    assert changed.capabilities == ("CAP_CHOWN", "CAP_FOWNER")
    whole = applied.apply(exact, request(cap_drop=("all",), cap_add=("kill",))).security
    assert (whole.capabilities, whole.cap_add, whole.cap_drop) == (None, ("kill",), ("all",))
    assert applied.apply(exact, request(capabilities=("CAP_BPF",))).security.capabilities == ("CAP_BPF",)


def test_a_profile_does_not_take_back_what_privileged_asks_for():
    asked = applied.apply(WEB, request(privileged=True)).security
    assert (asked.seccomp, asked.cap_drop, asked.mask) == (None, (), ())


def test_profiles_by_name():
    policy = PolicySet(profiles=(WEB,))
    choose = applied.choose
    assert choose(policy, request(), REFERENCE, ()) is WEB
    assert choose(policy, request(profile="default"), REFERENCE, ()) is None
    assert choose(policy, request(profile="strict"), REFERENCE, ()) is STRICT
    assert choose(policy, request(profile="web"), "docker://x/y:1", ()) is WEB
    with pytest.raises(UsageError, match="no profile 'wbe'") as caught:
        choose(policy, request(profile="wbe"), REFERENCE, ())
    assert "web" in caught.value.hint


def test_a_profile_with_a_value_that_has_no_meaning_names_itself():
    with pytest.raises(UsageError, match=r"profile web of /etc/f.toml: --memory 1m"):
        applied.apply(WEB._replace(memory="1m"), request())


def test_a_read_only_app_gets_folders_in_memory_where_nothing_else_lies():
    volume = Volume(source="/s", target="/run", read_only=False)
    got = replace(applied.apply(STRICT, request()), volumes=(volume,))
    assert [item.target for item in applied.writable_folders(got)] == ["/tmp", "/var/tmp"]
    with pytest.raises(UsageError, match="without --read-only"):
        applied.writable_folders(request(read_only_tmpfs=True))
