"""What goes wrong with pods in virtual machines: each says what it was, and leaves nothing behind."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.stage1 import cgroups
from secrun_kvm.lvroot import EMULATORS
from secrun_kvm.spec import Architecture
from support.images import Entry, LayoutWriter, busybox_layer, tar_layer
from support.leaks import footprint, leaks_since
from support.secrun import Secrun, eventually

EMULATOR = EMULATORS[Architecture(os.uname().machine)]
# Nothing else in the image looks like it.
SECRET = b"nobody has read this yet. "
DATA = SECRET * 40_000
# The command line with less patience for guests.
IMPATIENT = """
import sys
from secrun_kvm import launch
launch._READY_MILLIS = dict.fromkeys(launch._READY_MILLIS, 8000)
from secrun.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def machines(guests: Secrun, tmp_path: Path) -> Iterator[Secrun]:
    """A root of this test's own whose image has a large file at /data."""
    layers = [busybox_layer(), tar_layer([Entry(name="data", data=DATA)])]
    LayoutWriter(tmp_path / "layout").add_image("data", layers)
    other = dataclasses.replace(guests, root=tmp_path / "root", run_root=tmp_path / "run")
    image = other("fetch", "--insecure-options=image", f"oci:{tmp_path}/layout:data").out.split()[-1]
    before = footprint(str(tmp_path))
    yield dataclasses.replace(other, image=image)
    uuids = [str(pod["uuid"]) for pod in other.pods()]
    other("gc", "--grace-period=0s", "--expire-prepared=0s")
    assert other.pods() == []
    assert [uuid for uuid in uuids if cgroups.host().pod(uuid).exists()] == []
    other("attest", "stop", "--force")
    # Other workers of this run have control groups of their own.
    left = [line for line in leaks_since(before, str(tmp_path), settle=5) if "cgroups: " not in line]
    assert left == []


def damage(path: Path, found: bytes) -> None:
    """Change one byte of a file, in the middle of what `found` is the beginning of."""
    offset = path.read_bytes().index(found) + len(found) // 2
    with path.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


def rootfs_of(secrun: Secrun) -> Path:
    (path,) = (secrun.root / "rootfs").glob("*.erofs")
    return path


def ended(secrun: Secrun, uuid: str) -> dict[str, object]:
    """Wait for the end of a pod and return its status; nothing of it is left in a control group."""
    eventually(lambda: secrun.status(uuid)["state"] == "exited", "the end of the pod")
    secrun("gc", "--mark-only")
    assert not cgroups.host().pod(uuid).exists()
    return secrun.status(uuid)


def test_a_byte_changed_before_the_start_is_refused(machines: Secrun):
    # The program itself: nothing runs without it.
    damage(rootfs_of(machines), b"\x7fELF")
    uuid, result = machines.kept("--name=web", machines.image, "--", "true", code=125)
    assert "the guest refused a corrupted block of image web" in result.err
    assert machines.status(uuid)["exit_code"] == 125


def test_a_byte_changed_under_a_running_pod_ends_it(machines: Secrun):
    uuid = machines.detach("sleep", "100000", options=("--name=web",))
    assert machines("enter", uuid, "--", "echo", "well").out == "well\n"
    damage(rootfs_of(machines), SECRET * 20_000)
    machines("enter", uuid, "--", "cat", "/data", code=None)
    status = ended(machines, uuid)
    assert status["exit_code"] == 125
    assert "the guest refused a corrupted block of image web" in status["error"]


def test_a_pod_whose_own_image_was_changed_does_not_start(machines: Secrun):
    uuid = machines.prepare("true")
    (path,) = (machines.root / "pods/prepared" / uuid).glob("pod.img")
    damage(path, b"secrun-guest 1")
    err = machines("run-prepared", uuid, code=125).err
    assert re.search("corrupted block of the pod's own image|is not the image that was decided", err)


def processes(secrun: Secrun, uuid: str) -> dict[str, int]:
    """The processes of a pod by the program that they run and its first word."""
    group = cgroups.host().pod(uuid)
    pids = [pid for base, _, _ in os.walk(group) for pid in Path(base, "cgroup.procs").read_text().split()]
    found = {}
    for pid in [str(secrun.status(uuid)["pid"]), *pids]:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found[f"{Path(words[0]).name} {words[1]}".partition(" -")[0]] = int(pid)
    return found


def test_a_guest_that_is_not_ready_in_time_is_ended(machines: Secrun):
    words = machines.argv("run", *machines.pod_options, machines.image, "--", "true")
    words = words[words.index("secrun") + 1 :]
    with subprocess.Popen(
        [sys.executable, "-P", "-c", IMPATIENT, *words], stderr=subprocess.PIPE
    ) as process:

        def machine() -> int | None:
            """The machine has begun: from here to its first word a guest needs seconds."""
            for pod in machines.pods():
                if "machine" in {mark["name"] for mark in pod["timing"]}:
                    return processes(machines, str(pod["uuid"]))[EMULATOR.name]
            return None

        os.kill(eventually(machine, "the machine's begin"), signal.SIGSTOP)
        err = process.communicate(timeout=120)[1]
    assert process.returncode == 125
    assert b"not ready" in err


@pytest.mark.parametrize(
    ("victim", "code", "error"),
    [
        (EMULATOR.name, 125, "QEMU was killed by signal 9"),
        ("swtpm socket", 125, "the software TPM was killed by signal 9"),
        ("virtiofsd", 125, "virtiofsd of {volume} ended with exit status"),
        ("secrun-agent vm", None, ""),
        ("secrun-agent wait", None, ""),
    ],
)
def test_killing_any_process_beside_a_guest_ends_the_pod(
    machines: Secrun, tmp_path: Path, victim, code, error
):
    volume = tmp_path / "volume"
    volume.mkdir()
    uuid = machines.detach("sleep", "100000", options=("--vtpm", f"--volume={volume}:/volume"))
    os.kill(processes(machines, uuid)[victim], signal.SIGKILL)
    status = ended(machines, uuid)
    assert code in (None, status["exit_code"])
    assert error.format(volume=volume) in status["error"]


def test_a_panic_of_the_guests_kernel_ends_the_pod_and_the_console_is_kept(machines: Secrun):
    """An app that is allowed to write to all of /proc is the guest's root there."""
    words = ("--security-opt=unmask=ALL", machines.image, "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    uuid, result = machines.kept(*words, code=125)
    assert "the guest's kernel panicked" in result.err
    assert machines.status(uuid)["exit_code"] == 125
    console = (machines.root / "pods/run" / uuid / "stage1.log").read_text()
    assert "Kernel panic - not syncing: sysrq triggered crash" in console


def test_limits_hold_inside_a_guest(machines: Secrun):
    eats = ("/bin/busybox", "tail", "-c", "200000000", "/dev/zero")
    forks = "(for i in 1 2 3 4 5 6 7 8 9; do sleep 3 & done; wait); sleep 2"
    apps = (
        *("--name=forks", "--pids-limit=6", machines.image, "--", "sh", "-c", forks, "---"),
        *("--name=eats", "--memory=32m", machines.image, "--", *eats),
    )
    uuid, _ = machines.kept(*apps, code=None)
    codes = {app["name"]: app["exit_code"] for app in machines.status(uuid)["apps"]}
    assert codes["eats"] == 137
    assert "can't fork" in machines("logs", uuid, "forks").err
    # An app that is promised 32 MiB and one without a limit: the guest has room for both and itself.
    manifest = machines("cat-manifest", uuid).out
    assert f'"memory_bytes":{(128 + 32 + 384) << 20}' in manifest


def test_a_guest_without_memory_left_kills_who_took_it_and_goes_on(machines: Secrun):
    # Each holds more than half of the guest's memory for as long as nobody takes what it has read.
    take = "dd if=/dev/zero bs=300M count=1 2>/dev/null | sleep 4"
    script = f"{take} & {take} & wait; echo here"
    uuid, result = machines.kept(machines.image, "--", "sh", "-c", script)
    assert result.out == "here\n"
    console = (machines.root / "pods/run" / uuid / "stage1.log").read_text()
    assert "Out of memory: Killed process" in console


def test_a_full_scratch_disk_is_told_to_the_app(machines: Secrun):
    script = "cat /dev/zero > /big; echo code $?; rm /big; echo room > /small && cat /small"
    result = machines.run("sh", "-c", script, options=("--storage=64m",))
    assert "No space left" in result.err
    assert result.out == "code 1\nroom\n"


HIDDEN = {
    "QEMU": (str(EMULATOR), "/dev/null", str(EMULATOR)),
    "libvirt": (
        f"/usr/lib/{os.uname().machine}-linux-gnu/libvirt/connection-driver",
        "/mnt",
        "libvirt's driver for QEMU",
    ),
    "modules": ("/lib/modules", "/mnt", "modules"),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_what_a_host_lacks_for_machines_is_named_before_anything_starts(
    guests: Secrun, tmp_path: Path, what
):
    path, instead, named = HIDDEN[what]
    other = dataclasses.replace(guests, root=tmp_path / "root", run_root=tmp_path / "run")
    layout = guests.root.parent / "layout"
    image = other("fetch", "--insecure-options=image", f"oci:{layout}:busybox").out.split()[-1]
    without = ["unshare", "-m", "sh", "-c", f'mount --bind {instead} {path} && exec "$@"', "sh"]
    for words, code in ((("doctor", "--stage1=kvm"), 125), (("run", *other.pod_options, image), 125)):
        done = subprocess.run(
            [*without, *other.argv(*words)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, done
        assert named in done.stdout + done.stderr
    assert other.pods() == []
    other("attest", "stop", "--force", code=None)


# A host whose /dev has all that programs need, and no kvm.
WITHOUT_KVM = """
mkdir -p "$0" && mount --rbind /dev "$0" && mount -t tmpfs -o mode=755 none /dev || exit 99
for name in null zero full random urandom tty ptmx; do
  touch /dev/$name && mount --bind "$0/$name" /dev/$name || exit 99
done
mkdir /dev/shm /dev/pts && ln -s /proc/self/fd /dev/fd && test ! -e /dev/kvm || exit 99
exec "$@"
"""


# A host whose processor has what KVM needs, and no module for it.
WITH_VMX = """
sed 's/^flags[^:]*:/& vmx/' /proc/cpuinfo > "$0" && mount --bind "$0" /proc/cpuinfo || exit 99
mount -t tmpfs none /sys/module || exit 99
exec "$@"
"""
WITH_MODULE = ("sh", "-c", 'mkdir -p /sys/module/kvm_intel && exec "$@"', "sh")


def test_what_is_missing_of_kvm_is_named_and_emulation_needs_none_of_it(guests: Secrun, tmp_path: Path):
    no_device = ("unshare", "-m", "sh", "-c", WITHOUT_KVM, str(tmp_path / "dev"))
    vmx = ("unshare", "-m", "sh", "-c", WITH_VMX, str(tmp_path / "cpuinfo"))
    before = guests.pods()
    words = ("--pull=never", "--insecure-options=image", "--stage1=kvm", guests.image, "--", "true")
    for prefix, said in (
        (vmx, "kvm_intel is not loaded"),
        ((*no_device, *vmx, *WITH_MODULE), "/dev/kvm cannot be opened"),
    ):
        assert said in dataclasses.replace(guests, prefix=prefix)("run", *words, code=125).err
    there = dataclasses.replace(guests, prefix=no_device)
    assert there.run("echo", "emulated").out == "emulated\n"
    assert guests.pods() == before


def test_more_apps_than_one_event_holds_are_refused_before_anything_starts(guests: Secrun):
    words = [
        word for n in range(64) for word in ("---", f"--name=application-{n}", guests.image, "--", "true")
    ]
    before = guests.pods()
    err = guests("prepare", *guests.pod_options, *words[1:], code=125).err
    assert re.search(r"its 64 apps has \d+ bytes, one event holds \d+", err)
    assert "fewer apps" in err
    assert guests.pods() == before


def test_a_device_without_hardware_virtualisation_is_no_accelerator(guests: Secrun):
    if {"vmx", "svm"} & set(Path("/proc/cpuinfo").read_text().split()):
        pytest.fail("this test is for hosts without hardware virtualisation")
    for options in (("--stage1=kvm",), ("--stage1=kvm", "--accel=kvm")):
        words = ("--pull=never", "--insecure-options=image", *options, guests.image)
        err = guests("run", *words, "--", "true", code=125).err
        assert "neither vmx nor svm" in err
        assert "--accel=tcg" in err
