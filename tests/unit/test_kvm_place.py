"""A pod's libvirt root: its settings, and what its capability cache is valid for."""

import os
import shlex
from pathlib import Path

import pytest

from secrun.record import replace
from secrun.stage1 import flavours
from secrun.stage1.machine import Accelerator
from secrun.stage1.podfiles import PodFiles
from secrun_kvm import launch, lvroot
from secrun_kvm.flavour import KvmFlavour
from secrun_kvm.helpers import VIRTIOFSD, share_command
from secrun_kvm.place import PLACE, Root
from secrun_kvm.spec import Architecture
from secrun_kvm.starter import Plan
from support.manifests import app, pod
from unit.test_stage1_text import MACHINE


def configured(accelerator=Accelerator.TCG) -> dict[str, str]:
    lines = lvroot.settings(524288, 524289, accelerator, "none").splitlines()
    return dict(line.split(" = ", 1) for line in lines)


def test_libvirt_gives_qemu_no_right_and_touches_nothing_shared():
    found = configured()
    assert (found["user"], found["group"]) == ('"+524288"', '"+524289"')
    assert found["dynamic_ownership"] == found["remember_owner"] == "0"
    assert found["seccomp_sandbox"] == "1"
    assert found["namespaces"] == '["mount"]'
    # Its own control group would be one that nobody removes.
    assert found["cgroup_controllers"] == "[]"


def test_an_emulated_machine_has_no_kvm_device():
    assert "/dev/kvm" not in configured()["cgroup_device_acl"]
    assert "/dev/kvm" in configured(Accelerator.KVM)["cgroup_device_acl"]


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
        Plan(root=Root(Path("/r")), uid=524288),
        Plan(root=Root(Path("/r")), uid=1, virtiofsd="/v d", tags=("a", "b"), vtpm=True),
    ],
)
def test_the_starter_reads_what_it_is_told(plan):
    assert Plan.from_words(plan.words()) == plan


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
