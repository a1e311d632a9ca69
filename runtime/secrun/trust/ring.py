"""The key ring of a root: keys by prefix of image names, as rkt kept them.

prefix.d/REGISTRY/NAME/FINGERPRINT    signs images whose name is that or begins with that and a slash
root.d/FINGERPRINT                    signs any image
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from secrun import dockername
from secrun.errors import DeniedError, ImageError, UsageError
from secrun.record import record
from secrun.trust import limits
from secrun.trust.requirement import Material

PREFIXES = "prefix.d"
ROOT = "root.d"
# appc spec, types.md, AC Identifier: of app container images; wider than a repository's name.
_APPC_NAME = re.compile(r"[a-z0-9]+(?:[-._~/][a-z0-9]+)*\Z")
_FINGERPRINT = re.compile(r"[0-9a-f]{40,64}\Z")


@record
class RingKey:
    """A trusted key: where it counts (`prefix`, empty for any image), its fingerprint and its bytes."""

    prefix: str
    fingerprint: str
    path: Path
    data: bytes

    @property
    def material(self) -> Material:
        """The key as a policy's material."""
        return Material(path=str(self.path), data=self.data)

    @property
    def is_openpgp(self) -> bool:
        """Whether it is an OpenPGP certificate, otherwise a public key in PEM."""
        return is_openpgp(self.data)


def is_openpgp(data: bytes) -> bool:
    """Tell an OpenPGP certificate, armored or not, from a public key in PEM."""
    return data.startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----") or data[:1] >= b"\x80"


def check_prefix(text: str) -> str:
    """Return a prefix in full: HOST[:PORT], a namespace or a repository; raises UsageError."""
    hint = "write REGISTRY[/NAME...], in full and without tag: docker.io/library/NAME for Docker Hub"
    if "://" in text:
        raise UsageError(f"prefix {text[:200]!r} has a scheme", hint=hint, code="usage-prefix")
    first = text.partition("/")[0]
    try:
        name = None if dockername.is_registry(text) else dockername.parse(text)
    except ImageError as error:
        if dockername.is_domain(first) and _APPC_NAME.match(text) and len(text) <= dockername.MAX_NAME_CHARS:
            return text
        raise UsageError(
            f"prefix {text[:200]!r}: {error.message}", hint=hint, code="usage-prefix"
        ) from error
    if not dockername.is_domain(first) or (name is not None and (not name.bare or str(name) != text)):
        raise UsageError(
            f"prefix {text[:200]!r} is not an image's name in full", hint=hint, code="usage-prefix"
        )
    return text


def _read(path: Path) -> bytes:
    """Read one key; a ring that cannot be read admits nothing."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limits.MAX_KEY_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error.strerror or "unreadable") from error
    if len(data) > limits.MAX_KEY_BYTES:
        raise unreadable(path, f"is larger than {limits.MAX_KEY_BYTES} bytes")
    return data


def unreadable(path: Path, why: str) -> DeniedError:
    """Return the error for a key or a ring that cannot be read."""
    return DeniedError(
        f"trusted key {path}: {why}",
        hint="until it can be read nothing is admitted; correct it, or remove it with secrun trust rm",
        code="denied-policy-key",
    )


def _keys_in(folder: Path, prefix: str) -> list[RingKey]:
    """Return the keys of one folder, not of those below it."""
    try:
        names = sorted(name for name in os.listdir(folder) if _FINGERPRINT.match(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error.strerror or "unreadable") from error
    paths = [folder / name for name in names]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    if len(files) > limits.MAX_RING_KEYS:
        raise unreadable(folder, f"holds more than {limits.MAX_RING_KEYS} keys")
    return [RingKey(prefix=prefix, fingerprint=path.name, path=path, data=_read(path)) for path in files]


class KeyRing:
    """The keys below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def for_name(self, name: str) -> tuple[str, list[RingKey]]:
        """Return the longest prefix of an image's name that has keys, and all keys that count for it.

        The prefix is empty if only keys for any image are there, or none at all.
        """
        longest, found = "", []
        for prefix in dockername.parents(name) if name else ():
            keys = _keys_in(self.folder / PREFIXES / prefix, prefix)
            longest = longest or (prefix if keys else "")
            found += keys
        return longest, [*found, *_keys_in(self.folder / ROOT, "")]

    def all(self) -> Iterator[RingKey]:
        """Yield every key, by prefix."""
        yield from _keys_in(self.folder / ROOT, "")
        top = self.folder / PREFIXES
        for base, folders, _ in os.walk(top):
            folders.sort()
            prefix = os.path.relpath(base, top)
            yield from _keys_in(Path(base), "" if prefix == "." else prefix)

    def path_of(self, prefix: str, fingerprint: str) -> Path:
        """Return where a key is or would be; `prefix` must be checked."""
        folder = self.folder / PREFIXES / prefix if prefix else self.folder / ROOT
        return folder / fingerprint
