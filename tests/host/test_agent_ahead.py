"""The finishing program that the waiter starts ahead, once every app has told its end."""

import os
import signal
from pathlib import Path

from host.agent_host import APP, Host, go
from host.agent_kit import children, eventually

# Says that it runs, waits for the status on the descriptor it was given, and ends with its own code.
AHEAD = """
case $1 in
--stage1-status-fd=*)
    echo ahead
    eval "read -r code <&${1#*=}" || { echo abandoned; exit 0; }
    echo told $code;;
*) echo "in place $1";;
esac
exit 6
"""


def test_it_is_told_the_status_and_decides_the_exit_code(host: Host, tmp_path: Path) -> None:
    # On a busy machine stage1 could end before the waiter has started anybody ahead.
    ready = tmp_path / "ready"
    steps = [*APP, "ended", "3", "close", "until", str(ready), "exit", "0"]
    process = host.wait(steps, "--finish-ahead", finish=AHEAD)
    eventually(lambda: "ahead" in host.output())
    ready.touch()
    assert process.wait() == 6
    assert host.output() == "ahead\ntold 0\n"


def test_without_the_option_it_is_executed_in_place(host: Host) -> None:
    assert host.wait(go(host), finish=AHEAD).wait() == 6
    assert host.output() == "in place --stage1-status=0\n"


def test_a_stage1_that_ends_before_its_apps_tell_is_concluded_in_place(host: Host) -> None:
    assert host.wait([*APP, "exit", "4"], "--finish-ahead", finish=AHEAD).wait() == 6
    assert host.output() == "in place --stage1-status=4\n"


def test_its_place_is_taken_if_it_is_killed(host: Host) -> None:
    steps = [*APP, "ended", "0", "forever"]
    process = host.wait(steps, "--finish-ahead", finish=AHEAD)
    eventually(lambda: "ahead" in host.output())
    ahead = eventually(lambda: [pid for pid in children(process.pid) if b"finish" in cmdline(pid)])[0]
    os.kill(ahead, signal.SIGKILL)
    eventually(lambda: ahead not in children(process.pid))
    host.control(b"K")
    assert process.wait() == 6
    assert host.output() == "ahead\nin place --stage1-status=137\n"


def test_it_gives_up_when_the_waiter_is_killed(host: Host) -> None:
    process = host.wait([*APP, "ended", "0", "forever"], "--finish-ahead", finish=AHEAD)
    eventually(lambda: "ahead" in host.output())
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: host.output() == "ahead\nabandoned\n")


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
