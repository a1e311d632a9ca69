"""HTTP to a verifier: one request, one bounded answer, one deadline.

Nothing is followed, repeated or remembered here. The standard library's client rather than a pool: each
byte from the first of the handshake on must fall under the same deadline, or a server that drips holds the
caller for ever.
"""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from secrun import __version__
from secrun.errors import VerifierError
from secrun.image.retry import parse_retry_after
from secrun.measure.verifieraddress import Address, TlsFiles, is_loopback
from secrun.record import record

# An appraisal of the largest evidence takes some seconds, its way over a slow line many more.
REQUEST_SECONDS = 60.0
CONNECT_SECONDS = 10.0
USER_AGENT = f"secrun/{__version__}"
_REDIRECTS = range(300, 400)
# How a connection ends that somebody cuts; the others of their families are words of another protocol.
_CUT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, http.client.RemoteDisconnected, http.client.IncompleteRead)

# Codes of errors that may have gone a moment later.
TRANSIENT = frozenset({"verifier-away", "verifier-timeout", "verifier-cut"})


@record
class Answer:
    """One answer; `retry_after` is in seconds."""

    status: int
    body: bytes
    retry_after: float | None = None


class Client(Protocol):
    """What the protocol needs of HTTP."""

    def post(self, path: str, body: bytes, *, token: str, limit: int) -> Answer:
        """Send JSON and return the answer of at most `limit` bytes; raises VerifierError."""


class VerifierClient:
    """A verifier's door; `stop` ends what waits in it, now and from now on."""

    def __init__(self, address: Address, files: TlsFiles, *, seconds: float = REQUEST_SECONDS) -> None:
        self._address = address
        self._files = files
        self._seconds = seconds
        self._context = None if address.plain else files.context()
        self._live: socket.socket | None = None
        self._late = False
        self._stopped = False

    def stop(self) -> None:
        """End the present request and refuse others; may be called by a signal's handler."""
        self._stopped = True
        self._hang_up()

    def post(self, path: str, body: bytes, *, token: str, limit: int) -> Answer:
        """Send JSON and return the answer of at most `limit` bytes.

        Raises VerifierError: `verifier-away`, `-timeout` and `-cut` may have gone a moment later; `-tls`,
        `-redirect` and `-answer` have not.
        """
        headers = {
            "Host": self._address.authority,
            "User-Agent": USER_AGENT,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "Connection": "close",
        }
        if token:
            headers["Authorization"] = f"Bearer {token}"
        with self._deadline(), self._translated(), contextlib.closing(self._connection()) as connection:
            # Who refuses a body early answers and hangs up while we still send: the answer says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", self._address.prefix + path, body=body, headers=headers)
            response = connection.getresponse()
            data = response.read(limit + 1)
            if len(data) <= limit and response.length:
                raise http.client.IncompleteRead(data, response.length)
            self._check(response.status, len(data), limit)
            asked = parse_retry_after(response.getheader("Retry-After") or "", time.time())
            return Answer(status=response.status, body=data, retry_after=asked)

    def _check(self, status: int, size: int, limit: int) -> None:
        if self._late or self._stopped:
            raise TimeoutError
        if status in _REDIRECTS:
            raise VerifierError(
                self._say(f"answers with a redirect ({status}), and redirects are not followed"),
                hint="give the verifier's own address to --verifier",
                code="verifier-redirect",
            )
        if size > limit:
            said = self._say(f"answers with more than {limit} bytes")
            raise VerifierError(said, hint="is it a verifier?", code="verifier-answer")

    def _connection(self) -> http.client.HTTPConnection:
        place = (self._address.host, self._address.port)
        raw = self._adopt(socket.create_connection(place, timeout=min(CONNECT_SECONDS, self._seconds)))
        raw.settimeout(self._seconds)
        if self._context is None:
            if not is_loopback(raw.getpeername()[0]):
                said = self._say("is not on this machine")
                raise VerifierError(said, hint="use https://", code="verifier-tls")
        else:
            tls = self._context.wrap_socket(
                raw, server_hostname=self._address.host, do_handshake_on_connect=False
            )
            raw = self._adopt(tls)
            tls.do_handshake()
        connection = http.client.HTTPConnection(*place)
        connection.sock = raw
        return connection

    def _adopt(self, made: socket.socket) -> socket.socket:
        self._live = made
        if self._late or self._stopped:
            raise TimeoutError
        return made

    def _hang_up(self) -> None:
        live = self._live
        if live is not None:
            # The plain function: that of a TLS socket forgets its keys under the reader's hands.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(live, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _deadline(self) -> Iterator[None]:
        def expire() -> None:
            self._late = True
            self._hang_up()

        self._late = False
        timer = threading.Timer(self._seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            live, self._live = self._live, None
            if live is not None:
                live.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what the library and the system raise into VerifierError."""
        try:
            yield
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._meaning(error) from error

    def _meaning(self, error: Exception) -> VerifierError:
        if self._stopped:
            return VerifierError(self._say("is not waited for any more"), code="verifier-cut")
        if self._late or isinstance(error, TimeoutError):
            said = self._say(f"does not answer within {self._seconds:.0f} s")
            return VerifierError(said, code="verifier-timeout")
        if isinstance(error, socket.gaierror):
            return VerifierError(self._say("has a name that does not resolve"), code="verifier-away")
        if self._live is None:
            reason = (error.strerror if isinstance(error, OSError) else None) or "no reason"
            said = self._say(f"cannot be reached: {reason}")
            return VerifierError(said, hint="is it running?", code="verifier-away")
        if isinstance(error, ssl.SSLError) and not isinstance(error, _CUT):
            return self._tls(error)
        if isinstance(error, http.client.HTTPException | ValueError) and not isinstance(error, _CUT):
            said = self._say("answers with something that is not HTTP")
            return VerifierError(said, hint="is it a verifier?", code="verifier-answer")
        hint = "does it know the CA of --cert?" if self._files.certificate else ""
        return VerifierError(self._say("cut the connection"), hint=hint, code="verifier-cut")

    def _tls(self, error: ssl.SSLError) -> VerifierError:
        if isinstance(error, ssl.SSLCertVerificationError):
            said = self._say(f"shows a certificate that is not accepted: {error.verify_message}")
            return VerifierError(said, hint="give the CA that signed it: --ca FILE", code="verifier-tls")
        said = self._say(f"does not speak TLS with us: {error.reason or 'no reason'}")
        return VerifierError(
            said, hint="does it want a client certificate? --cert, --key", code="verifier-tls"
        )

    def _say(self, what: str) -> str:
        return f"the verifier {self._address.text} {what}"
