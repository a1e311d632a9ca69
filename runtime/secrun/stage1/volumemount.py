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
from secrun.syscalls import CLONE_NEWUSER, Syscalls

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


@contextmanager
def mapping(call: Syscalls, base: int, size: int) -> Iterator[int]:
    """Yield a user namespace that maps the ids from 0 on to the host's from `base` on."""
    said, say = os.pipe2(os.O_CLOEXEC)
    wait, end = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(end)
            call.unshare(CLONE_NEWUSER)
            os.write(say, b"1")
            os.read(wait, 1)  # the end of the other process, if nothing else
        finally:
            os._exit(0)
    os.close(say)
    os.close(wait)
    try:
        namespace = _mapped(child, said, base, size)
    finally:
        os.close(said)
        os.close(end)
        os.waitpid(child, 0)
    try:
        yield namespace
    finally:
        os.close(namespace)


def _mapped(child: int, said: int, base: int, size: int) -> int:
    """Write the maps of a process that has entered a user namespace of its own; return the namespace."""
    if not os.read(said, 1):
        raise HostError("no user namespace can be made to map the owners of volumes", code="host-volume")
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{name}").write_text(f"0 {base} {size}\n")
    return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def mount_volumes(call: Syscalls, apps: Sequence[AppManifest], folder: Path, base: int, size: int) -> None:
    """Mount every volume of a pod below `folder`, owners mapped to the pod's ids.

    Raises HostError for a source that is gone, is a link, or is on a file system that cannot map owners.
    """
    if not any(app.volumes for app in apps):
        return
    folder.mkdir(mode=0o700)
    with mapping(call, base, size) as namespace:
        for app in apps:
            for index, volume in enumerate(app.volumes):
                what = f"volume {volume.target} of app {app.name}"
                target = point(folder, app.name, index)
                with opened(volume.source, what) as fd:
                    _make_point(target, fd)
                    _mount(call, fd, target, namespace, f"{what}: {volume.source}")


def _mount(call: Syscalls, fd: int, target: Path, namespace: int, what: str) -> None:
    try:
        call.mount_mapped(fd, str(target), namespace)
    except OSError as error:
        raise HostError(
            f"{what}: owners cannot be mapped there, or on what is mounted below: {error.strerror}",
            hint="mount_setattr(2), MOUNT_ATTR_IDMAP, lists the file systems and kernels that can",
            code="host-volume",
        ) from error
