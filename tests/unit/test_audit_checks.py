"""The catalogue of checks, each with what passes and what fails, and the forms that findings come in."""

import base64
import copy
import json
import re

import pytest

from secrun.cli.options_audit import FRAMEWORK
from secrun_attest import dsse
from secrun_attest.audit import checks, intoto, ocsf, oscal, timeline
from secrun_attest.audit.about import About
from secrun_attest.audit.checks import APP, FRAMEWORKS, Checker, Verdict
from secrun_attest.audit.entries import State
from secrun_attest.audit.export import Form, pieces
from secrun_attest.audit.page import page
from secrun_attest.audit.survey import MAX_RUNS, MAX_UNREAD, Run, Surveyor, survey_of
from secrun_attest.audit.trail import Image, Outcome, Row
from secrun_attest.errors import FormatError
from secrun_attest.record import Operation
from support.attest_bench import sha
from support.audited import AuditedHost, members
from support.ocsf import problems

POD = "11111111-2222-4333-8444-555555555555"
GOOD_APP = {
    "name": "web",
    "image": "docker://r/web:1",
    "manifest": sha("image"),
    "uid": 1000,
    "read_only": True,
    "volumes": [{"source": "/srv/data", "target": "/data", "read_only": False, "relabel": ""}],
    "limits": {"memory_bytes": 1 << 28, "cpu_millis": None, "cpu_weight": 100, "pids": 100},
    "capabilities": ["CAP_NET_BIND_SERVICE"],
    "security": {
        "privileged": False,
        "no_new_privileges": True,
        "seccomp": "default",
        "seccomp_digest": sha("filter"),
        "devices": [],
    },
    "read_back": {"verdict": "held", "values": {}, "differences": []},
    "pod": {"pod": POD, "machine": None, "finished": 1_790_000_000_000,
            "label": "u:r:secrun_pod_t:s0:c1,c2", "network": "cni",
            "ports": ["127.0.0.1:8080:80/tcp", "[::1]:8080:80/tcp"]},
}  # fmt: skip
IMAGE = {"manifest": sha("i"), "signers": ["cosign:key"], "bypass": False}


def app(**changes):
    """The good app with other members; `a__b` reaches inside."""
    found = copy.deepcopy(GOOD_APP)
    for name, value in changes.items():
        *way, last = name.split("__")
        place = found
        for step in way:
            place = place[step]
        place[last] = value
    return APP, found


def row(event, **fields):
    return event, {"event": event, **fields}


# Of each check: what passes, and what fails.
FIXTURES = {
    "image-signed": (
        row("ImageAdmit", images=[IMAGE]),
        row("ImageAdmit", images=[{**IMAGE, "signers": []}]),
    ),
    "image-policy": (
        row("ImageAdmit", images=[IMAGE]),
        row("ImageAdmit", images=[{**IMAGE, "bypass": True}]),
    ),
    "image-user": (app(), app(uid=0)),
    "measured": (None, row("Unmeasured", why="attest=off")),
    "epochs-closed": (row("Closing", what="closed"), row("Closing", what="not-closed")),
    "records-kept": (None, row("Pruned")),
    "hardware-tpm": (row("LogOpen", why="key 00, hardware TPM"), row("LogOpen", why="key 00, software TPM")),
    "start-attributed": (row("PodStart", who="uid 0"), row("PodStart")),
    "entry-attributed": (row("PodExec", who="login 1000, uid 0"), row("PodExec", who="uid 0")),
    "no-entry": (None, row("PodExec", who="login 1000, uid 0")),
    "not-privileged": (app(), app(security__privileged=True)),
    "capabilities": (app(), app(capabilities=["CAP_CHOWN", "CAP_SYS_ADMIN"])),
    "no-new-privileges": (app(), app(security__no_new_privileges=False)),
    "seccomp": (app(), app(security__seccomp_digest="")),
    "selinux": (app(), app(pod__label="")),
    "read-back": (app(), app(read_back__verdict="weaker")),
    "read-only-root": (app(), app(read_only=False)),
    "memory-limit": (app(), app(limits__memory_bytes=None)),
    "cpu-limit": (app(), app(limits__cpu_weight=None)),
    "process-limit": (app(), app(limits__pids=None)),
    "own-network": (app(), app(pod__network="host")),
    "ports-bound": (app(), app(pod__ports=["127.0.0.1:1:1/tcp", "8080:80/tcp"])),
    "host-folders": (app(), app(volumes=[{"source": "/etc/ssl", "target": "/x"}])),
    "devices": (app(), app(security__devices=[{"source": "/dev/fuse", "target": "/dev/fuse"}])),
}


def verdict(check, *subjects):
    checker = Checker([check])
    for event, subject in subjects:
        checker.take(event, 7, 5, subject)
    (finding,) = checker.findings()
    return finding


def test_each_check_has_a_fixture_and_a_framework():
    assert [*FIXTURES] == [check.id for check in checks.catalogue()]
    assert {*FRAMEWORKS} == {*FRAMEWORK.choices}
    for name in FRAMEWORKS:
        assert checks.chosen(name)
    assert len(checks.chosen("")) == len(checks.catalogue())


@pytest.mark.parametrize("check", checks.catalogue(), ids=lambda check: check.id)
def test_a_check_passes_and_fails_by_its_rule(check):
    good, bad = FIXTURES[check.id]
    if good is not None:
        assert verdict(check, good).verdict is Verdict.PASS
    found = verdict(check, *([good] if good else []), bad)
    assert (found.verdict, found.broken, found.evidence[0].index) == (Verdict.FAIL, 1, 7)
    empty = Verdict.NOT_APPLICABLE if good else Verdict.PASS
    assert verdict(check).verdict is empty
    assert verdict(check, row("Other")).verdict is empty


@pytest.mark.parametrize("name", ["read-back", "memory-limit", "process-limit", "cpu-limit"])
def test_what_a_guest_has_of_its_own_is_not_asked_of_it(name):
    check = next(check for check in checks.catalogue() if check.id == name)
    guest = app(pod__machine={"vcpus": 1}, read_back=None, limits={})
    assert verdict(check, guest).verdict is Verdict.NOT_APPLICABLE


def test_an_app_of_which_nothing_was_read_back_did_not_hold():
    check = next(check for check in checks.catalogue() if check.id == "read-back")
    assert verdict(check, app(read_back=None)).verdict is Verdict.FAIL


def test_many_broken_are_counted_and_some_shown():
    check = next(check for check in checks.catalogue() if check.id == "measured")
    found = verdict(check, *[FIXTURES["measured"][1]] * 1000)
    assert (found.broken, len(found.evidence)) == (1000, checks.MAX_EVIDENCE)


CHECK = """
[[check]]
id = "a"
title = "t"
on = ["app"]
require = [{ path = "x", is = "set" }]
remedy = "r"
soc2 = ["CC1"]
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('id = "a"', ""),
        ('is = "set"', 'is = "maybe"'),
        ('is = "set"', 'is = "set", other = 1'),
        ('on = ["app"]', "on = []"),
        ('on = ["app"]', "on = 1"),
        ("soc2", "soc3"),
        ('soc2 = ["CC1"]', ""),
        ("require = ", "require = 1 #"),
        ('title = "t"', "title = t"),
        ("[[check]]", CHECK + "[[check]]"),
    ],
)
def test_a_catalogue_with_a_mistake_is_refused(old, new):
    assert len(checks.parse_catalogue(CHECK)) == 1
    with pytest.raises(FormatError):
        checks.parse_catalogue(CHECK.replace(old, new))


ABOUT = About(
    origin="secrun.dev/audit/h", host="h<i>", tool="secrun 1.2", size=9, root=bytes(32),
    made=1_790_000_000_000, since=0, until=0,
)  # fmt: skip
WEB = Image(
    manifest=sha("image"), tree=sha("t"), reference="docker://r/web:1", signers=("cosign:k",), policy="p"
)


def made(index, event, *, time=None, outcome=Outcome.DONE, **fields):
    words = {"leaf": index, "epoch": "1-0", "number": index, "event": event, "outcome": outcome}
    return Row(**words, time=1_780_000_000_000 + index * 1000 if time is None else time, **fields)


def account(*apps):
    pod = {
        **(apps[0] if apps else GOOD_APP)["pod"],
        "apps": [{key: value for key, value in one.items() if key != "pod"} for one in apps],
    }
    return json.dumps(pod).encode()


def story(code=0, **changes):
    yield made(0, "LogOpen", why="key 0, software TPM"), None
    yield made(1, "ImageAdmit", images=(WEB,)), None
    yield made(2, "PodPrepare", pod=POD, images=(WEB,), apps=("web",)), None
    yield made(3, "PodStart", pod=POD, who="login 1, uid 0"), None
    yield made(4, "PodExec", pod=POD, command=sha("c"), who="uid 0"), None
    yield made(5, "PodExit", pod=POD, code=code, account=sha("a")), account(app(**changes)[1])
    yield made(6, "Denied", outcome=Outcome.REFUSED, what="image <b>x</b>", why="denied-image"), None
    yield made(7, "Closing", outcome=Outcome.GAP, what="not-closed"), None


def test_a_survey_counts_and_joins_what_belongs_together():
    found = survey_of(story(code=3, uid=0), checks.catalogue())
    assert (found.rows, found.pods, dict(found.outcomes)) == (8, 1, {"done": 6, "refused": 1, "gap": 1})
    (run,) = found.runs
    assert (run.pod, run.code, run.images, run.apps) == (POD, 3, ("docker://r/web:1",), ("web",))
    assert run.ended - run.started == 2000
    assert [item.event for item in found.notable] == ["Denied", "Closing"]
    failed = {finding.check.id for finding in found.findings if finding.verdict is Verdict.FAIL}
    assert failed == {"image-user", "hardware-tpm", "epochs-closed", "entry-attributed", "no-entry"}
    assert found.failed


def running(pods, **changes):
    """Pods that were started and have not ended, each with its account from the start."""
    begun = account(app(read_back=None, pod__finished=None, **changes)[1])
    for number in range(pods):
        yield made(2 * number, "PodPrepare", pod=str(number), images=(WEB,), apps=("web",)), None
        yield made(2 * number + 1, "PodStart", pod=str(number), who="uid 0", account=sha("b")), begun


def told_of(found, name):
    finding = next(item for item in found.findings if item.check.id == name)
    return finding.verdict, finding.looked, finding.broken


@pytest.mark.parametrize("pods", [1, MAX_UNREAD, MAX_UNREAD + 50])
def test_pods_that_run_are_checked_by_what_was_kept_when_they_started(pods):
    found = survey_of(running(pods, uid=0), checks.catalogue())
    assert told_of(found, "image-user") == (Verdict.FAIL, pods, pods)
    assert told_of(found, "not-privileged") == (Verdict.PASS, pods, 0)
    # The kernel is asked when they run; the account from the end says what it told.
    assert told_of(found, "read-back") == (Verdict.NOT_APPLICABLE, 0, 0)
    evidence = next(item for item in found.findings if item.check.id == "image-user").evidence[0]
    assert (evidence.event, evidence.index, evidence.app) == ("PodStart", 1, "web")
    assert [run.ended for run in found.runs] == [0] * min(pods, MAX_RUNS)
    document = oscal.assessment_results(ABOUT, found)
    assert "Leaf 1:" in json.dumps(document)
    shown = page(ABOUT, found)
    assert "still running" in shown
    assert '<td class="dim"></td>' in shown


def test_a_pod_that_has_ended_is_checked_once_by_its_last_account():
    many = MAX_UNREAD + 50
    ends = [
        (made(1000 + number, "PodExit", pod=str(number), code=0, account=sha("a")), account(app()[1]))
        for number in range(many)
    ]
    found = survey_of([*running(many, uid=0), *ends], checks.catalogue())
    assert told_of(found, "image-user") == (Verdict.PASS, many, 0)
    assert told_of(found, "read-back") == (Verdict.PASS, many, 0)


def test_a_survey_does_not_grow_with_the_trail():
    surveyor = Surveyor(checks.catalogue())
    for number in range(3 * MAX_RUNS):
        image = Image(manifest=sha(str(number)))
        surveyor.take(made(3 * number, "PodPrepare", pod=str(number), images=(image,)))
        surveyor.take(made(3 * number + 1, "PodStart", pod=str(number)))
        surveyor.take(made(3 * number + 2, "PodExit", pod=str(number), code=0), b"{")
    found = surveyor.survey()
    assert (found.pods, len(found.runs), len(found.images)) == (3 * MAX_RUNS, MAX_RUNS, MAX_RUNS)
    assert found.runs[-1].pod == str(3 * MAX_RUNS - 1)


@pytest.mark.parametrize("data", [b"", b"[", b"[]", b'{"apps":1}', b'{"apps":[1]}', b"\xff"])
def test_an_account_that_cannot_be_read_breaks_no_check_and_nothing_else(data):
    found = survey_of([(made(1, "PodExit", pod=POD, account=sha("a")), data)], checks.catalogue())
    assert {finding.looked for finding in found.findings} == {0}


def test_the_page_shows_all_of_it_and_runs_nothing():
    found = page(ABOUT, survey_of(story(code=3, uid=0), checks.catalogue()))
    assert "h&lt;i&gt;" in found
    assert "image &lt;b&gt;x&lt;/b&gt;" in found
    assert not re.search(r"<script|javascript:|\son\w+=|https?://|<img|<link|@import|url\(", found)
    links = {*re.findall(r'href="#([^"]+)"', found)}
    assert links
    assert links <= {*re.findall(r'id="([^"]+)"', found)}
    assert f'<a href="#pod-{POD}"><rect class="failed"' in found
    assert "Apps run as another user than root" in found
    assert "5.10" in found
    assert found.index(">5.4<") < found.index(">5.10<")


def test_the_page_of_one_framework_has_no_other():
    about = About(**{name: getattr(ABOUT, name) for name in ABOUT.__slots__} | {"framework": "soc2"})
    found = page(about, survey_of([], checks.chosen("soc2")))
    assert "<h3>SOC 2</h3>" in found
    assert "PCI" not in found
    assert "No pod was started" in found


def bar(started, ended, code=0):
    return Run(
        pod=POD, leaf=1, started=started, ended=ended, code=code, who="", apps=(), images=(), relaxed=False
    )


def test_bars_that_overlap_are_in_lanes_of_their_own():
    runs = [bar(0, 100), bar(50, 60), bar(70, 80), bar(110, 120), bar(115, 0)]
    assert timeline.lanes(runs, 200, gap=0) == [0, 1, 1, 0, 1]
    assert max(timeline.lanes([bar(0, 10)] * 500, 10, gap=0)) == 39


@pytest.mark.parametrize("span", [1, 59, 3600, 86400, 86400 * 30, 86400 * 400, 86400 * 36500])
def test_an_axis_has_some_ticks_and_not_many(span):
    times, form = timeline.ticks(1_790_000_000_000, 1_790_000_000_000 + span * 1000)
    assert len(times) <= 10
    assert span < 2 or times
    assert form
    assert "NaN" not in timeline.svg([bar(1_790_000_000_000, 0)], 1_790_000_000_000, 0)


def test_controls_are_tokens_of_the_catalogues_that_compliance_tools_have():
    assert oscal.control_id("sp800-53", "AC-6(9)") == "ac-6.9"
    assert oscal.control_id("sp800-53", "AU-2") == "au-2"
    assert oscal.control_id("cis-docker", "5.4") == "cis-docker-5.4"
    token = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*\Z")
    for check in checks.catalogue():
        assert all(
            token.match(oscal.control_id(name, item)) for name, ids in check.mappings.items() for item in ids
        )


def test_assessment_results_are_the_same_twice_and_say_what_is_not_satisfied():
    document = oscal.assessment_results(ABOUT, survey_of(story(uid=0), checks.catalogue()))
    assert document == oscal.assessment_results(ABOUT, survey_of(story(uid=0), checks.catalogue()))
    (result,) = document["assessment-results"]["results"]
    states = {item["target"]["target-id"]: item["target"]["status"]["state"] for item in result["findings"]}
    assert (states["cis-docker-4.1"], states["cis-docker-5.5"]) == ("not-satisfied", "satisfied")
    assert "sp800-53-ac-6" not in states
    known = {item["uuid"] for item in result["observations"]}
    for item in result["findings"]:
        assert {one["observation-uuid"] for one in item["related-observations"]} <= known


def test_events_for_a_siem_have_what_their_classes_require():
    lines = b"".join(pieces(Form.OCSF, ABOUT, story(uid=0), None)).splitlines()
    events = [json.loads(line) for line in lines]
    assert len(events) == 8 + len(checks.catalogue())
    assert [problem for found in events for problem in problems(found)] == []
    assert {found["class_uid"] for found in events} == {ocsf.LIFECYCLE, ocsf.PROCESS, ocsf.COMPLIANCE}
    started = next(item for item in events if item["metadata"].get("event_code") == "PodStart")
    assert (started["type_uid"], started["device"]["container"]["uid"]) == (600203, POD)
    entered = next(item for item in events if item["class_uid"] == ocsf.PROCESS)
    assert entered["process"]["container"]["uid"] == POD
    refused = next(item for item in events if item["metadata"].get("event_code") == "Denied")
    assert (refused["status_id"], refused["severity_id"]) == (2, 3)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.pop("app"),
        lambda event: event.update(container={}),
        lambda event: event.update(activity_id=9),
        lambda event: event.update(type_uid=1),
        lambda event: event["metadata"].pop("product"),
        lambda event: event["device"].pop("type_id"),
        lambda event: event["device"].pop("hostname"),
        lambda event: event.update(message=""),
        lambda event: event.update(time="now"),
    ],
)
def test_the_judge_of_events_finds_what_is_wrong(spoil):
    event = json.loads(next(pieces(Form.OCSF, ABOUT, story(), None)))
    assert problems(event) == []
    spoil(event)
    assert problems(event)


def test_statements_are_signed_and_about_images(tmp_path):
    host = AuditedHost(tmp_path)
    host.pod()
    host.close()
    bypassed = made(8, "ImageAdmit", images=(WEB,), outcome=Outcome.BYPASSED)
    found = [*story(), (bypassed, None), (made(9, "PodExit", pod=POD), None)]
    lines = b"".join(pieces(Form.IN_TOTO, ABOUT, found, host.signer())).splitlines()
    key = dsse.load_public_key(host.key.pem(), what="key")
    statements = []
    for line in lines:
        envelope = dsse.parse_envelope(line, what="statement", limit=1 << 20)
        dsse.verify(envelope, intoto.PAYLOAD_TYPE, [key])
        statements.append(json.loads(base64.b64decode(json.loads(line)["payload"])))
    summary, run = statements
    subject = [{"name": "docker://r/web:1", "digest": {"sha256": sha("image").removeprefix("sha256:")}}]
    assert (summary["predicateType"], run["predicateType"]) == (intoto.SUMMARY, intoto.RUN)
    assert summary["subject"] == run["subject"] == subject
    assert summary["predicate"]["verificationResult"] == "PASSED"
    assert {"verifier", "timeVerified", "resourceUri", "policy", "verifiedLevels"} <= summary[
        "predicate"
    ].keys()
    assert run["predicate"]["account"]["network"] == "cni"


def test_a_bundle_holds_the_readings_and_signs_them(tmp_path):
    host = AuditedHost(tmp_path)
    host.pod(signer="")
    host.measure((Operation.DENIED, {"what": "image", "subject": "x", "code": "c", "why": "w"}))
    host.close(State.CLOSED)
    files = members(host.written())
    findings = {item["id"]: item for item in json.loads(files["findings.json"])["findings"]}
    assert findings["image-signed"]["verdict"] == "fail"
    rows = [json.loads(line) for line in files["trail.jsonl"].splitlines()]
    index = findings["image-signed"]["evidence"][0]["index"]
    assert next(item for item in rows if item["index"] == index)["event"] == "ImageAdmit"
    assert f'id="leaf-{index}"'.encode() in files["report.html"]
    assert b"report.html" in files["SHA256SUMS"]
