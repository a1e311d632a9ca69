"""The SELinux label of a pod as its manifest has it: decided at its preparation, completed at its start."""

from typing import TYPE_CHECKING, Self

from secrun.record import record

if TYPE_CHECKING:
    from secrun.fields import Fields
    from secrun.jsonio import JsonObject


@record
class Label:
    """Contexts without the pair of categories, which a pod gets when it starts unless `level` is fixed."""

    process: str
    """Of everything inside the pod; empty leaves it in the caller's (label=disable on some policies)."""
    file: str
    """Of the images as they are mounted, and of all that the pod may write."""
    runtime: str
    """Of the processes of secrun that stay with the pod; empty leaves them in the caller's."""
    level: str
    """A level that was asked for by name; empty takes a pair of categories of the pod's own."""

    def to_json(self) -> "JsonObject":
        """Return the JSON form."""
        return {"process": self.process, "file": self.file, "runtime": self.runtime, "level": self.level}

    @classmethod
    def from_fields(cls, fields: "Fields") -> Self:
        """Parse the JSON form."""
        label = cls(
            process=fields.text("process"),
            file=fields.text("file"),
            runtime=fields.text("runtime"),
            level=fields.text("level"),
        )
        fields.end()
        return label
