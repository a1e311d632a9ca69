"""The HTTP door: routes on starlette, and limits, identity, errors and a log line around each handler."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from secrun_attest.errors import FormatError
from secrun_attest.rejection import RejectedError
from secrun_attest.service.auth import Authenticator, Peer, Principal, Role, check_allowed
from secrun_attest.service.call import PROBLEM, Call, Reply
from secrun_attest.service.config import Limits
from secrun_attest.service.database import damaged
from secrun_attest.service.metrics import Metrics
from secrun_attest.service.rate import Buckets, Gate
from secrun_attest.service.routes import Route, Size
from secrun_attest.service.trouble import ServiceError, Trouble, problem, status_of, to_json

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

# Below this an appraisal takes a few milliseconds, less than handing it to a thread and fighting for the
# interpreter's lock would cost the others.
INLINE_BYTES = 256 << 10
# Where the server's protocol leaves the client's certificate.
PEER_STATE = "peer"

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
}
_P = ParamSpec("_P")
_T = TypeVar("_T")

_JSON_TYPES = ("application/json",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What stands between a socket and a handler."""

    limits: Limits
    authenticator: Authenticator
    metrics: Metrics
    gate: Gate
    peers: Buckets
    hosts: Buckets
    tokens: Buckets
    executor: Executor
    inline: bool
    log: Callable[[str], None]
    clock: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic

    async def admit(self, request: "Request", route: Route) -> Principal:
        """Find out who it is and whether they may; who shows no valid credentials counts for its address."""
        address = _address(request)
        peer: Peer | None = getattr(request.state, PEER_STATE, None)
        shown = request.headers.get("authorization")
        try:
            principal = await self.run(self.inline, self.authenticator.identify, shown, peer)
            if principal.role is Role.ANYONE:
                self.peers.take(address, self.steady())
            check_allowed(principal, route.allowed)
        except ServiceError as error:
            if error.trouble is Trouble.AUTH and shown is not None:
                self.peers.take(address, self.steady())
            raise
        if principal.role is Role.HOST:
            self.hosts.take(principal.host, self.steady())
        elif principal.role is not Role.ANYONE:
            self.tokens.take(f"{principal.role} {address}", self.steady())
        return principal

    async def handle(self, request: "Request", route: Route, principal: Principal) -> Reply:
        """Read the body and run the handler."""
        body = b""
        limit = route.size.limit(self.limits)
        declared = _declared(request, route, limit)
        with self.gate.enter(declared):
            if route.size is not Size.NONE:
                body = await _read(request, limit, self.limits.body_seconds)
            call = Call(
                principal=principal,
                path=request.path_params,
                query=dict(request.query_params),
                body=body,
                now=int(self.clock()),
            )
            return await self.run(self.inline and len(body) <= INLINE_BYTES, route.handler, call)

    async def run(self, here: bool, what: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:  # noqa: FBT001 - like run_in_executor
        """Call a function, in a thread unless it is quick."""
        if here:
            return what(*args, **kwargs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, partial(what, *args, **kwargs))

    async def answer(self, request: "Request", route: Route) -> Reply:
        """Answer one request, whatever comes of it, and log it."""
        begin, principal, code = self.steady(), Principal(role=Role.ANYONE), ""
        try:
            principal = await self.admit(request, route)
            reply = await self.handle(request, route, principal)
        except (ServiceError, RejectedError) as error:
            reply, code = refusal(error), error.code
        except FormatError as error:
            # Handlers answer for what is malformed in a request; this is something that they had stored.
            reply, code = refusal(damaged(error.message)), Trouble.DATABASE.value
        self.metrics.request(route.method, route.path, reply.status)
        seconds = self.steady() - begin
        self._log(request, route, principal, status=reply.status, code=code, seconds=seconds)
        return reply

    def _log(
        self,
        request: "Request",
        route: Route,
        principal: Principal,
        *,
        status: int,
        code: str,
        seconds: float,
    ) -> None:
        # Neither headers nor the query: tokens come in one, nonces in the other.
        line = {
            "t": round(self.clock(), 3),
            "peer": _address(request),
            "method": route.method,
            "route": route.path,
            "path": dict(request.path_params),
            "status": status,
            "ms": round(seconds * 1000, 1),
            "who": principal.role.value,
            "host": principal.host,
            "code": code,
        }
        self.log(json.dumps(line, separators=(",", ":")))


def refusal(error: ServiceError | RejectedError) -> Reply:
    """Return the answer that says why not."""
    headers = {}
    if isinstance(error, ServiceError):
        if error.retry_after:
            headers["retry-after"] = str(error.retry_after)
        if error.trouble is Trouble.AUTH:
            headers["www-authenticate"] = 'Bearer realm="secrun-verifier"'
    return Reply(status=status_of(error), body=to_json(problem(error)), media=PROBLEM, headers=headers)


def _address(request: "Request") -> str:
    return request.client.host if request.client else "unix"


def _declared(request: "Request", route: Route, limit: int) -> int:
    """Return how large the body says it is, before a byte of it is read; raises ServiceError 413 and 415."""
    if route.size is Size.NONE:
        return 0
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in _JSON_TYPES:
        raise ServiceError(Trouble.MEDIA_TYPE, f"the body is {media[:80]!r}, expected application/json")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise ServiceError(Trouble.MEDIA_TYPE, "the body is encoded, expected it as it is")
    length = request.headers.get("content-length")
    if length is None:
        return limit  # chunked: it may become as large as that
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else limit + 1
    if size > limit:
        raise _too_large(length[:20], limit)
    return size


def _too_large(size: object, limit: int) -> ServiceError:
    return ServiceError(Trouble.TOO_LARGE, f"the body has {size} bytes, the limit is {limit}")


async def _read(request: "Request", limit: int, seconds: float) -> bytes:
    from starlette.requests import ClientDisconnect

    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(f"more than {size - len(part)}", limit)
                parts.append(part)
    except TimeoutError:
        raise ServiceError(Trouble.TIMEOUT, f"the body did not come within {seconds:g} s") from None
    except ClientDisconnect:  # nobody reads the answer; the log does
        raise ServiceError(Trouble.TIMEOUT, f"the client left after {size} bytes of the body") from None
    return b"".join(parts)


def make_app(door: Door, table: Sequence[Route]) -> "Starlette":
    """Return the application; every path of `table` answers its methods, and 405 to others."""
    from starlette.applications import Starlette
    from starlette.routing import Route as StarletteRoute

    routes = []
    for path in dict.fromkeys(route.path for route in table):
        known = {route.method: route for route in table if route.path == path}
        routes.append(StarletteRoute(path, _endpoint(door, known), methods=list(known)))
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _no_method})


def _endpoint(door: Door, known: dict[str, Route]) -> "Callable[[Request], Awaitable[Response]]":
    async def endpoint(request: "Request") -> "Response":
        # starlette sends HEAD where GET is; the server leaves the body out.
        method = "GET" if request.method == "HEAD" else request.method
        return _response(await door.answer(request, known[method]))

    return endpoint


async def _not_found(request: "Request", _error: Exception) -> "Response":
    return _response(refusal(ServiceError(Trouble.NOT_FOUND, f"there is no {request.url.path[:200]!r}")))


async def _no_method(request: "Request", error: Exception) -> "Response":
    allow = dict(getattr(error, "headers", None) or {})
    text = f"{request.method[:20]} is not for {request.url.path[:200]!r}"
    return _response(refusal(ServiceError(Trouble.METHOD, text)), allow)


def _response(reply: Reply, extra: dict[str, str] | None = None) -> "Response":
    from starlette.responses import Response

    headers = {**SECURITY_HEADERS, **reply.headers, **(extra or {})}
    return Response(reply.body, status_code=reply.status, media_type=reply.media, headers=headers)
