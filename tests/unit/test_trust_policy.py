"""Trust policies: the most specific scope decides, and what is not understood admits nothing."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import DeniedError, UsageError
from secrun.image import identity
from secrun.image.reference import FileReference, RegistryReference, localize
from secrun.image.reference import parse as parse_reference
from secrun.trust import plan as plans
from secrun.trust.admission import Decision, Subject, require
from secrun.trust.policy import parse
from secrun.trust.ring import KeyRing

ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
SIGNED = [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]
SIGSTORE = [{"type": "sigstoreSigned", "keyData": "AAAA", "signedIdentity": {"type": "matchRepository"}}]

FULCIO = {"caPath": "/ca", "oidcIssuer": "https://issuer.example", "subjectEmail": "alice@x.example"}
REKOR = {"rekorPublicKeyPath": "/rekor"}
PKI = {"caRootsPath": "/ca", "subjectHostname": "build.example"}
REMAP = {"type": "remapIdentity", "prefix": "a.example", "signedPrefix": "b.example/x"}


def policy(document):
    return parse(json.dumps(document).encode(), source="/policy.json")


def judge(document, text):
    reference = localize(parse_reference(text))
    assert isinstance(reference, RegistryReference | FileReference)
    context = plans.TrustContext(policy=policy(document), ring=KeyRing(Path("/no/such/ring")))
    return plans.unsigned(context.plan(identity.subject(reference)))


SCOPES = [
    "r.a.example:5000/x/y:1",
    "r.a.example:5000/x/y",
    "r.a.example:5000/x",
    "r.a.example:5000",
    "*.a.example",
    "*.example",
    "",
]


@pytest.mark.parametrize("winner", range(len(SCOPES)))
def test_the_most_specific_scope_decides(winner):
    scopes = dict.fromkeys(SCOPES[winner + 1 :], REJECT) | {SCOPES[winner]: ACCEPT}
    found = judge({"default": REJECT, "transports": {"docker": scopes}}, "r.a.example:5000/x/y:1")
    assert found.decision is Decision.ACCEPT
    assert found.scope == f"docker:{SCOPES[winner]}"
    assert found.requirement_types == ("insecureAcceptAnything",)
    turned = dict.fromkeys(SCOPES[winner + 1 :], ACCEPT) | {SCOPES[winner]: REJECT}
    found = judge({"default": ACCEPT, "transports": {"docker": turned}}, "r.a.example:5000/x/y:1")
    assert found.decision is Decision.REJECT


@pytest.mark.parametrize(
    "scope",
    [
        "r.a.example:5000/x/y:2",
        "r.a.example:5000/x/yy",
        "r.a.example",
        "a.example",
        "*.r.a.example",
        "*.b.example",
    ],
)
def test_other_scopes_do_not_apply(scope):
    found = judge({"default": REJECT, "transports": {"docker": {scope: ACCEPT}}}, "r.a.example:5000/x/y:1")
    assert (found.decision, found.scope) == (Decision.REJECT, "default")


def test_docker_hub_is_judged_by_its_full_name():
    document = {"default": REJECT, "transports": {"docker": {"docker.io/library/busybox": ACCEPT}}}
    assert judge(document, "docker://busybox").decision is Decision.ACCEPT


def test_layouts_are_judged_by_path(tmp_path):
    document = {"default": REJECT, "transports": {"oci": {str(tmp_path): ACCEPT}}}
    assert judge(document, f"oci:{tmp_path}/deep/layout:tag").decision is Decision.ACCEPT
    assert judge(document, f"oci-archive:{tmp_path}/x.tar").decision is Decision.REJECT
    assert judge(document, f"oci:{tmp_path}x:tag").decision is Decision.REJECT


@pytest.mark.parametrize("requirements", [SIGNED, SIGSTORE, ACCEPT + SIGNED])
def test_what_must_be_signed_is_never_admitted_without_a_look_at_signatures(requirements):
    assert judge({"default": requirements}, "r.example/x").decision is Decision.REJECT


def test_all_requirements_must_hold():
    assert judge({"default": ACCEPT + REJECT}, "r.example/x").decision is Decision.REJECT


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"default": []},
        {"default": {}},
        {"default": ["reject"]},
        {"default": REJECT, "extra": 1},
        {"default": REJECT, "transports": []},
        {"default": REJECT, "transports": None},
        {"default": REJECT, "transports": {"dockre": {}}},
        {"default": REJECT, "transports": {"docker": []}},
        {"default": REJECT, "transports": {"docker": {"": []}}},
        {"default": REJECT, "transports": {"docker": {"a*.example": ACCEPT}}},
        {"default": REJECT, "transports": {"docker": {"*.example/x": ACCEPT}}},
        {"default": REJECT, "transports": {"oci": {"relative": ACCEPT}}},
        {"default": REJECT, "transports": {"oci": {"/": ACCEPT}}},
        {"default": REJECT, "transports": {"oci": {"/a/../b": ACCEPT}}},
        {"default": REJECT, "transports": {"docker-archive": {"/a": ACCEPT}}},
        {"default": [{"type": "acceptAnything"}]},
        {"default": [{"type": "reject", "why": "x"}]},
        {"default": [{}]},
        {"default": [{"type": "signedBy", "keyPath": "/k"}]},
        {"default": [{"type": "signedBy", "keyType": "X", "keyPath": "/k"}]},
        {"default": [{"type": "signedBy", "keyType": "GPGKeys"}]},
        {"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k", "keyData": "AAAA"}]},
        {"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyData": "!"}]},
        {"default": [{"type": "sigstoreSigned", "keyPath": "/k", "fulcio": {}}]},
        {"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyDatas": ["AAAA"]}]},
        {"default": [{"type": "sigstoreSigned", "keyPath": "/k", "keyDatas": ["AAAA"]}]},
        {"default": [{"type": "sigstoreSigned", "keyPaths": []}]},
        {"default": [{"type": "sigstoreSigned", "keyPaths": [1]}]},
        {"default": [{"type": "sigstoreSigned", "rekorPublicKeyPath": "/k"}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": FULCIO}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": FULCIO, **REKOR, "keyPath": "/k"}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": {**FULCIO, "caData": "AAAA"}, **REKOR}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": {**FULCIO, "oidcIssuer": ""}, **REKOR}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": {**FULCIO, "x": 1}, **REKOR}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": FULCIO, **REKOR, "rekorPublicKeyData": "AAAA"}]},
        {"default": [{"type": "sigstoreSigned", "pki": {"caRootsPath": "/ca"}}]},
        {"default": [{"type": "sigstoreSigned", "pki": {"subjectEmail": "a@x"}}]},
        {"default": [{"type": "sigstoreSigned", "pki": {**PKI, "caRootsData": "AAAA"}}]},
        {"default": [{**SIGSTORE[0], "signedIdentity": {"type": "exactReference", "dockerReference": "x"}}]},
        {
            "default": [
                {**SIGSTORE[0], "signedIdentity": {"type": "exactRepository", "dockerRepository": "x:1"}}
            ]
        },
        {"default": [{**SIGSTORE[0], "signedIdentity": {"type": "remapIdentity", "prefix": "a.example"}}]},
        {"default": [{**SIGSTORE[0], "signedIdentity": {**REMAP, "prefix": "library/busybox"}}]},
        {"default": [{**SIGSTORE[0], "signedIdentity": {**REMAP, "signedPrefix": "a.example/x:1"}}]},
        {"default": [{**SIGSTORE[0], "signedIdentity": {"type": "matchAll"}}]},
        {"default": [{**SIGSTORE[0], "signedIdentity": {"type": "exactReference"}}]},
        {"default": [{**SIGSTORE[0], "signedIdentity": {"type": "matchExact", "prefix": "x"}}]},
    ],
)
def test_what_is_not_understood_rejects_the_whole_file(document):
    with pytest.raises(UsageError) as caught:
        policy(document)
    assert caught.value.code == "usage-policy"
    assert "/policy.json" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "materials"),
    [
        ({"keyPath": "/k"}, ["/k"]),
        ({"keyPaths": ["/k", "/l"]}, ["/k", "/l"]),
        ({"keyData": "AAAA"}, [b"\0\0\0"]),
        ({"keyDatas": ["AAAA", "AAAB"]}, [b"\0\0\0", b"\0\0\1"]),
        ({"fulcio": FULCIO, **REKOR}, ["/rekor", "/ca"]),
        ({"pki": {**PKI, "caIntermediatesData": "AAAA"}}, ["/ca", b"\0\0\0"]),
        ({"keyPath": "/k", "rekorPublicKeyDatas": ["AAAA"], "signedIdentity": REMAP}, ["/k", b"\0\0\0"]),
    ],
)
def test_every_form_of_sigstore_requirements_is_read(fields, materials):
    (found,) = policy({"default": [{"type": "sigstoreSigned", **fields}]}).default
    assert [item.path or item.data for item in found.materials] == materials


@pytest.mark.parametrize("data", [b"", b"[]", b'{"default": [], "default": []}', b"\xff", b"[" * 100_000])
def test_what_is_not_json_rejects_the_file(data):
    with pytest.raises(UsageError):
        parse(data, source="/policy.json")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["", "reject", "insecureAcceptAnything", "/x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["default", "transports", "docker", "oci", "type", ""]), inner, max_size=3
        )
    ),
)


@given(JSON)
def test_any_document_is_a_policy_or_a_usage_error(document):
    try:
        found = policy({"default": REJECT, "transports": document})
    except UsageError:
        return
    assert found.default


@given(st.permutations([("docker.io", ACCEPT), ("docker.io/library", REJECT), ("", ACCEPT)]))
def test_the_order_of_scopes_does_not_matter(scopes):
    document = {"default": ACCEPT, "transports": {"docker": dict(scopes)}}
    assert judge(document, "docker://busybox").decision is Decision.REJECT


def test_without_any_policy_nothing_is_admitted(tmp_path):
    found = plans.read_policy(None, defaults=(tmp_path / "a", tmp_path / "b"))
    context = plans.TrustContext(policy=found, ring=KeyRing(tmp_path / "ring"))
    subject = Subject(name="docker://r.example/x:1", transport="docker", scopes=("r.example/x:1",))
    with pytest.raises(DeniedError) as caught:
        require(plans.unsigned(context.plan(subject)), subject)
    assert caught.value.exit_code == 120
    assert caught.value.code == "denied-no-policy"
    for word in ("containers-policy.json", "secrun trust add"):
        assert word in caught.value.hint


def test_the_first_policy_that_exists_counts_even_if_it_is_broken(tmp_path):
    (tmp_path / "b").write_text(json.dumps({"default": REJECT}))
    assert plans.read_policy(None, defaults=(tmp_path / "a", tmp_path / "b")).source == str(tmp_path / "b")
    (tmp_path / "a").write_text("{")
    with pytest.raises(UsageError):
        plans.read_policy(None, defaults=(tmp_path / "a", tmp_path / "b"))


def test_a_named_policy_must_exist(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        plans.read_policy(tmp_path / "none")


@pytest.mark.parametrize("content", ["{", '{"default": [], "default": []}', None])
def test_a_policy_that_cannot_be_used_denies_and_names_image_and_file(tmp_path, content):
    path = tmp_path / "policy.json"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    subject = Subject(name="docker://r.example/x:1", transport="docker", scopes=())
    with pytest.raises(DeniedError) as caught:
        plans.load_for(subject, path, tmp_path / "ring")
    assert caught.value.exit_code == 120
    assert "docker://r.example/x:1" in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_denial_names_image_policy_and_scope():
    document = {"default": ACCEPT, "transports": {"docker": {"r.example": REJECT}}}
    reference = parse_reference("r.example/x:1")
    assert isinstance(reference, RegistryReference)
    with pytest.raises(DeniedError) as caught:
        require(judge(document, "r.example/x:1"), identity.subject(reference))
    assert caught.value.code == "denied-image"
    for word in ("docker://r.example/x:1", "/policy.json", "docker:r.example", "rejects"):
        assert word in caught.value.message
