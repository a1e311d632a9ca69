"""Open the source that a reference names."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from secrun.digest import Digest
from secrun.errors import SecrunError, UsageError
from secrun.image import apart, auth, retry, wire
from secrun.image import reference as references
from secrun.image.auth import Credentials
from secrun.image.certs import CertificateDirs
from secrun.image.dirsource import DirSource
from secrun.image.dockerarchive import DockerArchiveSource
from secrun.image.files import ArchiveFiles, FolderFiles, HeldFiles, hold_folder, open_regular
from secrun.image.layout import LayoutSource
from secrun.image.mirrored import MirroredSource
from secrun.image.options import FetchOptions
from secrun.image.proxy import ProxySettings
from secrun.image.reference import FileReference, Origin, RegistryReference, Transport
from secrun.image.registry import RegistryClient
from secrun.image.source import ImageSource
from secrun.image.tarscan import Member, from_json, scan, to_json
from secrun.record import record

if TYPE_CHECKING:
    from secrun.image.aci.web import Web
    from secrun.image.lookaside import Section


class _Beside:
    """What registries.d says of one repository; read only if signatures are looked for."""

    def __init__(self, reference: RegistryReference, http: wire.HttpClient) -> None:
        self._reference = reference
        self._http = http
        self._section: Section | None = None
        self._folder: int | None = None

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

        base = self.section().lookaside
        return lookaside.messages(base, self._reference, digest, self._http, folder=self._folder)

    def hold(self) -> tuple[int, ...]:
        """Open the folder with signatures, if they lie in one: its path may be closed to others."""
        parts = urlsplit(self.section().lookaside)
        if parts.scheme != "file":
            return ()
        try:
            self._folder = os.open(url2pathname(parts.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return (self._folder,)


@record
class ReachedWeb:
    """What reads addresses of app container images, and what must be done while files can still be read."""

    web: "Web"
    prepare: Callable[[], tuple[int, ...]]


def reach_web(options: FetchOptions) -> ReachedWeb:
    """Return what reads addresses of app container images."""
    from secrun.image.aci.web import Web

    client = wire.UrllibClient(
        tls_verify=options.tls_verify,
        certificates=CertificateDirs.of_user(os.environ),
        proxies=ProxySettings.of_environment(os.environ),
    )

    def prepare() -> tuple[int, ...]:
        client.preload()
        return ()

    return ReachedWeb(web=Web(client, retry.SystemClock(), http=options.insecure_http), prepare=prepare)


class _Login:
    """Credentials that are looked up once: when they are asked for, or before that can be done no more."""

    def __init__(self, repository: str, authfile: Path | None) -> None:
        self._repository = repository
        self._authfile = authfile
        self._found: list[Credentials | None] = []
        self._error: SecrunError | None = None

    def look(self) -> None:
        """Look now; what fails is told to whoever asks."""
        try:
            self._found = [auth.find(self._repository, authfile=self._authfile)]
        except SecrunError as error:
            self._error = error

    def __call__(self) -> Credentials | None:
        if self._error is not None:
            raise self._error
        if not self._found:
            self._found = [auth.find(self._repository, authfile=self._authfile)]
        return self._found[0]


@record
class Reached:
    """A client of one repository, and what must be done while files can still be read.

    `prepare` returns what must stay readable.
    """

    client: RegistryClient
    prepare: Callable[[], tuple[int, ...]]


def reach(reference: RegistryReference, options: FetchOptions, *, insecure: bool = False) -> Reached:
    """Return a client of one repository; `insecure` is what registries.conf says of it."""
    tls_verify = options.tls_verify and not insecure
    http = wire.UrllibClient(
        tls_verify=tls_verify,
        certificates=CertificateDirs.of_user(os.environ),
        proxies=ProxySettings.of_environment(os.environ),
    )
    beside = _Beside(reference, http)
    login = _Login(reference.repository, options.authfile)

    def prepare() -> tuple[int, ...]:
        login.look()
        http.preload()
        return beside.hold()

    client = RegistryClient(
        reference,
        http=http,
        credentials=login,
        clock=retry.SystemClock(),
        tls_verify=tls_verify,
        beside=beside,
    )
    return Reached(client=client, prepare=prepare)


def endpoints(reference: RegistryReference, options: FetchOptions) -> list[Reached]:
    """Return the clients of a repository's mirrors and of itself, in the order they are asked."""
    from secrun.image import registriesconf

    found = registriesconf.load(os.environ).endpoints(reference)
    return [reach(item.reference, options, insecure=item.insecure) for item in found]


def joined(reached: Sequence[Reached], note: Callable[[str], None]) -> ImageSource:
    """Return one source of several places."""
    clients = [item.client for item in reached]
    return clients[0] if len(clients) == 1 else MirroredSource(clients, note)


@record
class Held:
    """A local source whose files are open: an archive, or the files of a folder by name."""

    archive: int | None
    files: HeldFiles | None


def hold(reference: FileReference) -> Held:
    """Open what a reference names and read nothing of it; raises ImageError."""
    if reference.transport in (Transport.OCI, Transport.DIR):
        return Held(archive=None, files=hold_folder(Path(reference.path), _named(reference)))
    fd = open_regular(Path(reference.path), _named(reference), follow=True)
    return Held(archive=fd, files=None)


def held_source(held: Held, reference: FileReference) -> ImageSource:
    """Return the source of open files; only for a process that may read what strangers wrote."""
    if held.archive is None:
        return _in_folder(held.files or HeldFiles({}, _named(reference)), reference)
    size = os.fstat(held.archive).st_size
    members = from_json(to_json(scan(held.archive)), file_size=size)
    return _in_archive(ArchiveFiles(held.archive, members, _named(reference)), reference)


def _named(reference: FileReference) -> str:
    return (
        str(reference) if reference.transport is Transport.DIR else f"{reference.transport}:{reference.path}"
    )


def _in_folder(files: FolderFiles | HeldFiles, reference: FileReference) -> ImageSource:
    if reference.transport is Transport.DIR:
        return DirSource(files, what=str(reference))
    return LayoutSource(files, reference.tag, what=str(reference))


def _in_archive(files: ArchiveFiles, reference: FileReference) -> ImageSource:
    if reference.transport is Transport.OCI_ARCHIVE:
        return LayoutSource(files, reference.tag, what=str(reference))
    return DockerArchiveSource(files, reference.tag, what=str(reference))


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
def _archive(reference: FileReference) -> Iterator[ImageSource]:
    what = _named(reference)
    fd = open_regular(Path(reference.path), what, follow=True)
    try:
        yield _in_archive(ArchiveFiles(fd, _members(fd), what), reference)
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
    if apart.separated():
        from secrun.image.remote import remote_source

        with remote_source(reference, options) as source:
            yield source
    elif isinstance(reference, RegistryReference):
        yield joined(endpoints(reference, options), options.progress.note)
    elif reference.transport in (Transport.DIR, Transport.OCI):
        yield _in_folder(FolderFiles(Path(reference.path), _named(reference)), reference)
    else:
        with _archive(reference) as source:
            yield source
