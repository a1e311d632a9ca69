"""Pods in virtual machines beside the least that such a machine can cost: the same QEMU, kernel and machine
with an init that says one word and ends.

All of it emulated: hardware virtualisation is not to be had on every machine that runs this.
"""

import json
import os
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
from bench_field import Bench
from measure import Contender, compare
from report import Row

from secrun.paths import Layout
from secrun.stage1 import cgroups
from secrun_kvm.domain import SLOW
from secrun_kvm.guestimage import ensure_guest
from secrun_kvm.initramfs import Node, archive
from support import lab

INSECURE = "--insecure-options=image"
EMULATED = ("--stage1=kvm", "--accel=tcg", INSECURE, "--pull=never", "--net=none")
# What the app says, and the init that there is nothing less than.
WORD = "here-i-am"
INIT = f"""
#include <sys/reboot.h>
#include <unistd.h>
int main(void) {{ write(1, "{WORD}\\n", {len(WORD) + 1}); return reboot(RB_AUTOBOOT); }}
"""
LEAST = "the same QEMU, kernel and machine with a one-line static init"
PODS = 5
SAMPLES = 3
# How an app ends in order when it is asked to.
OBLIGING = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")

# At most so many times the least start; seconds of a stop; MB of the host for each pod.
START_BUDGET = 1.9
STOP_BUDGET_MS = 1000
MEMORY_BUDGET_MB = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The machine that secrun decides on for the busybox image, as the pod manifest has it."""

    model: str
    command_line: str
    memory_bytes: int
    vcpus: int


def _facts(bench: Bench) -> Facts:
    uuid = lab.tool(*bench.secrun("prepare", *EMULATED, bench.busybox, "--", "true")).decode().strip()
    machine = json.loads(lab.tool(*bench.secrun("cat-manifest", uuid)))["machine"]
    lab.tool(*bench.secrun("rm", uuid))
    return Facts(**{name: machine[name] for name in ("model", "command_line", "memory_bytes", "vcpus")})


def _least(bench: Bench, facts: Facts) -> list[str]:
    """Return the command of a machine with the same kernel and an initramfs of one static program."""
    source, program, initrd = (bench.base / name for name in ("init.c", "init", "init.cpio"))
    source.write_text(INIT)
    lab.tool("gcc", "-O2", "-static", "-o", str(program), str(source))
    folder, device = stat.S_IFDIR | 0o755, stat.S_IFCHR | 0o600
    nodes = [
        Node(path="dev", mode=folder),
        Node(path="dev/console", mode=device, rdev=(5, 1)),
        Node(path="init", mode=stat.S_IFREG | 0o755, data=program.read_bytes()),
    ]
    initrd.write_bytes(archive(nodes))
    kernel = ensure_guest(Layout(root=bench.base / "secrun", run_root=bench.base / "secrun-run")).kernel
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    words += ["-machine", f"{facts.model},usb=off", "-accel", "tcg"]
    words += ["-cpu", ",".join(["max", *(f"-{name}" for name in SLOW)])]
    words += ["-bios", "/usr/share/qemu/qboot.rom", "-smp", str(facts.vcpus)]
    words += ["-m", str(facts.memory_bytes >> 20), "-kernel", str(kernel), "-initrd", str(initrd)]
    return [*words, "-append", facts.command_line, "-serial", "stdio"]


def _start_rows(bench: Bench, facts: Facts, rounds: int) -> list[Row]:
    least = _least(bench, facts)
    ours = bench.secrun("run", "--rm", *EMULATED, bench.busybox, "--", "echo", WORD)
    contenders = [
        Contender(name="secrun", commands=lambda: [ours], until=WORD.encode()),
        Contender(name="least", commands=lambda: [least], until=WORD.encode()),
    ]
    series = compare(contenders, rounds)
    own, its = (
        f"{one.median('wall') * 1000:.0f} ms ± {one.spread('wall') * 500:.0f} ms" for one in series.values()
    )
    wall = Row(
        what="emulated guest, start to the app's first byte",
        ours=own,
        theirs=its,
        value=measure.ratio(series["secrun"], series["least"]),
        unit="x",
        budget=START_BUDGET,
        against=LEAST,
    )
    used, least_cpu = _cpu_of_start(bench), series["least"].median("cpu")
    cpu = Row(
        what="the same, CPU until the app runs",
        ours=f"{used * 1000:.0f} ms",
        theirs=f"{least_cpu * 1000:.0f} ms",
        value=used / least_cpu,
        unit="x",
        budget=None,
        against=LEAST,
    )
    return [wall, cpu]


def _cpu_of_start(bench: Bench) -> float:
    """Return seconds of CPU until the app runs: of the caller, the waiter and the pod's control group.

    What a machine used is lost to whoever waits for the pod's end, since it is killed with its group.
    """
    saved = bench.base / "uuid"
    words = ("run", "-d", *EMULATED, f"--uuid-file-save={saved}", bench.busybox, "--", "sleep", "1000")
    used = []
    for _ in range(SAMPLES):
        caller = measure.run_once(bench.secrun(*words), (0,), {})
        uuid = saved.read_text().strip()
        waiter, *_ = _processes(bench, uuid)
        ticks = Path(f"/proc/{waiter}/stat").read_text().rpartition(")")[2].split()[11:13]
        group = (cgroups.host().pod(uuid) / "cpu.stat").read_text().split()
        waiting = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        used.append(caller.cpu + waiting + int(group[group.index("usage_usec") + 1]) / 1e6)
        bench.collect()
    return _median(used)


def _detached(bench: Bench, *command: str) -> str:
    return lab.tool(*bench.secrun("run", "-d", *EMULATED, bench.busybox, "--", *command)).decode().strip()


def _stop_row(bench: Bench, rounds: int) -> Row:
    """Ask pods to end whose apps do so at once; all the rest is the guest's way down."""
    samples = []
    for _ in range(rounds):
        uuid = _detached(bench, *OBLIGING)
        samples.append(measure.run_once(bench.secrun("stop", uuid), (0,), {}))
        bench.collect()
    stops = measure.Series(samples)
    median = stops.median("wall") * 1000
    return Row(
        what="`secrun stop` of an emulated guest whose app ends when asked",
        ours=f"{median:.0f} ms ± {stops.spread('wall') * 500:.0f} ms",
        theirs="-",
        value=median,
        unit="ms",
        budget=STOP_BUDGET_MS,
        against="-",
    )


def _processes(bench: Bench, uuid: str) -> list[int]:
    """Return everything of a pod on the host: its waiter, and what is in its control group."""
    waiter = json.loads(lab.tool(*bench.secrun("status", "--format=json", uuid)))["pid"]
    group = cgroups.host().pod(uuid)
    inside = [
        int(pid) for base, _, _ in os.walk(group) for pid in Path(base, "cgroup.procs").read_text().split()
    ]
    return [int(waiter), *inside]


def _together_rows(bench: Bench, facts: Facts) -> list[Row]:
    """Start pods at once, and weigh them when all have started."""
    words = bench.secrun("run", "-d", *EMULATED, bench.busybox, "--", "sleep", "1000")
    begin = time.monotonic()
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(PODS)]
    uuids = [process.communicate()[0].strip() for process in started]
    wall = time.monotonic() - begin
    if any(process.returncode for process in started):
        raise RuntimeError(f"not all of {PODS} pods started: {[one.returncode for one in started]}")
    memory = [measure.beyond_guest(_processes(bench, uuid), facts.memory_bytes) / 1e6 for uuid in uuids]
    bench.collect()
    return [
        Row(
            what=f"{PODS} emulated guests started at once, until every app runs",
            ours=f"{wall:.1f} s",
            theirs="-",
            value=wall / PODS * 1000,
            unit="ms each",
            budget=None,
            against="-",
        ),
        Row(
            what="host memory of one of them beyond what its guest has touched (PSS of all its processes)",
            ours=f"{_median(memory):.0f} MB",
            theirs="-",
            value=_median(memory),
            unit="MB",
            budget=MEMORY_BUDGET_MB,
            against="-",
        ),
    ]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _profile(bench: Bench) -> str:
    """Return when each step of one pod was reached, on both sides."""
    words = bench.secrun("run", "--rm", "--timing", *EMULATED, bench.busybox, "--", "true")
    return subprocess.run(words, capture_output=True, text=True, check=True).stderr


def guest_rows(bench: Bench, rounds: int) -> tuple[list[Row], list[tuple[str, str]]]:
    """Measure starts, stops and memory; the marks of one start go with them."""
    lab.tool(*bench.secrun("stage1", "build", "kvm"))
    facts = _facts(bench)
    rows = _start_rows(bench, facts, rounds)
    rows.append(_stop_row(bench, max(3, rounds // 3)))
    rows += _together_rows(bench, facts)
    return rows, [("an emulated guest", _profile(bench))]
