"""Further names for stored images, which mean something on this host alone."""

import time

from secrun.errors import UsageError
from secrun.image import platform as platforms
from secrun.image import reference as references
from secrun.image import resolve
from secrun.image.entries import Entry, ref_name
from secrun.image.reference import ImageReference, RegistryReference, StoredReference
from secrun.image.store import ImageStore
from secrun.record import replace

_LOCAL = "localhost"


def _bad(word: str, why: str) -> UsageError:
    return UsageError(
        f"{word[:200]!r} cannot be a tag: {why}",
        hint="write NAME[:TAG]; a name in a registry is given by image push, and signed for",
        code="usage-tag",
    )


def parse(word: str) -> str:
    """Return a tag in full, localhost/NAME:TAG; raises UsageError for what could mean anything else."""
    found = references.parse(word)
    if isinstance(found, StoredReference):
        bare = found.text.removesuffix(":latest")
        if any(item.id_prefix or item.image_id for item in (found, StoredReference(text=bare))):
            raise _bad(word, "it looks like the ID of an image")
        found = references.parse(f"{_LOCAL}/{word}")
    if not isinstance(found, RegistryReference) or found.explicit or found.domain != _LOCAL:
        raise _bad(word, "such a name always means what is there")
    if found.digest is not None:
        raise _bad(word, "a digest is no name")
    return found.name


def _chosen(entries: tuple[Entry, ...], reference: ImageReference) -> Entry:
    """Return the entry that a word means, for this host if there are several platforms."""
    found = resolve.lookup(entries, reference)
    host = platforms.host_platform()
    own = [
        item
        for item in found
        if item.descriptor.platform is None or platforms.runs(host, item.descriptor.platform)
    ]
    return resolve.newest(own or found)


def add(store: ImageStore, word: str, names: tuple[str, ...]) -> Entry:
    """Give a stored image further names, taking them from those that have them; return its entry.

    Raises UsageError, or StateError if there is no such image.
    """
    tags = [parse(name) for name in names]
    entry = _chosen(store.entries(), references.localize(references.parse(word)))
    platform = entry.descriptor.platform or platforms.host_platform()
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for tag in tags:
        name = ref_name(tag.removeprefix(f"{_LOCAL}/"), platform, platforms.host_platform())
        store.alias(entry, replace(entry, tag=tag, name=name, imported_at=now))
    return entry


def remove(store: ImageStore, word: str) -> tuple[Entry, ...]:
    """Take a tag away; return its entries. Raises UsageError or StateError."""
    tag = parse(word)
    found = tuple(entry for entry in store.entries() if entry.tag == tag)
    if not found:
        raise resolve.not_stored(references.parse(tag))
    store.drop_alias(found)
    return found
