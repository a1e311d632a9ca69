"""`secrun attest serve`: from options to the verifier's configuration."""

from pathlib import Path
from typing import TYPE_CHECKING

from secrun.cli.table import Arguments, Context
from secrun.errors import HostError, UsageError

if TYPE_CHECKING:
    from secrun_attest.service.config import ServiceConfig, Tls

_PACKAGES = ("cryptography", "starlette", "uvicorn", "httptools")


def serve(args: Arguments, context: Context) -> int:
    """Serve until the process is told to stop; the address goes to standard output."""
    from secrun_attest.errors import AttestError
    from secrun_attest.service.main import serve as run
    from secrun_attest.service.trouble import ServiceError, Trouble

    config = _config(args, context)

    def ready(url: str) -> None:
        context.out.write(f"{url}\n")
        context.out.flush()

    try:
        return run(config, ready=ready)
    except AttestError as error:
        if isinstance(error, ServiceError) and error.trouble is Trouble.DATABASE:
            raise HostError(error.message, hint=error.hint, code="host-verifier-database") from error
        raise UsageError(error.message, hint=error.hint, code="usage-verifier") from error
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        text = f"the verifier needs the Python package {error.name}, which is not installed"
        raise HostError(text, hint="install secrun with the extra verifier", code="host-verifier") from error


def _config(args: Arguments, context: Context) -> "ServiceConfig":
    from secrun_attest.service.config import ServiceConfig

    host, port = address(args.required("listen"))
    audience = args.text("audience")
    if not audience:
        raise UsageError(
            "secrun attest serve needs --audience",
            hint="hosts put it into their quotes, relying parties look for it in tokens",
        )
    return ServiceConfig(
        host=host,
        port=port,
        database=args.text("database") or _database(context),
        audience=audience,
        tls=_tls(args),
        policy=_path(args, "policy"),
        policy_keys=_paths(args, "policy_key"),
        admin_token_file=_path(args, "admin_token_file"),
        reader_token_file=_path(args, "reader_token_file"),
        enroll_token_file=_path(args, "enroll_token_file"),
        admin_certs=_paths(args, "admin_cert"),
        ek_roots=_path(args, "ek_roots"),
        allow_software_tpm=args.flag("allow_software_tpm"),
        signing_key=_path(args, "signing_key"),
    )


def address(word: str) -> tuple[str, int]:
    """Split ADDR:PORT, with brackets around an IPv6 address; raises UsageError."""
    from ipaddress import ip_address

    host, _, port = word.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
        number = int(port)
    except ValueError:
        number = -1
    if not (port.isascii() and port.isdigit() and 0 <= number <= 65535):
        raise UsageError(f"--listen is {word[:80]!r}, expected ADDR:PORT, as in 0.0.0.0:8443 or [::]:8443")
    return host, number


def _database(context: Context) -> str:
    folder = context.layout.root
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / "verifier.db")


def _tls(args: Arguments) -> "Tls | None":
    from secrun_attest.service.config import Tls

    certificate, key = _path(args, "tls_cert"), _path(args, "tls_key")
    client_ca = _path(args, "client_ca")
    if certificate is None or key is None:
        if certificate or key or client_ca or args.many("admin_cert"):
            raise UsageError("--tls-cert and --tls-key go together; --client-ca and --admin-cert need them")
        return None
    if args.many("admin_cert") and client_ca is None:
        raise UsageError("--admin-cert needs --client-ca: no client shows a certificate without")
    return Tls(certificate=certificate, key=key, client_ca=client_ca)


def _path(args: Arguments, name: str) -> Path | None:
    text = args.text(name)
    return Path(text) if text else None


def _paths(args: Arguments, name: str) -> tuple[Path, ...]:
    return tuple(Path(text) for text in args.many(name))
