"""From a configuration to a running service: `build` puts the parts together, `serve` runs them."""

import asyncio
import hashlib
import json
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from secrun_attest.errors import FormatError
from secrun_attest.policy import Policy, parse_policy
from secrun_attest.service.asgi import Door, make_app
from secrun_attest.service.attestation import Attestor
from secrun_attest.service.auth import MIN_TOKEN, Authenticator, Role, token_hash
from secrun_attest.service.call import bad_request
from secrun_attest.service.config import ServiceConfig, Tls
from secrun_attest.service.database import open_database
from secrun_attest.service.ekcert import load_roots
from secrun_attest.service.enrolment import Enroller
from secrun_attest.service.keys import Keyring
from secrun_attest.service.metrics import Metrics
from secrun_attest.service.pages import Viewer
from secrun_attest.service.policies import Opener, Policies
from secrun_attest.service.public import Desk
from secrun_attest.service.rate import Buckets, Gate
from secrun_attest.service.routes import ADMIN, PUBLIC, Handlers, Route, routes
from secrun_attest.service.store import Store
from secrun_attest.service.trouble import ServiceError, Trouble

if TYPE_CHECKING:
    from starlette.applications import Starlette

DEVELOPER = "secrun"
DEFAULT_POLICY = "default"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
DAY = 86_400
PURGE_SECONDS = 30
# Hosts come every half minute: their connections stay open in between.
KEEP_ALIVE_SECONDS = 75
# Threads for what waits for a database on the network, or computes for long.
THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The parts that have to be closed, and the application."""

    app: "Starlette"
    table: tuple[Route, ...]
    store: Store
    attestor: Attestor
    executor: ThreadPoolExecutor

    def close(self) -> None:
        """Let what runs in threads end, then close the database."""
        self.executor.shutdown()
        self.store.database.close()


def build(
    config: ServiceConfig,
    *,
    clock: Callable[[], float] = time.time,
    log: Callable[[str], None] | None = None,
) -> Service:
    """Open the database, read the files, put the parts together; raises ServiceError and OSError."""
    store = Store(open_database(config.database))
    store.open(BOOT_ID.read_text().strip())
    opener = make_opener(config, clock)
    policies = Policies(
        store, default=_take_policy(store, config, opener), opener=opener, signed=bool(config.policy_keys)
    )
    pem = None if config.signing_key is None else config.signing_key.read_bytes()
    keys = Keyring(store, lifetime=config.key_days * DAY, pem=pem)
    metrics, limits = Metrics(), config.limits
    authenticator = Authenticator(store, _tokens(config), frozenset(map(_cert_digest, config.admin_certs)))
    gate = Gate(limits.in_flight, limits.body_bytes)
    attestor = Attestor(
        store, policies, keys, metrics, issuer=(DEVELOPER, _build()), audience=config.audience
    )
    enroller = Enroller(
        store,
        audience=config.audience,
        roots=() if config.ek_roots is None else load_roots(config.ek_roots),
        allow_software=config.allow_software_tpm,
    )
    desk = Desk(store, policies, keys, metrics, gate, audience=config.audience)
    who = frozenset({Role.ENROLLER}) | ADMIN if authenticator.needs(Role.ENROLLER) else PUBLIC
    table = routes(_handlers(enroller, attestor, Viewer(store), desk), enroll=who)
    desk.describe(table, enroll_token=who != PUBLIC, software_tpm=config.allow_software_tpm)
    executor = ThreadPoolExecutor(THREADS, thread_name_prefix="verifier")
    door = Door(
        limits=limits,
        authenticator=authenticator,
        metrics=metrics,
        gate=gate,
        peers=Buckets(limits.peer),
        hosts=Buckets(limits.host),
        tokens=Buckets(limits.token),
        executor=executor,
        inline=not store.database.remote,
        clock=clock,
        log=log or _log,
    )
    return Service(app=make_app(door, table), table=table, store=store, attestor=attestor, executor=executor)


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _handlers(enroller: Enroller, attestor: Attestor, viewer: Viewer, desk: Desk) -> Handlers:
    return Handlers(
        enroll=enroller.begin,
        prove=enroller.prove,
        begin=attestor.begin,
        answer=attestor.answer,
        show=attestor.show,
        end=attestor.end,
        appraise=attestor.appraise_once,
        hosts=viewer.hosts,
        host=viewer.host,
        pod=viewer.pod,
        forget=viewer.forget,
        put_policy=desk.put_policy,
        get_policy=desk.get_policy,
        put_values=desk.put_values,
        jwks=desk.jwks,
        about=desk.about,
        metrics=desk.metrics,
        health=desk.health,
        openapi=desk.openapi,
        page=desk.page,
    )


def make_opener(config: ServiceConfig, clock: Callable[[], float]) -> Opener:
    """Return what turns the bytes of a policy into a Policy: with keys, only what one of them signed."""
    if not config.policy_keys:
        return parse_policy
    from secrun_attest.dsse import load_public_key
    from secrun_attest.policyfile import PolicyFileError, open_policy

    keys = tuple(load_public_key(path.read_bytes(), what=str(path)) for path in config.policy_keys)

    def signed(data: bytes) -> Policy:
        try:
            return open_policy(data, keys, require_signature=True, now=int(clock())).policy
        except PolicyFileError as error:
            if error.code in ("policy-expired", "policy-early"):
                raise ServiceError(
                    Trouble.NO_POLICY, error.message, hint=error.hint, retry_after=30
                ) from error
            if error.code in ("policy-unsigned", "policy-signature", "policy-type"):
                raise ServiceError(Trouble.POLICY_UNSIGNED, error.message, hint=error.hint) from error
            raise

    return signed


def _take_policy(store: Store, config: ServiceConfig, opener: Opener) -> str:
    """Put the policy of the command line; return the id of the one that sessions use."""
    if config.policy is None:
        return DEFAULT_POLICY
    data = config.policy.read_bytes()
    try:
        identifier = opener(data).id
    except FormatError as error:
        raise bad_request(f"{config.policy}: {error.message}") from error
    policies = Policies(store, default=identifier, opener=opener, signed=bool(config.policy_keys))
    if not policies.put_initial(identifier, data):
        _log(json.dumps({"event": "a newer policy is in force", "policy": identifier}))
    return identifier


def _tokens(config: ServiceConfig) -> Mapping[Role, bytes]:
    files = {
        Role.ADMIN: config.admin_token_file,
        Role.READER: config.reader_token_file,
        Role.ENROLLER: config.enroll_token_file,
    }
    found = {role: token_hash(_token(path)) for role, path in files.items() if path is not None}
    if len(set(found.values())) != len(found):
        raise bad_request("two token files hold the same token: nobody could tell who asks")
    return found


def _token(path: Path) -> str:
    token = path.read_text().strip()
    if len(token) < MIN_TOKEN or not token.isprintable() or " " in token:
        hint = "openssl rand -hex 32"
        text = f"{path} holds no token of at least {MIN_TOKEN} characters without spaces"
        raise ServiceError(Trouble.REQUEST, text, hint=hint)
    return token


def _cert_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text().strip())).digest()
    except ValueError as error:
        raise bad_request(f"{path} is not one certificate in PEM: {error}") from error


def _build() -> str:
    try:
        return version("secrun")
    except PackageNotFoundError:
        return "unknown"


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later; a client's certificate is verified if it shows one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["http/1.1"])
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def listen(config: ServiceConfig) -> socket.socket:
    """Return a listening socket; raises ServiceError for plain HTTP beyond this host."""
    address = ip_address(config.host)
    if config.tls is None and not address.is_loopback:
        raise ServiceError(
            Trouble.REQUEST,
            f"{config.host} is not a loopback address: tokens would travel in the clear",
            hint="give --tls-cert and --tls-key",
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # asyncio turns Nagle's algorithm off only if the protocol is named; head and body of an answer are two
    # writes, and the second would wait 40 ms for the client's acknowledgement.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((config.host, config.port))
    return sock


def serve(config: ServiceConfig, *, ready: Callable[[str], None] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status. `ready` is told the address once it listens.

    Raises ServiceError (or OSError) if it cannot start.
    """
    sock = listen(config)
    service = build(config)
    try:
        asyncio.run(_run(config, service, sock, ready or (lambda _url: None)))
    finally:
        service.close()
        sock.close()
    return 0


async def _run(
    config: ServiceConfig, service: Service, sock: socket.socket, ready: Callable[[str], None]
) -> None:
    from uvicorn import Config

    from secrun_attest.service.protocol import GracefulServer, Protocol

    settings = Config(
        service.app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=config.limits.stop_seconds,
        limit_concurrency=config.limits.connections,
    )
    settings.load()
    context = None if config.tls is None else tls_context(config.tls)
    settings.ssl = context
    server = GracefulServer(settings, lambda: _reload(config.tls, context))
    sock.listen(settings.backlog)
    scheme = "http" if context is None else "https"
    host = f"[{config.host}]" if ":" in config.host else config.host
    keeper = asyncio.create_task(_housekeep(service))
    ready(f"{scheme}://{host}:{sock.getsockname()[1]}")
    try:
        await server.serve(sockets=[sock])
    finally:
        keeper.cancel()


def _reload(tls: Tls | None, context: ssl.SSLContext | None) -> None:
    """Read certificate and key anew for the connections to come; keep the old ones if that fails."""
    if tls is None or context is None:
        return
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        _log(json.dumps({"event": "certificate reloaded"}))
    except OSError as error:  # ssl.SSLError is one
        _log(json.dumps({"event": "certificate not reloaded", "why": str(error)}))


async def _housekeep(service: Service) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(PURGE_SECONDS)
        try:
            await loop.run_in_executor(service.executor, service.attestor.purge, int(time.time()))
        except ServiceError as error:  # the database is away; requests say so too
            _log(json.dumps({"event": "purge failed", "code": error.code}))
