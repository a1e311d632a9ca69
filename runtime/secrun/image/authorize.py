"""The Authorization header for one repository: basic, or a bearer token that is fetched and renewed."""

import threading
from collections.abc import Callable
from typing import TypeAlias
from urllib.parse import urlencode, urlsplit, urlunsplit

from secrun.errors import ImageError, RegistryError
from secrun.image import challenge, limits
from secrun.image.auth import Credentials
from secrun.image.challenge import Challenge
from secrun.image.retry import Clock
from secrun.jsonio import JsonObject, parse_object
from secrun.record import row

# Fetches a URL with headers and returns the body; raises RegistryError. Retries are its affair.
FetchToken: TypeAlias = Callable[[str, dict[str, str]], bytes]
# The token protocol's default and least lifetime in seconds; near its end a token is not used any more.
_LEAST_SECONDS = 60
_MARGIN_SECONDS = 5.0


@row
class _Header:
    value: str
    expires: float


class Authorizer:
    """Knows how to enter one repository; shared by the threads that download from it."""

    def __init__(
        self,
        *,
        registry: str,
        path: str,
        credentials: Callable[[], Credentials | None],
        fetch_token: FetchToken,
        clock: Clock,
        plain_http: bool,
    ) -> None:
        self._registry = registry
        self._path = path
        self._find_credentials = credentials
        self._fetch_token = fetch_token
        self._clock = clock
        self._plain_http = plain_http
        self._lock = threading.Lock()
        self._header: _Header | None = None
        self._credentials: Credentials | None = None
        self._searched = False
        self._secrets: set[str] = set()

    def header(self) -> str:
        """Return the header to send now; empty before the registry asked for one and after its end."""
        current = self._header
        if current is None or self._clock.monotonic() >= current.expires:
            return ""
        return current.value

    def answer(self, header: str, sent: str) -> str:
        """Return a header for the challenge in `header` after `sent` was refused; raises RegistryError."""
        with self._lock:
            current = self.header()
            if current and current != sent:
                # Another thread was here first.
                return current
            chosen = self._choose(challenge.parse(header))
            self._header = self._bearer(chosen) if chosen.scheme == "bearer" else self._basic(refused=sent)
            return self._header.value

    @property
    def known(self) -> bool:
        """Whether credentials were found."""
        return self._credentials is not None

    def redact(self, text: str) -> str:
        """Return `text` without any secret that was used here."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _choose(self, offered: tuple[Challenge, ...]) -> Challenge:
        for scheme in ("bearer", "basic"):
            for item in offered:
                if item.scheme == scheme:
                    return item
        names = ", ".join(sorted({item.scheme[:20] for item in offered})) or "nothing"
        raise RegistryError(
            f"registry {self._registry} asks for a login but offers {names}, expected Bearer or Basic",
            code="registry-auth-scheme",
        )

    def _own_credentials(self) -> Credentials | None:
        if not self._searched:
            self._credentials = self._find_credentials()
            self._searched = True
            if self._credentials is not None:
                self._secrets |= {self._credentials.password, self._credentials.basic().split()[1]} - {""}
        return self._credentials

    def _basic(self, *, refused: str) -> _Header:
        own = self._own_credentials()
        if own is None or own.basic() == refused:
            raise unauthorized(self._registry, self._path, known=own is not None)
        return _Header(own.basic(), float("inf"))

    def _bearer(self, asked: Challenge) -> _Header:
        url = self._token_url(asked)
        own = self._own_credentials()
        body = self._fetch_token(url, {"Authorization": own.basic()} if own else {})
        what = f"token server {urlsplit(url).netloc[:100]}"
        try:
            document = parse_object(body, what=what, limit=limits.MAX_TOKEN_BYTES)
        except ImageError:
            # The cause is not kept: it may quote the token.
            raise RegistryError(f"{what} did not answer with JSON", code="registry-token") from None
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"{what} answered without a token", code="registry-token")
        self._secrets.add(token)
        return _Header(f"Bearer {token}", self._clock.monotonic() + _lifetime(document) - _MARGIN_SECONDS)

    def _token_url(self, asked: Challenge) -> str:
        realm = asked.parameters.get("realm", "")
        parts = urlsplit(realm)
        # Stricter than containers/image, which sends credentials wherever the realm points.
        if parts.scheme != "https" and not (parts.scheme == "http" and self._plain_http):
            raise RegistryError(
                f"registry {self._registry} sends logins to {realm[:200]!r}, which is not https",
                hint="only --tls-verify=false allows a token server without TLS",
                code="registry-realm",
            )
        if not parts.hostname or "@" in parts.netloc:
            raise RegistryError(f"registry {self._registry} names no token server", code="registry-realm")
        query = {"scope": asked.parameters.get("scope") or f"repository:{self._path}:pull"}
        if service := asked.parameters.get("service"):
            query["service"] = service
        joined = "&".join(word for word in (parts.query, urlencode(query)) if word)
        return urlunsplit((parts.scheme, parts.netloc, parts.path, joined, ""))


def _lifetime(document: JsonObject) -> float:
    seconds = document.get("expires_in")
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        return float(_LEAST_SECONDS)
    return float(max(seconds, _LEAST_SECONDS))


def unauthorized(registry: str, path: str, *, known: bool) -> RegistryError:
    """Return the error for a registry that lets us not in; `known` if credentials were found."""
    if known:
        return RegistryError(
            f"registry {registry} refuses the stored credentials for {path} (401)",
            hint=f"log in again: skopeo login {registry}",
            code="registry-unauthorized",
        )
    return RegistryError(
        f"registry {registry} asks for a login for {path} (401), and no credentials are stored for it",
        hint=f"log in: skopeo login {registry}, or give --authfile; a wrong name may look the same",
        code="registry-unauthorized",
    )
