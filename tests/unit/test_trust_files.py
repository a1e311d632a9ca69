"""Key ring, rules and private keys: what they mean, and that nothing in any file is guessed."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun import dockername
from secrun.errors import DeniedError, UsageError
from secrun.image import lookaside, registriesconf
from secrun.trust import plan as plans
from secrun.trust import policy, privatekey, ring, rules
from secrun.trust.admission import Subject
from secrun.trust.requirement import RequirementType
from secrun.trust.ring import KeyRing
from support import signing

REJECT = [{"type": "reject"}]
ACCEPT = [{"type": "insecureAcceptAnything"}]
FINGERPRINT = "ab" * 20


def subject(name):
    parsed = dockername.parse(name)
    scopes = (str(parsed), *dockername.parents(parsed.repository), *dockername.wildcards(parsed.domain))
    return Subject(name=f"docker://{name}", transport="docker", scopes=scopes, docker=parsed)


def put(folder, *where, fingerprint=FINGERPRINT, data=b"-----BEGIN PUBLIC KEY-----"):
    path = Path(folder, *where, fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# The key ring.


def test_a_key_counts_for_its_prefix_and_what_is_below_it(tmp_path):
    key = put(tmp_path, "prefix.d/r.example/team")
    found = KeyRing(tmp_path)
    for name in ("r.example/team:1", "r.example/team/app:1", "r.example/team/app/x:1"):
        prefix, keys = found.for_name(dockername.parse(name).repository)
        assert (prefix, [item.path for item in keys]) == ("r.example/team", [key])
    for name in ("r.example/team2:1", "r.example/other:1", "other.example/team:1", "r.example:5000/team:1"):
        assert found.for_name(dockername.parse(name).repository) == ("", [])


def test_keys_of_every_level_count_and_root_keys_for_all(tmp_path):
    paths = [
        put(tmp_path, "prefix.d/r.example/team/app", fingerprint="11" * 20),
        put(tmp_path, "prefix.d/r.example", fingerprint="22" * 20),
        put(tmp_path, "root.d", fingerprint="33" * 20),
    ]
    prefix, keys = KeyRing(tmp_path).for_name(dockername.parse("r.example/team/app:1").repository)
    assert prefix == "r.example/team/app"
    assert [item.path for item in keys] == paths
    assert [item.prefix for item in KeyRing(tmp_path).all()] == ["", "r.example", "r.example/team/app"]


def planned(tmp_path, document, name="r.example/team/app:1"):
    parsed = policy.parse(json.dumps(document).encode(), source="/policy.json")
    context = plans.TrustContext(policy=parsed, ring=KeyRing(tmp_path))
    return context.plan(subject(name))


@pytest.mark.parametrize(
    ("scopes", "by_ring"),
    [
        ({}, True),
        ({"": REJECT}, True),
        ({"r.example": ACCEPT}, True),
        ({"*.example": ACCEPT}, True),
        ({"r.example/team": REJECT}, False),
        ({"r.example/team/app": ACCEPT}, False),
        ({"r.example/team/app:1": ACCEPT}, False),
    ],
)
def test_the_more_specific_of_ring_and_policy_decides_and_the_policy_at_the_same_scope(
    tmp_path, scopes, by_ring
):
    put(tmp_path, "prefix.d/r.example/team")
    found = planned(tmp_path, {"default": REJECT, "transports": {"docker": scopes}})
    kinds = {item.type for item in found.requirements}
    assert (kinds == {RequirementType.KEY_RING}) == by_ring
    assert planned(tmp_path, {"default": ACCEPT}, "other.example/x:1").scope == "default"


@pytest.mark.parametrize(
    ("default", "scopes", "by_ring"),
    [(REJECT, {}, True), (ACCEPT, {}, True), (REJECT, {"": ACCEPT}, False)],
)
def test_keys_for_any_image_stand_where_the_policy_has_only_its_default(tmp_path, default, scopes, by_ring):
    put(tmp_path, "root.d")
    found = planned(tmp_path, {"default": default, "transports": {"docker": scopes}})
    assert (found.requirements[0].type is RequirementType.KEY_RING) == by_ring


def test_a_ring_that_cannot_be_read_denies(tmp_path):
    path = put(tmp_path, "root.d")
    path.write_bytes(b"x" * (5 << 20))
    with pytest.raises(DeniedError) as caught:
        planned(tmp_path, {"default": ACCEPT})
    assert caught.value.code == "denied-policy-key"
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    "text", ["r.example", "r.example:5000", "localhost", "r.example/a/b", "docker.io/library/x"]
)
def test_a_prefix_is_a_name_in_full(text):
    assert ring.check_prefix(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "busybox",
        "https://r.example/x",
        "r.example/x:1",
        "r.example/X",
        "r.example/../x",
        "docker.io/x",
        "/x",
    ],
)
def test_anything_else_is_no_prefix(text):
    with pytest.raises(UsageError) as caught:
        ring.check_prefix(text)
    assert caught.value.code == "usage-prefix"


# Rules.


def parsed_rules(text):
    return rules.parse(tomllib.loads(text), "/etc/secrun/trust.toml")


REQUIRE = '[[rule]]\nscope = "default"\n[[rule.require]]\n'


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "[rule]",
        "rule = [1]",
        "[[rule]]",
        '[[rule]]\nscope = "r.example"',
        '[[rule]]\nscope = "default"\nx = 1',
        '[[rule]]\nscope = "default"\nbundle-identity = "name"',
        '[[rule]]\nscope = "default"\nmax-age = "0d"',
        '[[rule]]\nscope = "default"\nmax-age = 90',
        '[[rule]]\nscope = "default"\nmax-age = "9w"',
        '[[rule]]\nscope = "default"\ninstead = true',
        '[[rule]]\nscope = "default"\nstage1 = [1]',
        REQUIRE,
        f'{REQUIRE}type = "cosign"',
        f'{REQUIRE}type = "bundle"',
        f'{REQUIRE}type = "bundle"\nkey = "relative"',
        f'{REQUIRE}type = "bundle"\nkey = "/k"\ntrusted-root = "/r"\nissuer = "i"\nidentity = "a"',
        f'{REQUIRE}type = "bundle"\ntrusted-root = "/r"\nissuer = "i"',
        f'{REQUIRE}type = "bundle"\ntrusted-root = "/r"\nidentity = "i"',
        f'{REQUIRE}type = "notation"\nidentity = "*"',
        f'{REQUIRE}type = "notation"\ntrust-store = "/s"',
        f'{REQUIRE}type = "notation"\ntrust-store = "/s"\nidentity = "CN=x"',
        f'{REQUIRE}type = "notation"\ntrust-store = "/s"\nidentity = "x509.subject: C=US, O=x"',
        f'{REQUIRE}type = "notation"\ntrust-store = "s"\nidentity = "*"',
    ],
)
def test_rules_that_are_not_understood_are_refused_as_a_whole(text):
    with pytest.raises(UsageError) as caught:
        parsed_rules(text)
    assert caught.value.code == "usage-trust-rules"
    assert "/etc/secrun/trust.toml" in caught.value.message


def test_the_most_specific_rule_counts(tmp_path):
    text = "".join(
        f'[[rule]]\nscope = "{scope}"\n' for scope in ("default", "docker:", "docker:r.example/team")
    )
    parsed = tuple(parsed_rules(text))
    context = plans.TrustContext(
        policy=policy.parse(json.dumps({"default": ACCEPT}).encode(), source="/p"),
        ring=KeyRing(tmp_path),
        rules=parsed,
    )
    assert context.plan(subject("r.example/team/app:1")).rule.scope == "docker:r.example/team"
    assert context.plan(subject("other.example/app:1")).rule.scope == "docker:"
    file = Subject(name="oci:/x", transport="oci", scopes=("/x",))
    assert context.plan(file).rule.scope == "default"


def test_rules_are_read_from_the_ring_and_from_drop_ins_and_never_twice(tmp_path):
    (tmp_path / "ring").mkdir()
    (tmp_path / "etc/trust.toml.d").mkdir(parents=True)
    (tmp_path / "ring/trust.toml").write_text('[[rule]]\nscope = "docker:a.example"\nstage1 = "kvm"\n')
    (tmp_path / "etc/trust.toml.d/b.toml").write_text('[[rule]]\nscope = "docker:b.example"\n')
    found = rules.load(tmp_path / "ring", (tmp_path / "etc",))
    assert [item.scope for item in found] == ["docker:a.example", "docker:b.example"]
    (tmp_path / "etc/trust.toml.d/c.toml").write_text('[[rule]]\nscope = "docker:a.example"\n')
    with pytest.raises(UsageError, match="too"):
        rules.load(tmp_path / "ring", (tmp_path / "etc",))


def test_a_rule_may_allow_some_flavours_of_stage1_only(tmp_path):
    parsed = tuple(parsed_rules('[[rule]]\nscope = "default"\nstage1 = ["kvm"]\n'))
    context = plans.TrustContext(
        policy=policy.parse(json.dumps({"default": ACCEPT}).encode(), source="/p"),
        ring=KeyRing(tmp_path),
        rules=parsed,
    )
    found = context.plan(subject("r.example/x:1"))
    plans.check_stage1(found, "kvm")
    plans.check_stage1(found, "")
    with pytest.raises(DeniedError) as caught:
        plans.check_stage1(found, "nspawn")
    assert caught.value.exit_code == 120
    assert "--stage1=kvm" in caught.value.hint


def test_a_rule_instead_of_the_policy_stands_alone(tmp_path):
    text = f'{REQUIRE}type = "bundle"\nkey = "/k"\n'.replace('"default"\n', '"default"\ninstead = true\n', 1)
    context = plans.TrustContext(
        policy=policy.parse(json.dumps({"default": REJECT}).encode(), source="/p"),
        ring=KeyRing(tmp_path),
        rules=tuple(parsed_rules(text)),
    )
    found = context.plan(subject("r.example/x:1"))
    assert found.requirements == ()
    assert found.asks_for_signatures
    assert plans.unsigned(found).decision == "reject"


# Whatever is written there.

TREES = st.recursive(
    st.booleans()
    | st.integers()
    | st.sampled_from(["", "default", "docker:", "r.example", "*.x", "bundle", "/k", "1d"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "rule",
                    "scope",
                    "require",
                    "type",
                    "key",
                    "registry",
                    "prefix",
                    "location",
                    "mirror",
                    "aliases",
                    "docker",
                    "default-docker",
                    "lookaside",
                    "identity",
                    "trust-store",
                    "max-age",
                    "stage1",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
)


@given(
    st.dictionaries(
        st.sampled_from(["rule", "registry", "aliases", "docker", "default-docker"]), TREES, max_size=2
    )
)
def test_any_table_is_understood_or_a_usage_error(tree):
    for parse in (
        lambda: rules.parse(tree, "/x"),
        lambda: registriesconf.parse(tree, "/x"),
        lambda: lookaside.parse(json.dumps(tree).encode(), "/x"),
    ):
        try:
            parse()
        except UsageError:
            continue


@given(st.binary(max_size=60) | st.text(alphabet="{}[]:-&*!#|> \n'\"ab", max_size=40).map(str.encode))
def test_any_bytes_are_sections_or_a_usage_error(data):
    try:
        lookaside.parse(data, "/x")
    except UsageError:
        return


# Private keys.


@pytest.mark.parametrize("passphrase", [b"", b"secret"])
def test_a_key_is_written_and_read_back(passphrase):
    key = privatekey.generate()
    data = key.private_pem(passphrase)
    assert (b"ENCRYPTED" in data) == bool(passphrase)
    found = privatekey.load(data, passphrase, source="k")
    assert found.fingerprint == key.fingerprint
    with pytest.raises(UsageError) as caught:
        privatekey.load(data, b"wrong", source="k")
    assert "wrong" not in caught.value.message.replace("passphrase is wrong", "")


def test_cosigns_own_form_is_read():
    key = signing.new_key()
    data = signing.cosign_box(key, b"secret")
    found = privatekey.load(data, b"secret", source="k")
    assert found.public_pem == signing.public_pem(key)
    with pytest.raises(UsageError, match="passphrase is wrong"):
        privatekey.load(data, b"other", source="k")


@given(st.binary(max_size=100))
def test_any_bytes_are_a_key_or_a_usage_error(data):
    for text in (data, b"-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----\n" + data):
        with pytest.raises(UsageError):
            privatekey.load(text, b"x", source="k")
