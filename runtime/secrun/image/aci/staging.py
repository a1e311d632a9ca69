"""Bring an image's file and its signature to a place where nobody else can change them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secrun.errors import ImageError
from secrun.files import file_stamp
from secrun.image import limits as image_limits
from secrun.image.aci import limits, remote
from secrun.image.aci.webfetch import SIGNATURE_SUFFIX, Asked
from secrun.image.files import open_regular
from secrun.image.options import FetchOptions
from secrun.image.reference import AppcReference, FileReference, UrlReference
from secrun.image.rootfs.inflate import write_all
from secrun.record import record
from secrun.trust import limits as trust_limits

AciReference = FileReference | UrlReference | AppcReference


@record
class Staged:
    """An image's file, open; its signature, empty if there is none; `stamp` changes when it does."""

    fd: int
    path: Path
    signature: bytes
    stamp: str


def too_large(what: str, limit: int) -> ImageError:
    """Return the error for a file that has no end that could be waited for."""
    return ImageError(f"{what} is larger than {limit} bytes", code="image-limit")


def _copy(source: int, target: int, what: str) -> None:
    total = 0
    while chunk := os.read(source, image_limits.CHUNK_BYTES):
        total += len(chunk)
        if total > limits.MAX_ACI_BYTES:
            raise too_large(what, limits.MAX_ACI_BYTES)
        write_all(target, chunk)


def _signature(path: Path) -> bytes:
    """Return the signature beside a file, empty if there is none."""
    beside = path.with_name(path.name + SIGNATURE_SUFFIX)
    if not beside.exists():
        return b""
    fd = open_regular(beside, str(beside), follow=True)
    with os.fdopen(fd, "rb") as stream:
        data = stream.read(trust_limits.MAX_MESSAGE_BYTES + 1)
    if len(data) > trust_limits.MAX_MESSAGE_BYTES:
        raise too_large(str(beside), trust_limits.MAX_MESSAGE_BYTES)
    return data


@contextmanager
def staged(
    reference: AciReference, options: FetchOptions, scratch: Path, asked: Asked
) -> Iterator[Staged | None]:
    """Yield the file that a reference means, None if it is still what its stamp tells.

    Raises ImageError, or RegistryError from a server.
    """
    path = scratch / "image.aci"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if isinstance(reference, FileReference):
            yield _of_file(reference, fd, path)
        else:
            yield _of_web(reference, options, fd, path, asked)
    finally:
        os.close(fd)
        path.unlink()


def _of_web(
    reference: UrlReference | AppcReference, options: FetchOptions, fd: int, path: Path, asked: Asked
) -> Staged | None:
    total = 0

    def sink(chunk: bytes) -> None:
        nonlocal total
        total += len(chunk)
        if total > asked.limit:
            raise too_large(str(reference), asked.limit)
        write_all(fd, chunk)

    found = remote.fetched(reference, options, asked, sink)
    if found is None:
        return None
    if asked.size is not None and total != asked.size:
        raise ImageError(f"{reference} has {total} bytes, {asked.size} were announced", code="image-size")
    return Staged(fd=fd, path=path, signature=found.signature, stamp=found.stamp)


def _of_file(reference: FileReference, fd: int, path: Path) -> Staged:
    source = open_regular(Path(reference.path), str(reference), follow=True)
    try:
        stamp = file_stamp(os.fstat(source))
        _copy(source, fd, str(reference))
    finally:
        os.close(source)
    return Staged(fd=fd, path=path, signature=_signature(Path(reference.path)), stamp=stamp)
