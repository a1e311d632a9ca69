"""Counters in Prometheus' text format (exposition format 0.0.4)."""

import threading
from collections import Counter
from collections.abc import Iterable

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "secrun_verifier"
# An appraisal of 20 events takes about a millisecond, of 20,000 half a second.
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """What happened since the start of this instance."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._appraisals: Counter[str] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0

    def request(self, method: str, path: str, status: int) -> None:
        """Count one answer; `path` is that of the route, so that clients cannot invent names."""
        with self._lock:
            self._requests[method, path, status] += 1

    def appraisal(self, outcome: str, seconds: float) -> None:
        """Count one appraisal; `outcome` is a status or a code."""
        with self._lock:
            self._appraisals[outcome] += 1
            self._seconds += seconds
            self._buckets[next((bound for bound in BOUNDS if seconds <= bound), float("inf"))] += 1

    def text(self, *, in_flight: int, hosts: Iterable[tuple[str, int]]) -> str:
        """Return everything as text."""
        with self._lock:
            requests = sorted(self._requests.items())
            appraisals = sorted(self._appraisals.items())
            buckets, seconds = Counter(self._buckets), self._seconds
        lines = _head("requests_total", "counter", "Requests answered.")
        lines += [
            _line("requests_total", count, method=method, path=path, status=str(status))
            for (method, path, status), count in requests
        ]
        lines += _head("appraisals_total", "counter", "Appraisals by status, or by code if rejected.")
        lines += [_line("appraisals_total", count, outcome=outcome) for outcome, count in appraisals]
        lines += _head("appraisal_seconds", "histogram", "Time of an appraisal, database included.")
        total = 0
        for bound in BOUNDS:
            total += buckets[bound]
            lines.append(_line("appraisal_seconds_bucket", total, le=f"{bound:g}"))
        total += buckets[float("inf")]
        lines.append(_line("appraisal_seconds_bucket", total, le="+Inf"))
        lines += [_line("appraisal_seconds_sum", seconds), _line("appraisal_seconds_count", total)]
        lines += _head("in_flight", "gauge", "Requests in work.")
        lines.append(_line("in_flight", in_flight))
        lines += _head("hosts", "gauge", "Enrolled hosts by their last verdict.")
        lines += [_line("hosts", count, verdict=verdict) for verdict, count in hosts]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP {PREFIX}_{name} {what}", f"# TYPE {PREFIX}_{name} {kind}"]


def _line(name: str, value: float, **labels: str) -> str:
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{PREFIX}_{name}{{{inner}}} {value:g}" if inner else f"{PREFIX}_{name} {value:g}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
