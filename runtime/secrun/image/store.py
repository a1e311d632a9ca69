"""The image store: an OCI image layout 1.0 in which every file is whole or absent."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from secrun import locks
from secrun.checkpoint import reached
from secrun.digest import Digest
from secrun.errors import HostError, ImageError, StateError
from secrun.files import fsync_dir, write_atomic
from secrun.image import apart, limits
from secrun.image import entries as entries_module
from secrun.image import facts as facts_module
from secrun.image.entries import Entry
from secrun.image.facts import ImageFacts
from secrun.image.manifest import Descriptor
from secrun.jsonio import canonical
from secrun.paths import Layout
from secrun.record import record

if TYPE_CHECKING:
    from secrun.trust.signatures import SignatureSet

_LAYOUT_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_SCRATCH_PREFIX = "fetch-"
# Blob locks are spread over 4,096 files by the digest's first digits: a file per blob would never go away
# (locks.held), and two blobs of one file only wait for each other.
_SHARD_DIGITS = 3
_LOCK_POLL_SECONDS = 0.05
_SHOWN_DIGITS = 12
# Asked again and again while a blob is awaited; it raises to end the wait.
GiveUp: TypeAlias = Callable[[], None]
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@record
class Removal:
    """What removing images did; `kept` is why blobs were left for the next removal, or empty.

    `damaged` tells that they are left until another image is removed, which is damaged.
    """

    removed: tuple[Entry, ...]
    freed_bytes: int
    kept: str = ""
    damaged: bool = False


@contextmanager
def space_errors(what: str) -> Iterator[None]:
    """Turn a full disk into a HostError that names `what`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise HostError(
            f"no space left for {what}",
            hint="free space below --root (secrun image rm, secrun gc); nothing was left behind",
            code="host-disk-full",
        ) from error


class ImageStore:
    """The store below one `--root`; every method may run in several processes at once."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._images = layout.images

    # Reading.

    def entries(self) -> tuple[Entry, ...]:
        """Return every stored image; empty if nothing was ever fetched."""
        path = self._images / "index.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return ()
        return entries_module.parse(data, what=str(path))

    def blob_path(self, digest: Digest) -> Path:
        """Return where a blob is or would be."""
        return self._images / "blobs" / digest.algorithm / digest.hex

    def has(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob is stored; blobs enter checked and whole, so their size suffices."""
        try:
            status = self.blob_path(descriptor.digest).lstat()
        except FileNotFoundError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == descriptor.size

    def read(self, descriptor: Descriptor, *, what: str) -> bytes:
        """Return a small blob whose descriptor was parsed under a limit; raises StateError if it changed."""
        path = self.blob_path(descriptor.digest)
        try:
            with path.open("rb") as stream:
                data = stream.read(descriptor.size + 1)
        except FileNotFoundError as error:
            raise _damaged(what, descriptor.digest, "is gone") from error
        if descriptor.digest.of_same_kind(data) != descriptor.digest:
            raise _damaged(what, descriptor.digest, "has other bytes than its digest says")
        return data

    def read_digest(self, digest: Digest, *, what: str, limit: int) -> bytes:
        """Return a blob of at most `limit` bytes of which only the digest is known; raises StateError."""
        try:
            with self.blob_path(digest).open("rb") as stream:
                data = stream.read(limit + 1)
        except FileNotFoundError as error:
            raise _damaged(what, digest, "is gone") from error
        if digest.of_same_kind(data) != digest:
            raise _damaged(what, digest, "has other bytes than its digest says")
        return data

    def signatures(self, entry: Entry) -> "SignatureSet":
        """Return the signatures that were stored with an image; raises StateError if they changed."""
        from secrun.trust.signatures import SignatureSet

        return SignatureSet.from_bytes(self.signature_bytes(entry))

    def signature_bytes(self, entry: Entry) -> bytes:
        """Return them as the document that they are kept as; raises StateError if it changed."""
        from secrun.trust import limits as trust_limits

        if not entry.signatures:
            from secrun.trust.signatures import SignatureSet

            fault = "none were fetched with the image: secrun fetch looks for them"
            return SignatureSet(faults=(fault,)).to_bytes()
        return self.read_digest(
            Digest.parse(entry.signatures),
            what=f"signatures of {entry.reference}",
            limit=2 * trust_limits.MAX_SIGNATURES_BYTES,
        )

    def facts(self, manifest: Digest) -> ImageFacts | None:
        """Return what is known of a stored image, None if its manifest or config is gone.

        The record is made anew, by a process without rights, if an older version of secrun stored the image.
        Raises StateError or ImageError if the image is damaged.
        """
        what = f"image {manifest.hex[:_SHOWN_DIGITS]}"
        try:
            data = self._facts_path(manifest).read_bytes()
        except FileNotFoundError:
            return self._read_again(manifest, what)
        return facts_module.of_bytes(data, what)

    def needed_facts(self, entry: Entry) -> ImageFacts:
        """Return what is known of a stored image; raises StateError or ImageError if it is damaged."""
        found = self.facts(entry.digest)
        if found is None:
            raise _damaged(f"stored image {entry.reference}", entry.digest, "is gone")
        return found

    def _facts_path(self, manifest: Digest) -> Path:
        return self.layout.facts / manifest.algorithm / f"{manifest.hex}.json"

    def _read_again(self, manifest: Digest, what: str) -> ImageFacts | None:
        from secrun.image.source import Document

        def blob(digest: Digest, limit: int) -> bytes:
            return self.read_digest(digest, what=what, limit=limit)

        try:
            document = Document.of(blob(manifest, limits.MAX_MANIFEST_BYTES), "")
            found = facts_module.again(
                document, lambda item: blob(item.digest, limits.MAX_CONFIG_BYTES), what=what
            )
        except StateError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        if os.access(self.layout.root, os.W_OK):
            self.remember(manifest, found)
        return found

    def remember(self, manifest: Digest, found: ImageFacts) -> None:
        """Store the record of an image."""
        path = self._facts_path(manifest)
        _make_dir(self.layout.facts, 0o755)
        _make_dir(path.parent, 0o755)
        write_atomic(path, found.to_bytes())

    def image_size(self, entry: Entry) -> int:
        """Return the bytes of an image, blobs together; raises StateError or ImageError if it is damaged."""
        manifest = self.needed_facts(entry).manifest
        blobs = (manifest.config, *manifest.layers)
        return entry.descriptor.size + sum(item.size for item in blobs)

    # Writing.

    def _prepare(self) -> None:
        """Make the folders and files of an empty layout."""
        with locks.held(self._lock("images-index")):
            for directory in (self._images, self._images / "blobs", self._images / "blobs/sha256"):
                _make_dir(directory, 0o755)
            _make_dir(self.layout.scratch, 0o700)
            if apart.separated():
                from secrun.image import members

                members.prepare(self.layout)
            for name, data in (
                ("oci-layout", _LAYOUT_VERSION),
                ("index.json", canonical(entries_module.to_json(()))),
            ):
                if not (self._images / name).exists():
                    write_atomic(self._images / name, data)

    def _lock(self, name: str) -> Path:
        return self.layout.locks / f"{name}.lock"

    @contextmanager
    def importing(self) -> Iterator[Path]:
        """Yield a scratch folder of our own; until the end of the block no blob is swept away.

        The folder goes with the block. If we are killed it goes with the next fetch or removal.
        """
        with space_errors(str(self._images)), ExitStack() as stack:
            self._prepare()
            stack.enter_context(locks.held(self._lock("images-sweep"), shared=True))
            self.purge_stale()
            yield stack.enter_context(self._scratch())

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        path, fd = self._locked_scratch()
        try:
            yield path
        finally:
            _remove_tree(path)
            os.close(fd)

    def _locked_scratch(self) -> tuple[Path, int]:
        import tempfile

        while True:
            path = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=self.layout.scratch))
            try:
                fd = locks.open_dir(path)
            except FileNotFoundError:
                continue  # a purge came between the two calls
            if locks.lock_fd(fd, blocking=False) and path.exists():
                return path, fd
            os.close(fd)

    def purge_stale(self) -> int:
        """Remove the scratch folders of fetches that died; return how many."""
        try:
            names = sorted(os.listdir(self.layout.scratch))
        except FileNotFoundError:
            return 0
        return sum(_purge(self.layout.scratch / name) for name in names if name.startswith(_SCRATCH_PREFIX))

    @contextmanager
    def blob_lock(self, digest: Digest, *, give_up: GiveUp) -> Iterator[None]:
        """Hold the right to bring in one blob; `give_up` is asked while waiting and may raise."""
        path = self._lock(f"blob-{digest.hex[:_SHARD_DIGITS]}")
        while True:
            with ExitStack() as stack:
                try:
                    stack.enter_context(locks.held(path, blocking=False))
                except StateError:
                    give_up()
                else:
                    yield
                    return
            # flock(2) in a thread cannot be interrupted, and a failed fetch must not wait for another one.
            time.sleep(_LOCK_POLL_SECONDS)

    def adopt(self, path: Path, digest: Digest) -> None:
        """Move a checked, synced file into the store."""
        target = self.blob_path(digest)
        _make_dir(target.parent, 0o755)
        os.rename(path, target)

    def put(self, data: bytes, digest: Digest, scratch: Path) -> None:
        """Store the bytes of a manifest or config whose digest was checked."""
        if self.blob_path(digest).exists():
            return
        temporary = scratch / f"{digest.hex}.json"
        write_atomic(temporary, data)
        self.adopt(temporary, digest)

    def add(self, entry: Entry) -> None:
        """List an image whose blobs are all stored; it replaces the entry of the same key."""
        for directory in (self._images / "blobs").iterdir():
            fsync_dir(directory)
        with locks.held(self._lock("images-index")):
            others = [old for old in self.entries() if old.key != entry.key]
            self._write([*others, entry])

    def revise(self, old: Entry, new: Entry) -> None:
        """Replace an entry if it is still as it was: what was removed or fetched meanwhile stays so."""
        with locks.held(self._lock("images-index")):
            entries = self.entries()
            if old in entries:
                self._write([new if entry == old else entry for entry in entries])

    def alias(self, old: Entry, new: Entry) -> None:
        """List an image that is listed under a further name; raises StateError if it has just gone."""
        with locks.held(self._lock("images-index")):
            entries = self.entries()
            if not any(entry.key == old.key and entry.digest == old.digest for entry in entries):
                raise StateError(f"image {old.shown} has just been removed", code="state-image-missing")
            self._write([*(entry for entry in entries if entry.key != new.key), new])

    def drop_alias(self, doomed: Sequence[Entry]) -> None:
        """Take names from images that keep another; raises StateError if one would lose its last."""
        keys = {entry.key for entry in doomed}
        with locks.held(self._lock("images-index")):
            left = [entry for entry in self.entries() if entry.key not in keys]
            for entry in doomed:
                if not any(other.digest == entry.digest for other in left):
                    raise StateError(
                        f"image {entry.digest.hex[:_SHOWN_DIGITS]} has no other name than {entry.shown}",
                        hint=f"remove the image: secrun image rm {entry.shown}",
                        code="state-image-last-name",
                    )
            self._write(left)

    def _write(self, entries: Sequence[Entry]) -> None:
        """Replace index.json; the caller holds its lock, so unfinished ones belong to the dead."""
        for path in self._images.glob(".index.json.*"):
            path.unlink()
        write_atomic(self._images / "index.json", canonical(entries_module.to_json(entries)))

    # Removing.

    def remove(self, doomed: Sequence[Entry], *, in_use: Iterable[Digest]) -> Removal:
        """Remove entries, then all blobs that nothing needs; raises StateError if a pod uses one of them."""
        used = set(in_use)
        for entry in doomed:
            if entry.digest in used:
                raise StateError(
                    f"image {entry.shown} ({entry.digest.hex[:12]}) is used by a pod, or mounted",
                    hint="remove the pod first (secrun list, secrun rm), or secrun image unmount",
                    code="state-image-used",
                )
        keys = {entry.key for entry in doomed}
        with locks.held(self._lock("images-index")):
            self._write([entry for entry in self.entries() if entry.key not in keys])
        reached("images-unlisted")
        try:
            freed = self.collect(in_use=used)
        except (StateError, ImageError) as error:
            # A fetch holds blobs that no entry names yet; they and ours go with a later removal. And which
            # files a damaged image needs nobody can tell.
            busy = error.code == "state-locked"
            why = "another image is being fetched" if busy else error.message
            return Removal(removed=tuple(doomed), freed_bytes=0, kept=why, damaged=not busy)
        return Removal(removed=tuple(doomed), freed_bytes=freed)

    def collect(self, *, in_use: Iterable[Digest]) -> int:
        """Remove blobs and rootfs images that no entry and no pod needs; return the bytes freed.

        Raises StateError while something is being fetched.
        """
        with locks.held(self._lock("images-sweep"), blocking=False):
            self.purge_stale()
            return sum(map(_removed, self.unneeded(self.entries(), in_use=in_use)))

    def unneeded(self, entries: Sequence[Entry], *, in_use: Iterable[Digest]) -> list[Path]:
        """Return the files that would go if only `entries` were listed; raises what `reachable` raises."""
        from secrun.image import sweeping
        from secrun.image.reachable import reachable

        return [*sweeping.unneeded(self.layout, reachable(entries, in_use, self.facts))]

    # Use.

    @contextmanager
    def using(self) -> Iterator[None]:
        """Until the end of the block no image goes that somebody is about to use and no pod names yet."""
        with locks.held(self._lock("images-use"), shared=True):
            yield

    @contextmanager
    def sole_use(self, *, blocking: bool = True) -> Iterator[None]:
        """Wait for who is about to use images and keep others from it: which are in use may be asked now.

        Raises StateError if somebody is and not `blocking`.
        """
        with locks.held(self._lock("images-use"), blocking=blocking):
            yield

    def touch(self, manifest: Digest) -> None:
        """Remember that an image is used now, if this process may."""
        try:
            os.utime(self._facts_path(manifest))
        except OSError as error:
            # Who only reads a store that is another's, or read-only, leaves no trace in it.
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
                raise

    def used_at(self, entry: Entry) -> float:
        """Return when an image was last used, or fetched; seconds since the epoch."""
        try:
            return self._facts_path(entry.digest).stat().st_mtime
        except FileNotFoundError:
            return imported_seconds(entry)


def imported_seconds(entry: Entry) -> float:
    """Return when an entry was made; seconds since the epoch."""
    import calendar

    return float(calendar.timegm(time.strptime(entry.imported_at, "%Y-%m-%dT%H:%M:%SZ")))


def _removed(path: Path) -> int:
    """Remove a file; return its bytes."""
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def purge_stale(layout: Layout) -> int:
    """Remove the scratch folders of fetches that died; return how many."""
    return ImageStore(layout).purge_stale()


def _damaged(what: str, digest: Digest, how: str) -> StateError:
    return StateError(
        f"{what}: blob {digest} of the image store {how}",
        hint="fetch the image again with --pull=always",
        code="state-image-store",
    )


def _make_dir(path: Path, mode: int) -> None:
    """Make a folder with exactly `mode`, whatever the umask; parents get what the umask leaves."""
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(exist_ok=True)
    path.chmod(mode)


def _remove_tree(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _purge(path: Path) -> bool:
    """Remove a scratch folder unless its owner lives: the owner holds a lock on it."""
    try:
        fd = locks.open_dir(path)
    except OSError as error:
        if locks.is_missing(error):
            return False
        raise
    try:
        if not locks.lock_fd(fd, blocking=False):
            return False
        _remove_tree(path)
    finally:
        os.close(fd)
    return True
