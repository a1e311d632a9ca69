"""A pod's libvirt root: its settings, and what its capability cache is valid for."""

import os
import shlex
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from secrun import selinux
from secrun.errors import HostError
from secrun.record import replace
from secrun.stage1 import flavours
from secrun.stage1.machine import Accelerator
from secrun.stage1.podfiles import PodFiles
from secrun_kvm import launch, lvroot, ownroot, starter
from secrun_kvm.contexts import Contexts, of_emulator
from secrun_kvm.flavour import KvmFlavour
from secrun_kvm.helpers import VIRTIOFSD, share_command
from secrun_kvm.place import PLACE, Root
from secrun_kvm.spec import Architecture
from secrun_kvm.starter import Plan
from support.manifests import app, pod
from unit.test_stage1_text import MACHINE


def configured() -> dict[str, str]:
    lines = lvroot.settings(524288, 524289).splitlines()
    return dict(line.split(" = ", 1) for line in lines)


def test_libvirt_gives_qemu_no_right_and_touches_nothing_shared():
    found = configured()
    assert (found["user"], found["group"]) == ('"+524288"', '"+524289"')
    assert found["dynamic_ownership"] == found["remember_owner"] == "0"
    assert found["seccomp_sandbox"] == "1"
    # QEMU's root is put together by us.
    assert found["namespaces"] == "[]"
    # Left alone, it labels what it opens.
    assert found["security_driver"] == '"none"'
    # Its own control group would be one that nobody removes.
    assert found["cgroup_controllers"] == "[]"


@pytest.mark.parametrize("kvm", [False, True])
def test_a_machine_gets_the_device_of_kvm_only_to_use_it(kvm):
    shown = ownroot.contents([Path(sys.executable).resolve()], kvm=kvm)
    assert (Path("/dev/kvm") in shown.devices) == kvm
    assert Path("/dev/null") in shown.devices


def test_what_a_program_needs_is_shown_where_the_loader_looks_for_it():
    program = Path("/bin/sh")
    shown = ownroot.contents([program], kvm=False)
    names = {path.name for path in shown.files}
    assert "libc.so.6" in names
    assert any(name.startswith("ld-linux") for name in names)
    # By no link in its folder: the root has links of its own, at the top.
    assert all(path.parent == path.parent.resolve() for path in shown.files)


def test_a_root_can_be_searched_by_qemu_whatever_the_umask(tmp_path):
    root = Root(tmp_path / "lv")
    before = os.umask(0o077)
    try:
        lvroot.make(root, "")
    finally:
        os.umask(before)
    folders = [root.path, *(path for path in root.path.rglob("*") if path.is_dir())]
    assert all(folder.stat().st_mode & 0o777 == 0o755 for folder in folders)
    assert root.no_device.stat().st_mode & 0o777 == 0


def test_what_is_known_of_qemu_is_forgotten_when_qemu_or_the_accelerator_changes(tmp_path, monkeypatch):
    program = tmp_path / "qemu"
    program.write_text("1")
    monkeypatch.setitem(lvroot.EMULATORS, Architecture.X86_64, program)
    first = lvroot.cache_key(Architecture.X86_64, Accelerator.TCG)
    assert lvroot.cache_key(Architecture.X86_64, Accelerator.TCG) == first
    assert lvroot.cache_key(Architecture.X86_64, Accelerator.KVM) != first
    program.write_text("22")
    assert lvroot.cache_key(Architecture.X86_64, Accelerator.TCG) != first


def test_the_sockets_of_a_root_fit_into_an_address():
    """unix(7): 108 bytes with the final one; libvirt's longest is that of QEMU's monitor."""
    longest = f"{PLACE}/lib/qemu/domain-1-pod/monitor.sock"
    assert len(longest) < 60
    assert len(str(Root(PLACE).share_socket("volume-4095"))) < 60


@pytest.mark.parametrize(
    "plan",
    [
        Plan(root=Root(Path("/r")), uid=524288, emulator=Path("/q")),
        Plan(
            root=Root(Path("/r")),
            uid=1,
            emulator=Path("/q u"),
            modules=Path("/m"),
            plugins=(Path("/m/tcg.so"),),
            kvm=True,
            swtpm=Path("/s"),
            virtiofsd=Path("/v d"),
            shares=(("volume-0", "/a b=c"), ("volume-1", "/d")),
            namespace="/proc/1/fd/9",
            interfaces=("eth0", "b,c"),
            label="system_u:system_r:secrun_vm_t:s0:c1,c2",
        ),
    ],
)
def test_the_starter_reads_what_it_is_told(plan):
    assert Plan.from_words(plan.words()) == plan


def test_everything_of_one_machine_has_its_pair_of_categories_and_a_type_of_its_own():
    found = of_emulator("system_u:system_r:secrun_vm_t:s0:c1,c2")
    contexts = (found.emulator, found.files, found.share, found.bridge)
    assert {context.split(":", 3)[3] for context in contexts} == {"s0:c1,c2"}
    assert len({context.split(":")[2] for context in contexts}) == 4
    assert of_emulator("") == Contexts()


@pytest.mark.parametrize(
    ("found", "holds"),
    [("system_u:system_r:secrun_vm_t:s0:c1,c2", True), ("system_u:system_r:secrun_t:s0", False)],
)
def test_a_machine_with_another_label_than_its_own_is_killed(monkeypatch, found, holds):
    killed = []
    monkeypatch.setattr(selinux, "context_of", lambda _pid: found)
    monkeypatch.setattr(starter.os, "kill", lambda *words: killed.append(words))
    label = "system_u:system_r:secrun_vm_t:s0:c1,c2"
    with (
        nullcontext()
        if holds
        else pytest.raises(HostError, match="QEMU runs as system_u:system_r:secrun_t:s0,")
    ):
        starter.hold(77, label)
    assert killed == ([] if holds else [(77, signal.SIGKILL)])


@pytest.mark.parametrize("program", VIRTIOFSD)
def test_the_daemon_of_a_share_sees_one_folder_and_makes_no_devices(program):
    text = shlex.join(share_command(str(program), 7, Path("/run/secrun-vm/share/volume-0")))
    assert text.startswith(f"{program} --fd=7 ")
    assert "/run/secrun-vm/share/volume-0" in text
    assert "modcaps=-mknod" in text
    assert "sandbox=namespace" in text


def test_the_supervisor_is_told_everything_about_its_pod(tmp_path):
    manifest = replace(pod(app("a"), app("b")), machine=MACHINE)
    words = launch.bridge_command(
        Path("/agent"),
        manifest,
        PodFiles(tmp_path),
        root=Root(PLACE),
        uid=524288,
        kill=Path("/sys/fs/cgroup/secrun/x/cgroup.kill"),
        starter=("python", "-m", "x"),
    )
    text = shlex.join(words)
    assert text.startswith("/agent vm --app a --app b --rw ")
    assert "--uid 524288 --gid 524288" in text
    assert "--image app-0=a --image app-1=b" in text
    assert text.endswith(" -- python -m x")


def test_a_pod_remembers_where_its_flavour_is():
    written = flavours.note(KvmFlavour())
    assert written == "kvm secrun_kvm.flavour:KvmFlavour\n"
    assert isinstance(flavours.recall(written), KvmFlavour)
    # As older versions wrote it, and as it is found again after a move.
    assert flavours.recall("nspawn\n").name == "nspawn"
    assert flavours.recall("kvm nowhere.at.all:Kvm\n").name == "kvm"
