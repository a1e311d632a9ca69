"""Ask QEMU once per host what it can do: libvirt keeps the answer in files that every pod gets a copy of."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from secrun import selinux
from secrun.errors import HostError, SecrunError
from secrun.record import row
from secrun.stage1 import labels
from secrun.stage1.machine import Accelerator
from secrun.stage1.uidrange import acquire
from secrun.syscalls import CLONE_NEWNS, MS_PRIVATE, MS_REC, LinuxSyscalls
from secrun_kvm import lvroot, virt
from secrun_kvm.contexts import Contexts, of_emulator
from secrun_kvm.place import CACHE, Root
from secrun_kvm.spec import Architecture
from secrun_policies.labels import OWN_RUN, LabelKind, LabelRequest

_MAX_TEXT = 4096


def build(
    folder: Path, architecture: Architecture, accelerator: Accelerator, *, keep: Collection[str] = ()
) -> None:
    """Write the capability cache into the new folder `folder`, whole or not at all; raises HostError.

    As the user and with the devices that pods' machines have: the answers depend on both. Its siblings are
    removed, but for those named in `keep`.
    """
    import shutil
    import tempfile

    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What an older QEMU, libvirt or kernel said.
    for old in folder.parent.iterdir():
        if old.name not in keep:
            shutil.rmtree(old)
    label = labels.decide(LabelKind.MACHINE, LabelRequest())
    contexts = Contexts() if label is None else of_emulator(label.process)
    ids = acquire("vm-capabilities")
    with (
        ids.guard,
        selinux.files_as(contexts.files),
        tempfile.TemporaryDirectory(dir=folder.parent) as scratch,
    ):
        root = Root(Path(scratch) / lvroot.FOLDER_NAME)
        group = lvroot.kvm_group() if accelerator is Accelerator.KVM else ids.base
        lvroot.make(root, lvroot.settings(ids.base, group))
        _ask_in_child(_Question(root, architecture, accelerator, contexts.emulator))
        if contexts.files:
            # No machine ever gets at these, but at copies of its own.
            labels.label_tree(root.path / CACHE, OWN_RUN)
        (root.path / CACHE).rename(folder)


@row
class _Question:
    """What is asked, and as what QEMU answers."""

    root: Root
    architecture: Architecture
    accelerator: Accelerator
    context: str


def _ask_in_child(question: _Question) -> None:
    """Ask in a process of its own: it changes its mounts, and libvirt's threads must not stay."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _reap(write_fd, question)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as stream:
        said = stream.read(_MAX_TEXT).decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise HostError(
            f"libvirt cannot examine QEMU: {said or 'it died'}",
            hint="secrun doctor --stage1=kvm",
            code="host-libvirt",
        )


def _reap(write_fd: int, question: _Question) -> NoReturn:
    """Be the parent of every QEMU that is asked: libvirt waits until each has vanished.

    The host's PID 1 may take its time over that. Never returns into the caller's code.
    """
    code = 1
    try:
        LinuxSyscalls().child_subreaper()
        asking = os.fork()
        if asking == 0:
            _ask(write_fd, question)
        while True:
            pid, status = os.wait()
            if pid == asking:
                code = os.waitstatus_to_exitcode(status)
                break
    finally:
        os._exit(0 if code == 0 else 1)


def _ask(write_fd: int, question: _Question) -> NoReturn:
    code = 1
    try:
        call = LinuxSyscalls()
        call.unshare(CLONE_NEWNS)
        call.mount("", "/", "", MS_REC | MS_PRIVATE)
        place = lvroot.enter(call, question.root, question.accelerator)
        kind = "kvm" if question.accelerator is Accelerator.KVM else "qemu"
        emulator = lvroot.EMULATORS[question.architecture]
        with selinux.executing_as(question.context):
            virt.examine(place, emulator, architecture=question.architecture, kind=kind)
        code = 0
    except (SecrunError, OSError) as error:
        os.write(write_fd, str(error).encode()[:_MAX_TEXT])
    finally:
        # Neither handlers nor buffers of the caller are this process's.
        os._exit(code)
