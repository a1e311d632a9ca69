"""Who is asking: a bearer token or a client certificate in, a principal out."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from secrets import token_urlsafe

from secrun_attest.service.store import Store
from secrun_attest.service.trouble import ServiceError, Trouble

# 256 bits: a hash of it needs no salt and no stretching.
TOKEN_BYTES = 32
# Tokens of operators are made by hand: `openssl rand -hex 32`.
MIN_TOKEN = 20
MAX_TOKEN = 512


class Role(StrEnum):
    """What somebody may be; see the table in docs/verifier-service.md."""

    ANYONE = "anyone"
    ENROLLER = "enroller"
    HOST = "host"
    READER = "reader"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A client certificate that TLS has verified: SHA-256 of its DER, and its DNS names."""

    digest: bytes
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is asking; `host` is the id if it is a host."""

    role: Role
    host: str = ""

    def must_be(self, host: str) -> None:
        """Raise ServiceError 403 for a host that asks about another; readers and admins may."""
        if self.role is Role.HOST and self.host != host:
            text = f"these are the credentials of host {self.host!r}, not of {host[:200]!r}"
            raise ServiceError(Trouble.FORBIDDEN, text)


def token_hash(token: str) -> bytes:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode()).digest()


def new_token() -> str:
    """Return a bearer token that nobody can guess."""
    return token_urlsafe(TOKEN_BYTES)


class Authenticator:
    """Tokens of the operator's files and client certificates; tokens of hosts in the database."""

    def __init__(self, store: Store, tokens: Mapping[Role, bytes], admin_certs: frozenset[bytes]) -> None:
        self._store = store
        self._tokens = dict(tokens)
        self._admin_certs = admin_certs

    def needs(self, role: Role) -> bool:
        """Tell whether a token is set for `role`."""
        return role in self._tokens

    def identify(self, authorization: str | None, peer: Peer | None) -> Principal:
        """Return who it is, ANYONE without credentials; wrong ones raise ServiceError 401."""
        if authorization is not None:
            return self._bearer(authorization)
        if peer is not None and peer.digest in self._admin_certs:
            return Principal(role=Role.ADMIN)
        for name in () if peer is None else peer.names:
            if self._store.host(name) is not None:
                return Principal(role=Role.HOST, host=name)
        return Principal(role=Role.ANYONE)

    def _bearer(self, authorization: str) -> Principal:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN:
            raise ServiceError(Trouble.AUTH, "the credentials are not 'Bearer TOKEN'")
        digest = token_hash(token)
        for role, known in self._tokens.items():
            if hmac.compare_digest(digest, known):
                return Principal(role=role)
        # Looked up by its hash: how long that takes tells nothing about the token.
        host = self._store.host_of_token(digest)
        if host is None:
            hint = "a host gets its token by enrolling; enrolling again ends the old one"
            raise ServiceError(Trouble.AUTH, "the token is not known", hint=hint)
        return Principal(role=Role.HOST, host=host)


def check_allowed(principal: Principal, allowed: frozenset[Role]) -> None:
    """Raise ServiceError 401 for somebody without credentials, 403 for somebody with others."""
    if principal.role in allowed:
        return
    if principal.role is Role.ANYONE:
        raise ServiceError(Trouble.AUTH, f"this needs the credentials of: {', '.join(sorted(allowed))}")
    raise ServiceError(Trouble.FORBIDDEN, f"{principal.role} may not do this: {', '.join(sorted(allowed))}")
