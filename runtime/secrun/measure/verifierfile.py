"""What a root keeps of each verifier that it is enrolled with: who it is, and the token it gave."""

from pathlib import Path
from typing import Self

from secrun.fields import Fields
from secrun.files import write_atomic
from secrun.jsonio import canonical
from secrun.measure.identity import HostIdentity
from secrun.measure.verifierprotocol import file_name
from secrun.paths import Layout
from secrun.record import field, record

SCHEMA = "secrun.dev/verifier/v1"
FOLDER = "verifiers"
_MAX_BYTES = 64 * 1024


@record
class Membership:
    """An enrolment: as which host with which key, and the verifier's `audience`, which quotes name.

    `software` is whether the verifier takes the TPM for one that nobody vouches for.
    """

    verifier: str
    audience: str
    host: str
    ak_name: str
    software: bool
    token: str = field(repr=False)

    def is_of(self, identity: HostIdentity) -> bool:
        """Tell whether the root is still the host that was enrolled."""
        return (self.host, self.ak_name) == (identity.host, identity.ak_name.hex())

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        return canonical(
            {
                "schema": SCHEMA,
                "verifier": self.verifier,
                "audience": self.audience,
                "host": self.host,
                "ak_name": self.ak_name,
                "software": self.software,
                "token": self.token,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> Self:
        """Parse a kept enrolment; raises StateError or ImageError if it is damaged."""
        fields = Fields.document(data, what=what, limit=_MAX_BYTES, schema=SCHEMA)
        kept = cls(
            verifier=fields.text("verifier"),
            audience=fields.text("audience"),
            host=fields.text("host"),
            ak_name=fields.text("ak_name"),
            software=fields.flag("software"),
            token=fields.text("token"),
        )
        fields.end()
        return kept


def path(layout: Layout, verifier: str) -> Path:
    """Return where the enrolment with the verifier of this address is kept."""
    return layout.measure / FOLDER / file_name(verifier)


def load(layout: Layout, verifier: str) -> Membership | None:
    """Return the enrolment, None if there is none yet."""
    place = path(layout, verifier)
    try:
        with place.open("rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    return Membership.from_bytes(data, str(place))


def store(layout: Layout, membership: Membership) -> None:
    """Keep the enrolment, readable by root alone."""
    place = path(layout, membership.verifier)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(place, membership.to_bytes(), mode=0o600)
