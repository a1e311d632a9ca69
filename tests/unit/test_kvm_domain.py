"""The domain XML of every machine type, held against files that a reviewer can read.

`KVM_GOLDEN=write pytest tests/unit/test_kvm_domain.py` writes them anew; read the difference before it is
committed.
"""

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.record import replace
from secrun.stage1.machine import Accelerator
from secrun_kvm.domain import disk_name, domain_xml, element
from secrun_kvm.spec import Architecture, Disk, Model, Nic, Share, VmSpec

ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
GOLDEN = Path(__file__).parent / "golden"
PLACE = Path("/run/secrun-vm")


def spec(**changes) -> VmSpec:
    fields = {
        "uuid": "0a0a0a0a-1111-4111-8111-111111111111",
        "architecture": Architecture.X86_64,
        "accelerator": Accelerator.TCG,
        "model": Model.Q35,
        "vcpus": 1,
        "memory_bytes": 512 << 20,
        "kernel": PLACE / "vmlinuz",
        "initrd": PLACE / "initrd",
        "command_line": "console=ttyS0 quiet secrun.pod=9:00",
        "disks": tuple(Disk(serial=name, path=PLACE / "disk" / name) for name in ("pod", "app-0", "app-1")),
        "link": PLACE / "link.sock",
        "console": PLACE / "console.sock",
        "emulator": Path("/usr/bin/qemu-system-x86_64"),
        "uid": 524288,
        "gid": 524288,
    }
    return VmSpec(**{**fields, **changes})


FULL = spec(
    accelerator=Accelerator.KVM,
    vcpus=2,
    gid=108,
    disks=(*spec().disks, Disk(serial="scratch", path=PLACE / "disk/scratch", read_only=False)),
    shares=(Share(tag="volume-0", socket=PLACE / "share/volume-0.sock"),),
    nics=(Nic(tap="secrun-tap0", mac="02:00:00:00:00:01", mtu=1400),),
    tpm=PLACE / "tpm.sock",
)
MACHINES = {
    "q35": spec(firmware=Path("/usr/share/qemu/qboot.rom")),
    "q35-full": FULL,
    "microvm": spec(
        accelerator=Accelerator.KVM, model=Model.MICROVM, gid=108, shares=FULL.shares, nics=FULL.nics
    ),
    "virt": spec(
        architecture=Architecture.AARCH64,
        model=Model.VIRT,
        emulator=Path("/usr/bin/qemu-system-aarch64"),
        command_line="console=ttyAMA0 quiet secrun.pod=9:00",
    ),
}


def pretty(text: str) -> str:
    tree = ET.fromstring(text)
    ET.indent(tree)
    return ET.tostring(tree, encoding="unicode") + "\n"


@pytest.mark.parametrize("name", MACHINES)
def test_the_description_of_a_machine_is_the_one_that_was_reviewed(name):
    path = GOLDEN / f"kvm-{name}.xml"
    text = pretty(domain_xml(MACHINES[name]))
    if os.environ.get("KVM_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_only_the_accelerator_that_was_decided_is_named():
    assert domain_xml(spec()).startswith("<domain type='qemu'")
    assert domain_xml(replace(FULL, model=Model.Q35)).startswith("<domain type='kvm'")


def places(text: str) -> list[tuple[int, int]]:
    found = ET.fromstring(text).iter("address")
    pci = [item.attrib for item in found if item.get("type") == "pci"]
    return [(int(item["slot"], 16), int(item["function"], 16)) for item in pci]


@given(st.integers(1, 64), st.integers(0, 64), st.integers(0, 16))
def test_any_pod_fits_on_the_root_bus_without_a_place_used_twice(apps, shares, networks):
    many = spec(
        disks=tuple(Disk(serial=f"d{index}", path=PLACE / f"d{index}") for index in range(apps + 3)),
        shares=tuple(Share(tag=f"t{index}", socket=PLACE / f"t{index}") for index in range(shares)),
        nics=tuple(Nic(tap=f"n{index}", mac="02:00:00:00:00:01", mtu=1500) for index in range(networks)),
    )
    found = places(domain_xml(many))
    # Disks, shares, interfaces, the serial controller, entropy.
    assert len(found) == len(set(found)) == apps + 3 + shares + networks + 2
    # The chip set's own devices have slot 31, what libvirt may add takes slot 1.
    assert all(2 <= slot < 31 for slot, _ in found)


def test_disks_have_the_names_that_linux_would_give_them():
    names = [disk_name(index) for index in (0, 25, 26, 27, 701, 702)]
    assert names == ["vda", "vdz", "vdaa", "vdab", "vdzz", "vdaaa"]


@given(st.text(alphabet=st.characters(min_codepoint=32, exclude_categories=("Cs", "Cn"))))
def test_no_text_leaves_its_place_in_the_xml(text):
    found = ET.fromstring(element("a", {"b": text}, element("c")))
    assert found.attrib == {"b": text}
    assert [child.tag for child in found] == ["c"]
