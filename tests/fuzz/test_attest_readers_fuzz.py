"""Quick and thorough readers against each other, at length; `--fuzz long` makes it 100,000 and 1,000,000."""

import random

from support.attest_readers import Bundles, Events

BUNDLES, EVENTS = 10_000, 100_000


def test_both_readers_of_evidence_agree_at_length(fuzz_scale):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    bundles = Bundles(seed)
    for _ in range(BUNDLES * fuzz_scale):
        bundles.try_one()
    assert bundles.quick > 100


def test_both_readers_of_events_agree_at_length(fuzz_scale):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    events = Events(seed)
    for _ in range(EVENTS * fuzz_scale):
        events.try_one()
    assert events.taken > 1000
