"""The processes beside a machine: daemons of shared folders, a software TPM. They end when QEMU does."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secrun.launch import leave_running
from secrun_kvm.place import Root

SWTPM = Path("/usr/bin/swtpm")
# libvirt believes in a software TPM only where all three are, whoever starts it.
SWTPM_PARTS = (SWTPM, Path("/usr/bin/swtpm_setup"), Path("/usr/bin/swtpm_ioctl"))
# In the order of preference: Debian 12 (part of QEMU), then the Rust program of Debian 13 and others.
VIRTIOFSD_OF_QEMU = Path("/usr/lib/qemu/virtiofsd")
VIRTIOFSD = (VIRTIOFSD_OF_QEMU, Path("/usr/libexec/virtiofsd"), Path("/usr/lib/virtiofsd"))
_STANDARD_ERROR = 2


@contextmanager
def _listening(path: Path, owner: int) -> Iterator[int]:
    """Listen for QEMU, before it or the helper runs: neither has to wait for the other."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        os.chown(path, owner, owner)
        listener.listen(1)
        yield listener.fileno()


def share_command(program: str, fd: int, folder: Path) -> list[str]:
    """Return the command of a shared folder's daemon: QEMU's own in C, or the later one in Rust; pure."""
    if program == str(VIRTIOFSD_OF_QEMU):
        options = f"source={folder},sandbox=namespace,xattr,modcaps=-mknod,log_level=err"
        return [program, f"--fd={fd}", "-o", options]
    options = "--sandbox=namespace --xattr --modcaps=-mknod --log-level=error"
    return [program, f"--fd={fd}", f"--shared-dir={folder}", *options.split()]


def share(root: Root, program: str, tag: str, uid: int) -> int:
    """Start the daemon of one shared folder; return its PID.

    It has root's rights over files, as owners are mapped one to one, in a sandbox of its own with nothing
    but that folder, and cannot make device nodes.
    """
    with _listening(root.share_socket(tag), uid) as fd:
        command = share_command(program, fd, root.share(tag))
        return leave_running(command, pass_fds=[fd], output=_STANDARD_ERROR)


def tpm(root: Root, program: str, uid: int) -> int:
    """Start the pod's software TPM, new and empty, as a user of its own; return its PID."""
    user = uid + 2
    state = root.tpm
    state.mkdir(mode=0o700)
    os.chown(state, user, user)
    with _listening(root.tpm_socket, uid) as fd:
        words = [program, "socket", "--tpm2", "--tpmstate", f"dir={state},mode=0600", "--terminate"]
        words += ["--ctrl", f"type=unixio,fd={fd}"]
        return leave_running(words, pass_fds=[fd], output=_STANDARD_ERROR, user=user)
