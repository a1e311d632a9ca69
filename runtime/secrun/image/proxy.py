"""Proxies from the environment: HTTPS_PROXY, HTTP_PROXY and NO_PROXY, with the rules of Go's programs."""

import ipaddress
from collections.abc import Mapping
from typing import Self
from urllib.parse import unquote, urlsplit, urlunsplit

from secrun.errors import UsageError
from secrun.record import record

_DEFAULT_PORTS = {"http": 80, "https": 443}


@record
class Proxy:
    """A proxy; `credentials` is `user:password` or empty, and never part of `url`."""

    url: str
    credentials: str


@record
class ProxySettings:
    """The three variables; empty where unset."""

    http: str = ""
    https: str = ""
    exceptions: tuple[str, ...] = ()

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables, upper case before lower case."""

        def get(name: str) -> str:
            return environ.get(name) or environ.get(name.lower(), "")

        words = tuple(word.strip().lower() for word in get("NO_PROXY").split(",") if word.strip())
        return cls(http=get("HTTP_PROXY"), https=get("HTTPS_PROXY"), exceptions=words)

    def choose(self, scheme: str, netloc: str) -> Proxy | None:
        """Return the proxy for a host, None to go straight there; raises UsageError if it is no URL."""
        text = self.https if scheme == "https" else self.http
        if not text or self._excepted(scheme, netloc):
            return None
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"{scheme.upper()}_PROXY is not the URL of an HTTP proxy", hint="write http://HOST:PORT"
            )
        host = parts.netloc.rpartition("@")[2]
        user = unquote(parts.username or "")
        secret = f"{user}:{unquote(parts.password or '')}" if user else ""
        return Proxy(url=urlunsplit((parts.scheme, host, "", "", "")), credentials=secret)

    def _excepted(self, scheme: str, netloc: str) -> bool:
        parts = urlsplit(f"//{netloc}")
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or _DEFAULT_PORTS.get(scheme, 0)
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(_matches(word, host, port, address) for word in self.exceptions)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _matches(word: str, host: str, port: int, address: _Address | None) -> bool:
    """Match one word of NO_PROXY: `*`, a domain with all below it, an address, a network; perhaps a port."""
    if word == "*":
        return True
    if "/" in word:
        try:
            return address is not None and address in ipaddress.ip_network(word, strict=False)
        except ValueError:
            return False
    name, colon, digits = word.rpartition(":")
    if colon and digits.isdecimal() and "]" not in digits and _address(word) is None:
        if int(digits) != port:
            return False
        word = name
    word = word.strip("[]").removeprefix("*")
    if word.startswith("."):
        return host.endswith(word)
    return host == word or host.endswith(f".{word}")
