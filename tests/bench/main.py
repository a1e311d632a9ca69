"""Compare secrun with its peers on this machine, print the table and write docs/benchmarks.md.

`make bench BENCH="--rounds 15 --only pod --only fetch"`; without --only every row is measured.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import measure
import report
from bench_field import PODMAN_RUN, SECRUN, Bench, field, host_processes, many_pods
from measure import Contender, compare
from report import MISSED, Row

from support import lab

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/benchmarks.md"
PODS = 1000
IDLE_PODS = 5
INSECURE = "--insecure-options=image"

Rows = list[Row]
Profiles = list[tuple[str, str]]


def ms(seconds: float) -> str:
    """Render a time."""
    return f"{seconds * 1000:.0f} ms"


def single(name: str, argv: list[str], **more: object) -> Contender:
    """Make a contender of one command."""
    return Contender(name=name, commands=lambda: [argv], **more)


def command_line(bench: Bench, rounds: int) -> tuple[Rows, Profiles]:
    """CPU of the commands that people and scripts call often, and of `run` until stage1 starts."""
    many_pods(bench, PODS)
    run = ("run", "--rm", INSECURE, "--pull=never", "--net=none", bench.busybox, "--", "true")
    killed = (-9,)
    contenders = [
        single("version", [str(SECRUN), "--version"]),
        single("list", bench.secrun("list", root="secrun-many")),
        single("run", bench.driver("before-waiter", *run), expected=killed, after=bench.collect),
        single("nothing", [sys.executable, "-c", "pass"]),
    ]
    series = compare(contenders, rounds * 3)
    rows, profiles = [], []
    floor = f"{ms(series['nothing'].median('cpu'))} (an interpreter that does nothing)"
    for name, what, budget in (
        ("version", "`secrun --version`, CPU", 40),
        ("list", f"`secrun list` of {PODS:,} pods, CPU", 120),
        ("run", "`secrun run` before stage1, CPU", 150),
    ):
        cpu = series[name].median("cpu")
        rows.append(
            Row(
                what=what,
                ours=ms(cpu),
                theirs=floor,
                value=cpu * 1000,
                unit="ms",
                budget=budget,
                against="-",
            )
        )
    missed = {row.what for row in rows if row.verdict == MISSED}
    if any("run" in what for what in missed):
        profiles.append(
            ("`secrun run` before stage1", _said(bench.driver("before-waiter", *run, profile=True)))
        )
        bench.collect()
    if any("list" in what for what in missed):
        profiles.append(
            (f"`secrun list` of {PODS:,} pods", _profile([*bench.globals("secrun-many"), "list"]))
        )
    return rows, profiles


def _profile(words: list[str]) -> str:
    """Profile one command by function and return the top of the table."""
    argv = [sys.executable, "-m", "cProfile", "-s", "tottime", "-m", "secrun", *words]
    lines = lab.tool(*argv).decode(errors="replace").splitlines()
    start = next(number for number, line in enumerate(lines) if "function calls" in line)
    return "\n".join(lines[start : start + 30])


def _said(argv: list[str]) -> str:
    """Return what a profiled run printed; it ends by SIGKILL."""
    with tempfile.TemporaryFile() as output:
        process = os.posix_spawnp(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1)],
        )
        os.waitpid(process, 0)
        output.seek(0)
        return output.read().decode(errors="replace")


def pod(bench: Bench, rounds: int) -> tuple[Rows, Profiles]:
    """Start to exit of a pod of a cached image, beside podman and a bare boot of the same stage1."""
    from bare import ENVIRONMENT, bare_nspawn

    from secrun.stage1 import cgroups

    ours = ("run", "--rm", INSECURE, "--pull=never", "--net=none", bench.busybox, "--", "true")
    image = bench.busybox.removeprefix("docker://")
    connected = tuple(word for word in ours if word != "--net=none")
    podman = ("run", "--rm", "--pull=never", *PODMAN_RUN)
    with bare_nspawn(bench) as (boot, group):
        contenders = [
            single("secrun", bench.secrun(*ours)),
            single("secrun default", bench.secrun(*connected)),
            single("podman none", bench.podman(*podman, "--network=none", image, "true")),
            single("podman default", bench.podman(*podman, image, "true")),
            single(
                "bare",
                list(boot),
                environment=ENVIRONMENT,
                before=lambda: group.mkdir(parents=True),
                after=lambda: cgroups.destroy(group),
            ),
        ]
        series = compare(contenders, rounds)
    rows = []
    for mine, name, what, against, budget in (
        (
            "secrun",
            "bare",
            "measured pod without network, start to exit",
            "`systemd-nspawn --boot` of the same stage1",
            2.5,
        ),
        (
            "secrun",
            "podman none",
            "measured pod without network, start to exit",
            "`podman run --network=none`",
            None,
        ),
        (
            "secrun default",
            "podman default",
            "measured pod with its default network, start to exit",
            "`podman run`, its default network",
            0.9,
        ),
    ):
        rows.append(_ratio_row(what, against, series[mine], series[name], budget))
    cpu = measure.ratio(series["secrun"], series["podman none"], "cpu")
    own, its = series["secrun"].median("cpu"), series["podman none"].median("cpu")
    rows.append(
        Row(
            what="the same, CPU of what the caller waits for",
            ours=ms(own),
            theirs=ms(its),
            value=cpu,
            unit="x",
            budget=None,
            against="`podman run --network=none`",
        )
    )
    profiles = []
    if any(row.verdict == MISSED for row in rows):
        profiles.append(("a pod from start to exit", _phases(bench, rounds, series)))
    return rows, profiles


def _ratio_row(
    what: str, against: str, ours: measure.Series, theirs: measure.Series, budget: float | None
) -> Row:
    def text(series: measure.Series) -> str:
        return f"{ms(series.median('wall'))} ± {ms(series.spread('wall') / 2)}"

    value = measure.ratio(ours, theirs)
    return Row(
        what=what,
        ours=text(ours),
        theirs=text(theirs),
        value=value,
        unit="x",
        budget=budget,
        against=against,
    )


def _phases(bench: Bench, rounds: int, series: dict[str, measure.Series]) -> str:
    """Cut a pod's life at checkpoints: what each part takes of the clock."""
    run = ("run", "--rm", INSECURE, "--pull=never", "--net=none", bench.busybox, "--", "true")
    points = ("prepared", "images-mounted", "before-waiter")
    contenders = [
        single(point, bench.driver(point, *run), expected=(-9,), after=bench.collect) for point in points
    ]
    cut = compare(contenders, rounds)
    lines = [f"{ms(cut[point].median('wall')):>8}  until {point}" for point in points]
    lines.append(f"{ms(series['bare'].median('wall')):>8}  of which a bare boot of stage1 takes this alone")
    lines.append(f"{ms(series['secrun'].median('wall')):>8}  until the pod has ended and is removed")
    return "\n".join(lines)


def fetch(bench: Bench, rounds: int) -> tuple[Rows, Profiles]:
    """Fetch and render an image of 300 MB into empty stores."""
    target, unpacked = bench.base / "skopeo", bench.base / "unpacked"
    options = ("--tls-verify=false", INSECURE)

    def empty(*paths: Path) -> Callable[[], None]:
        def remove() -> None:
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)
            # What one contender left to write must not slow down the next.
            os.sync()

        return remove

    def podman_empty() -> None:
        lab.tool(*bench.podman("rmi", "--force", bench.big.removeprefix("docker://")))
        os.sync()

    skopeo = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", bench.big, f"oci:{target}:big"]
    umoci = ["umoci", "unpack", "--image", f"{target}:big", str(unpacked)]
    ours = empty(bench.base / "fresh", bench.base / "fresh-run")
    contenders = [
        single("secrun", bench.secrun("fetch", *options, bench.big, root="fresh"), after=ours),
        Contender(name="skopeo", commands=lambda: [skopeo, umoci], after=empty(target, unpacked)),
        single(
            "podman", bench.podman("pull", "--quiet", "--tls-verify=false", bench.big), after=podman_empty
        ),
    ]
    series = compare(contenders, max(3, rounds // 3))
    rows = [
        _ratio_row("fetch and render a 300 MB image", against, series["secrun"], series[name], 0.7)
        for name, against in (("skopeo", "`skopeo copy` + `umoci unpack`"), ("podman", "`podman pull`"))
    ]
    profiles = []
    if any(row.verdict == MISSED for row in rows):
        words = [*bench.globals("fresh"), "fetch", *options, bench.big]
        # The unprivileged renderer shows as waiting for it.
        profiles.append(("fetch and render", _profile(words)))
        ours()
    return rows, profiles


def memory(bench: Bench, _: int) -> tuple[Rows, Profiles]:
    """Resident memory on the host side of idle detached pods, and of podman's."""
    run = ("run", "-d", INSECURE, "--pull=never", "--net=none", bench.busybox, "--", "sleep", "1000")
    pods = [lab.tool(*bench.secrun(*run)).decode().strip() for _ in range(IDLE_PODS)]
    image = bench.busybox.removeprefix("docker://")
    podman = ("run", "-d", "--pull=never", "--network=none", *PODMAN_RUN, image, "sleep", "1000")
    peers = [lab.tool(*bench.podman(*podman)).decode().strip() for _ in range(IDLE_PODS)]
    own, theirs = host_processes(pods), host_processes(peers)
    resident, proportional = (value / IDLE_PODS / 1e6 for value in measure.host_memory(own))
    their_resident = measure.host_memory(theirs)[0] / IDLE_PODS / 1e6
    lab.tool(*bench.podman("rm", "--force", "--time", "0", *peers))
    bench.collect()
    if len(own) < IDLE_PODS:
        raise RuntimeError("the host side of the idle pods was not found")
    count = len(own) // IDLE_PODS
    return [
        Row(
            what=f"resident host memory per idle pod ({count} processes; shared: {proportional:.1f} MB)",
            ours=f"{resident:.1f} MB",
            theirs=f"{their_resident:.1f} MB",
            value=resident,
            unit="MB",
            budget=16,
            against="`podman run -d` (conmon)",
        )
    ], []


def attest(bench: Bench, rounds: int) -> tuple[Rows, Profiles]:
    """What measuring costs a pod, and what verifying costs a verifier."""
    from bench_attest import attestation_rows
    from bench_eventlog import eventlog

    run = ("run", "--rm", INSECURE, "--pull=never", "--net=none", bench.busybox, "--", "true")
    series = compare(
        [single("measured", bench.secrun(*run)), single("off", bench.secrun("--attest=off", *run))], rounds
    )
    what, against = "a measured pod, start to exit", "the same with `--attest=off`"
    rows = [_ratio_row(what, against, series["measured"], series["off"], None)]
    folder = bench.base / "log"
    folder.mkdir()
    log_rows, profiles = eventlog(folder, rounds)
    return [*rows, *log_rows, *attestation_rows(rounds)], profiles


def guest(bench: Bench, rounds: int) -> tuple[Rows, Profiles]:
    """Pods in virtual machines, emulated: start, stop, memory, several at once."""
    from bench_kvm import guest_rows

    return guest_rows(bench, rounds)


def audit(bench: Bench, _: int) -> tuple[Rows, Profiles]:
    """An audit log of a million records: exported in every form, and verified."""
    from bench_audit import audit_rows

    return audit_rows(bench), []


CASES: dict[str, Callable[[Bench, int], tuple[Rows, Profiles]]] = {
    "cli": command_line,
    "pod": pod,
    "fetch": fetch,
    "memory": memory,
    "guest": guest,
    "attest": attest,
    "audit": audit,
}


def _enter_own_network() -> NoReturn:
    """Start again in a network namespace: podman's bridge and its packet filter rules end with it."""
    script = 'ip link set lo up && exec "$@" --inside'
    words = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv]
    os.execvp(words[0], words)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="rounds of each comparison (11)")
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="measure this part only")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("pods need root")
    if not options.inside:
        _enter_own_network()
    about = report.facts(options.rounds)
    rows: Rows = []
    profiles: Profiles = []
    with field(Path(tempfile.mkdtemp(prefix="secrun-bench-", dir="/var/tmp"))) as bench:
        for name in options.only or CASES:
            print(f"measuring: {name}", file=sys.stderr, flush=True)
            more_rows, more_profiles = CASES[name](bench, options.rounds)
            rows += more_rows
            profiles += more_profiles
            print("\n".join(row.markdown() for row in more_rows), flush=True)
    text = report.page(rows, about, profiles)
    print(f"\n{text}")
    if options.only:
        print("only some rows were measured: docs/benchmarks.md stays as it is", file=sys.stderr)
    else:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
