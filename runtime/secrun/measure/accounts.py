"""What is kept of a pod beyond its folder: its account, named by the digest that the log holds."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.files import write_atomic
from secrun.paths import Layout

_SUFFIX = ".json"


def path_of(layout: Layout, digest: Digest) -> Path:
    """Return where the account of a digest is."""
    return layout.accounts / digest.hex[:2] / f"{digest.hex}{_SUFFIX}"


def keep(layout: Layout, data: bytes) -> str:
    """Store an account, on disk when this returns; return its digest."""
    digest = Digest.of(data)
    place = path_of(layout, digest)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(place, data, mode=0o600)
    return str(digest)


def reader(layout: Layout) -> Callable[[str], bytes | None]:
    """Return what gives an account by its digest; None if it is gone, or what was given is no digest."""
    folder = os.fspath(layout.accounts)

    def read(digest: str) -> bytes | None:
        # An export reads hundreds of thousands: no Path for each.
        try:
            name = Digest.parse(digest).hex
            with open(f"{folder}/{name[:2]}/{name}{_SUFFIX}", "rb", buffering=0) as stream:
                return stream.read()
        except (FileNotFoundError, ImageError):
            return None

    return read


def remove(layout: Layout, digest: str) -> None:
    """Remove an account, if it is there."""
    with suppress(ImageError):
        path_of(layout, Digest.parse(digest)).unlink(missing_ok=True)
