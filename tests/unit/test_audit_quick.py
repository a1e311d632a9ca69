"""The quick ways of the audit log: they say what the strict ways say, of everything that is sent."""

import copy
import errno
import json
import os

import pytest

from secrun_attest import celjson, events
from secrun_attest.audit import checks, export
from secrun_attest.audit.chain import ChainError
from secrun_attest.audit.checks import APP, Checker
from secrun_attest.audit.export import Span
from secrun_attest.audit.walk import Walk, parse_record
from secrun_attest.errors import FormatError
from secrun_attest.record import Bank, Epoch, Event, Operation, event_data, make_record
from support import longlog
from support.audited import BEGIN, MINUTE, AuditedHost

EPOCH = Epoch(reset=3, restart=0, boot_id="00000000-0000-4000-8000-000000000001")
BANKS = (Bank.SHA1, Bank.SHA256)


def line_of(operation, seq, fields, *, epoch=EPOCH, pcr=15, banks=BANKS):
    event = Event(operation=operation, seq=seq, epoch=epoch, t=1_790_000_000_000, fields=fields)
    return celjson.line(make_record(event, pcr=pcr, banks=banks))


def log():
    baseline = {bank.value: bytes(20 if bank is Bank.SHA1 else 32).hex() for bank in BANKS}
    found = [line_of(Operation.LOG_OPEN, 0, {"baseline": baseline})]
    for number in range(3):
        for operation, fields in longlog.life(number, longlog.sha("begun"), longlog.sha("account")):
            found.append(line_of(operation, len(found), fields))
    found.append(line_of(Operation.DENIED, len(found), {"what": "image", "subject": "x\u00e9"}))
    found.append(line_of(Operation.POD_GC, len(found), {"pod": "p"}))
    return found


def strict(lines):
    """Take lines as the verifier does; return what came of them."""
    walk, taken = Walk(), []
    try:
        for line in lines:
            record = parse_record(line)
            walk.take(record)
            taken.append(record.event_data)
    except FormatError as error:
        return walk, taken, error.code
    return walk, taken, ""


def quick(lines):
    walk, taken = Walk(), []
    try:
        taken.extend(map(walk.take_line, lines))
    except FormatError as error:
        return walk, taken, error.code
    return walk, taken, ""


def state(result):
    walk, taken, code = result
    return (walk.count, walk.epoch, walk.pcr, walk.pcrs, taken, code)


def test_an_honest_log_is_taken_without_reading_each_line_as_a_record(monkeypatch):
    lines = log()
    expected = state(strict(lines))
    assert expected[0] == len(lines)
    asked = []
    take = Walk.take
    monkeypatch.setattr(Walk, "take", lambda self, record: asked.append(record.recnum) or take(self, record))
    assert state(quick(lines)) == expected
    # The first line, the one behind it that teaches nothing more, and what is no event of a pod's life.
    assert asked == [0, len(lines) - 2]


def swapped(line):
    """Put the digests into another order: canonical too, and of the same banks."""
    head, rest = line.split(b'"digests":[')
    digests, tail = rest.split(b"]", 1)
    first, second = digests.split(b"},")
    return head + b'"digests":[' + second + b"," + first + b"}]" + tail


ALTERED = {
    "upper case": lambda line: line[:30] + line[30:90].upper() + line[90:],
    "another digest": lambda line: line.replace(b'"digest":"', b'"digest":"00', 1)[:-1] + b"\n",
    "a digit of a digest": lambda line: line[:-70] + (b"0" if line[-70:-69] != b"0" else b"1") + line[-69:],
    "another number": lambda line: line.replace(b'"recnum":', b'"recnum":1'),
    "another pcr": lambda line: line.replace(b'"pcr":15', b'"pcr":16'),
    "a blank": lambda line: line.replace(b'"pcr":', b'"pcr": '),
    "no end": lambda line: line[:-1],
    "two ends": lambda line: line[:-1] + b"\r\n",
    "odd hex": lambda line: line[:40] + line[41:],
    "no hex": lambda line: line[:40] + b"x" + line[41:],
    "digests the other way round": swapped,
    "one bank": lambda _: line_of(Operation.POD_GC, 4, {"pod": "p"}, banks=(Bank.SHA256,)),
    "a bank more": lambda _: line_of(Operation.POD_GC, 4, {"pod": "p"}, banks=(*BANKS, Bank.SHA384)),
    "another epoch": lambda _: line_of(
        Operation.POD_GC, 4, {"pod": "p"}, epoch=Epoch(reset=4, restart=0, boot_id=EPOCH.boot_id)
    ),
    "another place": lambda _: line_of(Operation.POD_GC, 5, {"pod": "p"}),
    "opened again": lambda _: log()[0],
    "empty": lambda _: b"\n",
    "nothing": lambda _: b"",
    "an event of no size": lambda line: celjson.BEFORE_DATA + line[line.index(b'","event_type') :],
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED.keys())
def test_a_line_that_was_altered_is_taken_or_refused_as_the_strict_way_does(alter):
    lines = log()
    lines[4] = alter(lines[4])
    assert lines[4] != log()[4]
    assert state(quick(lines)) == state(strict(lines))


@pytest.mark.parametrize("at", range(1, 15))
def test_a_walk_that_goes_on_where_another_ended_comes_to_the_same(at):
    lines = log()
    walk, _, _ = quick(lines[:at])
    further = Walk(count=walk.count, epoch=walk.epoch, pcr=walk.pcr, pcrs=walk.pcrs)
    for line in lines[at:]:
        further.take_line(line)
    assert (further.count, further.pcrs) == (len(lines), strict(lines)[0].pcrs)


def test_an_event_is_told_again_as_it_was_parsed():
    for line in log():
        data = parse_record(line).event_data
        parsed, told = events.parse_event(data), events.retold(data)
        for name in told._fields:
            assert getattr(told, name) == getattr(parsed, name)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"PodGC", b"PodGX"), (b'"v":1', b'"v":2'), (b'"seq":1', b'"seq":s'), (b'{"epoch"', b'["epoch"')],
)
def test_what_is_no_event_is_not_told(old, new):
    event = Event(operation=Operation.POD_GC, seq=1, epoch=EPOCH, t=1, fields={"pod": "p"})
    data = event_data(event)
    assert events.retold(data).seq == 1
    with pytest.raises(FormatError):
        events.retold(data.replace(old, new))


@pytest.mark.parametrize("since", [0, 3 * MINUTE])
def test_a_bundle_that_two_processes_write_is_the_one_that_one_writes(tmp_path, monkeypatch, since):
    host = AuditedHost(tmp_path)
    host.pod()
    host.pod(code=3, signer="")
    host.close()
    span = Span(since=BEGIN + since)
    alone = host.written(span)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(export, "WORTH_A_PROCESS", 0)
    forked = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: forked.append(1) or fork())
    assert host.written(span) == alone
    assert forked
    assert host.judged(alone).findings == ()


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), ValueError("broken")])
def test_what_the_other_process_cannot_do_is_an_error(tmp_path, monkeypatch, failure):
    host = AuditedHost(tmp_path)
    host.pod()
    host.close()

    def fail(_):
        raise failure

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(export, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(export, "csv_lines", fail)
    with pytest.raises(ChainError) as error:
        host.written()
    assert error.value.code == "audit-write"
    wanted = errno.ENOSPC if isinstance(failure, OSError) else errno.EIO
    assert os.strerror(wanted) in error.value.message


def test_what_is_known_of_equal_subjects_is_what_each_would_be_told():
    """Among many apps that differ in one thing each, every check counts what it counts of them alone."""
    base = json.loads(longlog.account(1))
    (app,) = base.pop("apps")
    subjects = []
    for path in (
        ("uid",), ("read_only",), ("capabilities",), ("security", "privileged"), ("security", "devices"),
        ("limits", "memory_bytes"), ("limits", "cpu_millis"), ("volumes",), ("read_back",),
        ("pod", "network"), ("pod", "ports"), ("pod", "machine"),
    ):  # fmt: skip
        for value in (
            None,
            0,
            1,
            True,
            False,
            "",
            "host",
            ["CAP_SYS_ADMIN"],
            {"vcpus": 1},
            [{"source": "/etc"}],
        ):
            subject = {**copy.deepcopy(app), "pod": copy.deepcopy(base)}
            place = subject
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = value
            subjects.append(subject)
            missing = copy.deepcopy(subject)
            del (missing[path[0]] if len(path) > 1 else missing)[path[-1]]
            subjects.append(missing)
    together = Checker(checks.catalogue())
    alone = {check.id: [0, 0, []] for check in checks.catalogue()}
    for number, subject in enumerate(subjects * 2):
        together.take(APP, number, number, subject)
        one = Checker(checks.catalogue())
        one.take(APP, number, number, subject)
        for finding in one.findings():
            counted = alone[finding.check.id]
            counted[0] += finding.looked
            counted[1] += finding.broken
            counted[2] += finding.evidence
    for finding in together.findings():
        looked, broken, evidence = alone[finding.check.id]
        assert (finding.looked, finding.broken) == (looked, broken)
        assert [*finding.evidence] == evidence[: checks.MAX_EVIDENCE]
