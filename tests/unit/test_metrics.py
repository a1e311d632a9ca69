"""What other systems are told: metrics for Prometheus, fields for the journal."""

import io
import socket

import pytest

from secrun.cli.metrics import family, metrics
from secrun.cli.table import Arguments, Context
from secrun.measure import journal, journald
from secrun.paths import Layout
from secrun_attest.record import Operation
from support.audited import AuditedHost


def test_a_gauge_has_its_words_and_escaped_labels():
    assert list(family("a_b", "Text.", [({}, 3), ({"x": 'a"\\\n'}, 4)])) == [
        "# HELP a_b Text.",
        "# TYPE a_b gauge",
        "a_b 3",
        'a_b{x="a\\"\\\\\\n"} 4',
    ]
    assert list(family("a", "t", [])) == []


def printed(layout):
    out = io.StringIO()
    assert metrics(Arguments(values={}), Context(layout=layout, out=out, err=out, settings={})) == 0
    return out.getvalue().splitlines()


def test_an_empty_root_has_no_pods_and_no_audit_log(tmp_path):
    lines = printed(Layout(root=tmp_path, run_root=tmp_path / "run"))
    assert 'secrun_pods{state="running"} 0' in lines
    assert "secrun_unmeasured_waiting 0" in lines
    assert not any("audit" in line for line in lines)


def test_what_waits_and_how_long_the_audit_log_is(tmp_path):
    host = AuditedHost(tmp_path)
    host.pod()
    head = host.close()
    layout = Layout(root=tmp_path, run_root=tmp_path / "run")
    journal.note(layout, option="attest=off", what="PodStart", subject="x")
    lines = printed(layout)
    assert f'secrun_audit_leaves{{origin="{head.origin}"}} {head.size}' in lines
    assert "secrun_unmeasured_waiting 1" in lines


def test_the_journal_is_told_of_a_pod_in_the_words_of_other_engines(tmp_path):
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal_:
        journal_.bind(str(place))
        pod = "11111111-2222-4333-8444-555555555555"
        journald.tell(Operation.POD_EXIT, {"pod": pod, "code": 3}, place)
        lines = journal_.recv(65536).decode().splitlines()
        fields = dict(line.split("=", 1) for line in lines)
        assert fields["CONTAINER_ID"] == "111111112222"
        assert fields["CONTAINER_ID_FULL"] == pod
        assert (fields["SECRUN_CODE"], fields["PRIORITY"]) == ("3", "5")
        assert fields["MESSAGE"] == f"PodExit {pod} code 3"
        journald.tell(
            Operation.DENIED, {"what": "image", "subject": "a\nMESSAGE=b", "code": "denied"}, place
        )
        told = journal_.recv(65536)
        size = len(b"Denied image a\nMESSAGE=b")
        assert b"MESSAGE\n" + size.to_bytes(8, "little") + b"Denied image a\nMESSAGE=b\n" in told
        journald.tell(Operation.LOG_OPEN, {}, place)
        journal_.setblocking(False)
        with pytest.raises(BlockingIOError):
            journal_.recv(1)
    journald.tell(Operation.POD_EXIT, {"pod": pod}, place)
    journald.tell(Operation.POD_EXIT, {"pod": pod}, tmp_path / "none")
    # What cannot even be looked for is no journal either.
    journald.tell(Operation.POD_EXIT, {"pod": pod}, tmp_path / ("x" * 1000))
