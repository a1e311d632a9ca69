"""The last act of a pod, executed by the waiter in its own place when stage1 has ended.

No verb and no option table: this start is part of every pod, and nobody types it.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from secrun.cli.guard import guarded
from secrun.errors import HostError
from secrun.interpreter import command as interpreter_command
from secrun.paths import Layout
from secrun.pod.networks import release_beside
from secrun.pod.states import LockedPod

_STATUS = "--stage1-status="
_STATUS_FD = "--stage1-status-fd="


def interpreter() -> tuple[str, ...]:
    """Return the command that runs `main`."""
    return interpreter_command("secrun.cli.finish")


def command(pod: LockedPod, *, remove: bool, quiet: bool, timing: bool = False) -> tuple[str, ...]:
    """Return what the waiter executes in the end; it adds the stage1 status."""
    flags = ("rm" if remove else "keep", "quiet" if quiet else "tell", "timing" if timing else "no-timing")
    return (*interpreter(), str(pod.layout.root), str(pod.layout.run_root), pod.uuid, str(pod.fd), *flags)


def _stage1_status(word: str) -> int | None:
    """Return how stage1 ended, which the waiter says now or later; None if it died before it knew."""
    if word.startswith(_STATUS):
        return int(word.removeprefix(_STATUS))
    with os.fdopen(int(word.removeprefix(_STATUS_FD)), "rb") as stream:
        said = stream.readline()
    return int(said) if said else None


def _warn(text: str) -> None:
    sys.stderr.write(f"secrun: {text}\n")


def _write(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _hush(text: str) -> None:
    """Nobody listens to a detached pod; `secrun gc` tells what is left to do."""


def _finish(arguments: Sequence[str]) -> int:
    root, run_root, uuid, lock_fd, removal, speech, telling, ending = arguments
    if not ending.startswith(_STATUS):
        # Started ahead of the end, to be ready for it. Keys and signals meant for the pod must not end this.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
    layout = Layout(root=Path(root), run_root=Path(run_root))
    # No app is left. Plugins are slow: they work while stage1 winds up, and while the rest is loaded here.
    leaving = release_beside(layout, uuid)
    # Not at the top: `run` takes only `command` from this module. And before the wait for stage1's end.
    from secrun.pod.finish import complaints, finish

    status = _stage1_status(ending)
    if leaving is not None:
        leaving.wait()
    if status is None:
        # The pod ends unattended; gc concludes it.
        return HostError.exit_code
    result = finish(
        layout,
        uuid,
        lock_fd=int(lock_fd),
        stage1_status=status,
        remove=removal == "rm",
        timing=_write if telling == "timing" else None,
        warn=_warn if speech == "tell" else _hush,
    )
    if speech == "tell":
        for line in complaints(result):
            sys.stderr.write(f"secrun: {line}\n")
    return result.code


def main() -> int:
    """Conclude the pod and return its exit code as our own."""
    return guarded(lambda: _finish(sys.argv[1:]))
