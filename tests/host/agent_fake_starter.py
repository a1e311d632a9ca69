"""A starter for the bridge's tests: leaves a stand-in of QEMU behind, as libvirt does.

`python agent_fake_starter.py MODE PIDFILE`
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def machine() -> int:
    """Start what only sleeps, in a session of its own, and note its number for the test."""
    process = subprocess.Popen(
        ["/bin/sleep", "1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    Path(sys.argv[2]).write_text(str(process.pid))
    return process.pid


def main() -> int:
    match sys.argv[1]:
        case "run":
            print("pid", machine(), flush=True)
        case "fail":
            print("no such machine type", file=sys.stderr, flush=True)
            return 3
        case "refuse":
            print("failed no such machine type; have another", flush=True)
            return 1
        case "hang":
            time.sleep(1000)
        case "other":
            print("pid", 1, flush=True)
        case "crash":
            pid = machine()
            os.kill(pid, signal.SIGKILL)
            # It is left unreaped: the bridge gets it as a zombie.
            print("pid", pid, flush=True)
        case "dead":
            process = subprocess.Popen(["/bin/true"])
            process.wait()
            print("pid", process.pid, flush=True)
        case text if text.startswith(("kill ", "exit ")):
            # A helper that does this once the test says so.
            go = Path(sys.argv[2]).with_name("go")
            script = f"until test -e {go}; do sleep 0.05; done; {text}"
            helper = subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True)
            print("helper", helper.pid, "virtiofsd of /a b", flush=True)
            print("pid", machine(), flush=True)
        case text:
            machine()
            print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
