"""The token says what the verdict says, and only its own key, audience and time make it count."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from secrun_attest.ear import MAX_LIFETIME, PROFILE, Issuer, TokenError, claims, sign, verify_token
from secrun_attest.verify import appraise
from support.attest_bench import AUDIENCE, NOW, POD, policy, session, sha, usual_host

KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = Issuer(developer="example", build="secrun 0.2.0", key_id="k1")


def payload(**rules):
    host = usual_host()
    asked = session(host)
    verdict = appraise(host.evidence(), asked, policy(**rules), None, NOW)
    return claims(verdict, asked, ISSUER, now=NOW, token_id="t1", channel_key="thumb")


def recoded(token, index, change):
    parts = token.split(".")
    document = json.loads(base64.urlsafe_b64decode(parts[index] + "=="))
    text = json.dumps(document | change, separators=(",", ":"), sort_keys=True)
    parts[index] = base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
    return ".".join(parts)


def check(token, key=KEY, audience=AUDIENCE, now=NOW):
    return verify_token(token, key.public_key(), audience=audience, now=now)


def test_a_token_tells_the_verdict_per_host_and_pod():
    good = payload()
    assert check(sign(good, KEY, key_id="k1")) == good
    assert good["eat_profile"] == PROFILE
    assert good["exp"] - good["iat"] <= 300
    assert {name: part["ear_status"] for name, part in good["submods"].items()} == {
        "host": "affirming",
        f"pod:{POD}": "affirming",
    }
    bad = payload(workload={"manifests": [sha("another")]})["submods"][f"pod:{POD}"]
    assert bad["ear_status"] == "contraindicated"
    assert bad["ear_trustworthiness_vector"] == {"configuration": 2, "executables": 96}
    assert "is not a reference value" in bad["secrun_reasons"][0]


def test_a_token_counts_only_for_its_key_audience_and_time():
    token = sign(payload(), KEY, key_id="k1")
    for changes in (
        {"key": ec.generate_private_key(ec.SECP256R1())},
        {"audience": "another"},
        {"now": NOW - 1},
        {"now": NOW + MAX_LIFETIME},
    ):
        with pytest.raises(TokenError):
            check(token, **changes)


def test_a_token_of_another_form_is_refused():
    token = sign(payload(), KEY, key_id="k1")
    head, body, signature = token.split(".")
    for bad in (
        "",
        f"{head}.{body}",
        f"{head}.{body}.",
        f"{head}.{body}.{signature}=",
        f"{head}.{body}.{signature[:-4]}",
        f"{head}.{body}.\u00e9{signature[1:]}",
        recoded(token, 1, {"iat": NOW - 1}),
        recoded(token, 0, {"alg": "none"}),
    ):
        with pytest.raises(TokenError):
            check(bad)


@pytest.mark.parametrize("change", [{"exp": NOW + 86400}, {"eat_profile": "other"}, {"iat": "now"}])
def test_a_signed_token_that_promises_too_much_is_refused(change):
    with pytest.raises(TokenError):
        check(sign(payload() | change, KEY, key_id="k1"))


def test_only_p256_keys_sign():
    key = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(TokenError):
        sign(payload(), key, key_id="k1")
    with pytest.raises(TokenError):
        check(sign(payload(), KEY, key_id="k1"), key=key)
