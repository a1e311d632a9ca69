"""Signed policies: who signed what counts, nothing old comes back, and layers make one policy."""

import base64
import hashlib
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from secrun_attest import dsse
from secrun_attest.dsse import DsseError, Envelope, Signed
from secrun_attest.policy import parse_policy
from secrun_attest.policyfile import PAYLOAD_TYPE, PolicyFileError, open_policies, open_policy, sign_policy
from secrun_attest.verify import Status, appraise
from support.attest_bench import IMAGE, NOW, policy, raw_of, session, usual_host
from support.policies import LAYERS, document, ed, layer, layered, p256, pem_of, public_pem_of

SIGNER, TRUSTED = p256()
ED_SIGNER, ED_TRUSTED = ed()
KEYS = (TRUSTED, ED_TRUSTED)


def opened(*files, keys=KEYS, signed=True, now=NOW, minimums=None):
    return open_policies(files, keys, require_signature=signed, now=now, minimums=minimums or {})


def code_of(*files, **arguments):
    with pytest.raises(PolicyFileError) as caught:
        opened(*files, **arguments)
    assert caught.value.code.startswith("policy-")
    return caught.value.code


@pytest.mark.parametrize("signer", [SIGNER, ED_SIGNER])
def test_a_signed_policy_is_the_policy_that_was_signed(signer):
    found = open_policy(sign_policy(document(), signer), KEYS, require_signature=True, now=NOW)
    plain = parse_policy(document())
    assert found.policy == plain
    assert found.policy.digest == hashlib.sha256(document()).digest()
    assert found.parts[0].signers == (signer.id,)


def test_the_examples_of_the_dsse_specification_hold():
    # protocol.md of secure-systems-lab/dsse, test vectors: r and s joined, no key id.
    public = ec.EllipticCurvePublicNumbers(
        46950820868899156662930047687818585632848591499744589407958293238635476079160,
        5640078356564379163099075877009565129882514886557779369047442380624545832820,
        ec.SECP256R1(),
    ).public_key()
    signature = "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
    kind = "http://example.com/HelloWorld"
    text = {"payload": "aGVsbG8gd29ybGQ=", "payloadType": kind, "signatures": [{"sig": signature}]}
    envelope = dsse.parse_envelope(json.dumps(text).encode(), what="example", limit=1000)
    assert dsse.pae(kind, envelope.payload) == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    info = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = dsse.load_public_key(info, what="example")
    assert dsse.verify(envelope, kind, [key]) == (key.id,)
    with pytest.raises(DsseError):
        dsse.verify(replace(envelope, payload=b"hello worle"), kind, [key])


def test_the_encoding_counts_bytes_and_cannot_be_split_elsewhere():
    assert dsse.pae("\u00e9", b"\xff\0") == b"DSSEv1 2 \xc3\xa9 2 \xff\0"
    assert dsse.pae("a b", b"c") != dsse.pae("a", b"b c")


def test_a_key_id_is_the_digest_of_the_public_key():
    key = ec.generate_private_key(ec.SECP256R1())
    info = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    expected = hashlib.sha256(info).hexdigest()
    assert dsse.load_public_key(public_pem_of(key), what="key").id == expected
    assert dsse.load_signing_key(pem_of(key), what="key").id == expected


def test_only_trusted_keys_count():
    signed = sign_policy(document(), p256()[0])
    assert code_of(signed) == "policy-signature"
    assert code_of(signed, keys=()) == "policy-key"
    # Whoever claims another key's id gains nothing.
    stolen = json.loads(signed)
    stolen["signatures"][0]["keyid"] = TRUSTED.id
    assert code_of(json.dumps(stolen).encode()) == "policy-signature"
    stolen["signatures"] = []
    assert code_of(json.dumps(stolen).encode()) == "policy-signature"


def test_one_good_signature_among_others_is_enough_and_an_id_is_only_a_hint():
    first, second = (
        json.loads(sign_policy(document(), p256()[0])),
        json.loads(sign_policy(document(), SIGNER)),
    )
    del second["signatures"][0]["keyid"]
    first["signatures"] += second["signatures"]
    assert opened(json.dumps(first | {"new": 1}).encode()).parts[0].signers == (TRUSTED.id,)


def test_every_changed_byte_of_the_payload_shows():
    signed = json.loads(sign_policy(document(), SIGNER))
    payload = base64.b64decode(signed["payload"])
    for at in (0, 10, len(payload) // 2, len(payload) - 1):
        changed = bytearray(payload)
        changed[at] ^= 1
        bent = signed | {"payload": base64.b64encode(changed).decode()}
        assert code_of(json.dumps(bent).encode()) == "policy-signature"


def test_a_signature_over_another_type_is_none():
    other = dsse.sign(document(), "application/json", SIGNER)
    assert code_of(other) == "policy-type"
    relabelled = json.loads(other) | {"payloadType": PAYLOAD_TYPE}
    assert code_of(json.dumps(relabelled).encode()) == "policy-signature"


def test_either_alphabet_of_base64_is_read():
    signed = json.loads(sign_policy(document(id="\u00ff\u00fe?>~"), SIGNER))
    payload = signed["payload"].rstrip("=").translate(str.maketrans("+/", "-_"))
    signature = signed["signatures"][0]["sig"].translate(str.maketrans("+/", "-_"))
    signed["payload"], signed["signatures"][0]["sig"] = payload, signature
    assert opened(json.dumps(signed).encode()).policy.id == "\u00ff\u00fe?>~"


def test_an_unsigned_policy_needs_to_be_asked_for():
    assert code_of(document()) == "policy-unsigned"
    assert opened(document(), keys=(), signed=False).parts[0].signers == ()
    # Leave to read unsigned policies is no leave to skip a signature.
    assert code_of(sign_policy(document(), p256()[0]), signed=False) == "policy-signature"


@pytest.mark.parametrize(("now", "code"), [(NOW - 1001, "policy-early"), (NOW + 1000, "policy-expired")])
def test_a_policy_counts_in_its_time(now, code):
    assert code_of(sign_policy(document(), SIGNER), now=now) == code


def test_an_old_version_does_not_come_back():
    second = opened(sign_policy(document(version=2), SIGNER))
    assert second.minimums == {"base:test": 2}
    assert code_of(sign_policy(document(), SIGNER), minimums=second.minimums) == "policy-rollback"
    # The new version may say how far back is still good.
    wide = opened(sign_policy(document(version=3, min_version=1), SIGNER))
    assert opened(sign_policy(document(), SIGNER), minimums=wide.minimums).policy.version == 1
    assert code_of(document(min_version=2), signed=False) == "policy-format"


def test_layers_of_different_signers_make_one_policy():
    base = sign_policy(layered(), SIGNER)
    parts = [sign_policy(layer(name), ED_SIGNER) for name in LAYERS]
    found = opened(base, *parts)
    assert replace(found.policy, digest=b"", not_before=0, not_after=0) == replace(
        policy(), digest=b"", not_before=0, not_after=0
    )
    assert (found.policy.not_before, found.policy.not_after) == (NOW - 100, NOW + 100)
    assert [part.layer for part in found.parts] == ["base", *LAYERS]
    assert opened(*reversed(parts), base) == found
    host = usual_host()
    assert appraise(host.evidence(), session(host), found.policy, None, NOW).status is Status.AFFIRMING


def test_the_digest_covers_every_layer():
    def digest(**changes):
        workload = layer("workload", **changes)
        return opened(layered(), layer("platform"), layer("runtime"), workload, signed=False).policy.digest

    assert digest() == digest()
    assert len({digest(), digest(version=2), digest(not_after=NOW + 99)}) == 3


def test_a_base_may_hold_some_layers_itself():
    found = opened(layered(without=("workload",)), layer("workload"), signed=False)
    assert raw_of(IMAGE) in found.policy.workload.manifests


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([], "policy-layer-missing"),
        ([layer("workload")], "policy-layer-missing"),
        ([layered(), layer("platform"), layer("runtime")], "policy-layer-missing"),
        ([layered(without=("workload",)), layer("workload", id="of another")], "policy-layer-missing"),
        ([layered(without=("workload",)), layer("workload"), layer("workload")], "policy-layer-twice"),
        ([document(), document()], "policy-layer-twice"),
        ([document(), layer("workload")], "policy-layer-twice"),
        ([document(layers={"workload": {"id": "x", "min_version": 0}})], "policy-layer-twice"),
        ([layered(without=("workload",), minimum=2), layer("workload")], "policy-rollback"),
        ([layered(without=("workload",)), layer("workload", not_after=NOW)], "policy-expired"),
        ([layered(without=("workload",)), layer("workload", runtime={})], "policy-format"),
        ([layered(without=("workload",)), layer("workload", workload={})], "policy-format"),
        ([layer("policy")], "policy-format"),
        ([layer("base")], "policy-format"),
        ([document(layers={"disk": {"id": "x", "min_version": 0}})], "policy-format"),
        ([document(v=2)], "policy-format"),
        ([b"{"], "policy-format"),
        ([b"[]"], "policy-format"),
        ([b'{"payloadType": 1}'], "policy-format"),
        ([b'{"payloadType": "x", "payload": "*", "signatures": []}'], "policy-format"),
    ],
)
def test_documents_that_do_not_fit_together_are_refused(files, code):
    assert code_of(*files, signed=False) == code


def test_a_layer_left_out_and_named_nowhere_is_no_policy():
    body = json.loads(layered(without=("workload",)))
    del body["layers"]
    assert code_of(json.dumps(body).encode(), signed=False) == "policy-format"


@pytest.mark.parametrize("bad", [b"{}", layer("workload", workload={}), document(bank="sha1")])
def test_what_is_no_policy_is_not_signed(bad):
    with pytest.raises(PolicyFileError):
        sign_policy(bad, SIGNER)


def protected() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"x" * 100_000,
        protected,
        lambda: public_pem_of(ed25519.Ed25519PrivateKey.generate()),
        lambda: pem_of(ec.generate_private_key(ec.SECP384R1())),
        lambda: pem_of(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ],
)
def test_only_private_keys_of_the_two_kinds_sign(make):
    with pytest.raises(DsseError) as caught:
        dsse.load_signing_key(make(), what="k.pem")
    assert (caught.value.code, "k.pem" in caught.value.message) == ("dsse-key", True)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
    ],
)
def test_only_public_keys_of_the_two_kinds_verify(key):
    with pytest.raises(DsseError):
        dsse.load_public_key(public_pem_of(key), what="k.pem")
    with pytest.raises(DsseError):
        dsse.load_public_key(pem_of(key), what="k.pem")


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_parser(data):
    with pytest.raises(PolicyFileError):
        opened(data, signed=False)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
MEMBERS = st.sampled_from([*json.loads(layered()), *LAYERS, "layer", "min_version", "payloadType", "x_note"])


@given(MEMBERS, JSON)
def test_a_member_of_any_other_kind_is_refused_or_means_something(name, value):
    text = json.dumps(json.loads(document()) | {name: value}).encode()
    try:
        found = opened(text, signed=False)
    except PolicyFileError:
        return
    assert found.policy.digest == hashlib.sha256(text).digest()


@given(st.text(max_size=30), st.binary(max_size=60), st.binary(max_size=80), st.text(max_size=70))
def test_an_envelope_reads_back_as_it_was_written_and_nobody_signed_it(kind, payload, signature, hint):
    text = json.dumps(
        {
            "payloadType": kind,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [{"keyid": hint, "sig": base64.b64encode(signature).decode()}],
        }
    ).encode()
    try:
        envelope = dsse.parse_envelope(text, what="envelope", limit=10_000)
    except DsseError:  # text that is not in form NFC
        return
    one = Signed(key_id=hint, signature=signature)
    assert envelope == Envelope(payload_type=kind, payload=payload, signatures=(one,))
    with pytest.raises(DsseError):
        dsse.verify(envelope, kind, KEYS)
