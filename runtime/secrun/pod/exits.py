"""How a pod ended: the exit of each app and the pod's own code."""

import signal
from collections.abc import Sequence
from typing import Self

from secrun.errors import ImageError, StateError
from secrun.fields import Fields
from secrun.jsonio import JsonObject, canonical, parse_object
from secrun.pod import readback
from secrun.pod.inside import MAX_RECORD_BYTES, printable, read_record
from secrun.record import record
from secrun.stage1.manifest import PodManifest
from secrun.stage1.podfiles import MAX_EXIT_BYTES, PodFiles

# podman-run(1): the runtime itself failed.
RUNTIME_FAILED = 125
KILLED = 128 + signal.SIGKILL
# How the agent begins a line of its own on stage1's standard error.
_OWN_WORD = "secrun: "
_MAX_CODE = 255


@record
class AppExit:
    """How one app ended; `code` is None if it was stopped before it could say."""

    name: str
    code: int | None
    error: str = ""
    started_ns: int = 0
    finished_ns: int = 0

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "name": self.name,
            "code": self.code,
            "error": self.error,
            "started_ns": self.started_ns,
            "finished_ns": self.finished_ns,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        result = cls(
            name=fields.text("name"),
            code=fields.optional_integer("code"),
            error=fields.text("error"),
            started_ns=fields.integer("started_ns"),
            finished_ns=fields.integer("finished_ns"),
        )
        fields.end()
        return result


@record
class PodExit:
    """How a pod ended, and when (nanoseconds since the epoch)."""

    code: int
    finished_ns: int
    error: str
    apps: tuple[AppExit, ...]

    def to_bytes(self) -> bytes:
        """Return the stored form."""
        return canonical(
            {
                "code": self.code,
                "finished_ns": self.finished_ns,
                "error": self.error,
                "apps": [app.to_json() for app in self.apps],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse the stored form."""
        fields = Fields(parse_object(data, what="exit record", limit=MAX_EXIT_BYTES), "exit record")
        result = cls(
            code=fields.integer("code"),
            finished_ns=fields.integer("finished_ns"),
            error=fields.text("error"),
            apps=tuple(AppExit.from_fields(item) for item in fields.objects("apps")),
        )
        fields.end()
        return result


def _parse_app_record(name: str, data: bytes) -> AppExit:
    """Parse the agent's exit record: bytes from inside the pod, so nothing in it is believed."""
    fields = Fields(parse_object(data, what=f"exit record of app {name}", limit=MAX_RECORD_BYTES), name)
    code = fields.integer("code")
    return AppExit(
        name=name,
        code=code if 0 <= code <= _MAX_CODE else RUNTIME_FAILED,
        error=printable(fields.text("error")),
        started_ns=max(0, fields.integer("started_ns")),
        finished_ns=max(0, fields.integer("finished_ns")),
    )


def read_app(files: PodFiles, name: str) -> AppExit:
    """Return how an app ended as its agent wrote it; code None if there is no record."""
    try:
        data = read_record(files.rw, "apps", name, "exit")
        if data is None:
            return AppExit(name=name, code=None)
        return _parse_app_record(name, data)
    except (StateError, ImageError) as error:
        # A record the pod tampered with says one thing for certain: the app cannot be called successful.
        return AppExit(name=name, code=RUNTIME_FAILED, error=printable(error.message))


def pod_code(apps: Sequence[AppExit], stage1_status: int) -> int:
    """Return the pod's exit code: that of the app that failed first, else 0; pure.

    If no app failed but some never ended, stage1 died under them: 137 if it was killed, else 125.
    """
    failed = [app for app in apps if app.code]
    if failed:
        first = min(failed, key=lambda app: app.finished_ns or 1 << 63)
        return first.code or 0
    if any(app.code is None for app in apps):
        return KILLED if stage1_status == KILLED else RUNTIME_FAILED
    return 0


def collect(files: PodFiles, manifest: PodManifest, stage1_status: int, now_ns: int) -> PodExit:
    """Gather the exit of a pod whose stage1 has ended with `stage1_status`."""
    apps = tuple(read_app(files, app.name) for app in manifest.apps)
    code = pod_code(apps, stage1_status)
    error = _read_back_error(files, manifest, apps)
    if error:
        code = RUNTIME_FAILED
    elif code == RUNTIME_FAILED and not any(app.code for app in apps):
        error = f"stage1 ended with status {stage1_status}: {tail(files)}"
    return PodExit(code=code, finished_ns=now_ns, error=error, apps=apps)


def _read_back_error(files: PodFiles, manifest: PodManifest, apps: Sequence[AppExit]) -> str:
    """Return why a pod that is read back strictly was ended before its apps began; empty if it was not."""
    if not manifest.strict_read_back:
        return ""
    unended = {app.name for app in apps if app.code is None}
    found = {name: text for name, text in readback.problems(files).items() if name in unended}
    return "; ".join(f"app {name}: {text}" for name, text in found.items())


def tail(files: PodFiles, size: int = 1000) -> str:
    """Return the last words of stage1, safe to show: of a supervisor of our own its reason alone."""
    try:
        with files.stage1_log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - size))
            lines = stream.read(size).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return "it printed nothing"
    lines = [line for line in lines if line]
    if lines and lines[-1].startswith(_OWN_WORD):
        return printable(lines[-1].removeprefix(_OWN_WORD), size)
    return printable("; ".join(lines), 2 * size)


def read(files: PodFiles) -> PodExit | None:
    """Return the stored exit, or None if the pod has none (yet)."""
    try:
        with files.exit.open("rb") as stream:
            return PodExit.from_bytes(stream.read(MAX_EXIT_BYTES + 1))
    except FileNotFoundError:
        return None
