"""Let a process without rights fetch images when root asks: nothing of the network is read here."""

from collections.abc import Callable, Mapping

from secrun.errors import ImageError
from secrun.image import account, apart, fields, serving, sources
from secrun.image.aci import webfetch
from secrun.image.aci.webfetch import Asked, Fetched
from secrun.image.frames import Channel, Frame, Kind
from secrun.image.helper import WHO, Handler, Work
from secrun.image.options import FetchOptions
from secrun.image.reference import AppcReference, UrlReference
from secrun.image.remote import running
from secrun.image.reported import shown
from secrun.jsonio import JsonObject
from secrun.trust import limits as trust_limits

_FETCH = "appc"
_WHAT = f"answer of {WHO}"
_MAX_STAMP = 1000


def _work(reference: UrlReference | AppcReference, options: FetchOptions, asked: Asked) -> Work:
    """Return the work of fetching one image, as the user secrun with a network."""
    user = account.fetching()
    reached = sources.reach_web(options)

    def handle(request: JsonObject, channel: Channel) -> JsonObject:
        del request
        found = webfetch.fetch(reference, reached.web, asked, lambda chunk: channel.send(Kind.CHUNK, chunk))
        if found is None:
            return {"unchanged": True, "stamp": ""}
        channel.send(Kind.BYTES, found.signature)
        return {"unchanged": False, "stamp": found.stamp}

    def handlers() -> Mapping[str, Handler]:
        return {_FETCH: handle}

    return serving.networked(user, [reached], handlers)


def fetched(
    reference: UrlReference | AppcReference,
    options: FetchOptions,
    asked: Asked,
    sink: Callable[[bytes], None],
) -> Fetched | None:
    """Hand an image to `sink`, and return its signature; None if it is what `asked` has the stamp of.

    The sink decides when there are too many bytes. Raises RegistryError, ImageError, HostError; root forks.
    """
    if not apart.separated():
        return webfetch.fetch(reference, sources.reach_web(options).web, asked, sink)
    signatures: list[bytes] = []

    def take(frame: Frame) -> None:
        if frame.kind is Kind.CHUNK:
            sink(frame.data)
        elif (
            frame.kind is Kind.BYTES and not signatures and len(frame.data) <= trust_limits.MAX_MESSAGE_BYTES
        ):
            signatures.append(frame.data)
        else:
            raise ImageError(f"{WHO} sent what was not asked for", code="image-worker")

    with running(_work(reference, options, asked)) as helper:
        answer = helper.call(_FETCH, {}, take=take)
    if answer.get("unchanged") is True and asked.stamp:
        return None
    if not signatures:
        raise ImageError(f"{WHO} left something out", code="image-worker")
    stamp = shown(fields.text(answer, "stamp", _WHAT))[:_MAX_STAMP]
    return Fetched(signature=signatures[0], stamp=stamp)
