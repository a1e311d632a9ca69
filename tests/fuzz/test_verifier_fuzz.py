"""Whatever comes through the service's door, the answer is one of those that are described."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.attest_bench import usual_host
from support.verifier import ADMIN, READER, Client, opened_desk

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="/?#%"), min_size=1, max_size=30)
POSTS = (
    "/v1/enroll",
    "/v1/enroll/x/proof",
    "/v1/sessions",
    "/v1/sessions/x",
    "/v1/appraise?host=host-1&nonce=00",
)
PUTS = ("/v1/policies/test", "/v1/reference-values")
KNOWN = {400, 401, 403, 404, 405, 409, 410, 413, 415, 422}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    with opened_desk(tmp_path_factory.mktemp("desk")) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(desk):
    return Client(desk).enrol()


def refused(answer):
    assert answer.status in KNOWN, answer
    assert answer.json["code"].startswith("E_")
    assert answer.json["status"] == answer.status


@given(where=st.sampled_from(POSTS + PUTS), body=JSON)
def test_any_json_is_refused_in_words(desk, client, where, body):
    token = {"/v1/sessions": client.token, "/v1/sessions/x": client.token}.get(where, ADMIN)
    method = "PUT" if where in PUTS else "POST"
    refused(desk(method, where, json.dumps(body).encode(), token))


@given(where=st.sampled_from(POSTS + PUTS), body=st.binary(min_size=1, max_size=200))
def test_any_bytes_are_refused_in_words(desk, client, where, body):
    refused(
        desk("PUT" if where in PUTS else "POST", where, body, client.token if "sess" in where else ADMIN)
    )


@given(data=st.data())
def test_a_wish_with_one_member_bent_is_refused_or_taken(desk, data):
    wish = Client(desk, host=usual_host(name="fuzzed")).wish()
    name = data.draw(st.sampled_from(sorted(wish)))
    value = wish[name]
    if isinstance(value, str) and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value) - 1))
        bent = value[:at] + data.draw(st.sampled_from("AZaz09+/=._- \x00é")) + value[at + 1 :]
    else:
        bent = data.draw(JSON | st.lists(st.binary(max_size=60).map(lambda raw: raw.hex()), max_size=3))
    answer = desk("POST", "/v1/enroll", json.dumps(wish | {name: bent}).encode())
    if answer.status != 201:  # a flipped bit of an unused attribute makes another key, not a bad one
        refused(answer)


@given(where=st.integers(0, 1 << 20), byte=st.integers(0, 255))
def test_evidence_with_one_byte_bent_is_refused_or_as_good(desk, client, where, byte):
    challenge = client.challenge()
    evidence = bytearray(client.evidence(challenge))
    evidence[where % len(evidence)] = byte
    answer = client.answer(challenge, bytes(evidence))
    if answer.status != 200:
        refused(answer)


@given(
    path=st.lists(WORDS, min_size=1, max_size=4), method=st.sampled_from(["GET", "POST", "PUT", "DELETE"])
)
def test_any_path_is_answered(desk, path, method):
    for token in ("", READER):
        refused(desk(method, "/v1/" + "/".join(path), b"{}" if method in ("POST", "PUT") else b"", token))


@given(
    word=WORDS, kind=st.sampled_from(["hosts/{}", "hosts/{}/pods/x", "hosts/host-1/pods/{}", "sessions/{}"])
)
def test_any_id_is_refused_in_words(desk, word, kind):
    refused(desk("GET", "/v1/" + kind.format("~" + word), token=ADMIN))


@given(value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=60))
def test_any_credentials_are_refused_in_words(desk, value):
    answer = desk("GET", "/v1/hosts", headers={"authorization": value.encode("latin-1").decode("latin-1")})
    assert (answer.status, answer.code) == (401, "E_AUTH")
