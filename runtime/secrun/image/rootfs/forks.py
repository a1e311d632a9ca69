"""Spread work over the cores by fork and shared anonymous memory.

Hashing small blocks is bound by the interpreter lock, so threads would not help. The callers hold no thread
while they fork: another thread's lock, copied in a locked state, would never be released in the child.
"""

import os
import signal
from collections.abc import Callable, Sequence

from secrun.syscalls import LinuxSyscalls

_FAILED = 70


def _fork(share: Callable[[], None], errors: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = _FAILED
    try:
        LinuxSyscalls().parent_death_signal(signal.SIGKILL)
        share()
        status = 0
    except OSError as error:
        # Two bytes are written whole into a pipe; the parent makes the exception again from errno.
        os.write(errors, (error.errno or 0).to_bytes(2, "little"))
    finally:
        os._exit(status)


def _reap(pids: Sequence[int]) -> bool:
    results = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return any(results)


def run_shares(
    shares: Sequence[Callable[[], None]], *, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Run every share, each in a process of its own if there are several, and `meanwhile` in this one.

    A share hands its result back through shared memory. Raises the OSError of the first share that failed
    with one, ChildProcessError if a share ended in another way.
    """
    if len(shares) == 1:
        shares[0]()
        meanwhile()
        return
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    pids: list[int] = []
    try:
        try:
            pids.extend(_fork(share, writer) for share in shares)
            meanwhile()
        finally:
            failed = _reap(pids)
        if failed:
            try:
                code = int.from_bytes(os.read(reader, 2), "little")
            except BlockingIOError:
                raise ChildProcessError("a helper process of the renderer died") from None
            raise OSError(code, os.strerror(code))
    finally:
        os.close(reader)
        os.close(writer)


def processors() -> int:
    """Return how many processes are worth forking: the cores this process may use, at most four."""
    return min(4, len(os.sched_getaffinity(0)))
