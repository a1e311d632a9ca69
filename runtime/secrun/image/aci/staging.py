"""Bring an image's file and its signature to a place where nobody else can change them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.errors import ImageError, RegistryError
from secrun.files import file_stamp
from secrun.image import limits as image_limits
from secrun.image.aci import discovery, limits, oci
from secrun.image.files import open_regular
from secrun.image.platform import Platform
from secrun.image.reference import AppcReference, FileReference, UrlReference
from secrun.image.rootfs.inflate import write_all
from secrun.record import record
from secrun.trust import limits as trust_limits

if TYPE_CHECKING:
    from secrun.image.aci.web import Web

AciReference = FileReference | UrlReference | AppcReference
_SIGNATURE_SUFFIX = ".asc"


@record
class Staged:
    """An image's file, open; its signature, empty if there is none; `stamp` changes when it does."""

    fd: int
    path: Path
    signature: bytes
    stamp: str


@record
class Asked:
    """What a download may be held against: its size in bytes, the stamp of what is stored, a platform."""

    size: int | None = None
    stamp: str = ""
    platform: Platform | None = None


ANYTHING = Asked()


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
    beside = path.with_name(path.name + _SIGNATURE_SUFFIX)
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
    reference: AciReference, web: "Web", scratch: Path, asked: Asked = ANYTHING
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
            yield _of_web(reference, web, fd, path, asked)
    finally:
        os.close(fd)
        path.unlink()


def _of_web(
    reference: UrlReference | AppcReference, web: "Web", fd: int, path: Path, asked: Asked
) -> Staged | None:
    """Download an image, and then its signature: servers may make the one while they send the other."""
    found = _endpoint(reference, web, asked.platform)
    limit = limits.MAX_ACI_BYTES if asked.size is None else asked.size
    tag = web.download(found.image, lambda chunk: write_all(fd, chunk), limit=limit, known=asked.stamp)
    if tag is None:
        return None
    if asked.size is not None and os.fstat(fd).st_size != asked.size:
        raise ImageError(
            f"{reference} has {os.fstat(fd).st_size} bytes, {asked.size} were announced", code="image-size"
        )
    signature = web.small(found.signature, trust_limits.MAX_MESSAGE_BYTES) or b""
    return Staged(fd=fd, path=path, signature=signature, stamp=tag)


def _endpoint(
    reference: UrlReference | AppcReference, web: "Web", platform: Platform | None
) -> discovery.Endpoint:
    if isinstance(reference, UrlReference):
        web.check(reference.url)
        address, query, rest = reference.url.partition("?")
        return discovery.Endpoint(
            image=reference.url, signature=f"{address}{_SIGNATURE_SUFFIX}{query}{rest}"
        )
    return discover(reference, web, platform)[0]


def _labels(reference: AppcReference, platform: Platform | None) -> dict[str, str]:
    """Return the labels to look for: those asked for, and this host's system and architecture."""
    own = {} if platform is None else {"os": platform.os, "arch": oci.label_of(platform)}
    return {**own, **dict(reference.labels)}


def looked_at(name: str, web: "Web") -> Iterator[discovery.Page]:
    """Yield the pages of a name and its parents that have tags."""
    for scheme in web.schemes:
        for page in discovery.pages(name):
            try:
                data = web.page(discovery.page_address(scheme, page))
            except RegistryError:
                if scheme == web.schemes[-1]:
                    raise
                break
            found = discovery.parse(data or b"")
            if found.images or found.keys:
                yield found


def discover(reference: AppcReference, web: "Web", platform: Platform | None) -> list[discovery.Endpoint]:
    """Return where an image is, at least one place; raises RegistryError."""
    http = "http" in web.schemes
    labels = _labels(reference, platform)
    for page in looked_at(reference.image, web):
        if not page.images:
            continue
        # The first page with tags speaks for the name; its parents are not asked beside it.
        if found := discovery.endpoints(page.images, reference.image, labels, http=http):
            return found
        raise discovery.nothing_found(str(reference), "no template that fits")
    raise discovery.nothing_found(str(reference), "nothing")


def _of_file(reference: FileReference, fd: int, path: Path) -> Staged:
    source = open_regular(Path(reference.path), str(reference), follow=True)
    try:
        stamp = file_stamp(os.fstat(source))
        _copy(source, fd, str(reference))
    finally:
        os.close(source)
    return Staged(fd=fd, path=path, signature=_signature(Path(reference.path)), stamp=stamp)
