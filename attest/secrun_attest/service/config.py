"""What the service is started with: files, addresses, limits; nothing here is read yet."""

from dataclasses import dataclass, field
from pathlib import Path

from secrun_attest.evidence import MAX_EVIDENCE
from secrun_attest.policyfile import MAX_FILE

# Keys, certificates and their chain in base64: 30 kB at most.
MAX_REQUEST = 128 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A bucket of `burst` requests that is filled with `per_second`."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much at once; sizes are bytes, times seconds.

    A host comes twice a minute with two requests, and whenever its log grows: some three times for a pod
    that comes and goes. Requests without valid credentials count for their
    address; many hosts may share one, so what comes with credentials counts for each of them.
    """

    evidence: int = MAX_EVIDENCE
    policy: int = MAX_FILE
    request: int = MAX_REQUEST
    in_flight: int = 64
    # Parsed evidence takes about six times its size.
    body_bytes: int = 128 << 20
    connections: int = 4096
    body_seconds: float = 30.0
    stop_seconds: int = 20
    peer: Rate = field(default_factory=lambda: Rate(per_second=20, burst=100))
    host: Rate = field(default_factory=lambda: Rate(per_second=4, burst=40))
    token: Rate = field(default_factory=lambda: Rate(per_second=50, burst=200))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM; with `client_ca` clients may show a certificate."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """Everything `serve` needs.

    `database` is a path or a postgresql:// address. `policy_keys` are PEM files of public keys: with one,
    policies must be signed. `signing_key` is a P-256 key in PEM; without it the key is kept in the database
    and replaced after `key_days`. Token files hold one line.
    """

    host: str
    port: int
    database: str
    audience: str
    tls: Tls | None = None
    policy: Path | None = None
    policy_keys: tuple[Path, ...] = ()
    admin_token_file: Path | None = None
    reader_token_file: Path | None = None
    enroll_token_file: Path | None = None
    admin_certs: tuple[Path, ...] = ()
    ek_roots: Path | None = None
    allow_software_tpm: bool = False
    signing_key: Path | None = None
    key_days: int = 30
    limits: Limits = field(default_factory=Limits)
