"""Measuring commands side by side: a round runs every contender once, its order turns each time."""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# PYTHONDONTWRITEBYTECODE and its like would have every start compile secrun anew.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one run cost; CPU is user and system time of the process and all it waited for, in seconds."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to do the work: what to run, and what to do before and after without a clock."""

    name: str
    commands: Callable[[], Sequence[Sequence[str]]]
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    expected: Sequence[int] = (0,)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Series:
    """All samples of one contender, in the order of the rounds."""

    samples: list[Sample] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Median of `wall` or `cpu`, in seconds."""
        return statistics.median(getattr(sample, what) for sample in self.samples)

    def spread(self, what: str) -> float:
        """Distance between the quartiles of `wall` or `cpu`, in seconds."""
        values = [getattr(sample, what) for sample in self.samples]
        if len(values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(values, n=4)
        return high - low


def ratio(ours: Series, theirs: Series, what: str = "wall") -> float:
    """Median of the ratios within each round, so that a slow minute hurts both sides alike."""
    pairs = zip(ours.samples, theirs.samples, strict=True)
    return statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)


def run_once(argv: Sequence[str], expected: Sequence[int], environment: Mapping[str, str]) -> Sample:
    """Run one command; raises RuntimeError with its words when it ends in an unexpected way."""
    with tempfile.TemporaryFile() as said:
        begin = time.monotonic()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**_ENVIRONMENT, **environment},
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in expected:
            said.seek(0)
            text = said.read()[-3000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(argv)}: exit status {process.returncode}: {text}")
    return Sample(wall=wall, cpu=usage.ru_utime + usage.ru_stime)


def _round_of(contender: Contender) -> Sample:
    contender.before()
    try:
        parts = [run_once(argv, contender.expected, contender.environment) for argv in contender.commands()]
    finally:
        contender.after()
    return Sample(wall=sum(part.wall for part in parts), cpu=sum(part.cpu for part in parts))


def compare(contenders: Sequence[Contender], rounds: int) -> dict[str, Series]:
    """Run all contenders `rounds` times, interleaved, after one round that only warms caches."""
    series = {contender.name: Series() for contender in contenders}
    for contender in contenders:
        _round_of(contender)
    for number in range(rounds):
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            series[contender.name].samples.append(_round_of(contender))
    return series


def host_memory(pids: Sequence[int]) -> tuple[int, int]:
    """Return resident and proportional memory of processes, in bytes (proc_pid_smaps(5), smaps_rollup)."""
    totals = {"Rss": 0, "Pss": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in totals:
                totals[name] += int(rest.split()[0]) * 1024
    return totals["Rss"], totals["Pss"]
