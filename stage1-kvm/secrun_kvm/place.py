"""Where a pod's libvirt and QEMU find everything: one short place, in the pod's own mount namespace.

Light: the end of every pod and the process that starts a machine import it.
"""

from pathlib import Path

from secrun.record import row

# Empty on the host, for ever. A unix socket's path has 108 bytes, a pod's folder may need more.
PLACE = Path("/run/secrun-vm")
# One pod, one libvirt root: the machine's name is only ever seen there.
NAME = "pod"
CACHE = "cache/qemu/capabilities"


def tap_name(index: int) -> str:
    """Return what the n-th interface of a machine is called on the host; pure."""
    return f"secrun-tap{index}"


@row
class Root:
    """Paths below one libvirt root."""

    path: Path

    @property
    def domain(self) -> Path:
        """The domain XML that is started."""
        return self.path / "domain.xml"

    @property
    def link(self) -> Path:
        """Socket of the guest's line to the host."""
        return self.path / "link.sock"

    @property
    def console(self) -> Path:
        """Socket of the guest's console."""
        return self.path / "console.sock"

    @property
    def kernel(self) -> Path:
        """Where the kernel is bound."""
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Where the initramfs is bound."""
        return self.path / "initrd"

    @property
    def empty(self) -> Path:
        """An empty folder, over which the root of QEMU is mounted."""
        return self.path / "root"

    @property
    def network(self) -> Path:
        """What the guest's interfaces have (docs/agent-protocol.md)."""
        return self.path / "network"

    def outgoing(self, index: int) -> Path:
        """What passes from the n-th interface of the guest, as a program of classic BPF."""
        return self.path / f"outgoing-{index}"

    def incoming(self, index: int) -> Path:
        """What passes to it."""
        return self.path / f"incoming-{index}"

    def disk(self, serial: str) -> Path:
        """Where a disk's image is bound."""
        return self.path / "disk" / serial

    def share(self, tag: str) -> Path:
        """Where a shared folder is bound."""
        return self.path / "share" / tag

    def share_socket(self, tag: str) -> Path:
        """Where the daemon of a shared folder listens."""
        return self.path / "share" / f"{tag}.sock"

    @property
    def images(self) -> Path:
        """Where the store's images are shown with the pod's label while they are bound."""
        return self.path / "images"

    @property
    def tpm(self) -> Path:
        """State of the pod's software TPM."""
        return self.path / "tpm"

    @property
    def tpm_socket(self) -> Path:
        """Where it listens."""
        return self.path / "tpm.sock"

    @property
    def no_device(self) -> Path:
        """An empty file that nobody may open."""
        return self.path / "no-kvm"


def leave() -> None:
    """Detach what is mounted at the place, for a process in a pod's mount namespace; others have nothing."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if not any(line.split(" ")[4] == str(PLACE) for line in mounts):
        return
    from secrun.syscalls import MNT_DETACH, LinuxSyscalls

    LinuxSyscalls().umount(str(PLACE), MNT_DETACH)
