"""When to try again, and how long to wait: exponential backoff with jitter, Retry-After respected."""

import email.utils
import random
import threading
import time
from typing import Protocol

from secrun.image import limits

# 408 and 425 ask for a repeat; 429 and these of 5xx are load and restarts.
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class Clock(Protocol):
    """Time, so that tests need none."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    def wall(self) -> float:
        """Return seconds since 1970."""

    def sleep(self, seconds: float) -> None:
        """Wait, unless and until somebody calls `wake`."""

    def wake(self) -> None:
        """End every wait, now and from now on."""


class SystemClock:
    """The clock of this machine."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait, unless and until somebody calls `wake`."""
        self._woken.wait(seconds)

    def wake(self) -> None:
        """End every wait, now and from now on."""
        self._woken.set()


def parse_retry_after(text: str, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3); None if it says nothing."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        when = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, when - now)


def delay(attempt: int, asked: float | None, *, chance: float | None = None) -> float:
    """Return the seconds before try `attempt` + 1 (counted from 1); `chance` in [0, 1) is the jitter."""
    if asked is not None:
        return min(asked, limits.RETRY_AFTER_LONGEST)
    longest = min(limits.BACKOFF_LONGEST, limits.BACKOFF_FIRST * 2.0 ** (attempt - 1))
    # Half is fixed so that a wait is never nothing, half is chance so that clients spread.
    spread = random.random() if chance is None else chance  # noqa: S311 - no secret hangs on it
    return longest * (0.5 + 0.5 * spread)
