"""What lies in a pod's folder; stage0 and the flavours share this one map."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.errors import StateError
from secrun.record import row
from secrun.stage1.manifest import FILE_NAME, MAX_MANIFEST_BYTES, PodManifest

if TYPE_CHECKING:
    import socket

# One connection per app at most is accepted; the rest of a burst may wait.
_BACKLOG = 64
STARTED_NAME = "started"
ADDRESSES_NAME = "addresses"
FILTER_NAME = "filter.bpf"
EXIT_NAME = "exit.json"
# 64 apps with long reasons fit many times over.
MAX_EXIT_BYTES = 1024 * 1024


@row
class PodFiles:
    """Paths below one pod's folder."""

    path: Path

    @property
    def manifest(self) -> Path:
        """Canonical pod manifest."""
        return self.path / FILE_NAME

    @property
    def config(self) -> Path:
        """Bound read-only at /pod: units, bundles and the files apps see under /etc."""
        return self.path / "config"

    @property
    def rw(self) -> Path:
        """Bound writable at /rw and owned by the pod's root: hostile to the host."""
        return self.path / "rw"

    @property
    def host(self) -> Path:
        """Bound read-only at /host: sockets on which the host listens."""
        return self.path / "host"

    @property
    def attach_socket(self) -> Path:
        """Where the shims connect to the waiter."""
        return self.host / "attach.sock"

    @property
    def seccomp_socket(self) -> Path:
        """Where the runtime connects with a filter that asks, while calls are recorded."""
        return self.host / "seccomp.sock"

    @property
    def control_socket(self) -> Path:
        """Where `stop` connects to the waiter; never visible in the pod."""
        return self.path / "control.sock"

    @property
    def outer_filter(self) -> Path:
        """Program of the system call filter around the pod."""
        return self.path / FILTER_NAME

    @property
    def stage1_log(self) -> Path:
        """What stage1 itself printed."""
        return self.path / "stage1.log"

    @property
    def timing(self) -> Path:
        """When which step was reached: lines `SIDE NAME NS` that several processes append."""
        return self.path / "timing"

    @property
    def stage1_mount(self) -> Path:
        """Mount point of the stage1 image, in the pod's mount namespace only."""
        return self.path / "mnt" / "stage1"

    @property
    def devices(self) -> Path:
        """Mount point of the pod's own device nodes, in the pod's mount namespace only."""
        return self.path / "mnt" / "devices"

    @property
    def secrets(self) -> Path:
        """Mount point of the pod's secrets, in the pod's mount namespace only."""
        return self.path / "mnt" / "secrets"

    def device_node(self, app: str, index: int) -> Path:
        """Return the pod's own node for an app's n-th device."""
        return self.devices / f"{app}-{index}"

    def image_mount(self, app: str) -> Path:
        """Mount point of an app's rootfs image, in the pod's mount namespace only."""
        return self.path / "mnt" / "images" / app

    @property
    def started(self) -> Path:
        """Holds the start time in nanoseconds since the epoch and the waiter's PID."""
        return self.path / STARTED_NAME

    @property
    def uid_base(self) -> Path:
        """Holds the first host uid of the pod."""
        return self.path / "uid-base"

    @property
    def label(self) -> Path:
        """Holds the SELinux context that the pod was started with."""
        return self.path / "label"

    @property
    def flavour(self) -> Path:
        """Which flavour, on its own so that cleaning up never depends on a whole manifest."""
        return self.path / "flavour"

    def read_flavour(self) -> str | None:
        """Return what `flavours.note` wrote, or None for a pod that came to an end before it had one."""
        try:
            return self.flavour.read_text("utf-8")
        except FileNotFoundError:
            return None

    @property
    def exit(self) -> Path:
        """How the pod ended."""
        return self.path / EXIT_NAME

    @property
    def expected(self) -> Path:
        """What was compiled for the apps, as the waiter compares it."""
        return self.path / "expected"

    @property
    def enforced(self) -> Path:
        """What the waiter read of the apps."""
        return self.path / "enforced"

    def read_manifest(self) -> PodManifest:
        """Read the manifest; raises StateError if it is absent or damaged."""
        try:
            with self.manifest.open("rb") as stream:
                data = stream.read(MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError as error:
            raise StateError(
                f"pod {self.path.name} has no manifest yet", code="state-no-manifest"
            ) from error
        return PodManifest.from_bytes(data)

    def write_uid_base(self, base: int) -> None:
        """Remember the uid range for readers."""
        self.uid_base.write_text(f"{base}\n")

    def make_writable(self, apps: Sequence[str], uid_base: int) -> None:
        """Make /rw for the pod's root; nothing in it is ever opened by path on the host."""
        self.host.mkdir(mode=0o755)
        self.rw.mkdir(mode=0o700)
        folders = [self.rw, self.rw / "apps", *(self.rw / "apps" / name for name in apps)]
        for folder in folders:
            folder.mkdir(mode=0o700, exist_ok=True)
            os.chown(folder, uid_base, uid_base)

    @staticmethod
    def listen(path: Path) -> "socket.socket":
        """Listen on a unix socket at `path`, mode 0600, however long the path is (unix(7): 108 bytes)."""
        import socket  # 2 ms: not for those who only read

        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        mask = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
            os.close(folder)
        return listener
