"""Names for the instants between two steps of a pod's life.

Each is a place where a crash must leave a state that `gc` can clean; tests set `hook` to crash there.
"""

from collections.abc import Callable

POINTS: list[str] = []
"""Every point that was passed, in order; only kept while a hook is set."""

hook: Callable[[str], None] | None = None


def reached(name: str) -> None:
    """Say that the step `name` is done."""
    if hook is not None:
        POINTS.append(name)
        hook(name)
