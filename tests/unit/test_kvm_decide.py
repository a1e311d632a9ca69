"""What machine a pod gets: accelerator, size, type, command line."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.digest import Digest
from secrun.network.plan import Attachment, Connection
from secrun.record import replace
from secrun.stage1.machine import Accelerator, AcceleratorChoice, MachineRequest
from secrun.stage1.manifest import Limits, Network
from secrun.stage1.volume import Volume
from secrun_kvm import accel, decide, lvroot, machines, probe
from secrun_kvm.spec import Architecture, Model
from support.manifests import app, pod

MIB = 1 << 20
READY = accel.Facts(
    architecture=Architecture.X86_64,
    flags=frozenset({"fpu", "vmx"}),
    modules=frozenset({"kvm_intel"}),
    device=True,
)

CONNECTION = Connection(
    attachments=(
        Attachment(network="n", interface="eth0", source="x", config=Digest.of(b"n"), plugins=("bridge",)),
    )
)


def said(facts: accel.Facts) -> str:
    return "; ".join(f"{item.subject} {item.text} ({item.hint})" for item in accel.missing(facts))


@pytest.mark.parametrize("asked", [None, AcceleratorChoice.AUTO, AcceleratorChoice.KVM])
def test_hardware_that_is_there_is_used(asked):
    assert accel.choose(asked, READY) is Accelerator.KVM
    amd = replace(READY, flags=frozenset({"svm"}), modules=frozenset({"kvm_amd"}))
    assert accel.choose(asked, amd) is Accelerator.KVM


@pytest.mark.parametrize("asked", [None, AcceleratorChoice.AUTO, AcceleratorChoice.KVM])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"flags": frozenset({"fpu"})}, "neither vmx nor svm"),
        ({"modules": frozenset()}, "kvm_intel is not loaded (modprobe kvm_intel)"),
        # Both modules can be there; the processor tells which one counts.
        ({"modules": frozenset({"kvm_amd"})}, "kvm_intel is not loaded"),
        ({"device": False}, "/dev/kvm cannot be opened"),
    ],
)
def test_emulation_is_never_silent(asked, changes, text):
    facts = replace(READY, **changes)
    assert accel.choose(asked, facts) == accel.missing(facts)
    assert text in said(facts)


def test_a_device_without_hardware_virtualisation_is_no_reason_to_use_it():
    assert "--accel=tcg" in said(replace(READY, flags=frozenset()))


@pytest.mark.parametrize("facts", [READY, replace(READY, flags=frozenset(), device=False)])
def test_emulation_that_is_asked_for_needs_nothing(facts):
    assert accel.choose(AcceleratorChoice.TCG, facts) is Accelerator.TCG


def test_on_arm64_the_device_is_the_proof():
    arm = accel.Facts(architecture=Architecture.AARCH64, flags=frozenset(), modules=frozenset(), device=True)
    assert accel.choose(None, arm) is Accelerator.KVM
    assert "/dev/kvm" in said(replace(arm, device=False))


def sized(*limits: int | None) -> int:
    apps = [app(f"a{n}", limits=Limits(memory_bytes=value)) for n, value in enumerate(limits)]
    return machines.memory(apps)


def test_a_guest_has_what_its_apps_were_promised_beside_what_it_needs_itself():
    assert sized(None) == 512 * MIB
    assert sized(100 * MIB) == 228 * MIB
    assert sized(100 * MIB, 50 * MIB) == 278 * MIB
    # Apps without a limit share one portion.
    assert sized(None, None, 100 * MIB) == 612 * MIB


@given(st.lists(st.none() | st.integers(6 * MIB, 1 << 40), min_size=1, max_size=64))
def test_memory_is_whole_mebibytes_enough_for_every_promise_and_never_too_little_to_boot(limits):
    total = sized(*limits)
    assert total % MIB == 0
    assert total >= max(128 * MIB, sum(limit or 0 for limit in limits) + machines.OVERHEAD_BYTES)


@pytest.mark.parametrize(
    ("millis", "count"), [((None,), 1), ((500,), 1), ((1001,), 2), ((2000, None), 3), ((64000,), 8)]
)
def test_a_guest_has_as_many_processors_as_its_apps_may_use_and_the_host_has(millis, count):
    apps = [app(f"a{n}", limits=Limits(cpu_millis=value)) for n, value in enumerate(millis)]
    assert machines.vcpus(apps, 8) == count


def chosen(accelerator=Accelerator.KVM, architecture=Architecture.X86_64, *, vtpm=False, devices=4) -> Model:
    return machines.model(architecture, accelerator, vtpm=vtpm, devices=devices)


def test_the_smallest_machine_is_used_where_it_can_be():
    assert chosen() is Model.MICROVM
    assert chosen(vtpm=True) is Model.Q35
    assert chosen(devices=40) is Model.Q35
    # Its processor's counter has nothing to be measured by there.
    assert chosen(Accelerator.TCG) is Model.Q35
    assert chosen(architecture=Architecture.AARCH64) is Model.VIRT


@pytest.mark.parametrize("model", Model)
def test_the_command_line_is_fixed_and_closes_the_kernel(model):
    line = machines.command_line(model)
    assert re.fullmatch(r"[a-zA-Z0-9=._ -]+", line)
    assert {"module.sig_enforce=1", "lockdown=integrity", "panic=-1"} <= set(line.split())
    assert sum(word.startswith("console=") for word in line.split()) == 1


def refused(manifest, asked=None) -> str:
    asked = asked or MachineRequest(accelerator=AcceleratorChoice.TCG)
    return "; ".join(f"{item.subject} {item.text}" for item in decide.refusals(manifest, asked))


def test_what_a_guest_cannot_have_is_refused_by_name(tmp_path):
    assert "--net=host" not in refused(pod())
    assert "--net=host" in refused(pod(network=Network.HOST))
    good, bad = tmp_path / "folder", tmp_path / "socket"
    good.mkdir()
    os.mkfifo(bad)
    volumes = tuple(Volume(source=str(path), target="/x", read_only=False) for path in (good, bad))
    assert str(good) not in refused(pod(app(volumes=volumes)))
    assert f"volume {bad} is not a folder or a regular file" in refused(pod(app(volumes=volumes)))


def test_processors_of_the_host_cannot_be_named_for_a_guest():
    assert "--cpuset-cpus" in refused(pod(app(limits=Limits(cpus="0"))))
    assert "--cpuset-cpus" not in refused(pod(app(limits=Limits(memory_low_bytes=1))))


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A host on which nothing is installed that machines need."""
    gone = tmp_path / "gone"
    monkeypatch.setitem(lvroot.EMULATORS, accel.architecture(), gone)
    monkeypatch.setattr(lvroot, "DRIVERS", (str(gone),))
    monkeypatch.setattr(probe, "FIRMWARE", gone)
    monkeypatch.setattr(probe, "SWTPM_PARTS", (gone,))
    monkeypatch.setattr(probe, "MKE2FS", gone)
    monkeypatch.setattr(probe, "VIRTIOFSD", (gone,))
    monkeypatch.setattr(probe, "TUN", gone)
    monkeypatch.setattr(probe, "binding", lambda: None)
    monkeypatch.setattr(probe, "LIBVIRT_USER", "nobody-has-this-name")
    return gone


def test_what_is_not_installed_stops_a_pod_before_anything_is_written(bare, tmp_path):
    text = refused(pod())
    for part in (
        f"{bare} is not installed",
        "libvirt's driver for QEMU",
        "Python binding",
        "nobody-has-this-name",
    ):
        assert part in text
    # A helper is needed by who asks for it.
    assert "no --vtpm" not in text
    assert "no network" not in text
    assert "no network but --net=none" in refused(replace(pod(network=Network.CNI), connection=CONNECTION))
    asked = MachineRequest(accelerator=AcceleratorChoice.TCG, vtpm=True, storage_bytes=1 << 26)
    volume = Volume(source=str(tmp_path), target="/x", read_only=True)
    text = refused(pod(app(volumes=(volume,))), asked)
    assert all(part in text for part in ("no volumes", "no --vtpm", "no --storage"))


def test_the_doctor_names_all_of_it_and_what_to_install(bare):
    found = {item.subject: item for item in probe.problems()}
    assert found["libvirt's driver for QEMU"].hint == "apt install libvirt-daemon-driver-qemu"
    assert found["libvirt's driver for QEMU"].fatal
    # Pods without volumes run.
    assert not found["virtiofsd"].fatal
