"""Names for the instants between two steps of an append; tests set `hook` to crash there."""

from collections.abc import Callable

hook: Callable[[str], object] | None = None


def reached(name: str) -> None:
    """Say that the step `name` is done."""
    if hook is not None:
        hook(name)
