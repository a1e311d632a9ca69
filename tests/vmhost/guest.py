"""Runs inside the test machine: each check is a function, and one line of JSON tells how it went.

`vmhost.guest DEVICE` runs every check of this boot in a process of its own and reports to DEVICE;
`vmhost.guest NAME` runs one. The checks build on each other in their order.
"""

import json
import subprocess
import sys
import termios
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TextIO

from vmhost import (
    kit,
    kvmchecks,
    netchecks,
    podchecks,
    rebootchecks,
    selinuxchecks,
    shutdownchecks,
    systemchecks,
    tpmchecks,
    unitchecks,
)

# On a busy host, emulated: rebuilding the policy alone takes minutes.
CHECK_SECONDS = 1200


def in_order(checks: dict[str, kit.Check], modules: Iterable[ModuleType]) -> list[str]:
    """Name the checks of one boot, module by module: they are imported in another order."""
    return [name for module in modules for name in checks if checks[name].__module__ == module.__name__]


FIRST = in_order(
    kit.FIRST,
    (podchecks, systemchecks, tpmchecks, unitchecks, netchecks, kvmchecks, selinuxchecks, rebootchecks),
)
# What the power cut left comes first.
SECOND = in_order(kit.SECOND, (rebootchecks, selinuxchecks, shutdownchecks))
THIRD = in_order(kit.THIRD, (shutdownchecks, selinuxchecks))
BOOTS = {"first": FIRST, "second": SECOND, "third": THIRD}


def report(name: str) -> dict[str, object]:
    """Run one check in a process of its own."""
    begin = time.monotonic()
    argv = [sys.executable, "-B", "-m", "vmhost.guest", name]
    try:
        done = subprocess.run(
            argv,
            check=False,
            timeout=CHECK_SECONDS,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        passed, said = done.returncode == 0, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        passed, said = False, f"no end after {CHECK_SECONDS} s: {error.output!r} {error.stderr!r}"
    seconds = round(time.monotonic() - begin, 2)
    files = kit.handed_out()
    return {"name": name, "passed": passed, "seconds": seconds, "said": said[-4000:], "files": files}


def cut_the_power(out: TextIO) -> None:
    """End this boot as a power cut does: nothing is written, unmounted or told to the TPM."""
    termios.tcdrain(out.fileno())
    Path("/proc/sysrq-trigger").write_text("b")


def main(word: str) -> None:
    known = kit.FIRST | kit.SECOND | kit.THIRD
    if word in known:
        print(known[word]() or "")
        return
    boot = kit.from_outside("boot")
    with open(word, "w") as out:
        for name in BOOTS[boot]:
            print(json.dumps(report(name)), file=out, flush=True)
        # What explains a failure, and every denial.
        kit.hand_out(f"audit-{boot}.log", kit.AUDIT.read_text(errors="replace"))
        journal = kit.tool("journalctl", "--boot", "--no-pager", "--output=short-monotonic", "--lines=3000")
        kit.hand_out(f"journal-{boot}.log", journal)
        print(json.dumps({"name": "logs", "files": kit.handed_out()}), file=out, flush=True)
        print(json.dumps({"name": "end"}), file=out, flush=True)
        if boot == "first":
            cut_the_power(out)
    # The second boot ends as an administrator ends it; nothing waits for the end of the third.
    kit.tool("systemctl", "--no-block", "poweroff", *(["--force"] if boot == "third" else []))


if __name__ == "__main__":
    main(sys.argv[1])
