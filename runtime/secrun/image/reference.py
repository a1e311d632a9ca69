"""Image references: the distribution grammar and containers-transports(5), parsed into values."""

import hashlib
import os
import re
from enum import StrEnum
from typing import TypeAlias
from urllib.parse import urlsplit

from secrun import dockername
from secrun.digest import Digest
from secrun.errors import ImageError, UsageError
from secrun.image import limits
from secrun.record import field, record


class Transport(StrEnum):
    """Where an image comes from; the words are those of containers-policy.json(5)."""

    DOCKER = "docker"
    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    DIR = "dir"
    ACI = "aci"
    """Secrun's own: an app container image, from a file, an address or by discovery."""


_IDENTIFIER = re.compile(rf"(?:sha256:)?([0-9a-f]{{{limits.MIN_ID_DIGITS},64}})\Z")
# OCI image-spec, annotations.md: org.opencontainers.image.ref.name.
_LAYOUT_TAG = re.compile(r"[A-Za-z0-9]+(?:(?:--|[-._:@+/])[A-Za-z0-9]+)*\Z")
# Transports of the containers tools that secrun does not have; named so that the error is exact.
_FOREIGN = ("atomic", "containers-storage", "docker-daemon", "ostree", "sif", "tarball")

# rkt's: the digest of the image's tar, or its beginning.
_APPC_ID = re.compile(r"sha512-([0-9a-f]{4,128})\Z")
_DEFAULT_TAG = "latest"
_FILES = (
    Transport.OCI,
    Transport.OCI_ARCHIVE,
    Transport.DOCKER_ARCHIVE,
    Transport.DIR,
    Transport.ACI,
)
# Of which nothing but the path can follow: a folder or a file is one image.
_WHOLE = (Transport.DIR, Transport.ACI)
_ACI_SUFFIX = ".aci"
_APPC = "appc"
_ADDRESSES = ("https", "http")
_APPC_NAME = re.compile(r"[a-z0-9]+(?:[-._~/][a-z0-9]+)*\Z")
MAX_URL_CHARS = 2000


@record
class RegistryReference:
    """An image in a registry; has a tag or a digest or both, and then the digest decides."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None
    # Written with docker://: then only an image that came from a registry answers to it.
    explicit: bool = field(default=False, compare=False)

    @property
    def transport(self) -> Transport:
        """The transport, as in a policy file."""
        return Transport.DOCKER

    @property
    def repository(self) -> str:
        """Registry and path, without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def name(self) -> str:
        """The reference without its transport."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest, else the tag."""
        return str(self.digest) if self.digest else (self.tag or _DEFAULT_TAG)

    def __str__(self) -> str:
        return f"docker://{self.name}"


@record
class FileReference:
    """An image in a layout or an archive; `tag` is empty if the only image is meant."""

    transport: Transport
    path: str
    tag: str = ""

    @property
    def name(self) -> str:
        """The path and, if there is one, the tag."""
        return f"{self.path}:{self.tag}" if self.tag else self.path

    def __str__(self) -> str:
        return f"{self.transport}:{self.name}"


@record
class UrlReference:
    """An app container image at an address."""

    url: str

    @property
    def transport(self) -> Transport:
        """The transport, as in a policy file."""
        return Transport.ACI

    @property
    def name(self) -> str:
        """The address."""
        return self.url

    def __str__(self) -> str:
        return self.url


@record
class AppcReference:
    """An app container image by its name and labels, found by discovery (appc spec, discovery.md)."""

    image: str
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def transport(self) -> Transport:
        """The transport, as in a policy file."""
        return Transport.ACI

    @property
    def version(self) -> str:
        """The label `version`, empty if none is asked for."""
        return dict(self.labels).get("version", "")

    @property
    def name(self) -> str:
        """Name, version and labels as they are written."""
        version = f":{self.version}" if self.version else ""
        others = "".join(f",{name}={value}" for name, value in self.labels if name != "version")
        return f"{self.image}{version}{others}"

    def __str__(self) -> str:
        return f"{_APPC}://{self.name}"


@record
class StoredReference:
    """A bare word: the name of a stored image, or a prefix of a manifest digest."""

    text: str

    @property
    def name(self) -> str:
        """The word as it was given."""
        return self.text

    @property
    def id_prefix(self) -> str:
        """The hexadecimal digits, if the word can be an ID, else empty."""
        match = _IDENTIFIER.match(self.text)
        return match[1] if match else ""

    @property
    def image_id(self) -> str:
        """The hexadecimal digits, if the word is the ID of an app container image, else empty."""
        match = _APPC_ID.match(self.text)
        return match[1] if match else ""

    def is_id_of(self, digest: Digest) -> bool:
        """Tell whether the word is an ID that means this manifest."""
        return bool(self.id_prefix) and digest.hex.startswith(self.id_prefix)

    def __str__(self) -> str:
        return self.text


# What an image can come from.
Origin: TypeAlias = RegistryReference | FileReference | UrlReference | AppcReference
ImageReference: TypeAlias = Origin | StoredReference


def is_aci(reference: ImageReference) -> bool:
    """Tell whether a reference means an app container image."""
    return not isinstance(reference, StoredReference) and reference.transport is Transport.ACI


def _bad(text: str, why: str, hint: str = "") -> UsageError:
    return UsageError(
        f"malformed image reference {text[:300]!r}: {why}",
        hint=hint or "write docker://REGISTRY/NAME[:TAG][@DIGEST]",
        code="usage-reference",
    )


def _registry(rest: str, text: str, *, explicit: bool) -> RegistryReference:
    try:
        name = dockername.parse(rest)
    except ImageError as error:
        raise _bad(text, error.message, error.hint) from error
    tag = _DEFAULT_TAG if name.bare else name.tag
    return RegistryReference(
        domain=name.domain, path=name.path, tag=tag, digest=name.digest, explicit=explicit
    )


def _file(transport: Transport, rest: str, text: str) -> FileReference:
    path, colon, tag = (rest, "", "") if transport in _WHOLE else rest.partition(":")
    if not path:
        raise _bad(text, "the path is empty", f"write {transport}:PATH[:TAG]")
    if "\0" in path:
        raise _bad(text, "the path has a NUL byte")
    if colon:
        _check_file_tag(transport, tag, text)
    return FileReference(transport=transport, path=path, tag=tag)


def _check_file_tag(transport: Transport, tag: str, text: str) -> None:
    if transport is not Transport.DOCKER_ARCHIVE:
        if not _LAYOUT_TAG.match(tag):
            raise _bad(
                text, f"{tag[:140]!r} is not a tag", f"write {transport}:PATH[:TAG]; a path has no colon"
            )
    elif tag.startswith("@"):
        if not (tag.isascii() and tag[1:].isdecimal() and len(tag) < 6):
            raise _bad(text, f"{tag[:140]!r} is not @POSITION", "write docker-archive:PATH:@0 for the first")
    elif _registry(tag, text, explicit=False).digest:
        raise _bad(text, "an archive has no digests", "write docker-archive:PATH[:NAME[:TAG]]")


def _with_scheme(scheme: str, rest: str, text: str) -> ImageReference:
    """Parse SCHEME://REST."""
    if scheme == _APPC:
        return _appc(rest, text)
    if scheme in _ADDRESSES:
        parts = urlsplit(text)
        if not parts.hostname or "@" in parts.netloc or not text.isascii() or not text.isprintable():
            raise _bad(text, "it is no address of a file", "write https://HOST/PATH.aci, without a password")
        if len(text) > MAX_URL_CHARS or " " in text:
            raise _bad(text, f"an address has no blanks and at most {MAX_URL_CHARS} characters")
        return UrlReference(url=text)
    if scheme != Transport.DOCKER:
        raise _bad(text, f"{scheme[:40]!r} is no transport of secrun")
    return _registry(rest, text, explicit=True)


def _appc(rest: str, text: str) -> AppcReference:
    """Parse NAME[:VERSION][,LABEL=VALUE]... as rkt has it."""
    head, *others = rest.split(",")
    name, colon, version = head.partition(":")
    labels: dict[str, str] = {"version": version} if colon else {}
    hint = "write appc://NAME[:VERSION][,LABEL=VALUE]"
    for word in others:
        key, equals, value = word.partition("=")
        if not equals or not _APPC_NAME.match(key) or key in labels or key == "name":
            raise _bad(text, f"{word[:80]!r} is no label, or one that is given twice", hint)
        labels[key] = value
    if not _APPC_NAME.match(name) or len(name) > dockername.MAX_NAME_CHARS:
        raise _bad(text, f"{name[:80]!r} is no AC Identifier", hint)
    wrong = [value for value in labels.values() if not _is_label_value(value)]
    if wrong:
        raise _bad(text, f"{wrong[0][:80]!r} cannot be the value of a label", hint)
    return AppcReference(image=name, labels=tuple(sorted(labels.items())))


def _is_label_value(value: str) -> bool:
    """Tell whether a value can be written in a reference and put into an address."""
    return re.match(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}\Z", value) is not None


def _is_aci_path(text: str) -> bool:
    """Tell whether a word is the path of an app container image: ./FILE, /FILE, or FILE.aci."""
    first, slash, _ = text.partition("/")
    if first in ("", ".", "..") and slash:
        return True
    return text.endswith(_ACI_SUFFIX) and not (slash and dockername.is_domain(first))


def parse(text: str) -> ImageReference:
    """Parse what a user wrote; raises UsageError.

    docker://NAME without a registry means docker.io, as containers-transports(5) defines it; a bare NAME
    without one never does: it can only be something stored.
    """
    scheme, colon, rest = text.partition(":")
    if colon and rest.startswith("//"):
        return _with_scheme(scheme, rest[2:], text)
    if colon and scheme in _FILES:
        return _file(Transport(scheme), rest, text)
    if colon and (scheme in _FOREIGN or (scheme == Transport.DOCKER and not rest.isdecimal())):
        raise _bad(text, f"{scheme!r} is no transport of secrun")
    if _is_aci_path(text):
        # Two slashes in front would read as an address.
        return _file(Transport.ACI, f"/{text.lstrip('/')}" if text.startswith("/") else text, text)
    if not text or len(text) > dockername.MAX_NAME_CHARS * 2 or not text.isprintable() or " " in text:
        raise _bad(text, "it is empty, too long or has blanks")
    first, slash, _ = text.partition("/")
    if slash and dockername.is_domain(first):
        return _registry(text, text, explicit=False)
    return StoredReference(text=text)


def localize(reference: ImageReference) -> ImageReference:
    """Make the path of a file reference absolute and free of symbolic links; others stay as they are."""
    if not isinstance(reference, FileReference):
        return reference
    return FileReference(
        transport=reference.transport, path=os.path.realpath(reference.path), tag=reference.tag
    )


def layout_name(name: str) -> str:
    """Return `name` in the grammar of org.opencontainers.image.ref.name, as skopeo and umoci select it.

    That grammar knows no doubled separators but `--`. Other names are spelled with `--` and a piece of their
    hash; the exact reference is in an annotation of its own.
    """
    if _LAYOUT_TAG.match(name):
        return name
    words = re.findall(r"[A-Za-z0-9]+", name)
    return "--".join([*words, hashlib.sha256(name.encode()).hexdigest()[:12]])
