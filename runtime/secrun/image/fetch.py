"""From an image reference to an admitted image in the store: the one entry."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.checkpoint import reached
from secrun.digest import Digest
from secrun.errors import DeniedError, ImageError, RegistryError
from secrun.files import file_stamp
from secrun.image import platform as platforms
from secrun.image import reference as references
from secrun.image import resolve
from secrun.image.admit import Admitter
from secrun.image.config import APPC_LABEL, ImageConfig
from secrun.image.entries import Entry, ref_name
from secrun.image.manifest import Descriptor, LayerType, Manifest
from secrun.image.options import FetchOptions, PullPolicy
from secrun.image.reference import (
    FileReference,
    Origin,
    RegistryReference,
    StoredReference,
    Transport,
)
from secrun.image.rootfs.model import Compression, LayerSource
from secrun.image.store import ImageStore
from secrun.jsonio import canonical
from secrun.paths import Layout
from secrun.record import record
from secrun.trust.admission import Admission
from secrun.trust.plan import Plan

if TYPE_CHECKING:
    from secrun.image.source import Document, ImageSource


__all__ = ["FetchOptions", "PullPolicy", "StoredImage", "ensure_image"]


@record
class StoredImage:
    """An image in the store that may be used now; layers are ordered lowest first."""

    reference: str
    manifest_digest: Digest
    manifest_size: int
    config_digest: Digest
    config: ImageConfig
    layers: tuple[LayerSource, ...]
    names: tuple[str, ...]
    imported_at: str
    admission: Admission

    @property
    def is_appc(self) -> bool:
        """Whether it was an app container image: its configuration says more than OCI has words for."""
        return any(name == APPC_LABEL for name, _ in self.config.labels)


_COMPRESSIONS = {
    LayerType.OCI_TAR: Compression.NONE,
    LayerType.OCI_GZIP: Compression.GZIP,
    LayerType.OCI_ZSTD: Compression.ZSTD,
    LayerType.DOCKER_TAR: Compression.NONE,
    LayerType.DOCKER_GZIP: Compression.GZIP,
    LayerType.DOCKER_ZSTD: Compression.ZSTD,
}


def load(
    store: ImageStore, entry: Entry, admission: Admission, *, reference: str, names: Sequence[str]
) -> StoredImage:
    """Read a stored image; raises StateError if a part of it is missing."""
    # Its bytes are digested, and not parsed.
    store.read(entry.descriptor, what=f"stored image {entry.reference}")
    known = store.needed_facts(entry)
    manifest, config = known.manifest, known.config
    return StoredImage(
        reference=reference,
        manifest_digest=entry.digest,
        manifest_size=entry.descriptor.size,
        config_digest=manifest.config.digest,
        config=config,
        layers=_layers(store, manifest, config),
        names=tuple(names),
        imported_at=entry.imported_at,
        admission=admission,
    )


def _layers(store: ImageStore, manifest: Manifest, config: ImageConfig) -> tuple[LayerSource, ...]:
    return tuple(
        LayerSource(
            path=store.blob_path(layer.digest),
            digest=layer.digest,
            size=layer.size,
            compression=_COMPRESSIONS[manifest.layer_type(number)],
            diff_id=config.diff_ids[number],
        )
        for number, layer in enumerate(manifest.layers)
    )


def _complete(store: ImageStore, entry: Entry) -> bool:
    """Tell whether every blob of an entry is there; a damaged store heals by fetching again."""
    if not store.has(entry.descriptor):
        return False
    known = store.facts(entry.digest)
    return known is not None and all(map(store.has, (known.manifest.config, *known.manifest.layers)))


def _names(entries: Sequence[Entry], digest: Digest) -> list[str]:
    return sorted({entry.reference for entry in entries if entry.digest == digest})


class Fetching:
    """One call of ensure_image."""

    def __init__(self, layout: Layout, options: FetchOptions) -> None:
        self.store = ImageStore(layout)
        self.options = options
        self.platform = options.platform or platforms.host_platform()
        self.admitter = Admitter(self.store, options)

    def stored(self, word: StoredReference) -> StoredImage:
        """Use an image by a bare word: it is admitted if it is under one of the references it came by."""
        entries = self.store.entries()
        found = resolve.matching(entries, word, self.platform)
        if not found and (whole := _expanded(word)) is not None:
            return self.ensure(whole)
        found = found or resolve.select(entries, word, self.platform)
        asks = self.options.pull in (PullPolicy.ALWAYS, PullPolicy.NEWER)
        if asks and not found[0].tag and not word.is_id_of(found[0].digest):
            origin = references.parse(resolve.newest(found).reference)
            if not isinstance(origin, StoredReference):
                return self.ensure(origin)
        refusal: DeniedError | None = None
        for entry in sorted(found, key=lambda entry: entry.imported_at, reverse=True):
            origin = references.parse(entry.reference)
            if isinstance(origin, StoredReference):
                continue
            try:
                admission = self.admitter.stored(entry, origin)
            except DeniedError as error:
                refusal = refusal or error
                continue
            return self.use(entry, admission, entry.reference, entries)
        raise refusal or resolve.not_stored(word)

    def use(
        self, entry: Entry, admission: Admission, reference: str, entries: Sequence[Entry]
    ) -> StoredImage:
        names = _names(entries, entry.digest)
        image = load(self.store, entry, admission, reference=reference, names=names)
        self.check_platform(image.config, reference)
        self.store.touch(entry.digest)
        return image

    def cached(self, reference: Origin, entries: Sequence[Entry]) -> Entry | None:
        """Return the stored entry that answers to `reference` and is whole and up to date with its file."""
        entry = resolve.find(entries, reference, self.platform)
        if entry is None or not _complete(self.store, entry):
            return None
        if self.options.pull is PullPolicy.NEVER or not isinstance(reference, FileReference):
            return entry
        return entry if stamp_of(reference) in ("", entry.stamp) else None

    def ensure(self, reference: Origin) -> StoredImage:
        """Apply the pull policy."""
        entries = self.store.entries()
        if (own := resolve.tagged(entries, reference, self.platform)) is not None:
            # Nobody but this host knows that name, and its image is judged by where it came from.
            return self.use_admitted(own, reference, entries)
        entry = self.cached(reference, entries)
        pull = self.options.pull
        if entry is not None and pull in (PullPolicy.MISSING, PullPolicy.NEVER):
            return self.use_admitted(entry, reference, entries)
        if pull is PullPolicy.NEVER:
            raise resolve.not_stored(reference)
        known = entry if pull is PullPolicy.NEWER else None
        try:
            if references.is_aci(reference):
                return self.fetch_aci(reference, entry)
            return self.fetch(reference, self.admitter.before(reference), known)
        except RegistryError as error:
            if entry is None or pull is not PullPolicy.NEWER:
                raise
            self.options.progress.note(f"{error.message}; using the stored {entry.reference}")
            return self.use_admitted(entry, reference, entries)

    def use_admitted(self, entry: Entry, reference: Origin, entries: Sequence[Entry]) -> StoredImage:
        """Judge a stored image under the reference that was asked for, else under the one it came by."""
        origin = references.parse(entry.reference)
        if entry.tag and not isinstance(origin, StoredReference):
            return self.use(entry, self.admitter.stored(entry, origin), entry.reference, entries)
        if isinstance(reference, RegistryReference) and isinstance(origin, FileReference):
            return self.use(entry, self.admitter.stored(entry, origin), entry.reference, entries)
        return self.use(entry, self.admitter.stored(entry, reference), str(reference), entries)

    def fetch(self, reference: Origin, plan: Plan | None, known: Entry | None) -> StoredImage:
        """Bring the image in; with `known`, only if the source now has another one."""
        from secrun.image.sources import open_source

        with self.store.importing() as scratch:
            stamp = stamp_of(reference) if isinstance(reference, FileReference) else ""
            with open_source(reference, self.options) as source:
                root = source.root()
                reached("fetch-resolved")
                same = known is not None and known.source_digest == root.digest
                # Of an image that must be signed the signatures are asked for again: there may be new ones.
                if same and known is not None and not (plan and plan.asks_for_signatures):
                    return self.use_admitted(known, reference, self.store.entries())
                entry, admission = self.bring(source, root, reference, plan, scratch=scratch, stamp=stamp)
            return self.use(entry, admission, str(reference), self.store.entries())

    def bring(
        self,
        source: ImageSource,
        root: Document,
        reference: Origin,
        plan: Plan | None,
        *,
        scratch: Path,
        stamp: str,
        origin: Digest | None = None,
    ) -> tuple[Entry, Admission]:
        """Decide on the image, download what is missing and list it.

        `origin` is the digest of what it was converted from, None if it was not.
        """
        from secrun.image import facts
        from secrun.image.download import download
        from secrun.image.finding import walked

        what = f"{reference}"
        # What the chain names is a claim, until somebody with no network has read the same bytes.
        chain, manifest = walked(source, root, self.platform, what=what)
        document = chain[-1]
        # From here on everything goes by digest: a tag that moves meanwhile changes nothing.
        origin = origin or root.digest
        verdict = self.admitter.fetched(plan, source, document.digest, origin)
        reached("fetch-admitted")
        progress = self.options.progress
        download(self.store, source, [manifest.config], what=what, scratch=scratch, progress=progress)
        data = self.store.read(manifest.config, what=what)
        known = facts.read(chain, data, self.platform, what=what)
        manifest, config = known.manifest, known.config
        self.check_platform(config, what)
        download(self.store, source, manifest.layers, what=what, scratch=scratch, progress=progress)
        self.store.put(document.data, document.digest, scratch)
        self.store.remember(document.digest, known)
        if verdict.signatures:
            self.store.put(verdict.document, Digest.parse(verdict.signatures), scratch)
        reached("fetch-manifest-stored")
        descriptor = Descriptor(
            media_type=str(manifest.media_type),
            digest=document.digest,
            size=len(document.data),
            platform=config.platform,
        )
        entry = Entry(
            descriptor=descriptor,
            reference=str(reference),
            name=ref_name(reference.name.lstrip("/"), config.platform, platforms.host_platform()),
            source_digest=origin,
            given=source.given,
            stamp=stamp,
            imported_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            admission=canonical(verdict.admission.to_json()).decode(),
            signatures=verdict.signatures,
        )
        self.store.add(entry)
        reached("fetch-listed")
        return entry, verdict.admission

    def fetch_aci(self, reference: Origin, known: Entry | None) -> StoredImage:
        """Bring in an app container image; with `known`, only if its place now has another one."""
        from secrun.image.aci.fetching import AciFetch

        return AciFetch(self).fetch(reference, known)

    def check_platform(self, config: ImageConfig, what: str) -> None:
        """Raise ImageError for an image that this host (or the platform asked for) cannot be."""
        if platforms.runs(self.platform, config.platform):
            return
        raise ImageError(
            f"{what} is for {str(config.platform) or 'no platform at all'}, expected {self.platform}",
            hint="choose another with --platform",
            code="image-platform",
        )


def _expanded(word: StoredReference) -> RegistryReference | None:
    """Return what registries.conf makes of a name without a registry, None if nothing."""
    from secrun.image import registriesconf

    settings = registriesconf.load(os.environ)
    if word.id_prefix and word.text not in settings.aliases:
        return None  # a mistyped ID must not be asked for in a registry
    name = settings.expand(word.text)
    whole = references.parse(f"docker://{name}") if name else None
    return whole if isinstance(whole, RegistryReference) else None


_INDEX_FILES = {Transport.OCI: "index.json", Transport.DIR: "manifest.json"}


def stamp_of(reference: FileReference) -> str:
    """Return what changes when the file or layout is written again; empty if it is gone."""
    path = reference.path
    if reference.transport in _INDEX_FILES:
        path = os.path.join(path, _INDEX_FILES[reference.transport])
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return file_stamp(status)


def ensure_image(layout: Layout, reference: str, options: FetchOptions) -> StoredImage:
    """Return the image that `reference` names, fetched if the pull policy wants it, and admitted.

    Raises UsageError, DeniedError, RegistryError, ImageError, StateError or HostError.
    """
    parsed = references.localize(references.parse(reference))
    work = Fetching(layout, options)
    if isinstance(parsed, StoredReference):
        return work.stored(parsed)
    return work.ensure(parsed)
