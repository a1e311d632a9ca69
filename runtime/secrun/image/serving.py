"""The helper's side: what it does for each request, and what it gives up before the first."""

import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Protocol

from secrun.digest import Digest
from secrun.errors import HostError
from secrun.image import account, callfilter, fields, limits, sources
from secrun.image import manifest as manifests
from secrun.image.blobs import BlobWriter
from secrun.image.frames import Channel, Kind
from secrun.image.helper import Handler, Work
from secrun.image.manifest import Descriptor, parse_descriptor
from secrun.image.options import FetchOptions
from secrun.image.platform import Platform
from secrun.image.progress import NullProgress
from secrun.image.reference import FileReference, RegistryReference
from secrun.image.rootfs.sandbox import give_up_rights, impossible, lower_limit
from secrun.image.source import Document, ImageSource
from secrun.jsonio import JsonObject, JsonValue
from secrun.record import record, replace
from secrun.syscalls import Syscalls

if TYPE_CHECKING:
    from secrun.image.target import RegistryTarget

_WHAT = "request"
# A few documents and what TLS and threads need; nothing grows with an image's size.
_ADDRESS_SPACE = 4 << 30
_OPEN_FILES = 256
# What a resolver reads, where it exists; world-readable on every host, and nothing secret is below.
_RESOLVER = (
    *(
        f"/etc/{name}"
        for name in ("resolv.conf", "hosts", "host.conf", "nsswitch.conf", "gai.conf", "services")
    ),
    *("/etc/ssl", "/etc/ca-certificates", "/etc/pki", "/etc/localtime", "/run/systemd/resolve"),
)
_LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")


class Forward(BlobWriter):
    """A blob on its way to root, which counts and digests it; only its size is watched here."""

    def __init__(self, channel: Channel, descriptor: Descriptor) -> None:
        self._channel = channel
        self._descriptor = descriptor
        self.offset = 0

    def write(self, chunk: bytes) -> None:
        """Send bytes; raises ImageError if the blob grows past its size."""
        self.check_room(len(chunk))
        self._channel.send(Kind.CHUNK, chunk)
        self.offset += len(chunk)

    def restart(self) -> None:
        """Tell that the blob begins again."""
        self._channel.send(Kind.RESTART, b"")
        self.offset = 0


class Notes(NullProgress):
    """Keeps what the user should know until an answer takes it along."""

    def taken(self) -> list[JsonValue]:
        """Return the notes since the last time."""
        found, self.notes = self.notes, []
        return [*found]


def _documents(documents: Sequence[Document], channel: Channel) -> list[JsonValue]:
    """Send the bytes of documents; return their media types."""
    for item in documents:
        channel.send(Kind.BYTES, item.data)
    return [item.media_type for item in documents]


def descriptor_of(request: JsonObject, name: str = "descriptor") -> Descriptor:
    """Read a descriptor of a request; its size was checked where it comes from."""
    return parse_descriptor(fields.mapping(request, name, _WHAT), _WHAT, limit=limits.MAX_LAYER_BYTES)


def source_handlers(source: ImageSource, notes: Notes) -> Mapping[str, Handler]:
    """Return what answers for a source; the protocol is RemoteSource's."""
    found: list[Document] = []

    def root(request: JsonObject, channel: Channel) -> JsonObject:
        del request
        found[:] = [source.root()]
        return {"types": _documents(found, channel), "given": source.given, "notes": notes.taken()}

    def walk(request: JsonObject, channel: Channel) -> JsonObject:
        from secrun.image.select import walk as chosen

        what = fields.text(request, "what", _WHAT)
        wanted = Platform.parse(fields.text(request, "platform", _WHAT))
        chain, parsed = chosen(source, found[0], wanted, what=what)
        return {"types": _documents(chain[1:], channel), "manifest": manifests.to_document(parsed)}

    def document(request: JsonObject, channel: Channel) -> JsonObject:
        return {"types": _documents([source.document(descriptor_of(request))], channel)}

    def blob(request: JsonObject, channel: Channel) -> JsonObject:
        descriptor = descriptor_of(request)
        source.copy_blob(descriptor, Forward(channel, descriptor))
        return {}

    def signatures(request: JsonObject, channel: Channel) -> JsonObject:
        from secrun.trust.signatures import SignatureKind

        kinds = [
            SignatureKind(item) for item in fields.texts(request, "kinds", _WHAT, limit=len(SignatureKind))
        ]
        words = fields.texts(request, "digests", _WHAT, limit=limits.MAX_INDEX_ENTRIES + 1)
        channel.send(Kind.BYTES, source.signatures(kinds, [Digest.parse(item) for item in words]).to_bytes())
        return {}

    return {"root": root, "walk": walk, "document": document, "blob": blob, "signatures": signatures}


@contextmanager
def _dropping() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise impossible(error) from error


def from_registry(reference: RegistryReference, options: FetchOptions) -> Work:
    """Return the work of reading one repository, as the user secrun with a network."""
    user = account.fetching()
    notes = Notes()
    reached = sources.endpoints(reference, replace(options, progress=notes))
    source = sources.joined(reached, notes.note)
    return networked(user, reached, lambda: source_handlers(source, notes))


class Prepared(Protocol):
    """A client of something in the network."""

    @property
    def prepare(self) -> Callable[[], tuple[int, ...]]:
        """What must be done while files can still be read; returns what must stay readable."""


def networked(
    user: account.Account, reached: Sequence[Prepared], handlers: Callable[[], Mapping[str, Handler]]
) -> Work:
    """Return work that is done as `user` with a network and no files."""
    readable: list[int] = []

    def prepare() -> None:
        for item in reached:
            readable.extend(item.prepare())
        _preload_network()

    return Work(
        prepare=prepare,
        drop=lambda calls: drop_to(user, calls, readable),
        handlers=handlers,
    )


def _preload_network() -> None:
    """Import what the client imports when it needs it: later there may be no file to import from."""
    import encodings.idna
    import hashlib
    import http.client
    import ssl
    import stringprep

    import urllib3.contrib
    import urllib3.util.ssl_match_hostname  # noqa: F401

    from secrun.image import artifact, attach, attached, lookaside, select  # noqa: F401
    from secrun.trust import bundle, cosign, notation, signatures  # noqa: F401

    del encodings, hashlib, http, ssl, stringprep


def drop_to(user: account.Account, calls: Syscalls, kept: Sequence[int] = ()) -> None:
    """Become `user` with a network and nothing else but what lies below `kept`; raises HostError.

    No capability, no_new_privs, lowered limits, no file but to read what an interpreter and a resolver read,
    no listening, no system call that callfilter does not let through.
    """
    program = callfilter.program(network=True)
    if not calls.landlock_abi():
        raise HostError(
            "the kernel has no Landlock, and root does not talk to registries without it",
            hint="boot with landlock in lsm= (CONFIG_SECURITY_LANDLOCK), or fetch as an ordinary user",
            code="host-landlock",
        )
    with _dropping():
        readable = _opened()
        calls.drop_bounding_set()
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        calls.set_capabilities(0)
        for kind, value in (
            (resource.RLIMIT_AS, _ADDRESS_SPACE),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, _OPEN_FILES),
            (resource.RLIMIT_CORE, 0),
        ):
            lower_limit(kind, value)
        calls.dumpable(on=False)
        calls.no_new_privs()
        calls.landlock_read_only([*readable, *kept])
        for fd in readable:
            os.close(fd)
        calls.filter_calls(program)


def _opened() -> list[int]:
    """Open what stays readable, for Landlock's rules."""
    places = [*_RESOLVER, *_LIBRARIES, sys.prefix, sys.base_prefix, *(item for item in sys.path if item)]
    found = []
    for place in dict.fromkeys(places):
        try:
            found.append(os.open(place, os.O_PATH | os.O_CLOEXEC))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


def from_files(reference: FileReference) -> Work:
    """Return the work of reading a layout or an archive, as nobody and without a network."""
    notes = Notes()
    held: list[sources.Held] = []

    def opening() -> None:
        held.append(sources.hold(reference))

    def drop(calls: Syscalls) -> None:
        program = callfilter.program(network=False)
        raise_limit()
        with _dropping():
            give_up_rights(calls, program, opening=opening)

    return Work(
        prepare=_preload_files,
        drop=drop,
        handlers=lambda: source_handlers(sources.held_source(held[0], reference), notes),
    )


def raise_limit() -> None:
    """Allow as many open files as may be: a layout is held open file by file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _preload_files() -> None:
    import hashlib
    import tarfile
    import zlib

    from secrun.image import artifact, attached, select  # noqa: F401
    from secrun.trust import bundle, cosign, notation, signatures  # noqa: F401

    del hashlib, tarfile, zlib


def to_registry(reference: RegistryReference, options: FetchOptions) -> Work:
    """Return the work of writing to one repository, as the user secrun with a network."""
    from secrun.image.target import RegistryTarget

    user = account.fetching()
    reached = sources.reach(reference, options)
    target = RegistryTarget(reached.client)
    return networked(user, [reached], lambda: target_handlers(target))


@record
class _Sent:
    """The bytes of a file that root has open."""

    fd: int
    size: int

    def open(self) -> BinaryIO:
        """Return a stream from the first byte."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self.fd), "rb")


def target_handlers(target: "RegistryTarget") -> Mapping[str, Handler]:
    """Return what answers for a target; the protocol is RemoteTarget's."""

    def put_blob(request: JsonObject, channel: Channel) -> JsonObject:
        descriptor = descriptor_of(request)
        _, fds, _, _ = socket.recv_fds(channel.end, 1, 1)
        try:
            target.upload(descriptor.digest, _Sent(fd=fds[0], size=descriptor.size))
        finally:
            for fd in fds:
                os.close(fd)
        return {}

    def put_manifest(request: JsonObject, channel: Channel) -> JsonObject:
        data = channel.receive(limits.MAX_MANIFEST_BYTES).data
        document = Document.of(data, fields.text(request, "type", _WHAT))
        listed = target.put_manifest(document, fields.text(request, "tag", _WHAT) or None)
        return {"listed": listed}

    def attach(request: JsonObject, channel: Channel) -> JsonObject:
        from secrun.image.attach import attach as attached
        from secrun.trust.signatures import SignatureSet

        data = channel.receive(limits.MAX_FRAME_BYTES).data
        members = fields.objects(request, "subjects", _WHAT, limit=limits.MAX_INDEX_ENTRIES + 1)
        subjects = [parse_descriptor(item, _WHAT, limit=limits.MAX_MANIFEST_BYTES) for item in members]
        return {"notes": [*attached(target, subjects, SignatureSet.from_bytes(data).candidates)]}

    return {"put-blob": put_blob, "put-manifest": put_manifest, "attach": attach}
