"""The field of a bench run: a registry, images, and stores of their own for secrun and its peers."""

import itertools
import json
import os
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import lab
from support.registry import running_registry
from support.softwaretpm import end_software_tpms

TOP = Path(__file__).resolve().parent.parent.parent
SECRUN = TOP / ".venv/bin/secrun"
DRIVER = Path(__file__).resolve().parent / "driver.py"
BUSYBOX = lab.Recipe(command=("sh",), environment=("PATH=/bin",), workdir="/")
# The image of the fetch row before compression: a service with an interpreter and its libraries.
BIG_BYTES = 300_000_000
BIG_LAYERS = 3

# podman raises these limits unless told otherwise, and a root without CAP_SYS_RESOURCE may not.
PODMAN_RUN = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where everything of this run is."""

    base: Path
    address: str

    @property
    def busybox(self) -> str:
        """The small image."""
        return f"docker://{self.address}/bench/busybox:1"

    @property
    def big(self) -> str:
        """The image of the fetch row."""
        return f"docker://{self.address}/bench/big:1"

    def globals(self, root: str = "secrun") -> list[str]:
        """Return the options that keep secrun inside this run's folder."""
        return [f"--root={self.base / root}", f"--run-root={self.base / (root + '-run')}"]

    def secrun(self, *words: str, root: str = "secrun") -> list[str]:
        """Return a secrun command."""
        return [str(SECRUN), *self.globals(root), *words]

    def driver(self, point: str, *words: str, profile: bool = False) -> list[str]:
        """Return a command that is secrun up to the checkpoint `point`."""
        options = ["--profile"] if profile else []
        python = str(TOP / ".venv/bin/python")
        return [python, str(DRIVER), point, *options, "--", *self.globals(), *words]

    def podman(self, *words: str) -> list[str]:
        """Return a podman command with a store of this run's own."""
        places = ["--root", str(self.base / "podman"), "--runroot", str(self.base / "podman-run")]
        return ["podman", *places, "--runtime", "runc", "--cgroup-manager", "cgroupfs", *words]

    def collect(self) -> None:
        """Remove every pod of this run."""
        for pod in lab.tool(*self.secrun("list", "-q")).decode().split():
            subprocess.run(self.secrun("stop", "--force", pod), capture_output=True, check=False)
        lab.tool(*self.secrun("gc", "--grace-period=0s", "--expire-prepared=0s"))


def big_layers(folder: Path) -> list[Path]:
    """Write layers of BIG_BYTES in all from this machine's own libraries, in the order of their names."""
    found: Iterator[Path] = itertools.chain.from_iterable(
        (Path(base, name) for name in sorted(names))
        for place in ("/usr/lib/python3", "/usr/lib/python3.11", "/usr/share", "/usr/bin", "/usr/lib")
        for base, _, names in sorted(os.walk(place))
    )
    files = (path for path in found if path.is_file() and not path.is_symlink())
    layers = []
    for number in range(BIG_LAYERS):
        target = folder / f"big-{number}.tar"
        room = BIG_BYTES // BIG_LAYERS
        with tarfile.open(target, "w") as archive:
            while room > 0 and (path := next(files, None)):
                archive.add(path, arcname=str(path)[1:], recursive=False)
                room -= path.stat().st_size + tarfile.BLOCKSIZE
        layers.append(target)
    return layers


def _unmount_below(base: Path) -> None:
    """Take down what podman leaves mounted below its store."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((point for point in points if point.startswith(f"{base}/")), reverse=True):
        lab.tool("umount", point)


@contextmanager
def field(base: Path) -> Iterator[Bench]:
    """Build the images, fetch the small one everywhere; at the end remove all pods and the folder."""
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, base)
        undo.callback(_unmount_below, base)
        address = undo.enter_context(running_registry(base / "registry")).address
        bench = Bench(base=base, address=address)
        layout = base / "layout"
        lab.write_image(layout, "busybox", [lab.busybox_tar(base / "busybox.tar")], BUSYBOX)
        lab.write_image(layout, "big", big_layers(base), BUSYBOX)
        for name in ("busybox", "big"):
            lab.push(layout, name, f"{address}/bench/{name}:1")
        lab.tool(*bench.secrun("fetch", "--tls-verify=false", "--insecure-options=image", bench.busybox))
        lab.tool(*bench.podman("pull", "--quiet", "--tls-verify=false", bench.busybox))
        # Every root measures its pods into a software TPM of its own.
        undo.callback(end_software_tpms, str(base))
        undo.callback(bench.collect)
        yield bench


def many_pods(bench: Bench, count: int) -> None:
    """Make `count` prepared pods in a store of their own: one by secrun, the others as copies of it."""
    store = "secrun-many"
    fetch = bench.secrun(
        "fetch", "--tls-verify=false", "--insecure-options=image", bench.busybox, root=store
    )
    lab.tool(*fetch)
    prepare = bench.secrun(
        "prepare",
        "--net=none",
        "--insecure-options=image",
        "--pull=never",
        bench.busybox,
        "--",
        "true",
        root=store,
    )
    first = lab.tool(*prepare).decode().strip()
    source = bench.base / store / "pods/prepared" / first
    texts = [path for path in source.rglob("*") if path.is_file() and first.encode() in path.read_bytes()]
    for _ in range(count - 1):
        name = str(uuid.uuid4())
        copy = source.with_name(name)
        shutil.copytree(source, copy, symlinks=True)
        for path in texts:
            target = copy / path.relative_to(source)
            target.write_bytes(path.read_bytes().replace(first.encode(), name.encode()))
    shown = json.loads(lab.tool(*bench.secrun("list", "--format=json", root=store)))
    if sum(pod["state"] == "prepared" and not pod["problem"] for pod in shown["pods"]) != count:
        raise RuntimeError(f"secrun list does not show {count} sound prepared pods")


def host_processes(words: Sequence[str]) -> list[int]:
    """List the processes outside every pod whose command line mentions one of `words`."""
    own = os.readlink("/proc/self/ns/pid")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
            if os.readlink(entry / "ns/pid") == own and any(word in line for word in words):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended while we looked
    return found
