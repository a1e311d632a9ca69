"""Bind the host's side of volumes: each opened once, no link followed, and mounted by its descriptor.

Done in the pod's own mount namespace, where nobody on the host can put something else in between. The mount
points lie outside the pod's folder, so that deleting the folder never reaches what a volume holds.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from secrun.errors import HostError
from secrun.stage1.manifest import AppManifest
from secrun.syscalls import MS_BIND, MS_REC, Syscalls

_HINT = "what is mounted and measured is the place that was named when the pod was prepared"


@contextmanager
def opened(source: str, what: str) -> Iterator[int]:
    """Open an absolute path for a mount, no part of it a symbolic link; raises HostError naming `what`."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in source.split("/"):
            if part:
                fd = _step(fd, part, source, what)
        yield fd
    finally:
        os.close(fd)


def _step(folder: int, name: str, source: str, what: str) -> int:
    """Go one name further and close `folder`, which a failure leaves open."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise HostError(f"{what}: {source}: {error.strerror}", hint=_HINT, code="host-volume") from error
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise HostError(f"{what}: {source}: {name!r} is a symbolic link now", hint=_HINT, code="host-volume")
    os.close(folder)
    return fd


def point(folder: Path, app: str, index: int) -> Path:
    """Return where an app's n-th volume is mounted below `folder`."""
    return folder / f"{app}-{index}"


def _make_point(path: Path, fd: int) -> None:
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        path.mkdir()
    else:
        path.touch()


def mount_volumes(call: Syscalls, apps: Sequence[AppManifest], folder: Path) -> None:
    """Mount every volume of a pod below `folder`; raises HostError for a source that is gone or a link."""
    if not any(app.volumes for app in apps):
        return
    folder.mkdir(mode=0o700)
    for app in apps:
        for index, volume in enumerate(app.volumes):
            target = point(folder, app.name, index)
            with opened(volume.source, f"volume {volume.target} of app {app.name}") as fd:
                _make_point(target, fd)
                call.mount(f"/proc/self/fd/{fd}", str(target), "", MS_BIND | MS_REC)
