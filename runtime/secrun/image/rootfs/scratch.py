"""Folders for unfinished work, each locked by its owner: what a dead owner left can be told and removed."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secrun.locks import is_missing, lock_fd, open_dir
from secrun.paths import Layout

_PREFIX = "rootfs-"


def _still_there(fd: int, path: Path) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)


@contextmanager
def scratch_folder(layout: Layout) -> Iterator[Path]:
    """Make a folder below `layout.scratch`, hold its lock, and remove it with its contents in the end."""
    layout.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        path = layout.scratch / f"{_PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
        path.mkdir(mode=0o700)
        fd = open_dir(path)
        lock_fd(fd)
        # Between making and locking it, a cleaner may have taken it for a dead one's.
        if _still_there(fd, path):
            break
        os.close(fd)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=False)
        os.close(fd)


def purge_folders(layout: Layout) -> list[Path]:
    """Remove the scratch folders of rendering processes that no longer live; return what was removed."""
    removed = []
    for path in sorted(layout.scratch.glob(f"{_PREFIX}*")):
        try:
            fd = open_dir(path)
        except OSError as error:
            if is_missing(error):
                continue
            raise
        try:
            if lock_fd(fd, blocking=False) and _still_there(fd, path):
                shutil.rmtree(path)
                removed.append(path)
        finally:
            os.close(fd)
    return removed
