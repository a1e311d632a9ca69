"""Which blobs and rootfs images the store still needs."""

from collections.abc import Callable, Iterable, Sequence

from secrun.digest import Digest
from secrun.image.entries import Entry
from secrun.image.facts import ImageFacts
from secrun.image.rootfs.model import rootfs_key
from secrun.record import record


@record
class Reachable:
    """Digests of blobs as text, and names (hex keys) of rootfs images."""

    blobs: frozenset[str]
    rootfs: frozenset[str]


def reachable(
    entries: Sequence[Entry], in_use: Iterable[Digest], facts: Callable[[Digest], ImageFacts | None]
) -> Reachable:
    """Follow every listed manifest and every one that a pod uses; `facts` returns None for one that is gone.

    Raises what `facts` raises for a damaged image: what cannot be read must not decide what is removed.
    """
    blobs: set[str] = set()
    rootfs: set[str] = set()
    blobs.update(entry.signatures for entry in entries if entry.signatures)
    for digest in {*(entry.digest for entry in entries), *in_use}:
        blobs.add(str(digest))
        found = facts(digest)
        if found is None:
            continue
        blobs.add(str(found.manifest.config.digest))
        blobs.update(str(layer.digest) for layer in found.manifest.layers)
        rootfs.add(rootfs_key(found.config.diff_ids).hex)
    return Reachable(blobs=frozenset(blobs), rootfs=frozenset(rootfs))
