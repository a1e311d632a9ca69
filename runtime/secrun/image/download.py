"""Bring blobs into the store, several at once: each is downloaded by one process only."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from secrun.checkpoint import reached
from secrun.image import apart, limits, members
from secrun.image.blobs import BlobWriter, CancelledError
from secrun.image.manifest import Descriptor
from secrun.image.progress import Progress
from secrun.image.source import ImageSource
from secrun.image.store import ImageStore, space_errors


def _bring(
    store: ImageStore,
    source: ImageSource,
    descriptor: Descriptor,
    *,
    scratch: Path,
    progress: Progress,
    cancelled: threading.Event,
) -> None:
    """Bring in one blob unless it is there; who waits for another process finds it then."""

    def give_up() -> None:
        if cancelled.is_set():
            raise CancelledError("cancelled")

    with store.blob_lock(descriptor.digest, give_up=give_up):
        if store.has(descriptor):
            progress.advance(descriptor.size)
            return
        path = scratch / descriptor.digest.hex
        with space_errors(f"blob {descriptor.digest} ({descriptor.size} bytes)"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                writer = BlobWriter(fd, descriptor, counter=progress, cancelled=cancelled)
                if not (apart.separated() and members.take(store.layout, descriptor, writer)):
                    source.copy_blob(descriptor, writer)
                writer.finish()
            finally:
                os.close(fd)
            reached("fetch-blob-written")
            store.adopt(path, descriptor.digest)
            reached("fetch-blob-stored")


def download(
    store: ImageStore,
    source: ImageSource,
    descriptors: Sequence[Descriptor],
    *,
    what: str,
    scratch: Path,
    progress: Progress,
) -> None:
    """Bring in every blob that is missing; raises what the source or the disk raises."""
    missing = {item.digest: item for item in descriptors if not store.has(item)}
    if not missing:
        return
    from concurrent.futures import ThreadPoolExecutor, as_completed

    cancelled = threading.Event()
    # The largest first: it decides when the last thread is done.
    ordered = sorted(missing.values(), key=lambda item: item.size, reverse=True)

    def bring(descriptor: Descriptor) -> None:
        _bring(store, source, descriptor, scratch=scratch, progress=progress, cancelled=cancelled)

    progress.start(what, sum(item.size for item in ordered))
    try:
        with ThreadPoolExecutor(limits.DOWNLOAD_THREADS, "blob") as pool:
            futures = [pool.submit(bring, descriptor) for descriptor in ordered]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                # Also an interrupt: the threads stop at their next chunk; the block's end waits for them.
                cancelled.set()
                source.abort()
                raise
    finally:
        progress.finish()
