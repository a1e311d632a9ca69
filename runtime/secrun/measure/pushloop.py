"""Push whenever the log grows, and at least so often; between pushes nothing is held.

Polling, not inotify: two calls to the kernel every tenth of a second cost less than what would have to be
done where inotify's few instances per user are used up.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from secrun.errors import SecrunError
from secrun.image.retry import delay
from secrun.measure.push import Outcome
from secrun.record import record

POLL_SECONDS = 0.1
# A verifier takes four requests a second of each host, forty at once; a push is two.
_PER_SECOND = 1.9
_BURST = 15.0
_SUFFIX = ".cel"


class StoppedError(Exception):
    """The loop was told to end."""


@record
class Mark:
    """The newest log and its size; empty without any."""

    name: str = ""
    size: int = 0


class LogWatch:
    """Tells whether the log has grown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changed = -1
        self._name = ""

    def mark(self) -> Mark:
        """Return how things stand; another mark than before means news."""
        try:
            # Logs of earlier boots stay: look at them all only when the folder has changed.
            changed = os.stat(self._folder).st_mtime_ns
            if changed != self._changed:
                self._name = _newest(self._folder)
                self._changed = changed
            if not self._name:
                return Mark()
            return Mark(name=self._name, size=os.stat(self._folder / self._name).st_size)
        except FileNotFoundError:
            self._changed = -1
            return Mark()

    def grew(self, since: Mark) -> bool:
        """Tell whether there is news."""
        return self.mark() != since


def _newest(folder: Path) -> str:
    with os.scandir(folder) as entries:
        logs = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if entry.name.endswith(_SUFFIX)]
    return max(logs)[1] if logs else ""


class Budget:
    """How many pushes there may be now: a bucket that time fills."""

    def __init__(self, now: float) -> None:
        self._level = _BURST
        self._then = now

    def seconds(self, now: float) -> float:
        """Take one push; return how long it has to wait."""
        self._level = min(_BURST, self._level + (now - self._then) * _PER_SECOND)
        self._then = now
        self._level -= 1.0
        return max(0.0, -self._level / _PER_SECOND)


class Loop:
    """Pushes until `stop`; `tell` is told outcomes, `complain` what goes wrong, once."""

    def __init__(
        self,
        watch: LogWatch,
        *,
        interval: float,
        tell: Callable[[Outcome], None],
        complain: Callable[[SecrunError], None],
        say: Callable[[str], None],
    ) -> None:
        self._watch = watch
        self._interval = interval
        self._tell = tell
        self._complain = complain
        self._say = say
        self._stopped = False
        self._trouble = ""
        self._failures = 0

    def stop(self) -> None:
        """End the loop soon; may be called by a signal's handler."""
        self._stopped = True

    def wait(self, seconds: float) -> None:
        """Sleep; raises StoppedError once `stop` was called."""
        self._until(None, seconds)

    def run(self, push: Callable[[], Outcome]) -> None:
        """Push until `stop`."""
        budget = Budget(time.monotonic())
        try:
            while True:
                self.wait(budget.seconds(time.monotonic()))
                # Before the push looks at the log: what comes later is news.
                before = self._watch.mark()
                if self._push(push):
                    self._until(partial(self._watch.grew, before), self._interval)
                else:
                    self.wait(min(self._interval, delay(self._failures, None)))
        except StoppedError:
            return

    def _push(self, push: Callable[[], Outcome]) -> bool:
        try:
            outcome = push()
        except SecrunError as error:
            self._failures += 1
            if not self._stopped and self._trouble != error.code:
                self._complain(error)
                self._trouble = error.code
            return False
        if self._trouble:
            self._say("pushed again")
        self._trouble, self._failures = "", 0
        self._tell(outcome)
        return True

    def _until(self, condition: Callable[[], bool] | None, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped:
            left = end - time.monotonic()
            if left <= 0 or (condition is not None and condition()):
                return
            # A signal's handler runs in between and lets the sleep go on, which is short.
            time.sleep(min(POLL_SECONDS, left))
        raise StoppedError
