"""Kernel settings of a pod's network, written from the host: nobody in the pod has a right to.

The kernel shows a namespace only what is the namespace's own, and lets nobody write there what is the whole
host's (net/sysctl_net.c, ensure_safe_net_sysctl).
"""

import os
from collections.abc import Iterable

from secrun.errors import NetworkError
from secrun.network import namespace
from secrun.syscalls import Syscalls

_ROOT = "/proc/sys"


def write(call: Syscalls, fd: int, settings: Iterable[tuple[str, str]]) -> None:
    """Set each in the namespace `fd`; raises NetworkError. This process must have one thread."""
    with namespace.entered(call, fd):
        for name, value in settings:
            _set(name, value)


def _set(name: str, value: str) -> None:
    try:
        found = os.open(f"{_ROOT}/{name.replace('.', '/')}", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.write(found, value.encode())
        finally:
            os.close(found)
    except OSError as error:
        hint = "a pod's network does not have every setting that the host's has"
        raise NetworkError(
            f"sysctl {name}={value}: {error.strerror}", hint=hint, code="network-setting"
        ) from error
