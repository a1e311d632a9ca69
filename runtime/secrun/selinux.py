"""The one door to SELinux: libselinux's binding is loaded only where the kernel has it switched on.

Contexts are raw (no translation by mcstransd): what is compared is what the kernel says.
"""

import errno
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.errors import HostError
from secrun_policies.labels import MAX_CONTEXT_FILE_BYTES, HostContexts

if TYPE_CHECKING:
    from types import ModuleType

# selinuxfs exists where SELinux is on, and nowhere else (selinux_init of the kernel).
ENFORCE = Path("/sys/fs/selinux/enforce")
XATTR = "security.selinux"


class Mode(StrEnum):
    """What the kernel does with its policy."""

    OFF = "off"
    PERMISSIVE = "permissive"
    ENFORCING = "enforcing"


def mode() -> Mode:
    """Return what the kernel does now; costs one read."""
    try:
        text = ENFORCE.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return Mode.OFF
    return Mode.ENFORCING if text.strip() == "1" else Mode.PERMISSIVE


def _binding() -> "ModuleType":
    try:
        # Debian's binding has no types; by name, a type checker does not look for them.
        return importlib.import_module("selinux")
    except ImportError as error:
        raise HostError(
            "SELinux is on, and python3-selinux is not installed: nothing can be labelled",
            hint="apt-get install python3-selinux",
            code="host-selinux",
        ) from error


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read(MAX_CONTEXT_FILE_BYTES)
    except FileNotFoundError:
        return ""


def contexts() -> HostContexts:
    """Return what the policy in force names for containers and machines."""
    library = _binding()

    def defined(context: str) -> bool:
        # The binding raises where libselinux(3) returns -1.
        try:
            return int(library.security_check_context_raw(context)) == 0
        except OSError:
            return False

    return HostContexts(
        lxc=_read(library.selinux_lxc_contexts_path()),
        defined=defined,
    )


def policy_name() -> str:
    """Return the name of the policy in force, e.g. `default` or `targeted`."""
    _, name = _binding().selinux_getpolicytype()
    return str(name)


def execute_as(context: str) -> None:
    """Choose the context of the next execve of this thread (setexeccon(3)); raises HostError."""
    try:
        _binding().setexeccon_raw(context)
    except OSError as error:
        raise HostError(
            f"SELinux does not let this process execute anything as {context}: {error.strerror}",
            hint="secrun policy install selinux; the denial is in the audit log",
            code="host-selinux",
        ) from error


@contextmanager
def executing_as(context: str) -> Iterator[None]:
    """Execute what this thread starts meanwhile as a context; empty: as the policy says for its program."""
    if not context:
        yield
        return
    execute_as(context)
    try:
        yield
    finally:
        _binding().setexeccon_raw(None)


@contextmanager
def files_as(context: str) -> Iterator[None]:
    """Label the files that this thread makes meanwhile (setfscreatecon(3)); empty: as the policy says."""
    if not context:
        yield
        return
    library = _binding()
    library.setfscreatecon_raw(context)
    try:
        yield
    finally:
        library.setfscreatecon_raw(None)


def context_of(pid: int) -> str:
    """Return the context of a process; raises FileNotFoundError if it has ended."""
    return Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0\n")


def binding_folder() -> Path | None:
    """Return the folder of libselinux's binding, None if it is not installed."""
    found = PathFinder.find_spec("selinux")
    return None if found is None or found.origin is None else Path(found.origin).parents[1]


@contextmanager
def sockets_as(context: str) -> Iterator[None]:
    """Give the sockets that this thread makes meanwhile a context (setsockcreatecon(3)); empty: its own."""
    if not context:
        yield
        return
    library = _binding()
    library.setsockcreatecon_raw(context)
    try:
        yield
    finally:
        library.setsockcreatecon_raw(None)


def label_of(path: Path) -> str:
    """Return the label of a file or folder, empty if it has none."""
    try:
        return os.getxattr(path, XATTR).rstrip(b"\0").decode()
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return ""
        raise


def label(name: str | bytes, context: str, *, dir_fd: int) -> None:
    """Set the label of one entry of an open folder; a symbolic link is labelled itself."""
    place = os.fsencode(f"/proc/self/fd/{dir_fd}/") + os.fsencode(name)
    os.setxattr(place, XATTR, context.encode() + b"\0", follow_symlinks=False)


def label_fd(fd: int, context: str) -> None:
    """Set the label of an open file or folder."""
    os.setxattr(fd, XATTR, context.encode() + b"\0")
