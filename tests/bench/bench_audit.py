"""What an auditor waits for: the log of a million records brought into the tree, and exported."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from bench_field import Bench
from report import Row

from support import lab
from support.longlog import lengthen, write_accounts
from support.softwaretpm import end_software_tpms

RECORDS = 1_000_000
# One log holds a gigabyte, so there are two: the first has a quarter of the records.
EARLY_SHARE = 4
FORMS = ("jsonl", "csv", "ocsf", "in-toto", "oscal", "html")
BUDGET_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What one command took: seconds, and its peak of resident memory in bytes."""

    wall: float
    cpu: float
    memory: int


def audit_rows(bench: Bench, records: int = RECORDS) -> list[Row]:
    """Return the rows: a first bundle with the sync that it waits for, its verification, each other form."""
    late = _fill(bench, records)
    out, key = bench.base / "export", bench.base / "export.pub"
    rows = []

    def add(what: str, budget: float | None, *words: str) -> None:
        used = _used(bench.secrun("audit", *words, root="audit"))
        rows.append(
            _row(f"{what}: peak memory {used.memory / 1e6:.0f} MB", used, out.stat().st_size, budget)
        )
        print(rows[-1].markdown(), file=sys.stderr, flush=True)

    first = f"audit bundle of {records:,} records, {late:,} of which nobody has put into the tree yet"
    add(first, BUDGET_SECONDS, "export", "--out", str(out))
    key.write_bytes(lab.tool(*bench.secrun("audit", "key", root="audit")))
    add("its verification", None, "verify", "--key", str(key), "--accept=not-closed,clock-back", str(out))
    for form in FORMS:
        add(
            f"the same as `{form}`, in the tree",
            BUDGET_SECONDS,
            "export",
            f"--format={form}",
            "--out",
            str(out),
        )
    out.unlink()
    return rows


def _row(what: str, used: Used, size: int, budget: float | None) -> Row:
    return Row(
        what=what,
        ours=f"{used.wall:.1f} s; CPU {used.cpu:.1f} s; {size / 1e6:.0f} MB",
        theirs="-",
        value=used.wall,
        unit="s",
        budget=budget,
        against="-",
    )


def _fill(bench: Bench, records: int) -> int:
    """Make a root of two epochs with so many records in all; return how many the tree does not have."""
    root = bench.base / "audit"
    fetch = ("fetch", "--tls-verify=false", "--insecure-options=image", bench.busybox)
    lab.tool(*bench.secrun(*fetch, root="audit"))
    digests = write_accounts(root / "audit/accounts")
    run = (
        "run",
        "--rm",
        "--insecure-options=image",
        "--pull=never",
        "--net=none",
        bench.busybox,
        "--",
        "true",
    )
    late = records - records // EARLY_SHARE
    for count in (records - late, late):
        # Its LogOpen names the head of all records before it.
        lab.tool(*bench.secrun(*run, root="audit"))
        end_software_tpms(str(bench.base / "audit-run"))
        newest = max((root / "measure").glob("*.cel"), key=lambda path: path.stat().st_mtime_ns)
        lengthen(newest, count, digests)
    return late


def _used(argv: list[str]) -> Used:
    os.sync()
    with tempfile.TemporaryFile() as said:
        begin = time.monotonic()
        process = subprocess.Popen(argv, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - begin
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(argv)}: {said.read()[-3000:].decode(errors='replace')}")
    cpu = usage.ru_utime + usage.ru_stime
    return Used(wall=wall, cpu=cpu, memory=usage.ru_maxrss * 1024)
