"""What an app keeps secret, as it stands in the pod manifest: where it comes from and who may read it.

Never its bytes, nor a digest or a size of them: a short secret could be found from either.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Self

from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import field, record

# Of one secret, as in podman; of all secrets of a pod, as for a service of systemd (systemd.exec(5)).
MAX_BYTES = 512_000
MAX_POD_BYTES = 1 << 20


class SecretKind(StrEnum):
    """Where the bytes of a secret come from when the pod starts."""

    CREDENTIAL = "credential"
    """The service manager's, by name: $CREDENTIALS_DIRECTORY, else the host's credential stores."""
    FILE = "file"
    ENCRYPTED = "encrypted"
    """A file of systemd-creds(1)."""


@record
class Secret:
    """One secret of an app; `source` is a credential's name or a path of the host."""

    name: str
    kind: SecretKind
    source: str
    target: str
    uid: int = 0
    gid: int = 0
    mode: str = "444"
    """Octal, as chmod(1) takes it."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "name": self.name,
            "kind": str(self.kind),
            "source": self.source,
            "target": self.target,
            "uid": self.uid,
            "gid": self.gid,
            "mode": self.mode,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        kind = fields.text("kind")
        if kind not in tuple(SecretKind):
            fields.unexpected("kind", kind, ", ".join(SecretKind))
        secret = cls(
            name=fields.text("name"),
            kind=SecretKind(kind),
            source=fields.text("source"),
            target=fields.text("target"),
            uid=fields.integer("uid"),
            gid=fields.integer("gid"),
            mode=fields.text("mode"),
        )
        fields.end()
        return secret


@record
class Disclosed:
    """The bytes of a pod's secrets, by the app and the secret's number there; shown by no text."""

    values: Mapping[tuple[str, int], bytes] = field(default_factory=dict, repr=False)
