"""One pass over the trail for whoever reads it as a whole: counts, what ran when, what checks found."""

import json
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from secrun_attest import frozen
from secrun_attest.audit.checks import APP, Check, Checker, Finding, Judged
from secrun_attest.audit.trail import Outcome, Row
from secrun_attest.jcs import JsonObject, JsonValue

# What a person looks at; more pods are counted and said to be left out of the picture.
MAX_RUNS = 400
# Pods that started and have not ended yet: more of them at once than any host runs.
MAX_RUNNING = 10_000
MAX_NOTABLE = 400
# Accounts that are kept in memory unread.
MAX_UNREAD = 100


class Run(NamedTuple):
    """A pod from its start to its end in milliseconds since 1970; `ended` is 0 while it runs.

    `leaf` is that of its PodStart. A tuple, as there may be millions.
    """

    pod: str
    leaf: int
    started: int
    ended: int
    code: int | None
    who: str
    apps: tuple[str, ...]
    images: tuple[str, ...]
    relaxed: bool


@frozen.record
class Survey:
    """The whole of a trail; of `runs` and of `notable`, refusals, bypasses and gaps, the last are there."""

    rows: int
    first: int
    last: int
    events: Sequence[tuple[str, int]]
    outcomes: Sequence[tuple[str, int]]
    pods: int
    images: Sequence[tuple[str, int]]
    runs: tuple[Run, ...]
    notable: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Tell whether any check failed."""
        return any(finding.verdict == "fail" for finding in self.findings)


class Surveyor:
    """Takes rows, and the account of a pod behind the row that names it."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checker = Checker(checks)
        self._events: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._images: Counter[str] = Counter()
        self._open: OrderedDict[str, Run] = OrderedDict()
        self._prepared: OrderedDict[str, Row] = OrderedDict()
        self._runs: OrderedDict[int, Run] = OrderedDict()
        # Accounts of pods that have not ended: the last ones as they are, since most end soon.
        self._begun: OrderedDict[str, tuple[Row, bytes]] = OrderedDict()
        self._running: OrderedDict[str, list[Judged]] = OrderedDict()
        self._notable: list[Row] = []
        self._pods = self._first = self._last = 0

    def take(self, row: Row, account: bytes | None = None, said: JsonObject | None = None) -> None:
        """Take the next row; `said` is its JSON form where somebody has it already."""
        self._events[row.event] += 1
        self._outcomes[row.outcome.value] += 1
        self._first = self._first or row.time
        self._last = max(self._last, row.time)
        if row.outcome is not Outcome.DONE:
            self._notable.append(row)
            del self._notable[:-MAX_NOTABLE]
        if self._checker.wants(row.event):
            self._checker.take(row.event, row.leaf, row.time, said or row.to_json())
        match row.event:
            case "PodPrepare":
                self._prepared[row.pod] = row
                _bound(self._prepared, MAX_RUNNING)
            case "PodStart":
                self._start(row, account)
            case "PodExit":
                self._end(row)
                for judged in self._judged(row, account):
                    self._checker.count(judged)

    def _start(self, row: Row, account: bytes | None) -> None:
        self._pods += 1
        if account:
            self._begun[row.pod] = (row, account)
            if len(self._begun) > MAX_UNREAD:
                pod, begun = self._begun.popitem(last=False)
                self._running[pod] = self._judged(*begun)
                _bound(self._running, MAX_RUNNING)
        prepared = self._prepared.pop(row.pod, None)
        images = tuple(image.reference or image.manifest for image in prepared.images) if prepared else ()
        self._images.update(images)
        _trim(self._images)
        self._open[row.pod] = Run(
            pod=row.pod,
            leaf=row.leaf,
            started=row.time,
            ended=0,
            code=None,
            who=row.who,
            apps=prepared.apps if prepared else (),
            images=images,
            relaxed=prepared is not None and bool(prepared.relaxations),
        )
        _bound(self._open, MAX_RUNNING)

    def _end(self, row: Row) -> None:
        # What is kept of the pod in the end says all of this, and more.
        self._begun.pop(row.pod, None)
        self._running.pop(row.pod, None)
        run = self._open.pop(row.pod, None)
        if run is not None:
            self._runs[run.leaf] = run._replace(ended=row.time, code=row.code)
            _bound(self._runs, MAX_RUNS)

    def _judged(self, row: Row, data: bytes | None) -> list[Judged]:
        """Return what the checks say of each app of an account."""
        try:
            document: JsonValue = json.loads(data) if data and self._checker.wants(APP) else None
        except ValueError:
            return []  # it is not what was measured either: verification names it
        if not isinstance(document, dict):
            return []
        apps = document.get("apps")
        pod: JsonObject = {name: value for name, value in document.items() if name != "apps"}
        return [
            self._checker.judged(APP, row.leaf, row.time, {**app, "pod": pod}, record=row.event)
            for app in (apps if isinstance(apps, list) else ())
            if isinstance(app, dict)
        ]

    def _count_running(self) -> None:
        """Count the apps of pods that have not ended."""
        while self._begun:
            pod, begun = self._begun.popitem(last=False)
            self._running[pod] = self._judged(*begun)
        while self._running:
            for judged in self._running.popitem(last=False)[1]:
                self._checker.count(judged)

    def survey(self) -> Survey:
        """Return what it all came to; nothing is taken after it."""
        self._count_running()
        runs = sorted([*self._runs.values(), *self._open.values()], key=lambda run: run.started)
        return Survey(
            rows=self._events.total(),
            first=self._first,
            last=self._last,
            events=self._events.most_common(),
            outcomes=self._outcomes.most_common(),
            pods=self._pods,
            images=self._images.most_common(MAX_RUNS),
            runs=tuple(runs[-MAX_RUNS:]),
            notable=tuple(self._notable),
            findings=self._checker.findings(),
        )


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _bound(items: "OrderedDict[_Key, _Value]", most: int) -> None:
    if len(items) > most:
        items.popitem(last=False)


def _trim(counter: "Counter[str]") -> None:
    """Keep what is counted from growing with every image that was ever run."""
    if len(counter) > 2 * MAX_RUNS:
        for name, _ in counter.most_common()[MAX_RUNS:]:
            del counter[name]


def survey_of(rows: Iterable[tuple[Row, bytes | None]], checks: Sequence[Check]) -> Survey:
    """Return the survey of rows with their accounts."""
    surveyor = Surveyor(checks)
    for row, account in rows:
        surveyor.take(row, account)
    return surveyor.survey()
