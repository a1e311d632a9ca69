"""Start one machine: executed by the bridge as root in the pod's control group and mount namespace.

Prints one line, `pid N`, and ends; QEMU stays. Everything it needs is below one folder, its argument.
"""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from secrun.errors import SecrunError
from secrun.launch import leave_running
from secrun_kvm import virt
from secrun_kvm.lvroot import Root


def _listen(path: Path, owner: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    os.chown(path, owner, owner)
    listener.listen(1)
    return listener


def _share(root: Root, program: str, tag: str, owner: int) -> None:
    """Start the daemon of one shared folder; it ends when QEMU does.

    It listens before QEMU looks for it, as the descriptor is handed to it. Its own sandbox takes all but
    the shared folder from it, and the right to make device nodes.
    """
    with _listen(root.share_socket(tag), owner) as listener:
        options = f"source={root.share(tag)},sandbox=namespace,xattr,modcaps=-mknod"
        words = [program, f"--fd={listener.fileno()}", "-o", options]
        # What it says is for the pod's stage1.log; standard output is for the one line of `main`.
        leave_running(words, pass_fds=[listener.fileno()], output=2)


def _start(words: Sequence[str]) -> int:
    place, owner, virtiofsd, *tags = words
    root = Root(Path(place))
    for tag in tags:
        _share(root, virtiofsd, tag, int(owner))
    return virt.start(root, root.domain.read_text())


def main() -> int:
    """Start the machine and print the PID of its QEMU; 1 with one line of why if that fails."""
    try:
        pid = _start(sys.argv[1:])
    except (SecrunError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"pid {pid}\n")
    sys.stdout.flush()
    # libvirt's own end would take the machine with it.
    os._exit(0)
