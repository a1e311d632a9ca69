"""What an app's agent does beyond one run: begin it again, and ask it how it is; as the manifest says it."""

from enum import StrEnum
from typing import Self

from secrun.digest import Digest
from secrun.fields import Fields
from secrun.jsonio import JsonObject
from secrun.record import record


class RestartPolicy(StrEnum):
    """What brings an app back that has ended by itself."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class OnUnhealthy(StrEnum):
    """What is done with an app that has become unhealthy (podman-run(1), --health-on-failure)."""

    NONE = "none"
    KILL = "kill"
    RESTART = "restart"
    STOP = "stop"


@record
class Restart:
    """A restart policy; `retries` bounds `on-failure`, 0 does not."""

    policy: RestartPolicy = RestartPolicy.NO
    retries: int = 0

    def __str__(self) -> str:
        """Return it as the option and the agent spell it."""
        return f"{self.policy}:{self.retries}" if self.retries else str(self.policy)

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {"policy": str(self.policy), "retries": self.retries}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        policy = fields.text("policy")
        if policy not in tuple(RestartPolicy):
            fields.unexpected("policy", policy, "no, on-failure or always")
        result = cls(policy=RestartPolicy(policy), retries=fields.integer("retries"))
        fields.end()
        return result


@record
class Health:
    """The check of an app; times in milliseconds."""

    command: tuple[str, ...]
    interval_ms: int
    timeout_ms: int
    start_period_ms: int
    retries: int
    on_failure: OnUnhealthy
    process: Digest
    """Of the OCI process that runs the command, which holds the values of the environment."""

    def to_json(self) -> JsonObject:
        """Return the JSON form."""
        return {
            "command": list(self.command),
            "interval_ms": self.interval_ms,
            "timeout_ms": self.timeout_ms,
            "start_period_ms": self.start_period_ms,
            "retries": self.retries,
            "on_failure": str(self.on_failure),
            "process": str(self.process),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Parse the JSON form."""
        action = fields.text("on_failure")
        if action not in tuple(OnUnhealthy):
            fields.unexpected("on_failure", action, "none, kill, restart or stop")
        result = cls(
            command=fields.texts("command"),
            interval_ms=fields.integer("interval_ms"),
            timeout_ms=fields.integer("timeout_ms"),
            start_period_ms=fields.integer("start_period_ms"),
            retries=fields.integer("retries"),
            on_failure=OnUnhealthy(action),
            process=Digest.parse(fields.text("process")),
        )
        fields.end()
        return result
