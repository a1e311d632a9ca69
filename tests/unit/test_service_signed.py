"""With --policy-key, only what one of the keys signed is taken."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from secrun_attest.dsse import load_signing_key, sign
from secrun_attest.errors import AttestError
from secrun_attest.policyfile import PAYLOAD_TYPE
from support.attest_bench import policy_document
from support.verifier import ADMIN, READER, Client, opened_desk


def make_key():
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return load_signing_key(pem, what="key"), public


def envelope(key, **changes):
    document = policy_document(**({"software_tpm": True} | changes))
    return sign(json.dumps(document).encode(), PAYLOAD_TYPE, key)


@pytest.fixture
def signed(tmp_path):
    key, public = make_key()
    (tmp_path / "key.pem").write_bytes(public)
    (tmp_path / "policy.json").write_bytes(envelope(key))
    with opened_desk(tmp_path, policy_keys=(tmp_path / "key.pem",)) as desk:
        yield desk, key


def test_only_signed_policies_are_taken(signed):
    desk, key = signed
    assert Client(desk).enrol().attest().json["status"] == "affirming"
    newer = policy_document(version=2, software_tpm=True)
    refused = desk("PUT", "/v1/policies/test", newer, ADMIN)
    assert (refused.status, refused.code) == (403, "E_POLICY_UNSIGNED")
    stranger = envelope(make_key()[0], version=2)
    assert desk("PUT", "/v1/policies/test", stranger, ADMIN).code == "E_POLICY_UNSIGNED"
    mine = envelope(key, version=2)
    assert desk("PUT", "/v1/policies/test", mine, ADMIN).status == 204
    assert desk("GET", "/v1/policies/test", token=READER).body == mine


def test_reference_values_that_nobody_signed_are_refused(signed):
    desk, _ = signed
    values = {
        "v": 1,
        "version": 1,
        "pcrs": {},
        "binaries": [],
        "manifests": [],
        "trees": [],
        "references": [],
    }
    assert desk("PUT", "/v1/reference-values", values, ADMIN).code == "E_POLICY_UNSIGNED"


def test_a_policy_that_has_expired_stops_sessions_and_says_so(signed):
    desk, key = signed
    client = Client(desk).enrol()
    desk.now += 1000  # not_after of the tests' policy
    refused = desk("POST", "/v1/sessions", {"host": "host-1"}, client.token)
    assert (refused.status, refused.code) == (503, "E_NO_POLICY")
    assert "valid from" in refused.json["detail"]
    newer = envelope(key, version=2, not_after=2**40)
    assert desk("PUT", "/v1/policies/test", newer, ADMIN).status == 204
    assert client.attest().status == 200


def test_a_file_that_is_no_key_stops_the_start(tmp_path):
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(AttestError), opened_desk(tmp_path, policy_keys=(tmp_path / "key.pem",)):
        pass
