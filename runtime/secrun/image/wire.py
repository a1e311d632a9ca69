"""HTTP as the registry client sees it: a small protocol, and its one implementation on urllib3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import urlsplit

from secrun import __version__
from secrun.image import limits
from secrun.image.certs import CertificateDirs, Certificates, folder_name
from secrun.image.proxy import ProxySettings
from secrun.record import row

if TYPE_CHECKING:
    import ssl

    from urllib3 import BaseHTTPResponse, PoolManager

USER_AGENT = f"secrun/{__version__}"


class LossKind(StrEnum):
    """Why there is no answer, or no more of it."""

    REFUSED = "refused"
    RESOLVE = "resolve"
    TLS = "tls"
    TIMEOUT = "timeout"
    CUT = "cut"


class ConnectionLostError(Exception):
    """There is no answer; `kind` decides whether another try makes sense. Stays inside the client."""

    def __init__(self, kind: LossKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self.kind in (LossKind.TIMEOUT, LossKind.CUT)


class Answer(Protocol):
    """One HTTP answer whose body is read in pieces; reading raises ConnectionLostError."""

    @property
    def status(self) -> int:
        """HTTP status code."""

    def header(self, name: str) -> str:
        """Return a header, several joined by `, `; empty if absent."""

    def read(self, amount: int) -> bytes:
        """Return at most `amount` bytes, empty at the end."""

    def close(self) -> None:
        """Give the connection back, or drop it if the body was not read to its end."""

    def interrupt(self) -> None:
        """End a `read` that waits in another thread: it raises or returns what there is."""


class HttpClient(Protocol):
    """Sends one request: no redirect followed, no retry, no credentials added."""

    def request(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        """Return the answer; raises ConnectionLostError if there is none."""


class Upload(Protocol):
    """Bytes to send; opened anew for each try."""

    @property
    def size(self) -> int:
        """Return how many bytes there are."""

    def open(self) -> BinaryIO:
        """Return a stream from the first byte."""


class SendingClient(HttpClient, Protocol):
    """Also sends bodies."""

    def send(self, method: str, url: str, headers: Mapping[str, str], upload: Upload) -> Answer:
        """Return the answer; raises ConnectionLostError if there is none."""


@row
class _UrllibAnswer:
    response: BaseHTTPResponse

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str:
        return ", ".join(self.response.headers.getlist(name))

    def read(self, amount: int) -> bytes:
        with _translated():
            return self.response.read(amount, decode_content=False)

    def close(self) -> None:
        # An unread body cannot be skipped cheaply: the connection goes with it.
        if not self.response.closed:
            self.response.close()
        self.response.release_conn()

    def interrupt(self) -> None:
        # Closed meanwhile, or never connected: then nobody waits.
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            self.response.shutdown()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn urllib3's and the system's errors into ConnectionLostError, without URLs: they hold secrets."""
    from urllib3 import exceptions

    try:
        yield
    except exceptions.SSLError as error:
        raise ConnectionLostError(LossKind.TLS, _tls_words(error)) from error
    except exceptions.NameResolutionError as error:
        raise ConnectionLostError(LossKind.RESOLVE, "its name does not resolve") from error
    except exceptions.NewConnectionError as error:
        raise ConnectionLostError(LossKind.REFUSED, "it does not accept connections") from error
    except exceptions.TimeoutError as error:
        raise ConnectionLostError(LossKind.TIMEOUT, "it does not answer in time") from error
    except exceptions.ProxyError as error:
        raise ConnectionLostError(LossKind.REFUSED, "the proxy does not let us through") from error
    except exceptions.LocationValueError as error:
        raise ConnectionLostError(LossKind.RESOLVE, "its address makes no URL") from error
    except (exceptions.HTTPError, OSError) as error:
        raise ConnectionLostError(LossKind.CUT, "the connection was cut") from error


def _tls_words(error: Exception) -> str:
    """Return what OpenSSL says, without addresses in memory and source lines."""
    text = str(error)
    for mark in ("CERTIFICATE_VERIFY_FAILED] ", "WRONG_VERSION_NUMBER] "):
        if mark in text:
            return "TLS: " + text.partition(mark)[2].partition(" (_ssl")[0]
    return "TLS: the handshake failed"


class UrllibClient:
    """HTTP on urllib3, with the certificates and the proxy of each host."""

    def __init__(self, *, tls_verify: bool, certificates: CertificateDirs, proxies: ProxySettings) -> None:
        if not tls_verify:
            from urllib3 import disable_warnings, exceptions

            # The user said so; a warning per request tells nothing new.
            disable_warnings(exceptions.InsecureRequestWarning)
        self._tls_verify = tls_verify
        self._certificates = certificates
        self._proxies = proxies
        self._pools: dict[tuple[str, str], PoolManager] = {}
        self._contexts: dict[str, ssl.SSLContext] | None = None

    def request(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        """Send one request; raises ConnectionLostError."""
        return self._request(method, url, headers, None)

    def send(self, method: str, url: str, headers: Mapping[str, str], upload: Upload) -> Answer:
        """Send one request with a body; raises ConnectionLostError."""
        with upload.open() as stream:
            return self._request(method, url, {**headers, "Content-Length": str(upload.size)}, stream)

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], body: BinaryIO | None
    ) -> _UrllibAnswer:
        from urllib3 import Timeout

        parts = urlsplit(url)
        pool = self._pool(parts.scheme, parts.netloc)
        with _translated():
            response = pool.request(
                method,
                url,
                body=body,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers},
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=Timeout(connect=limits.CONNECT_TIMEOUT, read=limits.READ_TIMEOUT),
            )
        return _UrllibAnswer(response)

    def _pool(self, scheme: str, netloc: str) -> PoolManager:
        # Threads may race here; the loser's pool is idle and is collected.
        key = (scheme, netloc)
        if key not in self._pools:
            self._pools[key] = self._new_pool(scheme, netloc)
        return self._pools[key]

    def _new_pool(self, scheme: str, netloc: str) -> PoolManager:
        from urllib3 import PoolManager, ProxyManager, make_headers

        size = limits.DOWNLOAD_THREADS + 2
        context = self._context(netloc) if scheme == "https" else None
        proxy = self._proxies.choose(scheme, netloc)
        if proxy is None:
            return PoolManager(num_pools=2, maxsize=size, ssl_context=context)
        secret = make_headers(proxy_basic_auth=proxy.credentials) if proxy.credentials else None
        return ProxyManager(proxy.url, num_pools=2, maxsize=size, ssl_context=context, proxy_headers=secret)

    def preload(self) -> None:
        """Read every certificate now: later no file with one may be readable."""
        hosts = self._certificates.hosts()
        contexts = {host: self._new_context(self._certificates.find(host)) for host in hosts}
        self._contexts = {**contexts, "": self._new_context(Certificates())}

    def _context(self, netloc: str) -> ssl.SSLContext:
        if self._contexts is None:
            return self._new_context(self._certificates.find(netloc))
        name = folder_name(netloc)
        return self._contexts[name if name in self._contexts else ""]

    def _new_context(self, found: Certificates) -> ssl.SSLContext:
        import ssl

        if self._tls_verify:
            context = ssl.create_default_context()
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for authority in found.authorities:
            context.load_verify_locations(cafile=authority)
        for certificate, key in found.clients:
            context.load_cert_chain(certificate, key)
        return context
