"""Where a verifier is and by which certificates it is known; pure but for the files of TLS."""

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from secrun.errors import UsageError
from secrun.record import record

if TYPE_CHECKING:
    import ssl

_PORTS = {"https": 443, "http": 80}
_LOCALHOST = "localhost"
_MAX_URL = 2000


@record
class Address:
    """A verifier's address; `prefix` stands before each path, without a slash at its end."""

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def plain(self) -> bool:
        """Whether nothing protects what is said; then only on this machine."""
        return self.scheme == "http"

    @property
    def authority(self) -> str:
        """Host and port as a request names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        """The address written in one way only."""
        return f"{self.scheme}://{self.authority}{self.prefix}"


def parse_address(text: str) -> Address:
    """Parse --verifier; raises UsageError for what is no address, or would travel in the clear."""
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise _bad("is no URL") from None
    if len(text) > _MAX_URL or parts.scheme not in _PORTS or not host or not _sound(text):
        raise _bad("is not https://HOST[:PORT][/PATH]")
    # It would be printed, and kept in a file's name and in messages.
    if parts.username is not None or parts.password is not None:
        raise _bad("holds a name or password", hint="a host has a token of its own, made when it enrols")
    if parts.query or parts.fragment:
        raise _bad("has a query or a fragment")
    if parts.scheme == "http" and host != _LOCALHOST and not is_loopback(host):
        raise _bad("is http:// to another machine", hint="tokens would travel in the clear: use https://")
    return Address(
        scheme=parts.scheme,
        host=host,
        port=port if port is not None else _PORTS[parts.scheme],
        prefix=parts.path.rstrip("/"),
    )


def _sound(text: str) -> bool:
    return text.isascii() and text.isprintable() and not set(' "<>\\^`{|}') & set(text)


def is_loopback(host: str) -> bool:
    """Tell whether `host` is an address of this machine that nobody else reaches."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _bad(what: str, *, hint: str = "such as https://verifier.example:8443") -> UsageError:
    return UsageError(f"--verifier {what}", hint=hint, code="usage-verifier")


@record
class TlsFiles:
    """Files in PEM: who may vouch for the verifier, instead of the system's CAs; who we are to it."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> "ssl.SSLContext":
        """Return what checks the verifier's certificate and name, always; raises UsageError."""
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(f"{self.ca} holds no CA certificate in PEM", code="usage-verifier") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except (ssl.SSLError, ValueError) as error:
                raise UsageError(
                    f"{self.certificate} and {self.key} are not a certificate and its key in PEM",
                    code="usage-verifier",
                ) from error
        return context
