"""Fetch an image by address or by discovery, and its signature; it needs a network and no file."""

from collections.abc import Callable, Iterator

from secrun.errors import RegistryError
from secrun.image.aci import discovery, limits, oci
from secrun.image.aci.web import Web
from secrun.image.platform import Platform
from secrun.image.reference import AppcReference, UrlReference
from secrun.record import record
from secrun.trust import limits as trust_limits

SIGNATURE_SUFFIX = ".asc"


@record
class Asked:
    """What a download is held against: its size in bytes, the stamp of what is stored, a platform."""

    size: int | None = None
    stamp: str = ""
    platform: Platform | None = None

    @property
    def limit(self) -> int:
        """How many bytes are taken."""
        return limits.MAX_ACI_BYTES if self.size is None else self.size


@record
class Fetched:
    """What came beside the image: its signature, empty if there is none, and what tells this state again."""

    signature: bytes
    stamp: str


def fetch(
    reference: UrlReference | AppcReference, web: Web, asked: Asked, sink: Callable[[bytes], None]
) -> Fetched | None:
    """Hand an image to `sink`, then return its signature: servers may make it while they send the image.

    None if the image still is what the stamp tells. Raises RegistryError, ImageError.
    """
    found = _endpoint(reference, web, asked.platform)
    tag = web.download(found.image, sink, limit=asked.limit, known=asked.stamp)
    if tag is None:
        return None
    signature = web.small(found.signature, trust_limits.MAX_MESSAGE_BYTES) or b""
    return Fetched(signature=signature, stamp=tag)


def _endpoint(
    reference: UrlReference | AppcReference, web: Web, platform: Platform | None
) -> discovery.Endpoint:
    if isinstance(reference, UrlReference):
        web.check(reference.url)
        address, query, rest = reference.url.partition("?")
        return discovery.Endpoint(image=reference.url, signature=f"{address}{SIGNATURE_SUFFIX}{query}{rest}")
    return discover(reference, web, platform)[0]


def _labels(reference: AppcReference, platform: Platform | None) -> dict[str, str]:
    """Return the labels to look for: those asked for, and this host's system and architecture."""
    own = {} if platform is None else {"os": platform.os, "arch": oci.label_of(platform)}
    return {**own, **dict(reference.labels)}


def looked_at(name: str, web: Web) -> Iterator[discovery.Page]:
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


def discover(reference: AppcReference, web: Web, platform: Platform | None) -> list[discovery.Endpoint]:
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
