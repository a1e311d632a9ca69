"""A guest boots from what was built: kernel, initramfs, stage1 and a pod image made by hand, emulated."""

from dataclasses import replace

import pytest

from secrun.paths import Layout
from secrun_kvm.guestimage import GuestImage, ensure_guest
from support import guest as made

MACHINES = made.machines()
# What the app of a hand-made pod says, through every layer that was to be booted.
SAID = "secrun-agent "
QUICK = MACHINES["microvm-mmio"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    top = tmp_path_factory.mktemp("guest")
    return ensure_guest(Layout(root=top / "root", run_root=top / "run"))


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_comes_up_to_systemd_and_ends(image, tmp_path, name):
    console = made.prepared(image, MACHINES[name], tmp_path).run()
    assert SAID in console
    assert "panic" not in console
    assert "Power down" in console


def test_the_smallest_guest_that_is_promised_comes_up(image, tmp_path):
    boot = made.prepared(image, QUICK, tmp_path)
    assert SAID in replace(boot, memory_mib=128).run()


def test_another_root_hash_on_the_command_line_stops_the_boot(image, tmp_path):
    boot = made.prepared(image, QUICK, tmp_path)
    *fixed, pod = boot.words
    words = (*fixed, f"{pod.partition(':')[0]}:{'0' * 64}")
    refused(replace(boot, words=words).run(), "pod")


@pytest.mark.parametrize("serial", ["pod", "app-0"])
def test_a_changed_byte_of_any_image_stops_the_boot(image, tmp_path, serial):
    boot = made.prepared(image, QUICK, tmp_path)
    data = bytearray(boot.disks[serial].read_bytes())
    # In the superblock of the file system, which every mount reads.
    data[1024 + 100] ^= 1
    (tmp_path / "changed").write_bytes(data)
    refused(replace(boot, disks={**boot.disks, serial: tmp_path / "changed"}).run(), serial)


def refused(console: str, serial: str) -> None:
    """The console says which disk was refused, and nothing of the pod ran."""
    (device,) = [line.split()[1] for line in console.splitlines() if line.endswith(f"is disk {serial}")]
    assert f"device-mapper: verity: {device}: " in console
    assert "is corrupted" in console
    assert SAID not in console


def test_nothing_in_the_guest_can_write_to_the_tree_of_stage1(image, tmp_path):
    units = dict(made.UNITS)
    units["app.service"] = units["app.service"].replace("file:/dev/ttyS0", "file:/usr/bin/written")
    console = made.prepared(image, QUICK, tmp_path, units).run()
    assert "Read-only file system" in console
    assert "Power down" in console
