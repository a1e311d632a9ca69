"""Health checks as asked for, and what they come to with what the image says; pure."""

from collections.abc import Callable, Sequence

from secrun.digest import Digest
from secrun.errors import UsageError
from secrun.image.config import Healthcheck
from secrun.record import record
from secrun.stage1.lifecycle import Health, OnUnhealthy

SHELL = ("/bin/sh", "-c")
# podman-run(1), and Docker's HEALTHCHECK.
DEFAULT_INTERVAL_MS = DEFAULT_TIMEOUT_MS = 30_000
DEFAULT_RETRIES = 3
# Ten processes a second for each app are the most that looking at it may cost.
MIN_INTERVAL_MS = 100
MAX_MS = 24 * 3600 * 1000
MAX_RETRIES = 1_000_000
_NS_PER_MS = 1_000_000


@record
class HealthRequest:
    """What was said about an app's health; None: what the image says, else the default."""

    command: tuple[str, ...] | None = None
    off: bool = False
    interval_ms: int | None = None
    timeout_ms: int | None = None
    start_period_ms: int | None = None
    retries: int | None = None
    on_failure: OnUnhealthy = OnUnhealthy.NONE

    @property
    def details(self) -> tuple[str, ...]:
        """The options that say something about a check that has to come from elsewhere."""
        said = (
            ("--health-interval", self.interval_ms is not None),
            ("--health-timeout", self.timeout_ms is not None),
            ("--health-start-period", self.start_period_ms is not None),
            ("--health-retries", self.retries is not None),
            ("--health-on-failure", self.on_failure is not OnUnhealthy.NONE),
        )
        return tuple(option for option, given in said if given)


def command_of(test: Sequence[str]) -> tuple[str, ...] | None:
    """Return the command of a HEALTHCHECK's test: empty for none, None for one that has no meaning."""
    if not test or test[0] == "NONE":
        return ()
    kind, *words = test
    if kind == "CMD" and words and words[0]:
        return tuple(words)
    if kind == "CMD-SHELL" and len(words) == 1 and words[0].strip():
        return (*SHELL, words[0])
    return None


def _of_image(value: int, default: int, least: int) -> int:
    """Return an image's time in milliseconds, brought into its bounds; 0 says nothing."""
    return min(max(value // _NS_PER_MS, least), MAX_MS) if value else default


def health(
    asked: HealthRequest,
    image: Healthcheck | None,
    reference: str,
    process: Callable[[tuple[str, ...]], bytes],
) -> tuple[Health, bytes] | None:
    """Decide how an app is checked, and what is executed for it; None: it is not checked. Raises UsageError.

    `process` returns the OCI process of a command.
    """
    if asked.off:
        return None
    test = image or Healthcheck()
    words = asked.command
    if words is None:
        words = command_of(test.test)
        if words is None:
            raise UsageError(
                f"{reference}: its HEALTHCHECK {' '.join(test.test)[:80]!r} names no command",
                hint="--no-healthcheck, or give a command with --health-cmd",
                code="image-healthcheck",
            )
    if not words:
        if asked.details and asked.command is None:
            raise UsageError(
                f"{', '.join(asked.details)}: {reference} has no HEALTHCHECK", hint="give a --health-cmd"
            )
        return None
    interval = _of_image(test.interval_ns, DEFAULT_INTERVAL_MS, MIN_INTERVAL_MS)
    timeout = _of_image(test.timeout_ns, DEFAULT_TIMEOUT_MS, MIN_INTERVAL_MS)
    period = _of_image(test.start_period_ns, 0, 0)
    retries = min(test.retries, MAX_RETRIES) or DEFAULT_RETRIES
    data = process(words)
    found = Health(
        command=words,
        interval_ms=interval if asked.interval_ms is None else asked.interval_ms,
        timeout_ms=timeout if asked.timeout_ms is None else asked.timeout_ms,
        start_period_ms=period if asked.start_period_ms is None else asked.start_period_ms,
        retries=retries if asked.retries is None else asked.retries,
        on_failure=asked.on_failure,
        process=Digest.of(data),
    )
    return found, data
