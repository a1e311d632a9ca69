"""Damaged evidence is refused with a code or means the same: a short run; the long one is in tests/fuzz."""

from support.attest_mutants import Bench


def test_damaged_evidence_never_crashes_and_never_lies():
    bench = Bench(seed=1)
    for _ in range(300):
        bench.try_one()
    # The damage reaches far: not everything ends at the first check.
    assert len(bench.codes) >= 8, bench.codes
