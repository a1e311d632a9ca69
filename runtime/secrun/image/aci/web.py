"""Read addresses of app container images: https alone unless somebody said otherwise, bounded, retried."""

from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

from secrun.errors import ImageError, RegistryError
from secrun.image import limits as image_limits
from secrun.image import retry
from secrun.image.aci import limits
from secrun.image.retry import Clock
from secrun.image.wire import Answer, ConnectionLostError, HttpClient, LossKind
from secrun.record import record

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK, _UNCHANGED = 200, 304
_CLIENT_ERRORS = range(400, 500)


@record
class Body:
    """What came: where from in the end, and what tells this state of it again."""

    data: bytes
    tag: str


class Web:
    """Fetches what is at an address; `http` allows addresses without TLS."""

    def __init__(self, client: HttpClient, clock: Clock, *, http: bool) -> None:
        self._client = client
        self._clock = clock
        self._http = http

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that may be used, the better first."""
        return ("https", "http") if self._http else ("https",)

    def check(self, url: str) -> None:
        """Raise RegistryError for an address without TLS."""
        if urlsplit(url).scheme not in self.schemes:
            raise RegistryError(
                f"{_shown(url)} is not https",
                hint="--insecure-options=http reads it without TLS; signatures count as before",
                code="registry-http",
            )

    def page(self, url: str) -> bytes | None:
        """Return a page, None if the server has none (4xx)."""
        answer = self._answered(url, {})
        try:
            if answer.status in _CLIENT_ERRORS:
                return None
            self._expect(answer, url)
            return _read(answer, limits.MAX_PAGE_BYTES, url)
        finally:
            answer.close()

    def small(self, url: str, limit: int) -> bytes | None:
        """Return a small file, None if there is none (404)."""
        answer = self._answered(url, {})
        try:
            if answer.status == 404:
                return None
            self._expect(answer, url)
            return _read(answer, limit, url)
        finally:
            answer.close()

    def download(
        self, url: str, sink: Callable[[bytes], None], *, limit: int, known: str = ""
    ) -> str | None:
        """Hand a file to `sink`; return its ETag, or None if it is still the one of the ETag `known`.

        Raises RegistryError if the server fails, ImageError for more than `limit` bytes.
        """
        answer = self._answered(url, {"If-None-Match": known} if known else {})
        try:
            if known and answer.status == _UNCHANGED:
                return None
            self._expect(answer, url)
            total = 0
            while chunk := _chunk(answer, url):
                total += len(chunk)
                if total > limit:
                    raise _too_large(url, limit)
                sink(chunk)
            length = answer.header("content-length")
            if length.isdecimal() and int(length) != total:
                raise RegistryError(f"{_shown(url)}: the answer ended early", code="registry-cut")
            return answer.header("etag")
        finally:
            answer.close()

    def _answered(self, url: str, headers: dict[str, str]) -> Answer:
        """Ask, following redirects and trying again what may be better a moment later."""
        for attempt in range(1, image_limits.MAX_ATTEMPTS + 1):
            last = attempt == image_limits.MAX_ATTEMPTS
            try:
                answer = self._follow(url, headers)
            except ConnectionLostError as lost:
                if last or not lost.transient:
                    raise _lost(url, lost) from lost
                self._clock.sleep(retry.delay(attempt, None))
                continue
            if last or answer.status not in retry.TRANSIENT_STATUSES:
                return answer
            asked = retry.parse_retry_after(answer.header("retry-after"), self._clock.wall())
            answer.close()
            self._clock.sleep(retry.delay(attempt, asked))
        raise AssertionError("unreachable")

    def _follow(self, url: str, headers: dict[str, str]) -> Answer:
        for _ in range(limits.MAX_REDIRECTS + 1):
            self.check(url)
            answer = self._client.request("GET", url, headers)
            if answer.status not in _REDIRECTS:
                return answer
            location = answer.header("location")
            answer.close()
            url = self._redirected(url, location)
        raise RegistryError(
            f"{_shown(url)}: more than {limits.MAX_REDIRECTS} redirects", code="registry-redirect"
        )

    def _redirected(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        parts = urlsplit(target)
        if not location or not parts.hostname or "@" in parts.netloc or not target.isprintable():
            raise RegistryError(f"{_shown(url)} redirects to nothing", code="registry-redirect")
        if urlsplit(url).scheme == "https" and parts.scheme != "https":
            raise RegistryError(
                f"{_shown(url)} redirects to {_shown(target)}, which is not https",
                hint="https is never left; ask for the other address itself if you trust it",
                code="registry-redirect",
            )
        return target

    @staticmethod
    def _expect(answer: Answer, url: str) -> None:
        if answer.status != _OK:
            code = "registry-not-found" if answer.status == 404 else "registry-status"
            raise RegistryError(f"{_shown(url)}: HTTP {answer.status}", hint="check the address", code=code)


def _shown(url: str) -> str:
    # Query strings of storage addresses may be signed and count as secrets.
    return url.partition("?")[0][:200]


def _lost(url: str, lost: ConnectionLostError) -> RegistryError:
    if lost.kind is LossKind.TLS:
        host = urlsplit(url).netloc
        hint = f"put a private authority into /etc/containers/certs.d/{host}/ca.crt"
        return RegistryError(f"{_shown(url)}: {lost.reason}", hint=hint, code="registry-tls")
    code = "registry-unreachable" if lost.kind in (LossKind.RESOLVE, LossKind.REFUSED) else "registry-cut"
    return RegistryError(f"{_shown(url)}: {lost.reason}", hint="check the address", code=code)


def _too_large(url: str, limit: int) -> ImageError:
    return ImageError(f"{_shown(url)} is larger than {limit} bytes", code="image-limit")


def _chunk(answer: Answer, url: str) -> bytes:
    try:
        return answer.read(image_limits.CHUNK_BYTES)
    except ConnectionLostError as lost:
        raise _lost(url, lost) from lost


def _read(answer: Answer, limit: int, url: str) -> bytes:
    pieces: list[bytes] = []
    total = 0
    while chunk := _chunk(answer, url):
        total += len(chunk)
        if total > limit:
            raise _too_large(url, limit)
        pieces.append(chunk)
    return b"".join(pieces)
