"""Find stored images by what a user writes; pure."""

from collections.abc import Sequence

from secrun.errors import StateError, UsageError
from secrun.image.entries import Entry
from secrun.image.platform import Platform, runs
from secrun.image.reference import ImageReference, RegistryReference, StoredReference, Transport

# Builders name what never was in a registry localhost/NAME. Only such a name may mean an archive's image:
# an archive can call its image anything, and a registry's name must mean that registry.
_LOCAL = "localhost"


def _fits(entry: Entry, platform: Platform | None) -> bool:
    offered = entry.descriptor.platform
    return platform is None or offered is None or runs(platform, offered)


def newest(entries: Sequence[Entry]) -> Entry:
    """Return the entry that was imported last; there must be one."""
    return max(entries, key=lambda entry: entry.imported_at)


def _newest(entries: Sequence[Entry]) -> Entry | None:
    return newest(entries) if entries else None


def _by_digest(entries: Sequence[Entry], reference: RegistryReference) -> list[Entry]:
    """Find an image that was fetched by tag when it is asked for by digest, in the same repository only."""
    prefix = f"docker://{reference.repository}"
    return [
        entry
        for entry in entries
        if entry.reference.startswith((f"{prefix}:", f"{prefix}@"))
        and reference.digest in (entry.digest, entry.source_digest)
    ]


def find(entries: Sequence[Entry], reference: ImageReference, platform: Platform | None) -> Entry | None:
    """Return the stored image that answers to a reference with a transport, None if there is none."""
    # A tag is a name of its own: the reference that its image came by may mean another one now.
    fitting = [entry for entry in entries if _fits(entry, platform) and not entry.tag]
    exact = _newest([entry for entry in fitting if entry.reference == str(reference)])
    if exact is not None or not isinstance(reference, RegistryReference):
        return exact
    if reference.digest is not None and (same := _newest(_by_digest(fitting, reference))) is not None:
        return same
    if reference.explicit or reference.domain != _LOCAL:
        return None
    return _newest([entry for entry in fitting if entry.given == reference.name])


def tagged(entries: Sequence[Entry], reference: ImageReference, platform: Platform | None) -> Entry | None:
    """Return the image that was given a name here, `localhost/NAME:TAG`; docker:// never means one."""
    if not isinstance(reference, RegistryReference) or reference.explicit or reference.digest:
        return None
    return _newest([entry for entry in entries if entry.tag == reference.name and _fits(entry, platform)])


def _unique(found: Sequence[Entry], text: str) -> list[Entry]:
    digests = sorted({entry.digest.hex for entry in found})
    # One reference for several platforms is one name, whatever hides behind it.
    if len(digests) > 1 and len({entry.reference for entry in found}) > 1:
        raise UsageError(
            f"{text!r} means {len(digests)} stored images: {', '.join(item[:12] for item in digests[:10])}",
            hint="write the whole reference or more digits of the ID",
            code="usage-ambiguous",
        )
    return list(found)


def _called(entry: Entry) -> str:
    """Return the name of an image from a registry; the path of a file is no name."""
    transport, _, name = entry.reference.partition("://")
    return name if transport == Transport.DOCKER else ""


def matching(
    entries: Sequence[Entry], reference: StoredReference, platform: Platform | None = None
) -> list[Entry]:
    """Return all entries of the one image that a bare word means; raises UsageError if it means several.

    A tag comes first, which no archive can claim; then a whole name, the end of one (app:1 for
    registry.example/team/app:1, as in podman), and an ID prefix. Names stand for the images of `platform`,
    None for any.
    """
    if digits := reference.image_id:
        found = [entry for entry in entries if entry.source_digest.algorithm == "sha512"]
        return _unique(
            [entry for entry in found if entry.source_digest.hex.startswith(digits)], reference.text
        )
    names = (reference.text, f"{reference.text}:latest")
    ends = tuple(f"/{name}" for name in names)
    fitting = [entry for entry in entries if _fits(entry, platform)]
    own = {f"{_LOCAL}/{name}" for name in names}
    if found := [entry for entry in fitting if entry.tag in own]:
        return found
    named = [entry for entry in fitting if not entry.tag]
    if found := [entry for entry in named if entry.name in names or entry.given in names]:
        return _unique(found, reference.text)
    if found := [entry for entry in named if _called(entry).endswith(ends) or entry.given.endswith(ends)]:
        return _unique(found, reference.text)
    return _unique([entry for entry in entries if reference.is_id_of(entry.digest)], reference.text)


def select(entries: Sequence[Entry], reference: StoredReference, platform: Platform | None) -> list[Entry]:
    """Return the entries of the image that a bare word means; raises UsageError if there is none."""
    if found := matching(entries, reference, platform):
        return found
    word = reference.text[:200]
    raise UsageError(
        f"{word!r} is neither a stored image's name or ID nor does it name a registry",
        hint=f"for Docker Hub write docker.io/{'' if '/' in word else 'library/'}{word} in full",
        code="usage-short-name",
    )


def lookup(entries: Sequence[Entry], reference: ImageReference) -> list[Entry]:
    """Return the entries that `image inspect` and `image rm` mean; raises UsageError or StateError."""
    if isinstance(reference, StoredReference):
        found = matching(entries, reference)
    else:
        found = [entry for entry in entries if entry.reference == str(reference) and not entry.tag]
        if not found and (own := tagged(entries, reference, None)) is not None:
            found = [own]
        if not found and (one := find(entries, reference, None)) is not None:
            found = [one]
    if not found:
        raise not_stored(reference)
    return found


def not_stored(reference: ImageReference) -> StateError:
    """Return the error for an image that would have to be fetched first."""
    hint = "see secrun image list" if isinstance(reference, StoredReference) else f"secrun fetch {reference}"
    return StateError(f"image {reference} is not stored", hint=hint, code="state-image-missing")
