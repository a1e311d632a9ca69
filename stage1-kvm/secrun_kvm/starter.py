"""Start one machine: executed by the bridge as root in the pod's control group and mount namespace.

Prints a line `helper N NAME` for each process that the machine cannot do without, then `pid N`, and ends;
QEMU stays, and ends its helpers with it. Everything it needs is below one folder, its first argument.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from secrun import launch, selinux
from secrun.errors import HostError, SecrunError
from secrun.printable import printable
from secrun.record import record, row
from secrun.stage1 import labels
from secrun.syscalls import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, LinuxSyscalls
from secrun_kvm import ownroot, virt
from secrun_kvm.contexts import Contexts, of_emulator
from secrun_kvm.place import Root


@record
class Plan:
    """What is started: the machine below `root`, and the helpers that it needs.

    The pod's first uid is QEMU's and its second the bridge's; the third is that of a software TPM.
    `interfaces` are those of the network namespace `namespace`, which the machine's are joined with.
    """

    root: Root
    uid: int
    emulator: Path
    modules: Path | None = None
    """The folder of QEMU's loadable parts."""
    plugins: tuple[Path, ...] = ()
    """Those of them that it loads."""
    kvm: bool = False
    swtpm: Path | None = None
    """The software TPM's program, if the machine has one."""
    virtiofsd: Path | None = None
    shares: tuple[tuple[str, str], ...] = ()
    """Tag of each shared folder, and its path on the host."""
    namespace: str = ""
    interfaces: tuple[str, ...] = ()
    """Those in the network namespace `namespace` that the machine's are joined with."""
    label: str = ""
    """The SELinux context of QEMU, empty if it has none of its own."""

    def words(self) -> list[str]:
        """Return the arguments that `from_words` reads."""
        optional = (self.modules, self.swtpm, self.virtiofsd)
        return [
            *(str(self.root.path), str(self.uid), str(self.emulator), "kvm" if self.kvm else ""),
            *("" if path is None else str(path) for path in optional),
            # No interface's name has a slash (linux/net/core/dev.c, dev_valid_name).
            *(self.namespace, "/".join(self.interfaces)),
            self.label,
            *(str(len(self.plugins)), *map(str, self.plugins)),
            *(word for share in self.shares for word in share),
        ]

    @classmethod
    def from_words(cls, words: Sequence[str]) -> "Plan":
        """Read the command line; raises ValueError if it is another's."""
        place, uid, emulator, kvm, modules, swtpm, virtiofsd, *rest = words
        namespace, interfaces, label, count, *rest = rest
        plugins, shares = rest[: int(count)], rest[int(count) :]
        return cls(
            root=Root(Path(place)),
            uid=int(uid),
            emulator=Path(emulator),
            kvm=kvm == "kvm",
            modules=Path(modules) if modules else None,
            plugins=tuple(map(Path, plugins)),
            swtpm=Path(swtpm) if swtpm else None,
            virtiofsd=Path(virtiofsd) if virtiofsd else None,
            shares=tuple(zip(shares[::2], shares[1::2], strict=True)),
            namespace=namespace,
            interfaces=tuple(interfaces.split("/")) if interfaces else (),
            label=label,
        )

    def programs(self) -> list[Path]:
        """Return what is executed."""
        optional = (self.swtpm, self.virtiofsd if self.shares else None)
        return [self.emulator, *(path for path in optional if path is not None)]


def _helpers(plan: Plan, contexts: Contexts) -> Iterator[tuple[int, str]]:
    """Start the helpers; yield the PID of each and what to call it."""
    from secrun_kvm import helpers

    if plan.virtiofsd is not None:
        for tag, source in plan.shares:
            with selinux.executing_as(contexts.share):
                pid = helpers.share(plan.root, str(plan.virtiofsd), tag, plan.uid)
            yield pid, f"virtiofsd of {''.join(char if char.isprintable() else '?' for char in source)}"
    if plan.swtpm is not None:
        with selinux.executing_as(contexts.emulator):
            pid = helpers.tpm(plan.root, str(plan.swtpm), plan.uid)
        yield pid, "the software TPM"


def hold(pid: int, label: str) -> None:
    """End a machine that runs as anything but `label`; raises HostError."""
    found = selinux.context_of(pid)
    if found != label:
        os.kill(pid, signal.SIGKILL)
        raise HostError(
            f"QEMU runs as {found}, and was to run as {label}",
            hint="secrun policy install selinux; denials are in the audit log",
            code="host-selinux",
        )


def start(plan: Plan) -> tuple[int, list[tuple[int, str]]]:
    """Start helpers and machine; return the PID of QEMU, and PID and name of each helper.

    None of them needs a network (a machine's interfaces are descriptors), what others share in memory, nor
    more of the host's files than their own programs; the guest runs only when nothing else has a path any
    more.
    """
    contexts = of_emulator(plan.label)
    # The bridge made these before anything of the pod had a label of its own.
    for path in (plan.root.link, plan.root.console) if contexts.files else ():
        labels.label_one(path, contexts.files)
    call = LinuxSyscalls()
    with selinux.files_as(contexts.files):
        started = _create(call, plan, contexts)
    ownroot.leave_host(call, started.shown)
    virt.resume(started.machine)
    return virt.pid(plan.root), started.helpers


@row
class _Started:
    """A machine whose guest does not run yet, its helpers, and what is shown to both."""

    machine: virt.Domain
    helpers: list[tuple[int, str]]
    shown: ownroot.Contents


def _create(call: LinuxSyscalls, plan: Plan, contexts: Contexts) -> _Started:
    connected = bool(plan.interfaces)
    pod = os.open(plan.namespace, os.O_RDONLY | os.O_CLOEXEC) if connected else -1
    call.unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWNS)
    shown = ownroot.contents(plan.programs(), plan.modules, plan.plugins, kvm=plan.kvm, taps=connected)
    xml = plan.root.domain.read_text()
    connection = virt.connect(plan.root)
    helped = bool(plan.shares) or plan.swtpm is not None
    if helped:
        from secrun_kvm import helpers as _  # noqa: F401 - no module can be found below the new root

        launch.load()
    if connected:
        from secrun_kvm import taps
    ownroot.enter(call, plan.root.empty, shown, plan.root.path)
    helpers = list(_helpers(plan, contexts)) if helped else []
    if not plan.kvm:
        # A translator touches its memory here and there: to clear two megabytes each time, which the host
        # may have to put together first, takes longer than it saves.
        call.no_huge_pages()
    with selinux.executing_as(contexts.emulator):
        machine = virt.create(connection, xml)
    if plan.label:
        hold(virt.pid(plan.root), plan.label)
    if connected:
        taps.connect(plan.root, pod, plan.interfaces)
    return _Started(machine, helpers, shown)


def _failed(text: str) -> int:
    sys.stdout.write(f"failed {printable(text)}\n")
    return 1


def main() -> int:
    """Start the machine and print what runs now; 1 with one line, `failed` and why, if that fails."""
    try:
        pid, helpers = start(Plan.from_words(sys.argv[1:]))
    except SecrunError as error:
        return _failed(f"{error.message}; {error.hint}" if error.hint else error.message)
    except OSError as error:
        return _failed(str(error))
    lines = (f"helper {helper} {name}\n" for helper, name in helpers)
    sys.stdout.write("".join([*lines, f"pid {pid}\n"]))
    sys.stdout.flush()
    # libvirt's own end would take the machine with it.
    os._exit(0)
