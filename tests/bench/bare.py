"""Plain `systemd-nspawn --boot` of secrun's own stage1 tree: the least that a pod can cost."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench_field import Bench

from secrun.paths import Layout
from secrun.stage1 import cgroups, places
from secrun.stage1.imagebuild import ensure_stage1

# The unit ends the boot as soon as it is reached. The tree has no /bin/true; the agent is small enough.
UNIT = f"""[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart={places.AGENT} --version
StandardOutput=null
StandardError=null
"""
# A range that secrun's own allocation cannot reach.
BASE_UID = 0x7FFF_0000
ENVIRONMENT = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_LOCK": "0"}
GROUP = "bare-bench"
OPTIONS = (
    "--private-users-ownership=map", "--register=no", "--keep-unit", "--private-network", "--console=pipe",
    "--link-journal=no", "--resolv-conf=off", "--timezone=off", f"--setenv=SYSTEMD_UNIT_PATH={places.UNITS}",
)  # fmt: skip


def _hold_namespace(script: str) -> subprocess.Popen[str]:
    """Start a process that keeps a mount namespace in which `script` has run."""
    words = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", f"{script}\necho ready\nexec cat"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def bare_nspawn(bench: Bench) -> Iterator[tuple[Sequence[str], Path]]:
    """Mount stage1 in a namespace of its own; yield the command that boots it and the cgroup it needs."""
    image = ensure_stage1(Layout(root=bench.base / "secrun", run_root=bench.base / "secrun-run"))
    tree = bench.base / "bare"
    tree.mkdir()
    unit = bench.base / "bare-pod/units/bare.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)
    hierarchy = cgroups.host()
    script = f"mount -t erofs -o ro {image.path} {tree}\nmount -t tmpfs tmpfs /run/systemd/nspawn\n"
    if not hierarchy.pure:
        script += "mount -t cgroup2 cgroup2 /sys/fs/cgroup\n"
    Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)
    with _hold_namespace(script) as holder:
        try:
            if holder.stdout is None or holder.stdout.readline() != "ready\n":
                raise RuntimeError("cannot mount the stage1 image for the bare boot")
            group = hierarchy.mount / cgroups.PARENT / GROUP
            boot = f"echo $$ > {group}/cgroup.procs && exec nsenter --mount=/proc/{holder.pid}/ns/mnt"
            words = ["sh", "-c", f'{boot} -- "$@"', "sh", "systemd-nspawn", "--quiet", f"--directory={tree}"]
            words += ["--read-only", f"--private-users={BASE_UID}:65536", *OPTIONS]
            words += [f"--bind-ro={unit.parent.parent}:{places.POD}", "--boot", "--", f"--unit={unit.name}"]
            yield words, group
        finally:
            with contextlib.suppress(BrokenPipeError):
                holder.communicate()
