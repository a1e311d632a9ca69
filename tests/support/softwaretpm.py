"""Software TPMs outlive the commands that start them; this ends those that a run of tests leaves."""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from secrun.stage1 import cgroups

_END_SECONDS = 10.0


def software_tpms(mark: str) -> Iterator[int]:
    """Yield the processes of software TPMs whose words mention `mark`."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0].endswith("swtpm") and any(mark in word for word in words):
            yield int(entry.name)


def end_software_tpms(mark: str) -> None:
    for pid in list(software_tpms(mark)):
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            signal.pidfd_send_signal(process, signal.SIGTERM)
            poll = select.poll()
            poll.register(process, select.POLLIN)
            poll.poll(_END_SECONDS * 1000)
            os.close(process)
    for group in (cgroups.host().mount / cgroups.PARENT).glob("tpm-*"):
        # The group of a TPM that runs, of another run of tests, cannot be removed.
        with contextlib.suppress(OSError):
            group.rmdir()
