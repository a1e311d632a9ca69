"""What of the store goes: files that nothing needs, and images that nobody used for a while."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.image.entries import Entry
from secrun.paths import Layout

if TYPE_CHECKING:
    from secrun.image.reachable import Reachable

_KEY_DIGITS = 64


def unneeded(layout: Layout, keep: "Reachable") -> Iterator[Path]:
    """Yield blobs, rootfs images and records that nothing in `keep` names."""
    for path in layout.images.glob("blobs/*/*"):
        if f"{path.parent.name}:{path.name}" not in keep.blobs:
            yield path
    for path in layout.rootfs.iterdir() if layout.rootfs.is_dir() else ():
        # Only finished files: what is in the making has a name of another form.
        if path.suffix in (".erofs", ".json") and _is_key(path.stem) and path.stem not in keep.rootfs:
            yield path
    for path in layout.facts.glob("*/*.json"):
        if f"{path.parent.name}:{path.stem}" not in keep.blobs:
            yield path


def _is_key(stem: str) -> bool:
    return len(stem) == _KEY_DIGITS and set(stem) <= set("0123456789abcdef")


def unused(
    entries: Sequence[Entry],
    in_use: Collection[Digest],
    used_at: Callable[[Entry], float],
    *,
    now: float,
    grace: float,
) -> list[Entry]:
    """Return the entries of images that no pod has and that were last used `grace` seconds ago or earlier.

    An image that seems to be used in the future stays: a clock that jumped must not remove it.
    """
    return [entry for entry in entries if entry.digest not in in_use and now - used_at(entry) >= grace]
