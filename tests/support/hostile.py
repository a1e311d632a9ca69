"""A scripted HTTP server on loopback: it answers whatever a test wants, also what no server may."""

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the client sent."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What to answer.

    `length` overrides Content-Length, `endless` sends the body again and again, and `stall` keeps the
    connection open after the body until it is set.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    endless: bool = False
    stall: threading.Event | None = None


class Hostile:
    """The server's memory: what it was asked, and its replies by path (the last one of a list repeats)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[Request] = []
        self.replies: dict[str, list[Reply] | Callable[[Request], Reply]] = {}

    def asked(self, path: str) -> list[Request]:
        """Return the requests for a path, its query cut off."""
        return [request for request in self.requests if request.path.partition("?")[0] == path]

    def answer(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        self.requests.append(request)
        scripted = self.replies.get(path)
        if scripted is None:
            return Reply(status=404, body=b"{}")
        if callable(scripted):
            return scripted(request)
        count = len(self.asked(path))
        return scripted[min(count, len(scripted)) - 1]


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data = b""
        while _END not in data:
            chunk = self.request.recv(65536)
            data += chunk
            # A TLS client that tries this port is hung up on, as a plain HTTP server does.
            if not chunk or data[:1] == b"\x16":
                return
        head = data.partition(_END)[0].decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
        }
        hostile: Hostile = self.server.hostile  # type: ignore[attr-defined]  # set in `hostile_server`
        self._send(hostile.answer(Request(method=method, path=path, headers=headers)))

    def _send(self, reply: Reply) -> None:
        length = len(reply.body) if reply.length is None else reply.length
        fields = {"Content-Length": str(length), "Connection": "close", **reply.headers}
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{name}: {value}" for name, value in fields.items())]
        with contextlib.suppress(OSError):
            self.request.sendall("\r\n".join(lines).encode("latin-1") + _END + reply.body)
            if reply.stall is not None:
                reply.stall.wait()
            while reply.endless:
                self.request.sendall(reply.body)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextlib.contextmanager
def hostile_server() -> Iterator[Hostile]:
    """Serve on a free loopback port until the block ends."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        hostile = Hostile(f"127.0.0.1:{server.server_address[1]}")
        server.hostile = hostile  # type: ignore[attr-defined]  # the handler finds it there
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hostile
        finally:
            server.shutdown()
            thread.join()


class FakeClock:
    """A clock that only moves when somebody sleeps; `slept` holds every wait in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000 + self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def wake(self) -> None:
        raise AssertionError("nobody aborts here")
