"""Boot a stage1 image under systemd-nspawn without the rest of secrun."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from secrun.launch import Completed, run
from secrun.stage1.imagemount import mount_image
from secrun.stage1.imagestore import BuiltImage
from secrun.syscalls import LinuxSyscalls

BASE = 0x70010000
UNITS = {
    "pod.target": "[Unit]\nDefaultDependencies=no\nWants=app.service\n",
    "app.service": (
        "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n"
        "[Service]\nType=oneshot\nExecStart=/usr/bin/secrun-agent --version\nStandardOutput=append:/rw/out\n"
        "StandardError=append:/rw/out\n"
    ),
}

# Private mounts, a pure cgroup2, a control group of its own; then, if there is one, the filter.
START = """
echo $$ > "$1/cgroup.procs"
mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t tmpfs tmpfs /run/systemd/nspawn && shift && exec "$@"
"""
FILTERED = """
import ctypes, os, platform, sys
program = open(sys.argv[1], "rb").read()
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
number = {"x86_64": 317, "aarch64": 277}[platform.machine()]
load = ctypes.CDLL(None).syscall(number, 1, 0, ctypes.byref(Program(len(program) // 8, program)))
sys.exit("seccomp") if load else os.execvp(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def mounted_image(image: BuiltImage) -> Iterator[Path]:
    """Mount the image where the mapped users of a pod can reach it: pytest's own folders are closed."""
    folder = Path(tempfile.mkdtemp(prefix="secrun-stage1-", dir="/run"))
    folder.chmod(0o755)
    call = LinuxSyscalls()
    (folder / "mnt").mkdir()
    mount_image(call, image.path, folder / "mnt")
    try:
        yield folder / "mnt"
    finally:
        call.umount(str(folder / "mnt"))
        shutil.rmtree(folder)


class Pod:
    """One boot of the image: private mounts, a pure cgroup2, a control group of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = root.parent
        self.config = self.top / "pod"
        (self.config / "units").mkdir(parents=True)
        self.rw = self.top / "rw"
        self.rw.mkdir()
        os.chown(self.rw, BASE, BASE)

    def write(self, units: dict[str, str], settings: str = "") -> None:
        for name, text in units.items():
            (self.config / "units" / name).write_text(text)
        (self.config / "system.conf").write_text(f"[Manager]\n{settings}")

    def boot(
        self, *options: str, bpf: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> Completed:
        unified = Path("/sys/fs/cgroup/unified")
        group = (
            unified if unified.exists() else Path("/sys/fs/cgroup")
        ) / f"secrun-stage1-test-{os.getpid()}"
        group.mkdir()
        Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)
        argv = ["unshare", "--mount", "sh", "-c", START, "sh", str(group), *self._filtered(bpf)]
        try:
            return run([*argv, *self._nspawn(options)], environment=environment, check=False, timeout=60)
        finally:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()

    def _filtered(self, bpf: bytes | None) -> list[str]:
        if bpf is None:
            return []
        (self.top / "filter").write_bytes(bpf)
        return ["/usr/bin/python3", "-I", "-c", FILTERED, str(self.top / "filter")]

    def _nspawn(self, options: Sequence[str]) -> list[str]:
        return [
            *("systemd-nspawn", "--quiet", f"--directory={self.root}", "--read-only"),
            *(f"--private-users={BASE}:65536", "--private-users-ownership=map"),
            *(f"--machine=stage1-test-{os.getpid()}", "--register=no", "--keep-unit", "--console=pipe"),
            *("--link-journal=no", "--resolv-conf=off", "--timezone=off", "--private-network"),
            *("--setenv=SYSTEMD_UNIT_PATH=/pod/units", f"--bind-ro={self.config}:/pod:idmap"),
            *(f"--bind={self.rw}:/rw", *options, "--boot", "--", "--unit=pod.target"),
        ]
