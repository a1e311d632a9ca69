"""How often: token buckets in bounded memory, and how much at once. Pure but for their own counters."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from secrun_attest.service.config import Rate
from secrun_attest.service.trouble import ServiceError, Trouble

# A bucket takes about 200 bytes. The one used longest ago goes first; a new one is full.
MAX_BUCKETS = 50_000


class Buckets:
    """One bucket per name."""

    def __init__(self, rate: Rate, capacity: int = MAX_BUCKETS) -> None:
        self._rate = rate
        self._capacity = capacity
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now: float) -> None:
        """Take one from the bucket of `name`; raises ServiceError 429 when it is empty.

        `now` is in seconds of a clock that never goes back.
        """
        rate = self._rate
        level, then = self._levels.pop(name, (rate.burst, now))
        level = min(rate.burst, level + (now - then) * rate.per_second)
        if level >= 1:
            self._levels[name] = (level - 1, now)
        else:
            self._levels[name] = (level, now)
        if len(self._levels) > self._capacity:
            self._levels.popitem(last=False)
        if level < 1:
            wait = int((1 - level) / rate.per_second) + 1
            text = f"more than {rate.burst:g} requests, then {rate.per_second:g} per second"
            raise ServiceError(Trouble.RATE, text, retry_after=wait)


class Gate:
    """Counts requests in flight and the bytes of their bodies."""

    def __init__(self, requests: int, size: int) -> None:
        self._requests = requests
        self._size = size
        self._lock = threading.Lock()
        self.requests = 0
        self.size = 0

    @contextmanager
    def enter(self, size: int) -> Iterator[None]:
        """Let one request of up to `size` bytes in until the end of the block; raises ServiceError 503.

        A body that is larger than all that is allowed at once may come when no other is there.
        """
        with self._lock:
            full = self.size and self.size + size > self._size
            if self.requests >= self._requests or full:
                text = f"{self.requests} requests with {self.size} bytes are in work"
                raise ServiceError(Trouble.BUSY, text, retry_after=1)
            self.requests += 1
            self.size += size
        try:
            yield
        finally:
            with self._lock:
                self.requests -= 1
                self.size -= size
