"""Several commands on one pod at once, logs larger than any pod should leave, clocks that jump."""

import os
import subprocess
import sys
from pathlib import Path

from support.secrun import Secrun, eventually
from support.terminals import killed_in_the_end

GIGABYTE = 1 << 30
# The interpreter with all that a list of pods needs takes a fifth of it.
MEMORY_BYTES = 96 << 20
# Prints the largest resident size of the command that it runs.
_WEIGH = (
    "import resource, subprocess, sys; done = subprocess.run(sys.argv[2:], stdout=open(sys.argv[1], 'wb')); "
    "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def test_of_two_that_start_a_prepared_pod_one_does_and_the_other_is_told(secrun: Secrun, tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    options = ("-v", f"{shared}:/shared")
    uuid = secrun.prepare("sh", "-c", "echo ran >> /shared/ran; sleep 1; exit 3", options=options)
    shared.chmod(0o777)
    argv = secrun.argv("run-prepared", uuid)
    both = [subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=120)[1].decode() for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [3, 125], said
    told = said[codes.index(125)]
    assert uuid in told
    assert "expected prepared" in told
    assert "is prepared" not in told
    assert (shared / "ran").read_text() == "ran\n"
    starts = [line for line in secrun("events", uuid).out.splitlines() if "PodStart" in line]
    assert len(starts) == 1
    secrun("rm", uuid)


def test_gc_takes_nothing_from_pods_that_are_made_and_run_meanwhile(secrun: Secrun):
    collect = secrun.argv("gc", "--grace-period=0s", "--expire-prepared=0s")
    loop = "while :; do " + " ".join(f"'{word}'" for word in collect) + " || echo failed; done"
    with killed_in_the_end(["sh", "-c", loop], stdout=subprocess.PIPE, text=True) as collecting:
        for number in range(4):
            assert secrun.run("echo", str(number)).out == f"{number}\n"
        uuid = secrun.detach("sleep", "1000")
        eventually(lambda: secrun.status(uuid)["state"] == "running", "a running pod")
        assert secrun("enter", uuid, "--", "echo", "still here").out == "still here\n"
        collecting.terminate()
        assert "failed" not in collecting.communicate(timeout=60)[0]
    secrun("rm", "--force", uuid)


def weighed(secrun: Secrun, target: Path, *words: str) -> int:
    """Run a command with its output in `target`; return the most memory it had, in bytes."""
    argv = [sys.executable, "-c", _WEIGH, str(target), *secrun.argv(*words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=240)
    code, kilobytes = done.stdout.split()
    assert code == "0", done.stderr
    return int(kilobytes) * 1024


def test_a_log_of_a_gigabyte_is_read_in_bounded_memory(secrun: Secrun, tmp_path: Path):
    """The agent stops at 64 MB; what is larger was written by a pod that was taken over."""
    uuid, _ = secrun.kept(secrun.image, "--", "echo", "last words")
    (log,) = (secrun.root / "pods/run" / uuid / "rw/apps").glob("*/log")
    last = log.read_bytes()
    line = b"2026-01-31T12:00:00.000000000Z stdout F " + b"x" * 16_000 + b"\n"
    with log.open("wb") as stream:
        for _ in range(4096):
            stream.write(line)
        # One line without an end: a hole takes no room on the disk.
        stream.truncate(GIGABYTE)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n" + last)
    shown = tmp_path / "shown"
    assert weighed(secrun, shown, "logs", uuid) < MEMORY_BYTES
    assert shown.stat().st_size == 4096 * 16_001 + len("last words\n")
    assert weighed(secrun, shown, "logs", "--follow", "--tail=1", uuid) < MEMORY_BYTES
    assert shown.read_bytes() == b"last words\n"
    secrun("rm", uuid)


_AT_ANOTHER_TIME = """
import sys, time
offset, seconds, nanoseconds = int(sys.argv.pop(1)), time.time, time.time_ns
time.time = lambda: seconds() + offset
time.time_ns = lambda: nanoseconds() + offset * 10**9
sys.argv[0] = "secrun"
from secrun.__main__ import main
sys.exit(main())
"""


def at(secrun: Secrun, offset: int, *words: str) -> str:
    """Run a command whose clock is wrong by `offset` seconds; return what it printed."""
    argv = secrun.argv(*words)
    argv[argv.index("-m") : argv.index("-m") + 2] = ["-c", _AT_ANOTHER_TIME, str(offset)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_clock_that_jumps_loses_nothing_that_runs_and_hangs_nothing(secrun: Secrun):
    year = 365 * 86_400
    secrun("gc", "--grace-period=0s", "--expire-prepared=0s")
    uuid, prepared = secrun.detach("sleep", "1000"), secrun.prepare("true")
    ended, _ = secrun.kept(secrun.image, "--", "echo", "x")
    for offset in (-year, year):
        listed = {line.split()[0] for line in at(secrun, offset, "list", "--full").splitlines()}
        assert listed >= {uuid, prepared, ended}
        assert at(secrun, offset, "status", "--wait-ready=30s", uuid).startswith(
            f"uuid={uuid}\nstate=running"
        )
    # An hour ago of next year, and all that was before last year.
    assert at(secrun, year, "logs", "--since=1h", ended) == ""
    assert at(secrun, -year, "logs", "--since=1h", ended) == "x\n"
    at(secrun, -year, "gc")
    assert secrun.status(ended)["state"] == "exited garbage"
    at(secrun, -year, "gc", "--grace-period=1h")
    assert secrun.status(ended)["state"] == "exited garbage"
    assert secrun.status(prepared)["state"] == "prepared"
    at(secrun, year, "gc")
    left = set(secrun("list", "-q").out.split())
    assert uuid in left
    assert not left & {prepared, ended}
    words = ("run", "--rm", *secrun.pod_options, secrun.image, "--", "echo", "then and now")
    assert at(secrun, -year, *words) == at(secrun, year, *words) == "then and now\n"
    secrun("stop", uuid, code=0)
    assert secrun.status(uuid)["state"] == "exited"
    secrun("rm", uuid)
    assert [line.split()[0] for line in secrun("events", uuid).out.splitlines()] != []
