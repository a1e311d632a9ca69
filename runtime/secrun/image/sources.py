"""Open the source that a reference names."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secrun.digest import Digest
from secrun.errors import UsageError
from secrun.image import auth, retry, wire
from secrun.image import reference as references
from secrun.image.certs import CertificateDirs
from secrun.image.dirsource import DirSource
from secrun.image.dockerarchive import DockerArchiveSource
from secrun.image.files import ArchiveFiles, FolderFiles, open_regular
from secrun.image.layout import LayoutSource
from secrun.image.options import FetchOptions
from secrun.image.proxy import ProxySettings
from secrun.image.reference import FileReference, Origin, RegistryReference, Transport
from secrun.image.registry import RegistryClient
from secrun.image.source import ImageSource
from secrun.image.tarscan import Member, from_json, scan, to_json

if TYPE_CHECKING:
    from secrun.image.lookaside import Section


class _Beside:
    """What registries.d says of one repository; read only if signatures are looked for."""

    def __init__(self, reference: RegistryReference, http: wire.HttpClient) -> None:
        self._reference = reference
        self._http = http
        self._section: Section | None = None

    def section(self) -> "Section":
        from secrun.image import lookaside

        if self._section is None:
            self._section = lookaside.load(os.environ).section(self._reference)
        return self._section

    @property
    def attachments(self) -> bool:
        # Without a word on it they are looked for: a policy that demands them could mean nothing else.
        return self.section().attachments is not False

    def messages(self, digest: Digest) -> Iterator[bytes]:
        from secrun.image import lookaside

        return lookaside.messages(self.section().lookaside, self._reference, digest, self._http)


def registry(
    reference: RegistryReference, options: FetchOptions, *, insecure: bool = False
) -> RegistryClient:
    """Return a client of one repository; `insecure` is what registries.conf says of it."""
    tls_verify = options.tls_verify and not insecure
    http = wire.UrllibClient(
        tls_verify=tls_verify,
        certificates=CertificateDirs.of_user(os.environ),
        proxies=ProxySettings.of_environment(os.environ),
    )
    return RegistryClient(
        reference,
        http=http,
        credentials=lambda: auth.find(reference.repository, authfile=options.authfile),
        clock=retry.SystemClock(),
        tls_verify=tls_verify,
        beside=_Beside(reference, http),
    )


def _remote(reference: RegistryReference, options: FetchOptions) -> ImageSource:
    """Return a registry, or its mirrors before it."""
    from secrun.image import registriesconf
    from secrun.image.mirrored import MirroredSource

    endpoints = registriesconf.load(os.environ).endpoints(reference)
    clients = [registry(item.reference, options, insecure=item.insecure) for item in endpoints]
    return clients[0] if len(clients) == 1 else MirroredSource(clients, options.progress.note)


def _members(fd: int) -> dict[str, Member]:
    """Let the sandbox find the members of an archive."""
    from secrun.image.rootfs.sandbox import Confined, run_confined
    from secrun.syscalls import LinuxSyscalls

    def prepare() -> None:
        # Once confined, nothing can be imported any more.
        import tarfile  # noqa: F401
        import zlib  # noqa: F401

    confined = Confined(body=lambda: to_json(scan(fd)), prepare=prepare, keep_fds=[fd])
    return from_json(run_confined(confined, LinuxSyscalls()), file_size=os.fstat(fd).st_size)


@contextmanager
def _archive(reference: FileReference) -> Iterator[ArchiveFiles]:
    what = f"{reference.transport}:{reference.path}"
    fd = open_regular(Path(reference.path), what, follow=True)
    try:
        yield ArchiveFiles(fd, _members(fd), what)
    finally:
        os.close(fd)


@contextmanager
def open_source(reference: Origin, options: FetchOptions) -> Iterator[ImageSource]:
    """Yield a source for `reference`; an archive needs a process without other threads."""
    if not isinstance(reference, RegistryReference | FileReference) or references.is_aci(reference):
        raise UsageError(
            f"{reference} is an app container image, which must be stored first",
            hint=f"secrun fetch {reference}",
            code="usage-reference",
        )
    if isinstance(reference, RegistryReference):
        yield _remote(reference, options)
        return
    if reference.transport is Transport.DIR:
        yield DirSource(FolderFiles(Path(reference.path), str(reference)), what=str(reference))
        return
    if reference.transport is Transport.OCI:
        folder = FolderFiles(Path(reference.path), f"oci:{reference.path}")
        yield LayoutSource(folder, reference.tag, what=str(reference))
        return
    with _archive(reference) as files:
        if reference.transport is Transport.OCI_ARCHIVE:
            yield LayoutSource(files, reference.tag, what=str(reference))
        else:
            yield DockerArchiveSource(files, reference.tag, what=str(reference))
