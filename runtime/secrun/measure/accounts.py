"""What is kept of a pod beyond its folder: its account, named by the digest that the log holds."""

from contextlib import suppress
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.files import write_atomic
from secrun.paths import Layout


def path_of(layout: Layout, digest: Digest) -> Path:
    """Return where the account of a digest is."""
    return layout.accounts / digest.hex[:2] / f"{digest.hex}.json"


def keep(layout: Layout, data: bytes) -> str:
    """Store an account, on disk when this returns; return its digest."""
    digest = Digest.of(data)
    place = path_of(layout, digest)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(place, data, mode=0o600)
    return str(digest)


def read(layout: Layout, digest: str) -> bytes | None:
    """Return an account; None if it is gone, or `digest` is none."""
    try:
        return path_of(layout, Digest.parse(digest)).read_bytes()
    except (FileNotFoundError, ImageError):
        return None


def remove(layout: Layout, digest: str) -> None:
    """Remove an account, if it is there."""
    with suppress(ImageError):
        path_of(layout, Digest.parse(digest)).unlink(missing_ok=True)
