"""The options of an app's life, from text to what they ask for."""

import json

from secrun.cli.table import Arguments, Context
from secrun.errors import UsageError
from secrun.pod.lifecycle import MAX_MS, MAX_RETRIES, MIN_INTERVAL_MS, SHELL, HealthRequest, command_of
from secrun.pod.request import duration, unicode_text
from secrun.stage1.lifecycle import OnUnhealthy, Restart, RestartPolicy

_DETAILS = ("interval", "timeout", "start_period", "retries", "on_failure")
# How a HEALTHCHECK begins; other words are the command itself.
_KINDS = ("CMD", "CMD-SHELL", "NONE")


def restart(text: str | None) -> Restart:
    """Parse --restart; raises UsageError.

    `unless-stopped` is `always`: no daemon starts pods at boot, and a pod that was stopped has ended.
    """
    name, colon, count = (text or "no").partition(":")
    if name == "unless-stopped" and not colon:
        name = "always"
    if name not in tuple(RestartPolicy) or (colon and name != RestartPolicy.ON_FAILURE):
        raise UsageError(
            f"--restart {str(text)[:80]!r} is no restart policy",
            hint="no, on-failure, on-failure:COUNT, always, or unless-stopped, which is the same as always",
        )
    if colon and not (count.isascii() and count.isdecimal() and 1 <= int(count[:8]) <= MAX_RETRIES):
        raise UsageError(f"--restart {str(text)[:80]}: the count is not between 1 and {MAX_RETRIES}")
    return Restart(policy=RestartPolicy(name), retries=int(count) if colon else 0)


def milliseconds(text: str | None, option: str, least: int) -> int | None:
    """Parse a duration such as 500ms, 30s or 1m30s; raises UsageError."""
    if text is None:
        return None
    if text == "disable":
        raise UsageError(f"{option} disable: nothing else would run the check", hint="--no-healthcheck")
    digits = text.removesuffix("ms")
    whole = digits != text and digits.isascii() and digits.isdecimal()
    value = int(digits[:12]) if whole else round(duration(text) * 1000)
    if not least <= value <= MAX_MS:
        raise UsageError(f"{option} {text[:80]} is not between {least}ms and 24h")
    return value


def command(text: str) -> tuple[str, ...]:
    """Parse --health-cmd: a line for the shell, or a JSON array as HEALTHCHECK has it; empty: no check.

    Raises UsageError.
    """
    unicode_text(text, "--health-cmd")
    if text.lower() == "none":
        return ()
    if not text.startswith("["):
        if not text.strip():
            raise UsageError("--health-cmd is empty", hint="--no-healthcheck leaves the image's check out")
        return (*SHELL, text)
    try:
        words = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--health-cmd {text[:80]!r} is not JSON: {error}") from error
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UsageError(f"--health-cmd {text[:80]!r} is not a JSON array of strings")
    given = tuple(unicode_text(word, "--health-cmd") for word in words)
    found = command_of(given) if given[0] in _KINDS else given
    if found is None:
        raise UsageError(f"--health-cmd {text[:80]!r} names no command")
    return found


def asked(args: Arguments) -> HealthRequest:
    """Return what was said about an app's health; raises UsageError."""
    said = [f"health_{name}" for name in ("cmd", *_DETAILS) if args.values[f"health_{name}"] is not None]
    if args.flag("no_healthcheck"):
        if said:
            words = ", ".join(f"--{name.replace('_', '-')}" for name in said)
            raise UsageError(f"--no-healthcheck and {words} exclude each other")
        return HealthRequest(off=True)
    if not said:
        return HealthRequest()
    retries, action, line = (
        args.integer("health_retries"),
        args.text("health_on_failure"),
        args.text("health_cmd"),
    )
    if retries is not None and not 1 <= retries <= MAX_RETRIES:
        raise UsageError(f"--health-retries {retries} is not between 1 and {MAX_RETRIES}")
    return HealthRequest(
        command=None if line is None else command(line),
        interval_ms=milliseconds(args.text("health_interval"), "--health-interval", MIN_INTERVAL_MS),
        timeout_ms=milliseconds(args.text("health_timeout"), "--health-timeout", MIN_INTERVAL_MS),
        start_period_ms=milliseconds(args.text("health_start_period"), "--health-start-period", 0),
        retries=retries,
        on_failure=OnUnhealthy(action) if action else OnUnhealthy.NONE,
    )


def restart_pods(args: Arguments, context: Context) -> int:
    """Restart apps of running pods."""
    from secrun.cli import uuids
    from secrun.cli.guard import each
    from secrun.pod.restart import restart as restarting
    from secrun.pod.states import State

    def one(word: str) -> None:
        context.out.write(f"{restarting(context.layout, word, args.text('app'))}\n")

    return each(uuids.several(args, context, State.RUNNING), one)
