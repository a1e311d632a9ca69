"""Whether what strangers wrote is read in a process without rights: always when root asks."""

import os
from collections.abc import Callable

from secrun.jsonio import JsonObject


def separated() -> bool:
    """Tell whether this process has rights that a reader of foreign bytes must not have."""
    return os.geteuid() == 0


def run(
    body: Callable[[], JsonObject], preload: Callable[[], None], *, readable: tuple[int, ...] = ()
) -> JsonObject:
    """Return what `body` returns, for root from a process with no rights, no network and no files.

    But for those open at `readable`, which it may open once more. `preload` imports what `body` will need.
    Forks: the process must have no other threads. Raises what `body` raises.
    """
    if not separated():
        return body()
    from secrun.image.rootfs.sandbox import Confined, run_confined
    from secrun.syscalls import LinuxSyscalls

    job = Confined(body=body, prepare=preload, keep_fds=readable, readable=readable)
    return run_confined(job, LinuxSyscalls())
