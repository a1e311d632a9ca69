"""Roots with a log and a TPM of their own, beside the one that a run of the host tier shares."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.secrun import Secrun


@contextmanager
def made(secrun: Secrun, folder: Path, *options: str) -> Iterator[Secrun]:
    """Yield a root in `folder` that holds the busybox image of `secrun`; end its pods and TPM afterwards."""
    other = Secrun(root=folder / "root", run_root=folder / "run", options=options)
    layout = secrun.root.parent / "layout"
    image = other("fetch", "--insecure-options=image", f"oci:{layout}:busybox").out.split()[-1]
    try:
        yield dataclasses.replace(other, image=image)
    finally:
        for pod in other.pods():
            other("stop", "--force", str(pod["uuid"]), code=None)
        other("--attest=off", "gc", "--grace-period=0s", "--expire-prepared=0s")
        other("attest", "stop", "--force")


@contextmanager
def mounting(folder: Path) -> Iterator[Secrun]:
    """Yield an empty root in `folder` that measures nothing; what it has mounted goes with it."""
    empty = Secrun(root=folder / "root", run_root=folder / "run", options=("--attest=off",))
    yield empty
    if empty("image", "mount", "--no-legend").out:
        empty("image", "unmount", "--all", "--force")
