"""Appc discovery (discovery.md): from an image's name to addresses, by meta tags of that name's page; pure.

Pages are a stranger's: they are scanned once from the front, up to the end of the head, and only for tags of
two names. Nothing else of HTML is understood.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from html import unescape
from urllib.parse import urlsplit

from secrun.errors import RegistryError
from secrun.image.aci import limits
from secrun.record import record

_IMAGES, _KEYS = "ac-discovery", "ac-discovery-pubkeys"
# What may come after a tag's name; bounded, so that one tag costs no more than its length.
_TAG = re.compile(r"<meta[\s/]([^<>]{1,4096})>", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    r"""([a-z-]{1,40})\s{0,20}=\s{0,20}(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE
)
_END = re.compile(r"</head|<body", re.IGNORECASE)
_FIELD = re.compile(r"\{([a-z]{1,40})\}")
_LATER = {"name", "ext"}


class Extension(StrEnum):
    """What a template can be rendered for."""

    IMAGE = "aci"
    SIGNATURE = "aci.asc"


@record
class Tag:
    """One meta tag: names that begin with `prefix` are found at `template`."""

    prefix: str
    template: str


@record
class Page:
    """What a page says: templates of images, and addresses of keys."""

    images: tuple[Tag, ...]
    keys: tuple[Tag, ...]


@record
class Endpoint:
    """Where an image and its signature are."""

    image: str
    signature: str


def _without_comments(text: str) -> str:
    """Cut comments out, in one pass."""
    pieces: list[str] = []
    position = 0
    while (start := text.find("<!--", position)) >= 0:
        pieces.append(text[position:start])
        end = text.find("-->", start + 4)
        if end < 0:
            return "".join(pieces)
        position = end + 3
    return "".join([*pieces, text[position:]])


def _attributes(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for match in _ATTRIBUTE.finditer(text):
        value = next((group for group in match.groups()[1:] if group is not None), "")
        found.setdefault(match[1].lower(), unescape(value))
    return found


def _tags(text: str) -> Iterator[tuple[str, Tag]]:
    for match in _TAG.finditer(text):
        attributes = _attributes(match[1])
        name, words = attributes.get("name", ""), attributes.get("content", "").split()
        if name in (_IMAGES, _KEYS) and len(words) == 2 and len(words[1]) <= limits.MAX_TEMPLATE_CHARS:
            yield name, Tag(prefix=words[0], template=words[1])


def parse(data: bytes) -> Page:
    """Return the tags of a page's head; a page without any, and what is no HTML at all, has none."""
    text = _without_comments(data.decode("utf-8", "replace"))
    end = _END.search(text)
    found = list(_tags(text[: end.start()] if end else text))[: limits.MAX_TEMPLATES]
    return Page(
        images=tuple(tag for name, tag in found if name == _IMAGES),
        keys=tuple(tag for name, tag in found if name == _KEYS),
    )


def covers(tag: Tag, name: str) -> bool:
    """Tell whether a tag is about a name: its prefix is the name, or ends at a slash of it."""
    prefix = tag.prefix.rstrip("/")
    return name == prefix or name.startswith(f"{prefix}/")


def pages(name: str) -> list[str]:
    """Return the names whose pages may have tags: the image's, then its parents'."""
    words = name.split("/")
    return ["/".join(words[:count]) for count in range(len(words), 0, -1)]


def page_address(scheme: str, name: str) -> str:
    """Return the address of a name's page."""
    return f"{scheme}://{name}?ac-discovery=1"


def _allowed(url: str, *, http: bool) -> bool:
    parts = urlsplit(url)
    known = ("https", "http") if http else ("https",)
    plain = url.isascii() and url.isprintable() and " " not in url
    return parts.scheme in known and bool(parts.hostname) and "@" not in parts.netloc and plain


def endpoints(tags: Sequence[Tag], name: str, labels: Mapping[str, str], *, http: bool) -> list[Endpoint]:
    """Render the templates that match best: all their fields are known, and as many as in any other.

    Values of labels cannot lead elsewhere: references and manifests allow no slash in what is put in here.
    """
    best: list[Endpoint] = []
    most = -1
    for tag in tags:
        fields = set(_FIELD.findall(tag.template))
        if not covers(tag, name) or "ext" not in fields or not fields <= labels.keys() | _LATER:
            continue
        rank = len(fields & labels.keys())
        image, signature = (_render(tag.template, name, labels, ext) for ext in Extension)
        if rank < most or not _allowed(image, http=http):
            continue
        best = [] if rank > most else best
        most = rank
        best.append(Endpoint(image=image, signature=signature))
    return best


def _render(template: str, name: str, labels: Mapping[str, str], ext: str) -> str:
    values = {**labels, "name": name, "ext": ext}
    return _FIELD.sub(lambda match: values[match[1]], template)


def key_addresses(tags: Sequence[Tag], name: str, *, http: bool) -> list[str]:
    """Return where public keys for a name are."""
    found = (tag.template for tag in tags if covers(tag, name))
    return [url for url in dict.fromkeys(found) if _allowed(url, http=http)]


def nothing_found(name: str, what: str) -> RegistryError:
    """Return the error for a name that no page tells anything about."""
    return RegistryError(
        f"discovery of {name} found {what}: no page of it or its parents has a fitting meta tag",
        hint="check name, version and labels; write https://HOST/FILE.aci if you know the address",
        code="registry-discovery",
    )
