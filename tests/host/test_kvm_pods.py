"""Pods in virtual machines, where they differ from containers: what QEMU and its helpers may do on the host.

What both flavours share is in the suite that runs over both; here one running pod serves most tests.
"""

import dataclasses
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.stage1 import cgroups
from support.secrun import Secrun, eventually

MACHINE = ("--stage1=kvm", "--accel=tcg")
RELAXED = ("--pull=never", "--insecure-options=image")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A pod with everything that a machine can have."""

    secrun: Secrun
    uuid: str
    folder: Path
    shared: Path

    def pids(self) -> dict[str, int]:
        """Return the first process of each program in the pod's control group."""
        group = cgroups.host().pod(self.uuid) / "cgroup.procs"
        found: dict[str, int] = {}
        for pid in map(int, group.read_text().split()):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = Path(words[0]).name
            found.setdefault(f"{name} {words[1]}" if name == "secrun-agent" else name, pid)
        return found

    def status(self, program: str) -> dict[str, str]:
        lines = Path(f"/proc/{self.pids()[program]}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def enter(self, script: str) -> str:
        return self.secrun("enter", self.uuid, "--", "sh", "-c", script).out


@pytest.fixture(scope="module")
def running(secrun: Secrun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    shared = tmp_path_factory.mktemp("shared")
    for name in ("rw", "ro"):
        (shared / name).mkdir()
        (shared / name / "file").write_text(f"{name}\n")
    (shared / "single").write_text("single\n")
    volumes = (f"{shared}/rw:/rw", f"{shared}/ro:/ro:ro", f"{shared}/single:/single")
    options = [*MACHINE, "--vtpm", "--storage=48m"]
    for volume in volumes:
        options += ["--volume", volume]
    before = os.umask(0o077)
    try:
        # The caller's umask is nothing to QEMU.
        uuid = secrun.detach("sleep", "1000", options=tuple(options))
    finally:
        os.umask(before)
    yield Running(secrun=secrun, uuid=uuid, folder=secrun.root / "pods/run" / uuid, shared=shared)
    secrun.discard(uuid)


def test_qemu_has_no_right_on_the_host(running: Running):
    base = int((running.folder / "uid-base").read_text())
    status = running.status("qemu-system-x86_64")
    assert set(status["Uid"].split()) == {str(base)}
    assert set(status["Gid"].split()) == set(status["Groups"].split()) == {str(base)}
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    # An emulated guest costs the host no huge pages.
    assert status["THP_enabled"] == "0"


def test_qemu_is_given_nothing_that_was_not_asked_for(running: Running):
    words = Path(f"/proc/{running.pids()['qemu-system-x86_64']}/cmdline").read_text().split("\0")
    pairs = list(itertools.pairwise(words))
    (sandbox,) = (value for word, value in pairs if word == "-sandbox")
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    assert {"-nodefaults", "-no-user-config"} <= set(words)
    assert ("-display", "none") in pairs
    given = [value for word, value in pairs if word == "-device"]
    devices = [json.loads(text)["driver"] if text[0] == "{" else text.split(",")[0] for text in given]
    # Stage1, the pod, the app, the scratch disk, three shares, the link, the console, entropy, the TPM.
    assert set(devices) <= {
        *("virtio-blk-pci", "vhost-user-fs-pci", "virtio-serial-pci", "virtserialport", "isa-serial"),
        *("virtio-rng-pci", "tpm-crb"),
    }
    assert [devices.count(name) for name in ("vhost-user-fs-pci", "virtserialport", "tpm-crb")] == [3, 1, 1]


def test_qemu_has_mounts_and_a_control_group_of_its_own(running: Running):
    proc = Path(f"/proc/{running.pids()['qemu-system-x86_64']}")
    waiter = running.secrun.status(running.uuid)["pid"]
    namespaces = [
        os.readlink(path / "ns/mnt") for path in (Path("/proc/self"), Path(f"/proc/{waiter}"), proc)
    ]
    assert len(set(namespaces)) == 3
    (group,) = (line for line in (proc / "cgroup").read_text().splitlines() if line.startswith("0::"))
    assert group.endswith(f"/secrun/{running.uuid}")


def test_every_process_of_a_machine_has_its_own_user_and_the_pods_control_group(running: Running):
    base = int((running.folder / "uid-base").read_text())
    users = {name: int(running.status(name)["Uid"].split()[0]) for name in running.pids()}
    assert users == {
        "qemu-system-x86_64": base,
        "secrun-agent vm": base + 1,
        "swtpm": base + 2,
        # Owners in volumes are mapped one to one; its own sandbox is around it.
        "virtiofsd": 0,
    }


def test_no_process_of_a_machine_stays_in_the_hosts_network(running: Running):
    here = os.readlink("/proc/self/ns/net")
    for name in ("qemu-system-x86_64", "swtpm", "virtiofsd"):
        assert os.readlink(f"/proc/{running.pids()[name]}/ns/net") != here


@pytest.mark.parametrize("program", ["qemu-system-x86_64", "swtpm"])
def test_nothing_of_the_host_has_a_path_for_a_process_of_a_machine(running: Running, program):
    root = Path(f"/proc/{running.pids()[program]}/root")
    assert set(os.listdir(root)) <= {
        "bin",
        "dev",
        "etc",
        "lib",
        "lib64",
        "proc",
        "run",
        "sbin",
        "sys",
        "usr",
    }
    assert os.listdir(root / "etc") == ["ld.so.cache"]
    assert os.listdir(root / "proc") == os.listdir(root / "sys") == []
    assert os.listdir(root / "run") == ["secrun-vm"]
    assert not any((root / "run/secrun-vm" / name).exists() for name in ("root/usr", "root/etc"))
    assert set(os.listdir(root / "usr/bin")) == {"qemu-system-x86_64", "swtpm"}
    libraries = {path.name for path in (root / "usr/lib/x86_64-linux-gnu").iterdir()}
    assert {"libc.so.6", "libtpms.so.0", "libglib-2.0.so.0"} <= libraries
    # What only this host's own programs need is not there.
    assert not {name for name in libraries if name.startswith(("libpython", "libvirt", "libsystemd"))}


def test_the_daemon_of_a_share_sees_that_share_and_no_more(running: Running):
    group = cgroups.host().pod(running.uuid) / "cgroup.procs"
    roots = [Path(f"/proc/{pid}/root") for pid in group.read_text().split()]
    daemons = [root for root in roots if (root.parent / "comm").read_text().startswith("virtiofsd")]
    # Each of the three has a parent that only waits for it.
    assert [os.listdir(root) for root in daemons] == [["file"]] * 6


def test_a_machine_writes_nowhere_but_in_its_own_folder(running: Running):
    lines = Path(f"/proc/{running.pids()['qemu-system-x86_64']}/mountinfo").read_text().splitlines()
    mounts = {words[4]: set(words[5].split(",")) for words in map(str.split, lines)}
    assert {place for place, flags in mounts.items() if "rw" in flags} <= {
        "/run/secrun-vm",
        "/run/secrun-vm/disk/scratch",
        # Shared folders, which are root's.
        "/run/secrun-vm/share/volume-0",
        "/run/secrun-vm/share/volume-2/file",
    }
    assert [place for place, flags in mounts.items() if "nosuid" not in flags] == []


def test_an_emulated_machine_finds_no_kvm_device(running: Running):
    devices = Path(f"/proc/{running.pids()['qemu-system-x86_64']}/root/dev")
    usable = {path.name for path in devices.iterdir() if stat.S_ISCHR(path.stat().st_mode)}
    assert usable == {"full", "null", "random", "urandom", "zero"}


def test_images_of_the_store_keep_owner_and_mode(running: Running):
    """libvirt would give every image that a machine opens to that machine's user."""
    images = [*running.secrun.root.glob("rootfs/*.erofs"), *running.secrun.root.glob("stage1/kvm-*/*")]
    assert images
    assert {path.stat().st_uid for path in images} == {0}


def test_volumes_are_shared_as_asked(running: Running):
    script = "cat /rw/file /ro/file /single; echo new > /rw/new; echo changed > /single; echo x > /ro/x"
    assert running.secrun("enter", running.uuid, "--", "sh", "-c", script, code=1).out == "rw\nro\nsingle\n"
    assert (running.shared / "rw/new").read_text() == "new\n"
    assert (running.shared / "rw/new").stat().st_uid == 0
    assert (running.shared / "single").read_text() == "changed\n"
    assert os.listdir(running.shared / "ro") == ["file"]


def test_a_guest_that_was_taken_over_cannot_write_what_it_was_only_shown(running: Running):
    """The mounts that the daemons see are read-only themselves, and without devices and set-user-ID."""
    group = cgroups.host().pod(running.uuid) / "cgroup.procs"
    seen: dict[str, str] = {}
    for pid in group.read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_text()
        found = re.search(r"source=/run/secrun-vm/share/(volume-\d)", words)
        if found:
            for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
                fields = line.split(" ")
                if fields[4].startswith(f"/run/secrun-vm/share/{found[1]}") or fields[4] == "/":
                    seen[f"{found[1]}{fields[4].rpartition('volume-')[2][1:]}"] = fields[5]
    assert set(seen) >= {"volume-0", "volume-1"}
    for name, options in seen.items():
        assert {"nosuid", "nodev"} <= set(options.split(",")), (name, options)
    assert "ro" in seen["volume-1"].split(",")
    assert "rw" in seen["volume-0"].split(",")


def test_an_emulated_processor_does_not_promise_what_qemu_does_a_byte_at_a_time(running: Running):
    flags = running.enter("grep -m1 ^flags /proc/cpuinfo").split()
    assert "rep_good" in flags
    assert not {"erms", "fsrm"} & set(flags)


def test_what_apps_write_goes_to_the_scratch_disk(running: Running):
    megabytes = running.enter("df -m / | tail -1 | awk '{print $2}'")
    assert 30 <= int(megabytes) <= 48
    disk = running.folder / "scratch.img"
    assert disk.stat().st_size == 48 << 20
    # Sparse: what is not written is not taken from the host.
    assert disk.stat().st_blocks * 512 < 24 << 20


def test_the_app_sees_the_pods_own_tpm(running: Running):
    assert running.enter("ls /dev/tpmrm0") == "/dev/tpmrm0\n"


def test_the_guest_takes_no_more_code_into_its_kernel(running: Running):
    script = "cat /proc/sys/kernel/modules_disabled /proc/sys/kernel/kexec_load_disabled; cat /proc/cmdline"
    disabled, kexec, line = running.enter(script).splitlines()
    assert (disabled, kexec) == ("1", "1")
    assert re.search(r" secrun\.pod=\d+:[0-9a-f]{64}$", line)
    assert {"module.sig_enforce=1", "lockdown=integrity"} <= set(line.split())


def test_an_emulated_guest_hashes_without_what_is_fast_on_a_real_processor_only(running: Running):
    loaded = running.enter("cut -d' ' -f1 /proc/modules").split()
    assert "dm_verity" in loaded
    assert not {"sha256_ssse3", "sha2_ce", "sha256_arm64"} & set(loaded)


def test_without_hardware_a_machine_must_be_asked_for_as_emulation(secrun: Secrun):
    if re.search(r"^flags\s*:.* (vmx|svm)( |$)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        pytest.fail("this machine has hardware virtualisation: let this test use it")
    result = secrun.run("true", options=("--stage1=kvm",), code=125)
    assert "neither vmx nor svm" in result.err
    assert "--accel=tcg" in result.err
    assert secrun.pods() == [] or all(pod["state"] != "preparing" for pod in secrun.pods())


def test_the_hosts_network_is_refused(secrun: Secrun):
    assert "--net=host" in secrun.run("true", options=(*MACHINE, "--net=host"), code=125).err


def test_an_image_of_the_pod_that_was_changed_does_not_start(secrun: Secrun):
    uuid = secrun("prepare", *MACHINE, *RELAXED, secrun.image, "--", "true").out.strip()
    image = secrun.root / "pods/prepared" / uuid / "pod.img"
    data = bytearray(image.read_bytes())
    data[4200] ^= 1
    image.write_bytes(data)
    result = secrun("run-prepared", uuid, code=125)
    assert "pod.img is not the image that was decided" in result.err
    secrun("rm", uuid)


def test_a_pod_that_removes_itself_leaves_nothing(secrun: Secrun, tmp_path: Path):
    saved = tmp_path / "uuid"
    options = (*MACHINE, "--uuid-file-save", str(saved))
    assert secrun.run("sh", "-c", "echo out; echo err >&2; exit 7", options=options, code=7).out == "out\n"
    uuid = saved.read_text().strip()
    assert list(secrun.root.glob(f"pods/*/{uuid}")) == []
    assert not cgroups.host().pod(uuid).exists()


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be collected by its parent does not."""
    try:
        return bool(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return False


def test_what_helps_a_machine_ends_with_it(running: Running):
    """Last: it ends the pod that the others use."""
    pids = running.pids()
    assert {"swtpm", "virtiofsd", "qemu-system-x86_64"} <= set(pids)
    running.secrun("stop", running.uuid)
    eventually(lambda: running.secrun.status(running.uuid)["state"] == "exited", "the end of the pod")
    assert [name for name, pid in pids.items() if alive(pid)] == []
    assert os.listdir("/run/secrun-vm") == []
