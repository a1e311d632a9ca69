"""The bench's page: rows with budgets, facts of the machine, profiles of what missed its budget."""

import datetime as dt
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support import lab

PEERS = (
    "systemd-container", "crun", "podman", "runc", "conmon", "skopeo", "umoci", "docker-registry",
)  # fmt: skip


MISSED = "**missed**"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table; `value` is compared with `budget`, both in `unit` ("x" is a ratio)."""

    what: str
    ours: str
    theirs: str
    value: float
    unit: str
    budget: float | None
    against: str

    @property
    def verdict(self) -> str:
        """Say whether the budget holds."""
        if self.budget is None:
            return "no budget"
        return "holds" if self.value <= self.budget else MISSED

    def markdown(self) -> str:
        """Render the row."""
        budget = "-" if self.budget is None else f"{self.budget:g} {self.unit}"
        cells = (self.what, self.ours, self.against, self.theirs, f"{self.value:.2f} {self.unit}", budget)
        return f"| {' | '.join(cells)} | {self.verdict} |"


HEADING = (
    "| what | secrun | against | that | measured | budget | |\n"
    "|---|---|---|---|---|---|---|"
)  # fmt: skip


def facts(rounds: int) -> list[str]:
    """Describe the machine without naming it."""
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    rows = lab.tool("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PEERS).decode().splitlines()
    load = os.getloadavg()[0]
    return [
        f"date: {dt.datetime.now(dt.UTC):%Y-%m-%d}",
        f"cores: {os.cpu_count()}; CPU: {model[1] if model else platform.machine()}",
        f"memory: {int(memory[1]) // 2**20 if memory else 0} GiB",
        f"kernel: {platform.release().split('-')[0]}; Python {platform.python_version()}",
        f"load average when the run began: {load:.1f}; rounds: {rounds}",
        f"versions: {', '.join(rows)}",
    ]


def page(rows: Sequence[Row], about: Sequence[str], profiles: Sequence[tuple[str, str]]) -> str:
    """Render docs/benchmarks.md."""
    parts = [
        "<!-- Made by `make bench`; run that, do not edit this. -->\n",
        "# Benchmarks\n",
        "Each row compares commands that ran in turn in one run on one machine. Times are medians, ±half",
        "the distance of the quartiles; a ratio is the median of the ratios within each round. Absolute",
        "times belong to that machine, ratios travel better.\n",
        *(f"- {line}" for line in about),
        "",
        HEADING,
        *(row.markdown() for row in rows),
        "",
    ]
    for what, text in profiles:
        parts += [
            f"\n## Where the time goes: {what}\n",
            *(f"    {line}".rstrip() for line in text.splitlines()),
        ]
    return "\n".join(parts).rstrip() + "\n"
