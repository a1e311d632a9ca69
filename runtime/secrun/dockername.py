"""Names of images in registries: the distribution grammar, with Docker Hub's names written out."""

import re

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.record import record

# Distribution reference grammar: repository name with its registry, and tag.
MAX_NAME_CHARS = 255
MAX_TAG_CHARS = 128

# distribution/reference, regexp.go.
_ALNUM = r"[a-z0-9]+"
_COMPONENT = rf"{_ALNUM}(?:(?:\.|__|_|-+){_ALNUM})*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?\Z")
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_TAG = re.compile(rf"[a-zA-Z0-9_][a-zA-Z0-9_.-]{{0,{MAX_TAG_CHARS - 1}}}\Z")

_HUB = "docker.io"
_HUB_ALIASES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HUB_LIBRARY = "library"


@record
class DockerName:
    """A name as distribution/reference parses it; `tag` and `digest` are None where they are not written."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def repository(self) -> str:
        """Registry and path, without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def bare(self) -> bool:
        """Whether it names a repository only."""
        return self.tag is None and self.digest is None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def _bad(why: str, hint: str = "") -> ImageError:
    return ImageError(why, hint=hint, code="image-name")


def is_domain(word: str) -> bool:
    """Tell whether a name's first component is a registry (distribution/reference, splitDockerDomain)."""
    return "." in word or ":" in word or word == "localhost" or word.lower() != word


def is_registry(word: str) -> bool:
    """Tell whether `word` is HOST[:PORT]."""
    return bool(_DOMAIN.match(word))


def _split(text: str) -> tuple[str, str | None, Digest | None]:
    """Split name, tag and digest."""
    name, at, digits = text.partition("@")
    digest = Digest.parse(digits) if at else None
    head, colon, tail = name.rpartition(":")
    if not colon or "/" in tail:
        return name, None, digest
    if not _TAG.match(tail):
        raise _bad(f"tag {tail[:140]!r} is empty, longer than {MAX_TAG_CHARS} or has forbidden characters")
    return head, tail, digest


def parse(text: str) -> DockerName:
    """Parse NAME[:TAG][@DIGEST]; a name without a registry means docker.io; raises ImageError."""
    name, tag, digest = _split(text)
    domain, slash, path = name.partition("/")
    if not slash or not is_domain(domain):
        domain, path = _HUB, name
    if domain in _HUB_ALIASES:
        domain = _HUB
        path = path if "/" in path else f"{_HUB_LIBRARY}/{path}"
    if not is_registry(domain):
        raise _bad(f"{domain[:140]!r} is not HOST[:PORT]")
    if not _PATH.match(path):
        raise _bad(f"{path[:140]!r} is not a name of lower-case letters, digits and separators")
    if len(domain) + 1 + len(path) > MAX_NAME_CHARS:
        raise _bad(f"the name is longer than {MAX_NAME_CHARS} characters")
    return DockerName(domain=domain, path=path, tag=tag, digest=digest)


def parents(name: str) -> list[str]:
    """Return `name` and its parents along slashes, up to the first component."""
    words = name.split("/")
    return ["/".join(words[:count]) for count in range(len(words), 0, -1)]


def wildcards(domain: str) -> list[str]:
    """Return *.example.com, *.com for a registry such as r.example.com:5000; the port does not count."""
    if domain.startswith("["):
        return []
    labels = domain.partition(":")[0].split(".")
    return ["*." + ".".join(labels[start:]) for start in range(1, len(labels))]
