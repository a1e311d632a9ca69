"""Start one machine: executed by the bridge as root in the pod's control group and mount namespace.

Prints one line, `pid N`, and ends; QEMU stays, and ends its helpers with it. Everything it needs is below
one folder, its first argument.
"""

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from secrun.errors import SecrunError
from secrun.launch import leave_running
from secrun.record import record
from secrun.syscalls import CLONE_NEWIPC, CLONE_NEWNET, LinuxSyscalls
from secrun_kvm import virt
from secrun_kvm.lvroot import Root

_SWTPM = "/usr/bin/swtpm"
_STANDARD_ERROR = 2


@record
class Plan:
    """What is started: the machine below `root`, and the helpers that it needs.

    The pod's first uid is QEMU's and its second the bridge's; the third is that of a software TPM.
    """

    root: Root
    uid: int
    virtiofsd: str = ""
    tags: tuple[str, ...] = ()
    vtpm: bool = False

    def words(self) -> list[str]:
        """Return the arguments that `from_words` reads."""
        return [str(self.root.path), str(self.uid), "tpm" if self.vtpm else "", self.virtiofsd, *self.tags]

    @classmethod
    def from_words(cls, words: Sequence[str]) -> "Plan":
        """Read the command line; raises ValueError if it is another's."""
        place, uid, tpm, virtiofsd, *tags = words
        return cls(
            root=Root(Path(place)), uid=int(uid), virtiofsd=virtiofsd, tags=tuple(tags), vtpm=tpm == "tpm"
        )


@contextmanager
def _listening(path: Path, owner: int) -> Iterator[int]:
    """Listen for QEMU, before it or the helper runs: neither has to wait for the other."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        os.chown(path, owner, owner)
        listener.listen(1)
        yield listener.fileno()


def _share(plan: Plan, tag: str) -> None:
    """Start the daemon of one shared folder.

    It has root's rights over files, as owners are mapped one to one, in a sandbox of its own with nothing
    but that folder, and cannot make device nodes.
    """
    with _listening(plan.root.share_socket(tag), plan.uid) as fd:
        options = f"source={plan.root.share(tag)},sandbox=namespace,xattr,modcaps=-mknod,log_level=err"
        leave_running([plan.virtiofsd, f"--fd={fd}", "-o", options], pass_fds=[fd], output=_STANDARD_ERROR)


def _tpm(plan: Plan) -> None:
    """Start the pod's software TPM, new and empty, as a user of its own."""
    user = plan.uid + 2
    state = plan.root.tpm
    state.mkdir(mode=0o700)
    os.chown(state, user, user)
    with _listening(plan.root.tpm_socket, plan.uid) as fd:
        words = [_SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={state},mode=0600", "--terminate"]
        words += ["--ctrl", f"type=unixio,fd={fd}"]
        leave_running(words, pass_fds=[fd], output=_STANDARD_ERROR, user=user)


def start(plan: Plan) -> int:
    """Start helpers and machine; return the PID of QEMU.

    None of them needs a network, nor what others share in memory.
    """
    LinuxSyscalls().unshare(CLONE_NEWNET | CLONE_NEWIPC)
    for tag in plan.tags:
        _share(plan, tag)
    if plan.vtpm:
        _tpm(plan)
    return virt.start(plan.root, plan.root.domain.read_text())


def main() -> int:
    """Start the machine and print the PID of its QEMU; 1 with one line of why if that fails."""
    try:
        pid = start(Plan.from_words(sys.argv[1:]))
    except (SecrunError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"pid {pid}\n")
    sys.stdout.flush()
    # libvirt's own end would take the machine with it.
    os._exit(0)
