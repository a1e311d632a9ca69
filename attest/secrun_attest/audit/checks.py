"""Checks over the trail: a catalogue of rules, evaluated record by record, and what broke them."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from itertools import takewhile
from typing import NamedTuple

from secrun_attest import frozen
from secrun_attest.errors import FormatError
from secrun_attest.jcs import JsonObject, JsonValue

CATALOGUE = "checks.toml"
APP = "app"
# What one check shows of what broke it; the count is whole.
MAX_EVIDENCE = 100
# How much of a value is shown.
_MAX_VALUE = 200
# Subjects whose answers are remembered, and how long what is asked of one may be: some megabytes in all.
_MAX_KNOWN = 256
_MAX_ASKED = 8 * 1024
FRAMEWORKS: Mapping[str, str] = {
    "sp800-190": "NIST SP 800-190",
    "sp800-53": "NIST SP 800-53 r5",
    "cis-docker": "CIS Docker 1.8.0",
    "pci-dss": "PCI DSS 4.0.1",
    "soc2": "SOC 2",
}


class CatalogueError(FormatError):
    """The catalogue of checks has a mistake."""

    code = "audit-checks"


class Operation(StrEnum):
    """What a condition asks of the values that its path leads to; each of them must hold."""

    SET = "set"
    UNSET = "unset"
    TRUE = "true"
    FALSE = "false"
    IN = "in"
    NOT = "not"
    LIKE = "like"
    UNLIKE = "unlike"
    NEVER = "never"


class Verdict(StrEnum):
    """What a check came to."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    NOT_APPLICABLE = "not-applicable"


@frozen.record
class Condition:
    """Something that must hold; `paths` are alternatives, the first that is set counts."""

    paths: tuple[tuple[str, ...], ...]
    operation: Operation
    values: tuple[str, ...]

    def broken(self, subject: JsonObject) -> str:
        """Return the value for which it does not hold, as text; empty if it holds."""
        found = next((got for path in self.paths if _is_set(got := [*_walk(subject, path)])), [])
        match self.operation:
            case Operation.SET:
                return "" if _is_set(found) else "not set"
            case Operation.UNSET:
                return _text(found[0]) if _is_set(found) else ""
            case Operation.NEVER:
                return _text(found[0]) if found else "it is there"
            case _:
                return next((_text(value) for value in found or [None] if not self._holds(_text(value))), "")

    def _holds(self, text: str) -> bool:
        match self.operation:
            case Operation.TRUE | Operation.FALSE:
                return text == self.operation.value
            case Operation.IN:
                return text in self.values
            case Operation.NOT:
                return text not in self.values
            case Operation.LIKE:
                return any(fnmatchcase(text, pattern) for pattern in self.values)
            case _:
                return not any(fnmatchcase(text, pattern) for pattern in self.values)


def _walk(value: JsonValue, path: Sequence[str]) -> Iterator[JsonValue]:
    if not path:
        yield value
    elif path[0] == "*":
        for item in value if isinstance(value, list) else ():
            yield from _walk(item, path[1:])
    elif isinstance(value, dict) and path[0] in value:
        yield from _walk(value[path[0]], path[1:])


def _is_set(found: Sequence[JsonValue]) -> bool:
    return bool(found) and all(value not in (None, "", [], {}) for value in found)


def _text(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else str(value)


@frozen.record
class Check:
    """One check; `mappings` are ids of items by framework."""

    id: str
    title: str
    on: tuple[str, ...]
    where: tuple[Condition, ...]
    require: tuple[Condition, ...]
    empty: Verdict
    remedy: str
    mappings: Mapping[str, tuple[str, ...]]

    def applies(self, subject: JsonObject) -> bool:
        """Tell whether the check looks at this."""
        return not any(condition.broken(subject) for condition in self.where)

    def broken(self, subject: JsonObject) -> str:
        """Return which value breaks it, empty if none does."""
        return next((got for condition in self.require if (got := condition.broken(subject))), "")


@frozen.record
class Evidence:
    """What broke a check: the leaf that shows it, of when and of what, the pod and app, and the value."""

    index: int
    time: int
    event: str
    pod: str
    app: str
    value: str


@frozen.record
class Finding:
    """What a check came to over the trail: `looked` subjects, `broken` of them, some of which are shown."""

    check: Check
    verdict: Verdict
    looked: int
    broken: int
    evidence: tuple[Evidence, ...]

    def to_json(self) -> JsonObject:
        """Return the documented JSON form."""
        return {
            "id": self.check.id,
            "title": self.check.title,
            "verdict": self.verdict.value,
            "looked": self.looked,
            "broken": self.broken,
            "evidence": [
                {
                    "index": item.index,
                    "time": item.time,
                    "event": item.event,
                    "pod": item.pod,
                    "app": item.app,
                    "value": item.value,
                }
                for item in self.evidence
            ],
            "remedy": self.check.remedy,
            "mappings": {name: list(ids) for name, ids in self.check.mappings.items()},
        }


class _Tally:
    __slots__ = ("broken", "check", "evidence", "looked")

    def __init__(self, check: Check) -> None:
        self.check = check
        self.looked = self.broken = 0
        self.evidence: list[Evidence] = []


class _Group:
    """The checks that look at subjects of one kind; what they say of equal ones is worked out once.

    A host runs the same few things again and again, so a million apps have some dozen answers.
    """

    def __init__(self, tallies: Sequence[_Tally]) -> None:
        self._tallies = tallies
        paths = {
            tuple(takewhile("*".__ne__, path))
            for tally in tallies
            for condition in (*tally.check.where, *tally.check.require)
            for path in condition.paths
        }
        self._heads = sorted(paths)
        self._known: dict[str, Sequence[tuple[_Tally, str]]] = {}

    def answers(self, subject: JsonObject) -> Sequence[tuple[_Tally, str]]:
        """Return the checks that look at this, each with the value that breaks it, empty if none does."""
        asked = repr([_at(subject, head) for head in self._heads])
        found = self._known.get(asked)
        if found is None:
            looking = [tally for tally in self._tallies if tally.check.applies(subject)]
            found = [(tally, tally.check.broken(subject)[:_MAX_VALUE]) for tally in looking]
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            if len(asked) <= _MAX_ASKED:
                self._known[asked] = found
        return found


def _at(value: JsonValue, path: Sequence[str]) -> object:
    """Return what is at a path, or what no JSON is."""
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return ...
        value = value[name]
    return value


class Judged(NamedTuple):
    """What the checks say of one subject at a leaf."""

    leaf: int
    time: int
    event: str
    pod: str
    app: str
    answers: Sequence[tuple[_Tally, str]]

    def evidence(self, value: str) -> Evidence:
        """Return what shows that a value breaks a check."""
        return Evidence(
            index=self.leaf, time=self.time, event=self.event, pod=self.pod, app=self.app, value=value
        )


class Checker:
    """Evaluates checks record by record."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._tallies = [_Tally(check) for check in checks]
        events = {event for check in checks for event in check.on}
        self._by = {
            event: _Group([tally for tally in self._tallies if event in tally.check.on]) for event in events
        }

    def wants(self, event: str) -> bool:
        """Tell whether any check looks at this event."""
        return event in self._by

    def take(self, event: str, leaf: int, time: int, subject: JsonObject) -> None:
        """Look at one row."""
        self.count(self.judged(event, leaf, time, subject))

    def judged(self, event: str, leaf: int, time: int, subject: JsonObject, *, record: str = "") -> "Judged":
        """Look at one row, or as APP at one app of a pod's account with the pod as `pod`; count nothing.

        `record` is the event that names the account.
        """
        group = self._by.get(event)
        pod, name = subject.get("pod"), subject.get("name")
        uuid = pod.get("pod") if isinstance(pod, dict) else pod
        return Judged(
            leaf=leaf,
            time=time,
            event=record or event,
            pod=uuid if isinstance(uuid, str) else "",
            app=name if event == APP and isinstance(name, str) else "",
            answers=group.answers(subject) if group else (),
        )

    def count(self, judged: "Judged") -> None:
        """Count what was looked at."""
        for tally, got in judged.answers:
            tally.looked += 1
            if got:
                tally.broken += 1
                if len(tally.evidence) < MAX_EVIDENCE:
                    tally.evidence.append(judged.evidence(got))

    def findings(self) -> tuple[Finding, ...]:
        """Return what the checks came to."""
        return tuple(_finding(tally) for tally in self._tallies)


def _finding(tally: _Tally) -> Finding:
    verdict = tally.check.empty
    if tally.looked:
        verdict = Verdict.FAIL if tally.broken else Verdict.PASS
    return Finding(
        check=tally.check,
        verdict=verdict,
        looked=tally.looked,
        broken=tally.broken,
        evidence=tuple(tally.evidence),
    )


@cache
def catalogue() -> tuple[Check, ...]:
    """Return the checks that come with this library; raises CatalogueError."""
    return parse_catalogue((files(__package__) / CATALOGUE).read_text("utf-8"))


def chosen(framework: str) -> tuple[Check, ...]:
    """Return the checks that say something about a framework; all without one."""
    return tuple(check for check in catalogue() if not framework or framework in check.mappings)


def parse_catalogue(text: str) -> tuple[Check, ...]:
    """Parse a catalogue; raises CatalogueError."""
    try:
        tables = tomllib.loads(text).get("check", [])
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"the catalogue is no TOML: {error}") from error
    checks = tuple(_check(table) for table in tables)
    if len({check.id for check in checks}) != len(checks):
        raise CatalogueError("two checks have one id")
    return checks


def _check(table: Mapping[str, object]) -> Check:
    known = {"id", "title", "on", "where", "require", "empty", "remedy", *FRAMEWORKS}
    if unknown := sorted(table.keys() - known):
        raise CatalogueError(f"a check has an unknown member {unknown[0]!r}")
    check = Check(
        id=_word(table, "id"),
        title=_word(table, "title"),
        on=_words(table.get("on")),
        where=_conditions(table.get("where", [])),
        require=_conditions(table.get("require")),
        empty=Verdict(_word(table, "empty")) if "empty" in table else Verdict.NOT_APPLICABLE,
        remedy=_word(table, "remedy"),
        mappings={name: _words(table[name]) for name in FRAMEWORKS if name in table},
    )
    if not check.on or not check.require or not check.mappings:
        raise CatalogueError(f"check {check.id} looks at nothing, asks nothing, or is about no framework")
    return check


def _word(table: Mapping[str, object], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value:
        raise CatalogueError(f"a check lacks {name}")
    return value


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CatalogueError(f"{value!r} is no list of words")
    return tuple(value)


def _conditions(value: object) -> tuple[Condition, ...]:
    if not isinstance(value, list):
        raise CatalogueError("conditions are no list")
    return tuple(_condition(item) for item in value)


def _condition(table: Mapping[str, object]) -> Condition:
    operation = _word(table, "is")
    if operation not in set(Operation) or table.keys() - {"path", "is", "values"}:
        raise CatalogueError(f"a condition is {dict(table)!r}")
    paths = tuple(tuple(path.split(".")) for path in _word(table, "path").split("|"))
    return Condition(paths=paths, operation=Operation(operation), values=_words(table.get("values", [])))
