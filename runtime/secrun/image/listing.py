"""Which images an archive holds, as references: read by a process without rights."""

import os
from pathlib import Path

from secrun.errors import ImageError
from secrun.image import dockerarchive, layout
from secrun.image.files import ArchiveFiles, open_regular
from secrun.image.reference import FileReference, Transport
from secrun.image.rootfs.sandbox import Confined, run_confined
from secrun.image.tarscan import from_json, scan, to_json
from secrun.jsonio import JsonObject
from secrun.syscalls import LinuxSyscalls

_MAX_IMAGES = 1000


def _listed(fd: int, size: int, what: str) -> JsonObject:
    members = from_json(to_json(scan(fd)), file_size=size)
    files = ArchiveFiles(fd, members, what)
    # What `docker save` writes today is both; only one of them has the names in full.
    if "manifest.json" in members:
        return {"transport": str(Transport.DOCKER_ARCHIVE), "names": [*dockerarchive.names(files, what)]}
    if "oci-layout" in members:
        return {"transport": str(Transport.OCI_ARCHIVE), "names": [*layout.names(files, what)]}
    raise ImageError(
        f"{what} holds no images: it has neither oci-layout nor manifest.json", code="image-layout"
    )


def images_in(path: Path) -> tuple[FileReference, ...]:
    """Return a reference for each image of an archive, of whichever kind; raises ImageError; forks."""
    what = str(path)
    fd = open_regular(path, what, follow=True)
    try:
        size = os.fstat(fd).st_size
        job = Confined(body=lambda: _listed(fd, size, what), prepare=_preload, keep_fds=(fd,))
        answer = run_confined(job, LinuxSyscalls())
    finally:
        os.close(fd)
    names = answer.get("names")
    words = [name for name in (names if isinstance(names, list) else []) if isinstance(name, str)]
    if len(words) > _MAX_IMAGES:
        raise ImageError(f"{what} has {len(words)} images, the limit is {_MAX_IMAGES}", code="image-limit")
    transport = Transport(str(answer.get("transport")))
    return tuple(FileReference(transport=transport, path=str(path), tag=word) for word in words)


def _preload() -> None:
    """Import what is needed later: once confined, nothing can be imported any more."""
    import tarfile
    import zlib

    del tarfile, zlib
