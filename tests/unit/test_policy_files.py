"""Policy files: what is understood, what is refused and where the error points."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun import policyfiles
from secrun.errors import UsageError
from secrun_policies import policyfile
from secrun_policies.errors import PolicyError
from secrun_policies.rules import ReadBack

WHOLE = b"""
[profile.web]
images = ["docker.io/library/nginx*"]
labels = { tier = "front*" }
seccomp = "strict"
cap_add = ["net_admin"]
cap_drop = ["all"]
no_new_privileges = true
read_only = true
read_only_tmpfs = true
mask = ["/proc/cpuinfo"]
unmask = ["/proc/acpi"]
ulimits = ["nofile=64:128"]
memory = "64m"
cpus = "1.5"
pids_limit = 10
read_back = "strict"

[[rule]]
name = "org"
reason = "because"
except = ["registry.example/base/*"]
stage1 = ["kvm"]
network = ["none"]
accelerator = ["kvm"]
profiles = ["web"]
seccomp = ["strict"]
capabilities = ["default", "NET_ADMIN"]
allow_relaxations = ["capability:*"]
deny_relaxations = ["core-dumps:*"]
volumes = ["/srv/*"]
devices = []
limits = ["memory"]
root = false
read_only = true
no_new_privileges = true
enter = false
privileged = false
read_back = "strict"

[[test]]
name = "host network"
image = "registry.example/app:1"
flags = ["--net=host"]
labels = { tier = "front" }
expect = "deny"
rule = "org"
"""


def parse(text: str) -> policyfile.PolicyFile:
    return policyfile.parse(text.encode(), file="10-org.toml")


def test_every_key_is_read():
    file = policyfile.parse(WHOLE, file="f")
    profile, rule, case = file.profiles[0], file.rules[0], file.cases[0]
    unset = {name for name, value in profile._asdict().items() if value in (None, (), "")}
    assert unset == {"capabilities"}, "no other key may be forgotten"
    assert (profile.name, profile.cap_add, profile.read_back) == ("web", ("CAP_NET_ADMIN",), ReadBack.STRICT)
    assert all(value not in (None, "") for value in rule._asdict().values())
    assert "CAP_CHOWN" in (rule.capabilities or ())
    assert rule.select.except_images == ("registry.example/base/*",)
    assert (case.allowed, case.rule, case.flags) == (False, "org", ("--net=host",))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (
            '[[rule]]\nname="a"\n[[rule]]\nname="b"\nnetwrok=["none"]',
            r"10-org.toml:5: rule.netwrok .*known key",
        ),
        ('[profile.x]\n\nseccmp="strict"', r"10-org.toml:3: profile.x.seccmp"),
        ('[[rule]]\nnetwork=["none"]', r"10-org.toml:1: rule.name is missing"),
        ('[[rule]]\nname="a"\nnetwork=["nat"]', r"10-org.toml:3: rule.network holds 'nat'"),
        ('[[rule]]\nname="a"\nnetwork="none"', r":3: rule.network is a str, expected an array"),
        ('[[rule]]\nname="a"\nread_only=false', r":3: rule.read_only is false"),
        ('[[rule]]\nname="a"\nenter=true', r":3: rule.enter is true"),
        ('[[rule]]\nname="a"\nroot=1', r":3: rule.root is '1', expected true or false"),
        ('[[rule]]\nname="A b"', r"rule.name is 'A b'"),
        ('[[rule]]\nname="a"\ncapabilities=["FLY"]', r":3: rule.capabilities holds an unknown capability"),
        ('[[rule]]\nname="a"\nread_back="warn"', r":3: rule.read_back is warn"),
        ('[[rule]]\nname="a"\nimages=["*********"]', r"more than 8 stars"),
        ("[profile.default]", r"profile.default cannot be a profile's name"),
        ('[profile.x]\ncapabilities=[]\ncap_add=["KILL"]', r"profile.x.capabilities says exactly"),
        ("[profile.x]\npids_limit=0", r":2: profile.x.pids_limit"),
        ("[profile.x]\nlabels=3", r":2: profile.x.labels is a int"),
        ('[[test]]\nname="a"\nimage="x"\nexpect="maybe"', r":4: test.expect is 'maybe'"),
        ('[[test]]\nname="a"\nimage="x"\nexpect="allow"\nrule="r"', r":5: test.rule has no meaning"),
        ("[rules]", r"10-org.toml: rules is not a known table"),
        ('[rule]\nname="a"', r"rule is not an array"),
        ("profile=3", r"profile is not a table"),
        ("rule=[3]", r"rule is a int, expected a table"),
        ("[[rule]\n", r"10-org.toml is not TOML"),
    ],
)
def test_an_error_names_file_line_and_key(text, where):
    with pytest.raises(PolicyError, match=where) as caught:
        parse(text)
    assert caught.value.code == "policy-file"


def test_a_misspelt_key_is_told_apart():
    with pytest.raises(PolicyError) as caught:
        parse('[[rule]]\nname="a"\nnetwrok=["none"]')
    assert "network" in caught.value.hint


def test_limits_on_size():
    with pytest.raises(PolicyError, match="more than"):
        policyfile.parse(b"#" * (policyfile.MAX_BYTES + 1), file="f")
    with pytest.raises(PolicyError, match="more than 256 rules"):
        parse('[[rule]]\nname="a"\n' * 257)
    with pytest.raises(PolicyError, match="not TOML"):
        parse("a=" + "[" * 5000)


KEYS = st.sampled_from(
    [*(key for key in WHOLE.decode().split() if key.isidentifier()), "x", "profile", "rule"]
)
VALUES = st.recursive(
    st.sampled_from(['"a"', '""', "1", "-1", "true", "false", "1.5", "1979-05-27", "[]", "{}"]),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    max_leaves=4,
)
LINES = st.lists(
    st.one_of(
        st.sampled_from(["[[rule]]", "[profile.x]", "[profile.y]", "[[test]]", 'name = "n"', 'image = "i"']),
        st.tuples(KEYS, VALUES).map(" = ".join),
        st.text(max_size=12),
    ),
    max_size=12,
)


@given(LINES)
def test_any_text_is_understood_or_refused_by_name(lines):
    try:
        policyfile.parse("\n".join(lines).encode("utf-8", "surrogatepass"), file="f.toml")
    except PolicyError as error:
        assert "f.toml" in error.message  # noqa: PT017 - some texts are files


# --- the folders


def place(tmp_path: Path, name: str, **files: str) -> Path:
    folder = tmp_path / name / "policy.d"
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / f"{file}.toml").write_text(text)
    return folder.parent


def rule(name: str) -> str:
    return f'[[rule]]\nname = "{name}"\n'


def test_an_earlier_place_hides_a_name_and_names_order_the_rest(tmp_path):
    places = (
        place(tmp_path, "etc", b=rule("b-etc"), c=""),
        place(tmp_path, "usr", a=rule("a-usr"), b=rule("b-usr"), c=rule("c-usr")),
    )
    policy = policyfiles.load(places)
    assert [item.name for item in policy.rules] == ["a-usr", "b-etc"], "an empty file masks"
    assert policy.digest == policyfiles.digest(places) != ""


def test_a_link_to_nothing_masks(tmp_path):
    places = (place(tmp_path, "etc"), place(tmp_path, "usr", a=rule("a")))
    (places[0] / "policy.d" / "a.toml").symlink_to("/dev/null")
    assert policyfiles.load(places) == policyfiles.load(()), "nothing is left, nothing is digested"


def test_the_digest_is_over_names_and_contents_and_not_over_places(tmp_path):
    one = place(tmp_path, "one", a=rule("a"))
    other = place(tmp_path, "other", a=rule("a"))
    renamed = place(tmp_path, "renamed", b=rule("a"))
    assert policyfiles.digest((one,)) == policyfiles.digest((other,)) != policyfiles.digest((renamed,))
    (one / "policy.d" / "a.toml").write_text(rule("b"))
    assert policyfiles.digest((one,)) != policyfiles.digest((other,))
    assert policyfiles.digest(()) == ""


def test_one_name_in_two_files_is_refused(tmp_path):
    with pytest.raises(UsageError, match="rule a is also in"):
        policyfiles.load((place(tmp_path, "etc", x=rule("a"), y=rule("a")),))


def test_a_damaged_file_is_an_error_and_not_no_policy(tmp_path):
    places = (place(tmp_path, "etc", a="[[rule"),)
    with pytest.raises(UsageError, match="not TOML"):
        policyfiles.load(places)
    (places[0] / "policy.d" / "a.toml").unlink()
    (places[0] / "policy.d" / "a.toml").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        policyfiles.digest(places)


def test_a_profile_file_holds_one_profile(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text('[profile.x]\nseccomp = "strict"\n')
    assert policyfiles.load_profile_file(path).seccomp == "strict"
    path.write_text(rule("a"))
    with pytest.raises(UsageError, match="expected one profile"):
        policyfiles.load_profile_file(path)
    with pytest.raises(UsageError, match="No such file"):
        policyfiles.load_profile_file(tmp_path / "none")
