"""Names for the instants between two steps of a pod's life.

Each is a place where a crash must leave a state that `gc` can clean; tests set `hook` to crash there, and
`--debug` to tell what is being done.
"""

from collections.abc import Callable

hook: Callable[[str], object] | None = None


def reached(name: str) -> None:
    """Say that the step `name` is done."""
    if hook is not None:
        hook(name)
