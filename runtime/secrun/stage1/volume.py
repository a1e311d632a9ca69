"""What an app sees beside its image that keeps data, as it stands in the pod manifest."""

from enum import StrEnum
from typing import Self

from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import record


class Relabel(StrEnum):
    """Whether a volume gets a new SELinux label: that of all pods (`z`), or of this one alone (`Z`)."""

    NONE = ""
    SHARED = "z"
    PRIVATE = "Z"


@record
class Volume:
    """A host folder or file that an app sees; owners are mapped one to one."""

    source: str
    target: str
    read_only: bool
    relabel: Relabel = Relabel.NONE
    executable: bool = True
    fill: bool = False
    """Copy what the image has at the target, if the volume is empty."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "source": self.source,
            "target": self.target,
            "read_only": self.read_only,
            "relabel": str(self.relabel),
            "executable": self.executable,
            "fill": self.fill,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        relabel = fields.text("relabel")
        if relabel not in tuple(Relabel):
            fields.unexpected("relabel", relabel, "z, Z or nothing")
        volume = cls(
            source=fields.text("source"),
            target=fields.text("target"),
            read_only=fields.flag("read_only"),
            relabel=Relabel(relabel),
            executable=fields.flag("executable"),
            fill=fields.flag("fill"),
        )
        fields.end()
        return volume


@record
class EmptyVolume:
    """A folder that is made when the pod starts and goes with it; apps that say one name share it."""

    name: str
    """A file name; without one the volume is the app's alone."""
    target: str
    read_only: bool = False
    mode: str = "755"
    """Octal, as chmod(1) takes it."""
    uid: int = 0
    gid: int = 0
    executable: bool = True
    fill: bool = False
    """Copy what the image has at the target, with the owner and mode of the folder there."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "name": self.name,
            "target": self.target,
            "read_only": self.read_only,
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "executable": self.executable,
            "fill": self.fill,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        volume = cls(
            name=fields.text("name"),
            target=fields.text("target"),
            read_only=fields.flag("read_only"),
            mode=fields.text("mode"),
            uid=fields.integer("uid"),
            gid=fields.integer("gid"),
            executable=fields.flag("executable"),
            fill=fields.flag("fill"),
        )
        fields.end()
        return volume
