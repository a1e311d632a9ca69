"""Rootfs images: from layer blobs to one verity-protected EROFS file.

Importing this loads only what `load` needs; rendering imports the rest when it happens.
"""

from secrun.image.rootfs.model import (
    FORMAT_VERSION,
    Compression,
    Group,
    LayerSource,
    Passwd,
    RootfsImage,
    rootfs_key,
)
from secrun.image.rootfs.store import ensure, load, purge_stale, verify_file

__all__ = [
    "FORMAT_VERSION",
    "Compression",
    "Group",
    "LayerSource",
    "Passwd",
    "RootfsImage",
    "ensure",
    "load",
    "purge_stale",
    "rootfs_key",
    "verify_file",
]
