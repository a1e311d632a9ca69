"""Where OpenPGP signatures lie beside registries: containers-registries.d(5)."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from secrun import dockername
from secrun.digest import Digest
from secrun.errors import ImageError, UsageError
from secrun.image import limits
from secrun.image.reference import RegistryReference
from secrun.image.wire import ConnectionLostError, HttpClient
from secrun.record import record
from secrun.tables import Taker
from secrun.trust import limits as trust_limits
from secrun.trust import publickey

_SYSTEM = Path("/etc/containers/registries.d")
# What containers/image reads where nothing is configured.
_DEFAULT = "file:///var/lib/containers/sigstore"
_MAX_FILE_BYTES = 1024 * 1024
_MAX_FILES = 1000
_HTTP_OK, _HTTP_MISSING = 200, 404


@record
class Section:
    """What is set for one scope; `attachments` is None where nothing is said."""

    lookaside: str
    attachments: bool | None = None


@record
class Lookaside:
    """All sections by scope; scope "" is `default-docker`."""

    sections: Mapping[str, Section]

    def section(self, reference: RegistryReference) -> Section:
        """Return what counts for an image: the most specific section, and nothing of the others."""
        scopes = [reference.name, *dockername.parents(reference.repository), ""]
        found = next((self.sections[scope] for scope in scopes if scope in self.sections), None)
        return found or Section(lookaside=_DEFAULT)


def _bad(why: str) -> UsageError:
    return UsageError(f"registries.d: {why}", hint="see containers-registries.d(5)", code="usage-registries")


def _section(table: object, where: str) -> Section:
    if not isinstance(table, Mapping):
        raise _bad(f"{where}: must be a mapping")
    taker = Taker(table, where, _bad)
    # The names before containers/image 5.22.
    old, new = taker.text("sigstore", ""), taker.text("lookaside", "")
    taker.text("sigstore-staging", "")
    taker.text("lookaside-staging", "")
    attachments = taker.flag("use-sigstore-attachments") if taker.has("use-sigstore-attachments") else None
    taker.end()
    url = new or old
    if url and urlsplit(url).scheme not in ("file", "http", "https"):
        raise _bad(f"{where}: {url[:100]!r} is no file:, http: or https: URL")
    return Section(lookaside=url, attachments=attachments)


def parse(data: bytes, source: str) -> dict[str, Section]:
    """Parse one file; raises UsageError for what is not understood."""
    try:
        import yaml
    except ImportError as error:
        raise publickey.missing("pyyaml") from error
    try:
        document: object = yaml.safe_load(data.decode("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad(f"{source} is not YAML") from error
    if document is None:
        return {}
    if not isinstance(document, Mapping) or not document.keys() <= {"default-docker", "docker"}:
        raise _bad(f"{source} must hold default-docker or docker, and nothing else")
    found: dict[str, Section] = {}
    if "default-docker" in document:
        found[""] = _section(document["default-docker"], f"{source}: default-docker")
    sections: object = document.get("docker") or {}
    if not isinstance(sections, Mapping):
        raise _bad(f"{source}: docker must be a mapping of scopes")
    for scope, table in sections.items():
        found[str(scope)] = _section(table, f"{source}: docker.{str(scope)[:100]}")
    return found


def load(environ: Mapping[str, str]) -> Lookaside:
    """Read the user's folder, or the system's; raises UsageError, also for a scope that is set twice."""
    home = environ.get("HOME", "")
    own = Path(home, ".config/containers/registries.d")
    folder = own if home and own.is_dir() else _SYSTEM
    names = sorted(name for name in os.listdir(folder) if name.endswith(".yaml")) if folder.is_dir() else []
    if len(names) > _MAX_FILES:
        raise _bad(f"{folder} holds {len(names)} files")
    found: dict[str, Section] = {}
    for name in names:
        path = folder / name
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise _bad(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
        more = parse(data, str(path))
        if twice := found.keys() & more.keys():
            raise _bad(f"{path}: {min(twice) or 'default-docker'} is set in another file too")
        found |= more
    return Lookaside(sections=found)


def signature_url(base: str, reference: RegistryReference, digest: Digest, number: int) -> str:
    """Return where a signature is: BASE/PATH@ALGORITHM=HEX/signature-N (containers-signature(5))."""
    return f"{base.rstrip('/')}/{reference.path}@{digest.algorithm}={digest.hex}/signature-{number}"


def messages(
    base: str, reference: RegistryReference, digest: Digest, http: HttpClient, *, folder: int | None = None
) -> Iterator[bytes]:
    """Yield the signatures of a manifest, in order, until there is none; raises ImageError.

    `folder` is the open folder that a `base` of files names: the path to it may be closed to this process.
    """
    if not base:
        return
    for number in range(1, limits.MAX_MESSAGES + 1):
        url = signature_url(base, reference, digest, number)
        parts = urlsplit(url)
        if parts.scheme != "file":
            data = _of_server(url, http)
        elif folder is None:
            data = _of_file(Path(url2pathname(parts.path)), None)
        else:
            below = signature_url("", reference, digest, number).lstrip("/")
            data = _of_file(Path(url2pathname(below)), folder)
        if data is None:
            return
        yield data


def _too_large(where: str) -> ImageError:
    return ImageError(f"{where} is larger than {trust_limits.MAX_MESSAGE_BYTES} bytes", code="image-limit")


def _of_file(path: Path, folder: int | None) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(fd, "rb") as stream:
            data = stream.read(trust_limits.MAX_MESSAGE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ImageError(f"signature {path}: {error.strerror}", code="image-signature") from error
    if len(data) > trust_limits.MAX_MESSAGE_BYTES:
        raise _too_large(str(path))
    return data


def _of_server(url: str, http: HttpClient) -> bytes | None:
    where = f"lookaside {urlsplit(url).netloc}"
    try:
        answer = http.request("GET", url, {})
        try:
            if answer.status == _HTTP_MISSING:
                return None
            if answer.status != _HTTP_OK:
                raise ImageError(f"{where} answered {answer.status}", code="image-signature")
            data = b""
            while chunk := answer.read(limits.CHUNK_BYTES):
                data += chunk
                if len(data) > trust_limits.MAX_MESSAGE_BYTES:
                    raise _too_large(where)
            return data
        finally:
            answer.close()
    except ConnectionLostError as error:
        raise ImageError(f"{where}: {error.reason}", code="image-signature") from error
