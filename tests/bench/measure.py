"""Measuring commands side by side: a round runs every contender once, its order turns each time."""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

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
    until: bytes = b""
    """The clock stops when the last command has written this to its standard output, not when it ends."""


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


def run_once(
    argv: Sequence[str], expected: Sequence[int], environment: Mapping[str, str], until: bytes = b""
) -> Sample:
    """Run one command; raises RuntimeError with its words when it ends in an unexpected way."""
    with tempfile.TemporaryFile() as said:
        begin = time.monotonic()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if until else said,
            stderr=said,
            env={**_ENVIRONMENT, **environment},
        )
        reached = None if process.stdout is None else _reached(process.stdout.fileno(), until, said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = (reached or time.monotonic()) - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in expected:
            said.seek(0)
            text = said.read()[-3000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(argv)}: exit status {process.returncode}: {text}")
    return Sample(wall=wall, cpu=usage.ru_utime + usage.ru_stime)


def _reached(fd: int, until: bytes, said: IO[bytes]) -> float:
    """Read to the end of a pipe; return when `until` had come, raises RuntimeError if it did not."""
    seen, when = b"", 0.0
    while piece := os.read(fd, 65536):
        said.write(piece)
        seen += piece
        if not when and until in seen:
            when = time.monotonic()
    if not when:
        raise RuntimeError(f"{until!r} did not come, but {seen[-500:]!r}")
    return when


def _round_of(contender: Contender) -> Sample:
    contender.before()
    try:
        commands = contender.commands()
        untils = [b""] * (len(commands) - 1) + [contender.until]
        parts = [
            run_once(argv, contender.expected, contender.environment, until)
            for argv, until in zip(commands, untils, strict=True)
        ]
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


def beyond_guest(pids: Sequence[int], guest_bytes: int) -> int:
    """Return the proportional memory of processes without what guests have touched of theirs, in bytes.

    A guest's memory is the one mapping of exactly its size in its QEMU (proc_pid_smaps(5)): what is
    resident there the guest has touched, or has from the host in huge pages for what it has touched.
    """
    touched = 0
    for pid in pids:
        size = 0
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "Size":
                size = int(rest.split()[0]) * 1024
            elif name == "Rss" and size == guest_bytes:
                touched += int(rest.split()[0]) * 1024
    if not touched:
        raise RuntimeError(f"no process maps a guest of {guest_bytes} bytes")
    return host_memory(pids)[1] - touched


def host_memory(pids: Sequence[int]) -> tuple[int, int]:
    """Return resident and proportional memory of processes, in bytes (proc_pid_smaps(5), smaps_rollup)."""
    totals = {"Rss": 0, "Pss": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in totals:
                totals[name] += int(rest.split()[0]) * 1024
    return totals["Rss"], totals["Pss"]
