"""Fetch an app container image and what it depends on, each admitted by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from secrun.errors import DeniedError, RegistryError, StateError
from secrun.image import reference as references
from secrun.image import resolve
from secrun.image.aci import embedded
from secrun.image.aci.bring import Chain, check_dependency, check_identity, make, matches, wanted
from secrun.image.aci.staging import AciReference, Staged, staged
from secrun.image.aci.unpack import Unpacked, unpack
from secrun.image.aci.webfetch import Asked
from secrun.image.options import PullPolicy
from secrun.image.reference import AppcReference, FileReference, Origin, StoredReference, UrlReference
from secrun.trust.signatures import SignatureKind, SignatureSet

if TYPE_CHECKING:
    from secrun.image.aci.manifest import AciManifest, Dependency
    from secrun.image.entries import Entry
    from secrun.image.fetch import Fetching, StoredImage
    from secrun.image.rootfs.model import LayerSource
    from secrun.trust.plan import Plan


def _checked(reference: Origin) -> AciReference:
    if not isinstance(reference, FileReference | UrlReference | AppcReference):
        raise TypeError(reference)
    return reference


def manifest_of(work: Fetching, entry: Entry) -> AciManifest | None:
    """Return the manifest that a stored image was converted from, None if from none."""
    return embedded.manifest_of(work.store.needed_facts(entry).config, f"stored image {entry.reference}")


class AciFetch:
    """One image; `chain` are the images that need it."""

    def __init__(self, work: Fetching, chain: Chain | None = None) -> None:
        self._work = work
        self._chain = chain or Chain()

    def fetch(self, reference: Origin, known: Entry | None = None, size: int | None = None) -> StoredImage:
        """Stage, judge, convert and store; with `known`, only if its place now has another one.

        `size` in bytes is what somebody else said of the file.
        """
        asked = _checked(reference)
        work = self._work
        if isinstance(asked, AppcReference):
            # The name is known, so that what nothing could admit is not even looked for.
            work.admitter.before(asked)
        stamp = known.stamp if known is not None and not isinstance(asked, FileReference) else ""
        held = Asked(size=size, stamp=stamp, platform=work.platform)
        with work.store.importing() as scratch:
            with staged(asked, work.options, scratch, held) as file:
                if file is None:
                    return self._unchanged(asked, known)
                unpacked = unpack(file.fd, scratch, what=str(asked))
                image = unpacked.manifest
                if isinstance(asked, AppcReference):
                    check_identity(asked, image)
                plan = work.admitter.plan(asked, image.full_name)
                signatures = self._weighed(plan, file, unpacked)
            # Refused here is refused before anything is looked for that the image needs.
            work.admitter.signed(plan, unpacked.image_id, signatures)
            below = self._chain.below(image.full_name, str(asked))
            made = make(
                unpacked,
                signatures,
                lambda item: AciFetch(work, below).dependency(item, str(asked)),
                platform=work.platform,
                scratch=scratch,
                what=str(asked),
            )
            if made.note:
                work.options.progress.note(f"{asked}: {made.note}")
            entry, admission = work.bring(
                made.source,
                made.source.root(),
                asked,
                plan,
                scratch=scratch,
                stamp=file.stamp,
                origin=unpacked.image_id,
            )
            return work.use(entry, admission, str(asked), work.store.entries())

    def _unchanged(self, reference: AciReference, known: Entry | None) -> StoredImage:
        """Use what is stored; if that is not admitted there may be a signature now that counts."""
        if known is None:
            raise TypeError(reference)
        try:
            return self._work.use_admitted(known, reference, self._work.store.entries())
        except DeniedError:
            return self.fetch(reference)

    def _weighed(self, plan: Plan | None, file: Staged, unpacked: Unpacked) -> SignatureSet:
        """Find out who signed a file."""
        if plan is None or not plan.asks_for_signatures or not file.signature:
            return SignatureSet(searched=(SignatureKind.APPC,))
        from secrun.image.judging import weighed

        return weighed(file.fd, file.signature, unpacked.image_id, plan.key_files(), time.time())

    # What an image depends on.

    def dependency(self, item: Dependency, what: str) -> Sequence[LayerSource]:
        """Return the layers of an image that is needed: from the store, else by discovery."""
        work = self._work
        for entry, origin in self._stored(item):
            return work.use_admitted(entry, origin, work.store.entries()).layers
        if work.options.pull is PullPolicy.NEVER:
            raise self._missing(item, what)
        asked = wanted(item, what)
        try:
            image = self.fetch(asked, size=item.size)
        except RegistryError as error:
            raise RegistryError(
                f"{what} depends on {asked}, which is not stored: {error.message}",
                hint="fetch it first: secrun fetch FILE.aci",
                code=error.code,
            ) from error
        stored = resolve.find(work.store.entries(), asked, work.platform)
        found = None if stored is None else manifest_of(work, stored)
        if stored is None or found is None:
            raise self._missing(item, what)
        check_dependency(item, found, stored.source_digest, what)
        return image.layers

    def _stored(self, item: Dependency) -> Iterator[tuple[Entry, Origin]]:
        """Yield the stored images that fit, the newest first."""
        entries = self._work.store.entries()
        for entry in sorted(entries, key=lambda entry: entry.imported_at, reverse=True):
            origin = references.parse(entry.reference)
            if entry.given.partition(":")[0] != item.name or not references.is_aci(origin):
                continue
            image = manifest_of(self._work, entry)
            fits = image is not None and matches(item, image, entry.source_digest)
            if fits and not isinstance(origin, StoredReference):
                yield entry, origin

    @staticmethod
    def _missing(item: Dependency, what: str) -> StateError:
        labels = "".join(f",{name}={value}" for name, value in item.labels)
        return StateError(
            f"{what} depends on {item.name}{labels}{f' {item.image_id}' if item.image_id else ''}, "
            "which is not stored",
            hint="fetch it first: secrun fetch FILE.aci",
            code="state-image-missing",
        )
