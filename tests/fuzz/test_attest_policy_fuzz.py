"""Signed policies damaged by the ten thousand: refused, or the policy that was signed; never a crash."""

import json
import random

from secrun_attest.policyfile import PolicyFileError, open_policies, sign_policy
from support.attest_bench import NOW
from support.hostile_json import damaged_bytes, damaged_member
from support.policies import LAYERS, document, ed, layer, layered, p256

ROUNDS = 3_000


def test_no_damage_to_signed_policies_is_believed(fuzz_scale):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    (signer, trusted), (other, second) = p256(), ed()
    files = [sign_policy(layered(), signer), *(sign_policy(layer(name), other) for name in LAYERS)]
    good = open_policies(files, (trusted, second), require_signature=True, now=NOW)
    codes: set[str] = set()
    for _ in range(ROUNDS * fuzz_scale):
        bent = [*files]
        at = chance.randrange(len(bent))
        bent[at] = chance.choice([damaged_bytes, damaged_member])(bent[at], chance)
        try:
            found = open_policies(bent, (trusted, second), require_signature=True, now=NOW)
        except PolicyFileError as error:
            codes.add(error.code)
            continue
        assert found == good, bent[at]
    assert codes >= {"policy-format", "policy-signature"}, codes


def test_no_damage_to_plain_policies_crashes_the_parser(fuzz_scale):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    plain = document(layers={}, min_version=1, x_note=[1])
    believed = 0
    for _ in range(ROUNDS * fuzz_scale):
        data = chance.choice([damaged_bytes, damaged_member])(plain, chance)
        try:
            found = open_policies([data], (), require_signature=False, now=NOW)
        except PolicyFileError:
            continue
        believed += 1
        json.loads(data)
        assert found.policy.not_before <= NOW < found.policy.not_after
    assert believed
