"""Rows and findings as events of the Open Cybersecurity Schema Framework, version 1.6: for a SIEM.

Pods are applications (class 6002), entries processes (1007), checks compliance findings (2003).
"""

from collections.abc import Iterator

from secrun_attest.audit.about import About
from secrun_attest.audit.checks import FRAMEWORKS, Finding, Verdict
from secrun_attest.audit.survey import Survey
from secrun_attest.audit.trail import Outcome, Row
from secrun_attest.jcs import JsonObject, JsonValue

VERSION = "1.6.0"
LIFECYCLE, PROCESS, COMPLIANCE = 6002, 1007, 2003
_OTHER = 99
_LAUNCH = 1
_CREATE = 1
# Application Lifecycle: Install 1, Remove 2, Start 3, Stop 4.
_ACTIVITIES = {"ImageAdmit": 1, "PodGC": 2, "PodStart": 3, "PodExit": 4}
_INFORMATIONAL, _LOW, _MEDIUM, _HIGH = 1, 2, 3, 4
_SEVERITIES = {
    Outcome.DONE: _INFORMATIONAL,
    Outcome.REFUSED: _MEDIUM,
    Outcome.BYPASSED: _HIGH,
    Outcome.GAP: _HIGH,
}
_SUCCESS, _FAILURE = 1, 2
# Status of a compliance check, and its caption.
_STATUS = {
    Verdict.PASS: (1, "Pass"),
    Verdict.FAIL: (3, "Fail"),
    Verdict.NOT_APPLICABLE: (_OTHER, "Not applicable"),
}


def event(about: About, row: Row) -> JsonObject:
    """Return the event of one row."""
    entry = row.event == "PodExec"
    activity = _LAUNCH if entry else _ACTIVITIES.get(row.event, _OTHER)
    class_uid = PROCESS if entry else LIFECYCLE
    refused = row.outcome is Outcome.REFUSED
    found: JsonObject = {
        "activity_id": activity,
        "category_uid": class_uid // 1000,
        "class_uid": class_uid,
        "type_uid": class_uid * 100 + activity,
        "time": row.time,
        "severity_id": _SEVERITIES[row.outcome],
        "status_id": _FAILURE if refused else _SUCCESS,
        "message": " ".join(filter(None, (row.event, row.what, row.why))),
        "metadata": {
            **_metadata(about),
            "profiles": ["container", "host"],
            "uid": str(row.leaf),
            "sequence": row.leaf,
            "event_code": row.event,
        },
        "device": _device(about),
        "actor": {"user": {"name": row.who or "unknown"}},
        "unmapped": row.to_json(),
    }
    if activity == _OTHER:
        found["activity_name"] = row.event
    # The profile of containers adds to processes and devices, not to events.
    inside: JsonObject = {"container": _container(row)} if row.pod else {}
    if entry:
        found["process"] = {"name": row.command or "unknown", "uid": str(row.leaf), **inside}
    else:
        found["device"] = {**_device(about), **inside}
        found["app"] = {"name": row.pod or "secrun", "vendor_name": "secrun"}
    if row.code is not None:
        found["status_code"] = str(row.code)
    return found


def _metadata(about: About) -> JsonObject:
    return {
        "version": VERSION,
        "product": {"name": "secrun", "vendor_name": "secrun", "version": about.tool.rpartition(" ")[2]},
        "log_name": about.origin,
    }


def _device(about: About) -> JsonObject:
    return {"hostname": about.host, "type_id": 1}


def _container(row: Row) -> JsonObject:
    container: JsonObject = {
        "uid": row.pod,
        "runtime": f"secrun/{row.flavour}".rstrip("/"),
    }
    if row.images:
        image = row.images[0]
        container["image"] = {"name": image.reference or image.manifest, "uid": image.manifest}
    return container


def findings(about: About, survey: Survey) -> Iterator[JsonObject]:
    """Yield the checks as compliance findings."""
    for finding in survey.findings:
        yield _finding(about, finding)


def _finding(about: About, finding: Finding) -> JsonObject:
    check = finding.check
    failed = finding.verdict is Verdict.FAIL
    status_id, status = _STATUS[finding.verdict]
    shown: list[JsonValue] = [
        {
            "name": f"leaf {item.index}",
            "type": item.event,
            "uid": str(item.index),
            "data": {"value": item.value},
        }
        for item in finding.evidence
    ]
    return {
        "activity_id": _CREATE,
        "category_uid": COMPLIANCE // 1000,
        "class_uid": COMPLIANCE,
        "type_uid": COMPLIANCE * 100 + _CREATE,
        "time": about.made,
        "severity_id": _HIGH if failed else _INFORMATIONAL,
        "message": f"{check.title}: {finding.verdict}",
        "metadata": {**_metadata(about), "uid": f"{about.root.hex()}-{check.id}"},
        "finding_info": {
            "title": check.title,
            "uid": check.id,
            "desc": f"{finding.broken} of {finding.looked}",
        },
        "compliance": {
            "status_id": status_id,
            "status": status,
            "standards": [FRAMEWORKS[name] for name in check.mappings],
            "requirements": [item for items in check.mappings.values() for item in items],
            "control": check.id,
        },
        "remediation": {"desc": check.remedy},
        "resources": shown or [{"name": about.host, "type": "host", "uid": about.origin}],
    }
