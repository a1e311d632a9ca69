"""Who this host is to a verifier: pinned once per root, read at every start of a pod."""

from pathlib import Path
from typing import Self

from secrun.errors import StateError
from secrun.fields import Fields
from secrun.files import write_atomic
from secrun.jsonio import canonical
from secrun.paths import Layout
from secrun.record import record
from secrun_attest.tpm import TpmKind

SCHEMA = "secrun.dev/attest-identity/v1"
FILE_NAME = "identity.json"
# A public area in hex is some hundred bytes.
_MAX_BYTES = 64 * 1024


@record
class HostIdentity:
    """The TPM that measures this root, the PCR that it uses, and the attestation key.

    `ak_public` is the TPM2B_PUBLIC; `tcti` is empty for the root's own software TPM, whose place depends
    on `--run-root`. `manufacturer` and `firmware` are what the TPM says of itself.
    """

    host: str
    kind: TpmKind
    tcti: str
    pcr: int
    ak_name: bytes
    ak_public: bytes
    manufacturer: str
    firmware: str
    ek_certificate: bool

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        return canonical(
            {
                "schema": SCHEMA,
                "host": self.host,
                "kind": str(self.kind),
                "tcti": self.tcti,
                "pcr": self.pcr,
                "ak_name": self.ak_name.hex(),
                "ak_public": self.ak_public.hex(),
                "manufacturer": self.manufacturer,
                "firmware": self.firmware,
                "ek_certificate": self.ek_certificate,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> Self:
        """Parse a stored identity; raises StateError or ImageError if it is damaged."""
        fields = Fields.document(data, what=what, limit=_MAX_BYTES, schema=SCHEMA)
        kind = fields.text("kind")
        if kind not in tuple(TpmKind):
            fields.unexpected("kind", kind, "hardware or software")
        identity = cls(
            host=fields.text("host"),
            kind=TpmKind(kind),
            tcti=fields.text("tcti"),
            pcr=fields.integer("pcr"),
            ak_name=_hex(fields, "ak_name"),
            ak_public=_hex(fields, "ak_public"),
            manufacturer=fields.text("manufacturer"),
            firmware=fields.text("firmware"),
            ek_certificate=fields.flag("ek_certificate"),
        )
        fields.end()
        return identity


def _hex(fields: Fields, name: str) -> bytes:
    text = fields.text(name)
    try:
        return bytes.fromhex(text)
    except ValueError:
        fields.unexpected(name, text, "hexadecimal digits")


def path(layout: Layout) -> Path:
    """Return where the identity is kept."""
    return layout.measure / FILE_NAME


def load(layout: Layout) -> HostIdentity | None:
    """Return this root's identity, or None before `secrun attest init`."""
    place = path(layout)
    try:
        with place.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    return HostIdentity.from_bytes(data, str(place))


def required(layout: Layout) -> HostIdentity:
    """Return this root's identity; raises StateError if it has none yet."""
    identity = load(layout)
    if identity is None:
        raise StateError(
            f"{layout.root} has no attestation identity yet",
            hint="run: secrun attest init",
            code="state-attest-identity",
        )
    return identity


def store(layout: Layout, identity: HostIdentity) -> None:
    """Keep the identity."""
    layout.measure.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path(layout), identity.to_bytes(), mode=0o600)
