"""Findings as OSCAL assessment results (NIST): what compliance tools read.

Identifiers are made of the head of the log: the same trail gives the same document.
"""

import re
import uuid
from collections.abc import Sequence

from secrun_attest.audit.about import About
from secrun_attest.audit.checks import FRAMEWORKS, Finding, Verdict
from secrun_attest.audit.rows import when
from secrun_attest.audit.survey import Survey
from secrun_attest.jcs import JsonObject, JsonValue

# What compliance-trestle 5 calls its own; nothing in the document is newer than 1.1.
VERSION = "1.2.1"
_NAMESPACE = "https://secrun.dev/ns/oscal"
_SP800_53 = "sp800-53"
_ENHANCEMENT = re.compile(r"\((\d+)\)")
_NO_TOKEN = re.compile(r"[^A-Za-z0-9._-]")
# What is not satisfied shows this many records; the trail has the others.
_SHOWN = 20


def control_id(framework: str, item: str) -> str:
    """Return an item of a framework as a token: `AC-6(9)` is `ac-6.9`, as NIST's catalogue writes it."""
    if framework == _SP800_53:
        return _NO_TOKEN.sub("-", _ENHANCEMENT.sub(r".\1", item.lower()))
    return _NO_TOKEN.sub("-", f"{framework}-{item.lower()}")


class _Ids:
    def __init__(self, about: About) -> None:
        self._space = uuid.uuid5(uuid.NAMESPACE_URL, f"{_NAMESPACE}/{about.origin}/{about.root.hex()}")

    def of(self, *words: str) -> str:
        return str(uuid.uuid5(self._space, "/".join(words)))


def assessment_results(about: About, survey: Survey) -> JsonObject:
    """Return the document."""
    ids = _Ids(about)
    shown = [finding for finding in survey.findings if finding.verdict is not Verdict.NOT_APPLICABLE]
    controls = _controls(survey.findings, about.framework)
    return {
        "assessment-results": {
            "uuid": ids.of("results", about.framework, str(about.since), str(about.until)),
            "metadata": _metadata(about, ids),
            "import-ap": {"href": f"#{ids.of('plan')}"},
            "results": [
                {
                    "uuid": ids.of("result"),
                    "title": f"What ran on {about.host}",
                    "description": f"{survey.rows} records, {survey.pods} pods started.",
                    "start": when(about.since or survey.first),
                    "end": when(about.until or survey.last),
                    "local-definitions": {"inventory-items": [_inventory(about, ids)]},
                    "reviewed-controls": _reviewed(controls),
                    "observations": [_observation(about, ids, finding) for finding in shown],
                    "findings": [
                        found
                        for framework, item in controls
                        if (found := _finding(ids, framework, item, survey.findings)) is not None
                    ],
                }
            ],
            "back-matter": {"resources": _resources(ids)},
        }
    }


def _reviewed(controls: Sequence[tuple[str, str]]) -> JsonObject:
    chosen: list[JsonValue] = [{"control-id": control_id(framework, item)} for framework, item in controls]
    text = "Every control that a check says something about."
    return {"control-selections": [{"description": text, "include-controls": chosen}]}


def _metadata(about: About, ids: _Ids) -> JsonObject:
    return {
        "title": f"Audit of {about.host}",
        "last-modified": when(about.made),
        "version": "1",
        "oscal-version": VERSION,
        "props": [
            _prop("log-origin", about.origin),
            _prop("log-size", str(about.size)),
            _prop("log-root", about.root.hex()),
            _prop("tool", about.tool),
        ],
        "parties": [{"uuid": ids.of("host"), "type": "organization", "name": about.host}],
    }


def _prop(name: str, value: str) -> JsonObject:
    return {"name": name, "ns": _NAMESPACE, "value": value}


def _inventory(about: About, ids: _Ids) -> JsonObject:
    return {
        "uuid": ids.of("inventory"),
        "description": f"The host {about.host}",
        "props": [_prop("host-name", about.host)],
    }


def _resources(ids: _Ids) -> list[JsonValue]:
    return [
        {
            "uuid": ids.of("plan"),
            "title": "Assessment plan",
            "description": "The catalogue of automated checks of secrun; each looks at every record.",
        },
        {
            "uuid": ids.of("trail"),
            "title": "Trail",
            "description": "trail.jsonl of the audit bundle; it has the leaves of this document.",
            "rlinks": [{"href": "trail.jsonl", "media-type": "application/jsonl"}],
        },
    ]


def _controls(findings: Sequence[Finding], framework: str) -> list[tuple[str, str]]:
    wanted = (framework,) if framework else tuple(FRAMEWORKS)
    found = {
        (name, item): None
        for name in wanted
        for finding in findings
        for item in finding.check.mappings.get(name, ())
    }
    return sorted(found)


def _words(*words: str) -> str:
    """Return words as one line: OSCAL takes no other."""
    return " ".join(" ".join(words).split())


def _observation(about: About, ids: _Ids, finding: Finding) -> JsonObject:
    check = finding.check
    evidence: list[JsonValue] = [
        {
            "href": f"#{ids.of('trail')}",
            "description": _words(f"Leaf {item.index}:", item.pod, item.app, item.value),
            "props": [_prop("leaf", str(item.index))],
        }
        for item in finding.evidence[:_SHOWN]
    ]
    return {
        "uuid": ids.of("observation", check.id),
        "title": check.title,
        "description": f"{finding.looked} looked at, {finding.broken} not as they should be.",
        "props": [_prop("check", check.id), _prop("result", finding.verdict.value)],
        "methods": ["TEST"],
        "types": ["finding"],
        "subjects": [{"subject-uuid": ids.of("inventory"), "type": "inventory-item"}],
        **({"relevant-evidence": evidence} if evidence else {}),
        "collected": when(about.made),
        "remarks": check.remedy,
    }


def _finding(ids: _Ids, framework: str, item: str, findings: Sequence[Finding]) -> JsonObject | None:
    """Return what is found of one control; None if no check had anything to look at."""
    about = [
        finding
        for finding in findings
        if item in finding.check.mappings.get(framework, ())
        and finding.verdict is not Verdict.NOT_APPLICABLE
    ]
    if not about:
        return None
    failed = [finding.check.id for finding in about if finding.verdict is Verdict.FAIL]
    names = ", ".join(finding.check.id for finding in about)
    return {
        "uuid": ids.of("finding", framework, item),
        "title": f"{FRAMEWORKS[framework]} {item}",
        "description": f"Checks: {names}. {'Failed: ' + ', '.join(failed) if failed else 'All passed'}.",
        "target": {
            "type": "objective-id",
            "target-id": control_id(framework, item),
            "status": {
                "state": "not-satisfied" if failed else "satisfied",
                "reason": "fail" if failed else "pass",
            },
        },
        "related-observations": [
            {"observation-uuid": ids.of("observation", finding.check.id)} for finding in about
        ],
    }
