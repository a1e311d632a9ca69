"""Delete a pod's folder: whatever a hostile app left in it, in bounded depth and without following links."""

import os
import stat
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

from secrun.locks import open_dir
from secrun.pod.inside import open_path
from secrun.pod.states import Folder, LockedPod
from secrun.syscalls import MNT_DETACH, LinuxSyscalls


def _unlink_or_hoist(parent_fd: int, top_fd: int, names: Iterator[str]) -> None:
    """Unlink the files of a folder and move its subfolders up to `top_fd`, under fresh names."""
    with os.scandir(parent_fd) as entries:
        children = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in children:
        if is_dir:
            os.rename(name, next(names), src_dir_fd=parent_fd, dst_dir_fd=top_fd)
        else:
            os.unlink(name, dir_fd=parent_fd)


def empty_folder(top_fd: int) -> None:
    """Remove everything below `top_fd`.

    Subfolders are hoisted to the top one level at a time, so a tree a million levels deep needs neither a
    deep stack nor a long path nor many descriptors.
    """
    # A deletion that was killed has left hoisted folders behind; a random part keeps apart whose is whose.
    fresh = (f".hoisted-{os.urandom(8).hex()}" for _ in repeat(None))
    while True:
        names = os.listdir(top_fd)
        if not names:
            return
        for name in names:
            status = os.stat(name, dir_fd=top_fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=top_fd)
                continue
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top_fd)
            try:
                _unlink_or_hoist(child, top_fd, fresh)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=top_fd)


def drop_written(pod: Path) -> None:
    """Delete what a pod's apps wrote to their own roots; its records and logs stay.

    The folder goes too: without it nobody takes what is left for what there was.
    """
    apps = pod / "rw" / "apps"
    for name in os.listdir(apps) if apps.is_dir() else ():
        folder = open_path(apps, name, flags=os.O_RDONLY | os.O_DIRECTORY)
        fd = open_path(apps, name, "upper", flags=os.O_RDONLY | os.O_DIRECTORY)
        if folder is not None and fd is not None:
            try:
                empty_folder(fd)
                os.rmdir("upper", dir_fd=folder)
            finally:
                os.close(fd)
                os.close(folder)


def delete(pod: LockedPod) -> None:
    """Move a pod to `garbage` and delete it; can be repeated after a crash at any instant."""
    if pod.folder is not Folder.GARBAGE:
        pod.move(Folder.GARBAGE)
    fd = open_dir(pod.path)
    try:
        empty_folder(fd)
    finally:
        os.close(fd)
    os.rmdir(pod.path)


def unmount_below(path: Path) -> None:
    """Unmount what lies below the pod's folder: for processes in the pod's own mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]
    inside = [target for target in targets if target.startswith(f"{path}/")]
    if inside:
        call = LinuxSyscalls()
        for target in reversed(inside):
            call.umount(target, MNT_DETACH)
