"""How the apps of a pod stand from one run to the next, as their agents wrote it: hostile, and bounded."""

from typing import Self

from secrun.errors import ImageError, StateError
from secrun.fields import Fields
from secrun.jsonio import JsonObject, parse_object
from secrun.pod.inside import MAX_RECORD_BYTES, printable, read_record
from secrun.record import record
from secrun.stage1.podfiles import PodFiles

NAME = "state"
_STATES = ("starting", "healthy", "unhealthy")
# The agent keeps as many, and as much of each (runtime/agent/src/health.rs, life.rs).
_MAX_CHECKS = 5
_MAX_OUTPUT = 512


@record
class LastRun:
    """How the run before this one ended."""

    code: int
    signal: int
    error: str
    finished_ns: int

    def to_json(self) -> JsonObject:
        """Return the documented JSON form (docs/state.md)."""
        return {
            "code": self.code,
            "signal": self.signal,
            "error": self.error,
            "finished_ns": self.finished_ns,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what the agent wrote."""
        result = cls(
            code=fields.integer("code"),
            signal=fields.integer("signal"),
            error=printable(fields.text("error")),
            finished_ns=fields.integer("finished_ns"),
        )
        fields.end()
        return result


@record
class Check:
    """One result of a health check; `late` if it was ended because it took too long."""

    code: int
    late: bool
    output: str
    started_ns: int
    ended_ns: int

    def to_json(self) -> JsonObject:
        """Return the documented JSON form (docs/state.md)."""
        return {
            "code": self.code,
            "late": self.late,
            "output": self.output,
            "started_ns": self.started_ns,
            "ended_ns": self.ended_ns,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what the agent wrote."""
        result = cls(
            code=fields.integer("code"),
            late=fields.flag("late"),
            output="\n".join(printable(line) for line in fields.text("output")[:_MAX_OUTPUT].split("\n")),
            started_ns=fields.integer("started_ns"),
            ended_ns=fields.integer("ended_ns"),
        )
        fields.end()
        return result


@record
class HealthState:
    """The health of an app: `starting`, `healthy` or `unhealthy`, and its last results, the oldest first."""

    state: str
    failures: int
    checks: tuple[Check, ...]

    def to_json(self) -> JsonObject:
        """Return the documented JSON form (docs/state.md)."""
        return {
            "state": self.state,
            "failures": self.failures,
            "checks": [check.to_json() for check in self.checks],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse what the agent wrote."""
        state = fields.text("state")
        if state not in _STATES:
            fields.unexpected("state", state[:80], ", ".join(_STATES))
        result = cls(
            state=state,
            failures=fields.integer("failures"),
            checks=tuple(Check.from_fields(item) for item in fields.objects("checks")[-_MAX_CHECKS:]),
        )
        fields.end()
        return result


@record
class LifeState:
    """How one app stands; `problem` says why nothing can be said."""

    restarts: int = 0
    waiting: bool = False
    """It has ended and will begin again."""
    began_ns: int = 0
    """When its last run began."""
    last: LastRun | None = None
    health: HealthState | None = None
    problem: str = ""

    @classmethod
    def from_bytes(cls, name: str, data: bytes) -> Self:
        """Parse what the agent wrote; raises StateError or ImageError."""
        what = f"state record of app {name}"
        fields = Fields(parse_object(data, what=what, limit=MAX_RECORD_BYTES), what)
        last, health = fields.optional_object("last"), fields.optional_object("health")
        result = cls(
            restarts=fields.integer("restarts"),
            waiting=fields.flag("waiting"),
            began_ns=fields.integer("began_ns"),
            last=None if last is None else LastRun.from_fields(last),
            health=None if health is None else HealthState.from_fields(health),
        )
        fields.end()
        return result


def read(files: PodFiles, name: str) -> LifeState | None:
    """Return how an app stands; None if its agent wrote nothing: it has one run and no check."""
    try:
        data = read_record(files.rw, "apps", name, NAME)
        return None if data is None else LifeState.from_bytes(name, data)
    except (StateError, ImageError) as error:
        return LifeState(problem=printable(error.message))
