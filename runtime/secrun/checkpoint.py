"""Names for the instants between two steps of a pod's life.

Each is a place where a crash must leave a state that `gc` can clean; tests set `hook` to crash there, and
`--debug` to tell what is being done. When each was reached is kept with the pod (secrun.pod.timing).
"""

from collections.abc import Callable
from time import monotonic_ns

hook: Callable[[str], object] | None = None
# Names and nanoseconds of CLOCK_MONOTONIC, once somebody wants them: `keep`.
marks: list[tuple[str, int]] | None = None
# This is imported first of all of secrun's modules that do anything.
_BEGAN = monotonic_ns()


def keep() -> None:
    """Keep from now on when each step was reached; the first is that of this process's begin."""
    global marks  # noqa: PLW0603 - one process works on one pod
    marks = [("begun", _BEGAN)]


def reached(name: str) -> None:
    """Say that the step `name` is done."""
    if marks is not None:
        marks.append((name, monotonic_ns()))
    if hook is not None:
        hook(name)
