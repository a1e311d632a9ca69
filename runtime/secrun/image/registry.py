"""The registry client: OCI distribution 1.1 as far as a pull needs it."""

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urljoin, urlsplit

from secrun.digest import Digest
from secrun.errors import ImageError, RegistryError
from secrun.image import limits, retry
from secrun.image.auth import Credentials
from secrun.image.authorize import Authorizer, unauthorized
from secrun.image.blobs import BlobWriter, CancelledError
from secrun.image.manifest import ACCEPT, Descriptor, MediaType
from secrun.image.reference import RegistryReference
from secrun.image.retry import Clock
from secrun.image.source import Document
from secrun.image.wire import Answer, ConnectionLostError, LossKind, SendingClient, Upload
from secrun.jsonio import parse_object
from secrun.record import row

if TYPE_CHECKING:
    from secrun.image.artifact import Referrer
    from secrun.trust.signatures import SignatureKind, SignatureSet

# docker.io's registry has another name than its images.
_HOSTS = {"docker.io": "registry-1.docker.io"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ERROR_CODE = re.compile(r"[A-Z][A-Z_]{1,40}\Z")
# RFC 8288, as far as registries use it: <URL>; rel="next".
_NEXT_PAGE = re.compile(r'<([^<>]{1,4000})>\s*;\s*rel="?next"?')
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:(\d{1,18})|\*)\Z")


@row
class _Origin:
    scheme: str
    netloc: str

    @classmethod
    def of(cls, url: str) -> "_Origin":
        parts = urlsplit(url)
        return cls(parts.scheme, parts.netloc.lower())


class Beside(Protocol):
    """What is set for signatures of one repository: whether it has any itself, and which lie elsewhere."""

    @property
    def attachments(self) -> bool:
        """Whether signatures in the repository are looked for."""

    def messages(self, digest: Digest) -> Iterable[bytes]:
        """Return the OpenPGP signatures of a manifest."""


# The forms that are not kept in the registry.
_BESIDE = ("openpgp",)


class RegistryClient:
    """Reads one repository; safe to use from several threads."""

    def __init__(
        self,
        reference: RegistryReference,
        *,
        http: SendingClient,
        credentials: Callable[[], Credentials | None],
        clock: Clock,
        tls_verify: bool,
        beside: Beside | None = None,
    ) -> None:
        self._beside = beside
        self._reference = reference
        self._registry = reference.domain
        self._host = _HOSTS.get(reference.domain, reference.domain)
        self._http = http
        self._clock = clock
        self._tls_verify = tls_verify
        self._aborted = threading.Event()
        self._downloads: set[Answer] = set()
        self._base = f"https://{self._host}" if tls_verify else ""
        self._authorizer = Authorizer(
            registry=self._registry,
            path=reference.path,
            credentials=credentials,
            fetch_token=self._fetch_token,
            clock=clock,
            plain_http=not tls_verify,
        )

    # What a pull reads.

    @property
    def given(self) -> str:
        """Empty: the name in a registry is the reference itself."""
        return ""

    def root(self) -> Document:
        """Return the manifest or index that the reference names; a digest in it is checked."""
        return self._manifest(self._reference.wanted, limits.MAX_MANIFEST_BYTES)

    def document(self, descriptor: Descriptor) -> Document:
        """Return a manifest by its descriptor; size and digest are checked."""
        document = self._manifest(str(descriptor.digest), descriptor.size)
        return document.checked(descriptor, f"manifest of {self._reference}")

    def copy_blob(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        """Write a blob; a connection that is cut goes on where it stopped."""
        attempt = cuts = 0
        while not writer.complete:
            before = writer.offset
            try:
                self._copy_once(descriptor, writer)
            except ConnectionLostError as lost:
                cuts += 1
                attempt = 1 if writer.offset > before else attempt + 1
                if not lost.transient or attempt >= limits.MAX_ATTEMPTS or cuts >= limits.MAX_CUTS:
                    raise self._lost(lost, f"after {writer.offset} of {descriptor.size} bytes") from lost
                self._clock.sleep(retry.delay(attempt, None))

    def abort(self) -> None:
        """End the downloads of other threads: no request, no wait and no read goes on."""
        self._aborted.set()
        self._clock.wake()
        for answer in self._downloads.copy():
            answer.interrupt()

    def _copy_once(self, descriptor: Descriptor, writer: BlobWriter) -> None:
        url = self._url("blobs", str(descriptor.digest))
        headers = {"Range": f"bytes={writer.offset}-"} if writer.offset else {}
        answer = self._ask("GET", url, headers, f"layer {descriptor.digest}", (200, 206, 416))
        self._downloads.add(answer)
        try:
            if answer.status == 416 or not _continues(answer, writer.offset):
                # The registry cannot continue (or not from there): once more from the start.
                writer.restart()
                if answer.status != 200:
                    raise ConnectionLostError(LossKind.CUT, "it does not continue where it was cut")
            while chunk := answer.read(limits.CHUNK_BYTES):
                writer.write(chunk)
        finally:
            self._downloads.discard(answer)
            answer.close()
        if not writer.complete:
            raise ConnectionLostError(LossKind.CUT, "the answer ended early")

    def _manifest(self, wanted: str, limit: int) -> Document:
        what = f"manifest {self._reference.repository}@{wanted}"
        url = self._url("manifests", wanted)
        body, media_type = self._body(url, {"Accept": ", ".join(ACCEPT)}, what, limit)
        if media_type.startswith("text/"):
            raise RegistryError(
                f"registry {self._registry} answered with {media_type[:80]!r}, expected a manifest",
                hint="something other than a registry listens there; check host, port and proxy",
                code="registry-garbage",
            )
        document = Document.of(body, media_type)
        if self._reference.digest is not None and wanted == str(self._reference.digest):
            document.check_digest(self._reference.digest, what)
        return document

    def _body(self, url: str, headers: Mapping[str, str], what: str, limit: int) -> tuple[bytes, str]:
        """Return a bounded body and its media type; a cut is repeated from the start."""
        attempt = 0
        while True:
            attempt += 1
            answer = self._ask("GET", url, headers, what, (200,))
            try:
                return _read_all(answer, limit, what), answer.header("content-type")
            except ConnectionLostError as lost:
                if not lost.transient or attempt >= limits.MAX_ATTEMPTS:
                    raise self._lost(lost, f"while it sent {what}") from lost
            finally:
                answer.close()
            self._clock.sleep(retry.delay(attempt, None))

    # What hangs on an image.

    def signatures(self, kinds: "Sequence[SignatureKind]", digests: Sequence[Digest]) -> "SignatureSet":
        """Return the signatures of the image with these digests; raises RegistryError."""
        from secrun.image.attached import search

        if self._beside is not None and not self._beside.attachments:
            kinds = [kind for kind in kinds if kind in _BESIDE]
        return search(self, kinds, digests)

    def tagged(self, tag: str) -> Document | None:
        """Return the manifest of another tag of the repository, None if there is none."""
        try:
            return self._manifest(tag, limits.MAX_MANIFEST_BYTES)
        except RegistryError as error:
            if error.code == "registry-not-found":
                return None
            raise

    def referrers(self, subject: Digest) -> "tuple[Referrer, ...]":
        """Return what says that it is about `subject`: by the API, else by the tag that stands in."""
        from secrun.image import artifact, attached

        found: list[Referrer] = []
        url = self._url("referrers", str(subject))
        seen: set[str] = set()
        while url and url not in seen and len(seen) < limits.MAX_REFERRER_PAGES:
            seen.add(url)
            page, url = self._referrers_page(url, subject)
            if page is None:
                fallback = self.tagged(attached.fallback_tag(subject))
                page = fallback.data if fallback else b'{"manifests":[]}'
            found += artifact.parse_referrers(page, what=f"referrers of {subject}")
        return tuple(found)

    def _referrers_page(self, url: str, subject: Digest) -> tuple[bytes | None, str]:
        """Return one page of referrers, None if the registry has no such API, and the URL of the next."""
        what = f"referrers of {subject}"
        answer = self._ask("GET", url, {"Accept": MediaType.OCI_INDEX}, what, (200, 404))
        try:
            if answer.status == 404:
                return None, ""
            body = _read_all(answer, limits.MAX_MANIFEST_BYTES, what)
            match = _NEXT_PAGE.search(answer.header("link"))
        except ConnectionLostError as lost:
            raise self._lost(lost, f"while it sent {what}") from lost
        finally:
            answer.close()
        following = urljoin(url, match[1]) if match else ""
        return body, following if _Origin.of(following) == _Origin.of(url) else ""

    def small_blob(self, descriptor: Descriptor) -> bytes:
        """Return a blob whose size was checked; raises ImageError if it is not what was promised."""
        what = f"blob {descriptor.digest}"
        body, _ = self._body(self._url("blobs", str(descriptor.digest)), {}, what, descriptor.size)
        return Document.of(body, "").checked(descriptor, what).data

    def messages(self, digest: Digest) -> Iterable[bytes]:
        """Return the OpenPGP signatures that a lookaside store has for a manifest of the repository."""
        return self._beside.messages(digest) if self._beside else ()

    # What a push writes.

    def exists(self, kind: str, name: str) -> bool:
        """Tell whether the repository has a blob or a manifest (`kind`, as in URLs)."""
        headers = {"Accept": ", ".join(ACCEPT)}
        answer = self._ask("HEAD", self._url(kind, name), headers, f"{kind} {name}", (200, 404))
        answer.close()
        return answer.status == 200

    def put_blob(self, digest: Digest, upload: Upload) -> None:
        """Upload a blob in one piece unless the repository has it; raises RegistryError."""
        if self.exists("blobs", str(digest)):
            return
        what = f"upload of {digest}"
        start = self._url("blobs", "uploads/")
        answer = self._ask("POST", start, {"Content-Length": "0"}, what, (202,))
        location = urljoin(start, answer.header("location"))
        answer.close()
        if _Origin.of(location) != _Origin.of(start):
            # The login that goes along is for this registry alone.
            raise RegistryError(
                f"registry {self._registry} wants uploads elsewhere: {urlsplit(location).netloc[:99]!r}",
                hint="push to a registry that takes uploads itself",
                code="registry-redirect",
            )
        url = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        self._ask("PUT", url, headers, what, (201,), upload=upload).close()

    def put_manifest(self, name: str, media_type: str, upload: Upload) -> bool:
        """Upload a manifest as tag or digest `name`; tell whether the registry lists it with its subject."""
        url, what = self._url("manifests", name), f"manifest {self._reference.repository}:{name}"
        answer = self._ask("PUT", url, {"Content-Type": media_type}, what, (201,), upload=upload)
        answer.close()
        return bool(answer.header("oci-subject"))

    # How it is asked.

    def _url(self, kind: str, name: str) -> str:
        if not self._base:
            self._base = self._find_base()
        return f"{self._base}/v2/{self._reference.path}/{kind}/{name}"

    def _find_base(self) -> str:
        """Without TLS verification: https if it answers, else plain http, as podman tries them."""
        try:
            self._http.request("GET", f"https://{self._host}/v2/", {}).close()
        except ConnectionLostError as lost:
            if lost.kind in (LossKind.RESOLVE, LossKind.REFUSED):
                raise self._lost(lost, "") from lost
            return f"http://{self._host}"
        return f"https://{self._host}"

    def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        what: str,
        good: tuple[int, ...],
        *,
        upload: Upload | None = None,
    ) -> Answer:
        """Return an answer whose status is in `good`; repeats what is worth it; raises RegistryError."""
        attempt = 0
        while True:
            attempt += 1
            asked: float | None = None
            try:
                answer = self._authorized(method, url, headers, upload)
            except ConnectionLostError as lost:
                if not lost.transient or attempt >= limits.MAX_ATTEMPTS:
                    raise self._lost(lost, "") from lost
            else:
                if answer.status in good:
                    return answer
                try:
                    if answer.status not in retry.TRANSIENT_STATUSES or attempt >= limits.MAX_ATTEMPTS:
                        raise self._refused(answer, what, attempt)
                    asked = retry.parse_retry_after(answer.header("retry-after"), self._clock.wall())
                finally:
                    answer.close()
            self._clock.sleep(retry.delay(attempt, asked))

    def _authorized(
        self, method: str, url: str, headers: Mapping[str, str], upload: Upload | None = None
    ) -> Answer:
        """Send with what authorization there is; answer a 401 once."""
        sent = self._authorizer.header()
        answer = self._follow(method, url, headers, sent, upload)
        if answer.status != 401:
            return answer
        offer = answer.header("www-authenticate")
        answer.close()
        renewed = self._authorizer.answer(offer, sent)
        answer = self._follow(method, url, headers, renewed, upload)
        if answer.status == 401:
            answer.close()
            raise unauthorized(self._registry, self._reference.path, known=self._authorizer.known)
        return answer

    def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str,
        upload: Upload | None = None,
    ) -> Answer:
        """Send and follow redirects; the Authorization header stays with the host that it is for."""
        home = _Origin.of(url)
        for _ in range(limits.MAX_REDIRECTS + 1):
            if self._aborted.is_set():
                raise CancelledError("cancelled")
            own = {"Authorization": authorization} if authorization and _Origin.of(url) == home else {}
            answer = self._send(method, url, {**headers, **own}, upload)
            if answer.status not in _REDIRECTS:
                return answer
            location = answer.header("location")
            answer.close()
            url = self._redirected(url, location)
        raise RegistryError(
            f"registry {self._registry} redirects more than {limits.MAX_REDIRECTS} times",
            code="registry-redirect",
        )

    def _send(self, method: str, url: str, headers: Mapping[str, str], upload: Upload | None) -> Answer:
        if upload is None:
            return self._http.request(method, url, headers)
        return self._http.send(method, url, headers, upload)

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        parts = urlsplit(target)
        allowed = parts.scheme == "https" or (parts.scheme == "http" and not self._tls_verify)
        if not location or not allowed or not parts.hostname or "@" in parts.netloc:
            # Query strings of storage URLs are signed and count as secrets.
            raise RegistryError(
                f"registry {self._registry} redirects to {target.partition('?')[0][:200]!r}"
                if "@" not in parts.netloc
                else f"registry {self._registry} redirects to an address with a password",
                hint="only https is followed, and http only with --tls-verify=false",
                code="registry-redirect",
            )
        return target

    def _fetch_token(self, url: str, headers: dict[str, str]) -> bytes:
        """Fetch from the token server; the same retries, but no challenge is answered there."""
        attempt = 0
        server = urlsplit(url).netloc[:100]
        while True:
            attempt += 1
            asked: float | None = None
            answer: Answer | None = None
            try:
                answer = self._follow("GET", url, {}, headers.get("Authorization", ""))
                if answer.status == 200:
                    return _read_all(answer, limits.MAX_TOKEN_BYTES, f"token server {server}")
                if answer.status not in retry.TRANSIENT_STATUSES or attempt >= limits.MAX_ATTEMPTS:
                    raise self._token_refused(answer.status, server, known=bool(headers))
                asked = retry.parse_retry_after(answer.header("retry-after"), self._clock.wall())
            except ConnectionLostError as lost:
                if not lost.transient or attempt >= limits.MAX_ATTEMPTS:
                    raise RegistryError(
                        f"token server {server} of {self._registry}: {lost.reason}", code="registry-token"
                    ) from lost
            finally:
                if answer is not None:
                    answer.close()
            self._clock.sleep(retry.delay(attempt, asked))

    # What is said when it fails.

    def _token_refused(self, status: int, server: str, *, known: bool) -> RegistryError:
        if status in (401, 403):
            return unauthorized(self._registry, self._reference.path, known=known)
        return RegistryError(
            f"token server {server} of {self._registry} answered {status}", code="registry-token"
        )

    def _lost(self, lost: ConnectionLostError, when: str) -> RegistryError:
        text = f"registry {self._registry}: {lost.reason}{f' {when}' if when else ''}"
        if lost.kind is LossKind.TLS:
            hint = (
                f"put a private authority into /etc/containers/certs.d/{self._registry}/ca.crt; a registry "
                "without TLS needs --tls-verify=false, which gives up all protection"
            )
            return RegistryError(text, hint=hint, code="registry-tls")
        if lost.kind in (LossKind.RESOLVE, LossKind.REFUSED):
            hint = "check the registry's name and port, and the proxy variables"
            return RegistryError(text, hint=hint, code="registry-unreachable")
        return RegistryError(text, hint="try again later", code="registry-cut")

    def _refused(self, answer: Answer, what: str, attempts: int) -> RegistryError:
        said = self._authorizer.redact(_registry_words(answer))
        tries = f" after {attempts} tries" if attempts > 1 else ""
        end = f"{what} (HTTP {answer.status}{tries}){f': {said}' if said else ''}"
        who = f"registry {self._registry}"
        if answer.status == 403:
            hint = "check that your account may pull it"
            return RegistryError(f"{who} denies access to {end}", hint=hint, code="registry-denied")
        if answer.status == 404:
            return RegistryError(
                f"{who} does not have {end}", hint="check name and tag", code="registry-not-found"
            )
        if answer.status == 429:
            hint = "wait, or log in for a higher limit"
            return RegistryError(f"{who} limits our rate for {end}", hint=hint, code="registry-rate")
        return RegistryError(f"{who} fails on {end}", hint="try again later", code="registry-status")


def _continues(answer: Answer, offset: int) -> bool:
    """Tell whether the body starts at `offset`; a whole answer does if nothing was read yet."""
    if answer.status == 200:
        return offset == 0
    match = _CONTENT_RANGE.match(answer.header("content-range"))
    return match is not None and int(match[1]) == offset


def _read_all(answer: Answer, limit: int, what: str) -> bytes:
    chunks: list[bytes] = []
    total = 0
    while chunk := answer.read(limits.CHUNK_BYTES):
        total += len(chunk)
        if total > limit:
            raise ImageError(f"{what} is larger than {limit} bytes", code="image-limit")
        chunks.append(chunk)
    return b"".join(chunks)


def _registry_words(answer: Answer) -> str:
    """Return the codes and texts of an error answer (distribution spec, error codes), printable."""
    try:
        body = _read_all(answer, limits.MAX_ERROR_BYTES, "error answer")
        document = parse_object(body, what="error answer", limit=limits.MAX_ERROR_BYTES)
    except (ImageError, ConnectionLostError):
        return ""
    errors = document.get("errors")
    words: list[str] = []
    for item in errors[:3] if isinstance(errors, list) else ():
        if isinstance(item, dict):
            code, message = item.get("code"), item.get("message")
            if isinstance(code, str) and _ERROR_CODE.match(code):
                words.append(code)
            if isinstance(message, str):
                words.append("".join(char for char in message[:200] if char.isprintable()))
    return " ".join(words)
