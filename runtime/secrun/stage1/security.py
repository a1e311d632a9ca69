"""What confines an app, as it stands in the pod manifest: names and digests; the bundle holds the rest."""

from typing import Self

from secrun.digest import Digest
from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import field, record


@record
class Device:
    """A device of the host that an app may open for reading and writing."""

    source: str
    target: str

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {"source": self.source, "target": self.target}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        device = cls(source=fields.text("source"), target=fields.text("target"))
        fields.end()
        return device


@record
class Tmpfs:
    """A folder of an app that lies in memory; an empty `size` is the kernel's default, half of it."""

    target: str
    size: str = ""
    mode: str = "1777"
    read_only: bool = False
    executable: bool = False


@record
class AppSecurity:
    """How one app is confined.

    `confinement` covers all that the compiler decided; `seccomp` names the profile of the filter
    (`unconfined`: none), `seccomp_digest` is over the filter as the runtime loads it.
    """

    profile: str = "default"
    confinement: Digest | None = None
    seccomp: str = "default"
    seccomp_digest: Digest | None = None
    no_new_privileges: bool = True
    privileged: bool = False
    devices: tuple[Device, ...] = field(default=())

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "profile": self.profile,
            "confinement": _text(self.confinement),
            "seccomp": self.seccomp,
            "seccomp_digest": _text(self.seccomp_digest),
            "no_new_privileges": self.no_new_privileges,
            "privileged": self.privileged,
            "devices": [device.to_json() for device in self.devices],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        security = cls(
            profile=fields.text("profile"),
            confinement=_digest(fields.text("confinement")),
            seccomp=fields.text("seccomp"),
            seccomp_digest=_digest(fields.text("seccomp_digest")),
            no_new_privileges=fields.flag("no_new_privileges"),
            privileged=fields.flag("privileged"),
            devices=tuple(Device.from_fields(item) for item in fields.objects("devices")),
        )
        fields.end()
        return security


def _text(digest: Digest | None) -> str:
    return "" if digest is None else str(digest)


def _digest(text: str) -> Digest | None:
    return Digest.parse(text) if text else None
