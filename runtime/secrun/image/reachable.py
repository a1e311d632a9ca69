"""Which blobs and rootfs images the store still needs."""

from collections.abc import Callable, Iterable, Sequence

from secrun.digest import Digest
from secrun.image import config as configs
from secrun.image import manifest as manifests
from secrun.image.entries import Entry
from secrun.image.manifest import Index
from secrun.image.rootfs.model import rootfs_key
from secrun.record import record


@record
class Reachable:
    """Digests of blobs as text, and names (hex keys) of rootfs images."""

    blobs: frozenset[str]
    rootfs: frozenset[str]


def reachable(
    entries: Sequence[Entry], in_use: Iterable[Digest], read: Callable[[Digest], bytes | None]
) -> Reachable:
    """Follow every listed manifest and every one that a pod uses; `read` returns a blob, None if it is gone.

    Raises ImageError for a damaged manifest: what cannot be read must not decide what is removed.
    """
    blobs: set[str] = set()
    rootfs: set[str] = set()
    blobs.update(entry.signatures for entry in entries if entry.signatures)
    for digest in {*(entry.digest for entry in entries), *in_use}:
        data = read(digest)
        if data is None:
            continue
        blobs.add(str(digest))
        manifest = manifests.parse(data, "", what=f"stored manifest {digest}")
        if isinstance(manifest, Index):
            continue
        blobs.add(str(manifest.config.digest))
        blobs.update(str(layer.digest) for layer in manifest.layers)
        config = read(manifest.config.digest)
        if config is not None:
            diff_ids = configs.parse(config, what=f"stored config {manifest.config.digest}").diff_ids
            rootfs.add(rootfs_key(diff_ids).hex)
    return Reachable(blobs=frozenset(blobs), rootfs=frozenset(rootfs))
