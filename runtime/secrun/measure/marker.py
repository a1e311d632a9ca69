"""How far a pod is in the log, kept in its folder: a crash anywhere leaves the exit to be measured once.

The marker never decides what the log holds: `pending` says that an append was begun and nobody knows
whether it came to its end, and then the log itself is asked.
"""

import os
from collections.abc import Iterator
from typing import Self

from secrun.errors import ImageError, StateError
from secrun.fields import Fields
from secrun.files import write_atomic
from secrun.jsonio import canonical, parse_object
from secrun.paths import Layout
from secrun.record import record, replace
from secrun.stage1.podfiles import PodFiles
from secrun_attest.record import Operation

FILE_NAME = "measured"
# The state's folder that started pods lie in.
_RUN = "run"
_MAX_BYTES = 4096


@record
class Marker:
    """The epoch whose log names the pod, and the last operation there; `pending` may be there too.

    `manifest` is the digest of the pod's manifest that PodPrepare measured. An empty epoch is one that
    nobody knows.
    """

    epoch: str
    last: str = ""
    pending: str = ""
    manifest: str = ""

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        return canonical(
            {"epoch": self.epoch, "last": self.last, "pending": self.pending, "manifest": self.manifest}
        )

    @classmethod
    def from_bytes(cls, data: bytes, what: str) -> Self:
        """Parse a marker; raises StateError or ImageError if it is damaged."""
        fields = Fields(parse_object(data, what=what, limit=_MAX_BYTES), what)
        marker = cls(
            epoch=fields.text("epoch"),
            last=fields.text("last"),
            pending=fields.text("pending"),
            manifest=fields.text("manifest"),
        )
        fields.end()
        return marker

    def begun(self, operation: str) -> "Marker":
        """Return the marker for the time in which `operation` is appended."""
        return replace(self, pending=operation)

    def done(self) -> "Marker":
        """Return the marker after the pending operation is in the log."""
        return replace(self, last=self.pending, pending="")


# A loss of power can leave the name of a file without its content; the log then says how far the pod came.
LOST = Marker(epoch="", pending=Operation.POD_START.value)


def read(files: PodFiles) -> Marker | None:
    """Return the pod's marker, LOST if it is damaged; None for a pod of which nothing was ever measured."""
    path = files.path / FILE_NAME
    try:
        with path.open("rb") as stream:
            return Marker.from_bytes(stream.read(_MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        return None
    except (ImageError, StateError):
        return LOST


def of_running(layout: Layout) -> Iterator[tuple[str, Marker]]:
    """Yield the pods that were started and whose end is not written down, with their markers."""
    try:
        names = sorted(os.listdir(layout.pods / _RUN))
    except FileNotFoundError:
        return
    for name in names:
        files = PodFiles(layout.pods / _RUN / name)
        known = None if files.exit.exists() else read(files)
        if known is not None:
            yield name, known


def write(files: PodFiles, marker: Marker) -> Marker:
    """Store the marker. A loss of power may undo or empty it; it ends the epoch, and the marker with it."""
    write_atomic(files.path / FILE_NAME, marker.to_bytes(), mode=0o600, durable=False)
    return marker
