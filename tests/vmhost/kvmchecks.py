"""A pod in a virtual machine, by KVM: the processor of this machine is emulated, its virtualisation too.

One guest serves all checks, here and of `selinuxchecks`, which ends it.
"""

import json
import os
from pathlib import Path

from vmhost import netchecks
from vmhost.kit import (
    LAYOUT,
    OPEN,
    STORE,
    check,
    eventually,
    group,
    note,
    noted,
    secrun,
    status,
)

# A kernel, systemd and crun, emulated.
BOOT_SECONDS = 900
VOLUME = Path("/srv/machine")
PORT = 8081
SECRET = "of the machine's volume\n"
TYPES = {
    "secrun-agent": {"secrun_t", "secrun_bridge_t"},
    "qemu-system-x86": {"secrun_vm_t"},
    "swtpm": {"secrun_vm_t"},
    "virtiofsd": {"secrun_share_t"},
}


def of_host(uuid: str) -> list[tuple[int, str, str]]:
    """Return PID, name and context of each process that the machine has on this host."""
    pids = [int(word) for file in group(uuid).rglob("cgroup.procs") for word in file.read_text().split()]
    names = [(pid, Path(f"/proc/{pid}/comm").read_text().strip()) for pid in pids]
    return [(pid, name, Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0\n")) for pid, name in names]


@check
def a_pod_boots_as_a_virtual_machine_by_kvm() -> str:
    VOLUME.mkdir()
    (VOLUME / "secret").write_text(SECRET)
    script = (
        "trap 'exit 0' TERM; cat /data/secret; echo written >/data/file; "
        "mkdir /tmp/www; echo from the guest >/tmp/www/index.html; httpd -h /tmp/www -p 80; "
        "echo up; while :; do sleep 1; done"
    )
    own = ("--stage1=kvm", "--vtpm", "--storage=64m", f"--publish={PORT}:80", f"--volume={VOLUME}:/data:Z")
    uuid = secrun("run", "-d", *OPEN, *own, LAYOUT, "--", "sh", "-c", script).strip()
    noted("machine", uuid)
    eventually(lambda: secrun("logs", uuid).endswith("up\n"), "the guest's first lines", BOOT_SECONDS)
    assert secrun("logs", uuid) == f"{SECRET}up\n"
    assert (VOLUME / "file").read_text() == "written\n"
    assert json.loads(secrun("cat-manifest", uuid))["machine"]["accelerator"] == "kvm"
    assert secrun("enter", uuid, "--", "cat", "/proc/1/comm") != ""
    return secrun("enter", uuid, "--", "cat", "/proc/sys/kernel/osrelease")


@check
def it_reaches_a_pod_on_its_network_and_is_reached_itself() -> None:
    uuid, server = note("machine"), netchecks.address(note("server"))
    asked = ("sh", "-c", f"wget -qO- http://{server}/")
    assert secrun("enter", uuid, "--", *asked) == netchecks.PAGE
    wanted = "from the guest\n"
    assert netchecks.page(netchecks.address(uuid)) == netchecks.page("127.0.0.1", PORT) == wanted
    netchecks.the_server_ends()


@check
def it_has_a_tpm_and_a_disk_of_its_own() -> None:
    script = "test -c /dev/tpmrm0 && dd if=/dev/zero of=/tmp/file bs=1M count=40 2>/dev/null && sync"
    secrun("enter", note("machine"), "--", "sh", "-c", script)
    scratch = STORE / "pods/run" / note("machine") / "scratch.img"
    assert scratch.stat().st_size == 64 << 20
    assert scratch.stat().st_blocks * 512 > 40 << 20, "what the app wrote is on the disk"


@check
def its_processes_on_the_host_have_types_of_their_own_and_one_pair() -> str:
    """All of them are in the pod's control group: systemd-machined took none away."""
    uuid = note("machine")
    found = of_host(uuid)
    types: dict[str, set[str]] = {}
    for _, name, context in found:
        types.setdefault(name, set()).add(context.split(":")[2])
    assert types.keys() >= TYPES.keys(), found
    assert {name: types[name] <= TYPES[name] for name in TYPES} == dict.fromkeys(TYPES, True), found
    assert "secrun_bridge_t" in types["secrun-agent"], found
    # KVM has a thread of the kernel's in the group of its machine.
    others = (":secrun_t:", ":kernel_t:")
    levels = {item.split(":", 3)[3] for _, _, item in found if not any(word in item for word in others)}
    assert len(levels) == 1, found
    (level,) = levels
    assert ",c" in level
    assert status(uuid)["label"] == f"system_u:system_r:secrun_vm_t:{level}"
    noted("machine-label", status(uuid)["label"])
    return f"{found}"


@check
def what_it_opens_has_its_label_and_what_others_use_keeps_theirs() -> str:
    uuid, level = note("machine"), note("machine-label").split(":", 3)[3]
    (bridge,) = (pid for pid, _, context in of_host(uuid) if ":secrun_bridge_t:" in context)
    place = Path(f"/proc/{bridge}/root/run/secrun-vm")
    wanted = f"system_u:object_r:secrun_vm_file_t:{level}"
    for name in ("disk/pod", "disk/app-0", "vmlinuz", "initrd", "link.sock", "domain.xml"):
        assert os.getxattr(place / name, "security.selinux").rstrip(b"\0").decode() == wanted, name
    images = next((STORE / "rootfs").glob("*.erofs"))
    assert os.getxattr(images, "security.selinux") == b"system_u:object_r:secrun_var_t:s0\0"
    assert os.getxattr(VOLUME, "security.selinux").rstrip(b"\0").decode().endswith(f":secrun_file_t:{level}")
    return wanted
