"""Damaged evidence by the ten thousand; `--fuzz long` makes it 100,000."""

import random

from support.attest_mutants import Bench

ROUNDS = 10_000


def test_damaged_evidence_never_crashes_and_never_lies_at_length(fuzz_scale):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    bench = Bench(seed)
    for _ in range(ROUNDS * fuzz_scale):
        bench.try_one()
