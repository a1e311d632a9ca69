"""Run the command line and kill it with SIGKILL at a named instant.

As a program: `faults.py FILE POINT WORD...` runs `secrun WORD...`, appends each instant that is passed to
FILE, and dies at POINT (empty: never). The process that finishes the pod is run in the same way. An instant
inside an append to the log is named after the event, as in `measuring-PodStart:torn`, and is not in FILE.
"""

import os
import signal
import sys
from collections.abc import Sequence

FINISH = "-finish-"


def argv(file: str, point: str, words: Sequence[str]) -> list[str]:
    return [sys.executable, "-P", __file__, file, point, *words]


def main() -> int:
    file, point, *words = sys.argv[1:]
    from secrun import checkpoint
    from secrun.cli import finish
    from secrun.cli.main import main as secrun
    from secrun_attest import checkpoint as log_checkpoint

    last = ""

    def hook(name: str) -> None:
        nonlocal last
        last = name
        with open(file, "a") as stream:
            stream.write(f"{name}\n")
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def append_hook(name: str) -> None:
        if f"{last}:{name}" == point:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.hook = hook
    log_checkpoint.hook = append_hook
    finish.interpreter = lambda: tuple(argv(file, point, [FINISH]))
    if words[0] == FINISH:
        sys.argv = words
        return finish.main()
    return secrun(words)


if __name__ == "__main__":
    sys.exit(main())
