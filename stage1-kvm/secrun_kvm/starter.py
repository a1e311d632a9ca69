"""Start one machine: executed by the bridge as root in the pod's control group and mount namespace.

Prints one line, `pid N`, and ends; QEMU stays, and ends its helpers with it. Everything it needs is below
one folder, its first argument.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from secrun.errors import SecrunError
from secrun.record import record
from secrun.syscalls import CLONE_NEWIPC, CLONE_NEWNET, LinuxSyscalls
from secrun_kvm import virt
from secrun_kvm.place import Root


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


def start(plan: Plan) -> int:
    """Start helpers and machine; return the PID of QEMU.

    None of them needs a network, nor what others share in memory.
    """
    LinuxSyscalls().unshare(CLONE_NEWNET | CLONE_NEWIPC)
    if plan.tags or plan.vtpm:
        from secrun_kvm import helpers

        for tag in plan.tags:
            helpers.share(plan.root, plan.virtiofsd, tag, plan.uid)
        if plan.vtpm:
            helpers.tpm(plan.root, plan.uid)
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
