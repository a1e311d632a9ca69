"""The server's side of a socket: uvicorn's protocol with bounds on headers, and the client's certificate.

Imports uvicorn: import this where the server starts, not before.
"""

import asyncio
import hashlib
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIGHUP, SIGINT, SIGTERM

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from secrun_attest.service.asgi import PEER_STATE
from secrun_attest.service.auth import Peer

# Ours have a token of 43 characters and an id in the path.
MAX_HEADERS = 16 << 10
HEADER_SECONDS = 10.0
# TLS ends with a word from each side; asyncio waits 30 s for the other's.
GOODBYE_SECONDS = 0.2


class HeadersError(Exception):
    """A request line or its headers are too long; the parser answers 400."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _headers = 0
    _timer: asyncio.TimerHandle | None = None
    _stopping = False
    _answering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own does
        """Take the client's certificate along to every request of this connection."""
        super().connection_made(transport)
        peer = peer_of(transport.get_extra_info("ssl_object"))
        self.app_state = {**self.app_state, PEER_STATE: peer}
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Count anew with each request."""
        self._headers = 0
        self._wait_for_headers()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Bound the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bound all headers together."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop waiting: the body has a deadline of its own."""
        self._stop_waiting()
        self._answering = True
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Close after an answer that did not wait for the body, rather than read what nobody wants."""
        self._answering = False
        unread = self.cycle.more_body
        super().on_response_complete()
        if unread and not self.transport.is_closing():
            self.transport.close()
        if self._stopping:
            self._leave()

    def shutdown(self) -> None:
        """Finish what is in work, then leave."""
        self._stopping = True
        super().shutdown()
        if not self._answering:
            self._leave()

    def _leave(self) -> None:
        """Close without the client's goodbye, which an idle one does not say, once all is sent."""
        if self.transport.get_write_buffer_size() == 0:
            self.loop.call_later(GOODBYE_SECONDS, self.transport.abort)
        else:
            self.loop.call_later(GOODBYE_SECONDS, self._leave)

    def _count(self, size: int) -> None:
        self._headers += size
        if self._headers > MAX_HEADERS:
            raise HeadersError

    def _wait_for_headers(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def peer_of(channel: ssl.SSLObject | None) -> Peer | None:
    """Return the client certificate that this TLS connection has verified."""
    if channel is None or not (der := channel.getpeercert(binary_form=True)):
        return None
    found = channel.getpeercert() or {}
    names = found.get("subjectAltName", ())
    dns = tuple(str(pair[1]) for pair in names if isinstance(pair, tuple) and pair[0] == "DNS")
    return Peer(digest=hashlib.sha256(der).digest(), names=dns)


class GracefulServer(Server):
    """Ends with SIGTERM and SIGINT by finishing what is in work; SIGHUP reads the certificate anew."""

    def __init__(self, config: Config, reload: Callable[[], None]) -> None:
        super().__init__(config)
        self._reload = reload

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals by the loop; uvicorn's own would end the process with the signal it caught."""
        loop = asyncio.get_running_loop()
        for number in (SIGTERM, SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in (SIGTERM, SIGINT, SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.should_exit = True
