"""Quick readers of evidence and events take what the thorough ones take; the long run is in tests/fuzz."""

from dataclasses import replace

import pytest

from secrun_attest import events, evidence
from secrun_attest.errors import FormatError
from secrun_attest.evidence import build_evidence, parse_as_json, parse_evidence
from secrun_attest.limits import MAX_EVENT_DATA, MAX_PCR, MAX_RECORDS
from secrun_attest.record import Epoch, Operation, digest, event_data, tag_of
from secrun_attest.sentlog import MARK, Columns
from secrun_attest.verify import Code
from support.attest_bench import BANKS, BOOT, POD, Host, session, usual_host
from support.attest_readers import EVENTS, Bundles, Events
from support.attest_refusal import refused


def test_both_readers_of_evidence_agree_on_what_is_honest_and_what_is_not():
    bundles = Bundles(seed=1)
    for _ in range(3000):
        bundles.try_one()
    assert bundles.quick > 30
    assert bundles.refused > 300


def test_both_readers_of_events_agree_on_what_is_honest_and_what_is_not():
    events_ = Events(seed=1)
    for data in events_.good:
        events_.agree(data)
    for _ in range(10_000):
        events_.try_one()
    assert events_.taken > 100


def test_an_honest_log_is_read_without_json(monkeypatch):
    host = usual_host()
    monkeypatch.setattr(evidence, "_record", None)
    found = parse_evidence(host.evidence()).records
    assert isinstance(found, Columns)
    assert (found, len(found), hash(found)) == (tuple(host.records), len(host.records), hash(tuple(found)))
    assert found != tuple(host.records[1:])
    assert (found[1], found[-1], found[1:3]) == (host.records[1], host.records[-1], tuple(host.records[1:3]))


def test_a_log_goes_on_in_columns_where_it_ended():
    host = usual_host()
    found = parse_evidence(host.evidence(begin=2)).records
    assert isinstance(found, Columns)
    assert found == tuple(host.records[2:])


def test_the_life_of_a_pod_is_read_without_writing_it_again(monkeypatch):
    host = Host()
    for operation, fields in EVENTS:
        host.measure(operation, **fields)
    honest = [record.data for record in host.records]
    monkeypatch.setattr(events, "parse_event_data", None)
    assert [event_data(events.parse_event(data)) for data in honest] == honest


def hidden(data, instead):
    """Move the records into a member that may be ignored; `instead` is what the log has for them."""
    begin, end = data.index(b'"records":[') + len(b'"records":'), data.index(b'"}}]') + len(b'"}}]')
    records = data[begin:end]
    return b'{"x_a":{"records":' + records + b"}," + (data[:begin] + instead + data[end:])[1:]


@pytest.mark.parametrize(
    "instead", [f'"{MARK}"'.encode(), f'"{MARK}"'.replace(" ", "\\u0020").encode(), b'"the"', b"null", b"0"]
)
def test_records_elsewhere_are_not_those_of_the_log(instead):
    with pytest.raises(evidence.FieldError, match=r"evidence\.log\.records is not an array"):
        parse_evidence(hidden(usual_host().evidence(), instead))


def test_a_log_without_records_has_none_wherever_others_stand():
    data = hidden(usual_host().evidence(), b"[]")
    assert parse_evidence(data).records == parse_as_json(data).records == ()


@pytest.mark.parametrize("digests", [lambda all_: (), lambda all_: (all_[1], all_[1])])
def test_columns_have_each_of_some_banks_once(digests):
    bundle = usual_host().bundle()
    records = tuple(replace(record, digests=digests(record.digests)) for record in bundle.records)
    assert parse_evidence(build_evidence(replace(bundle, records=records))).records == records


def renumbered(records, first):
    return tuple(replace(record, recnum=number) for number, record in enumerate(records, first))


def resized(record, size):
    data = bytes(size)
    return replace(record, data=data, digests=tuple((bank, digest(bank, data)) for bank in BANKS))


@pytest.mark.parametrize(
    ("usual", "too_much"),
    [
        (
            lambda records: (resized(records[0], MAX_EVENT_DATA),),
            lambda records: (resized(records[0], MAX_EVENT_DATA + 1),),
        ),
        (
            lambda records: (replace(records[0], pcr=MAX_PCR),),
            lambda records: (replace(records[0], pcr=MAX_PCR + 1),),
        ),
        (
            lambda records: renumbered(records, MAX_RECORDS - len(records)),
            lambda records: renumbered(records, MAX_RECORDS),
        ),
    ],
)
def test_columns_have_the_limits_of_records(usual, too_much):
    bundle = usual_host().bundle()
    good = build_evidence(replace(bundle, records=usual(bundle.records)))
    assert isinstance(parse_evidence(good).records, Columns)
    with pytest.raises(evidence.FieldError):
        parse_evidence(build_evidence(replace(bundle, records=too_much(bundle.records))))


def test_an_event_of_a_pod_may_be_as_large_as_any():
    def sized(size):
        host = Host()
        host.measure(Operation.POD_EXIT, pod=POD, code=0, apps=[{"name": "", "code": 0}])
        text = host.records[0].data[8:]
        text = text.replace(b'"name":""', b'"name":"%b"' % (b"a" * (size - len(text) - 8)))
        return tag_of(len(text)) + text

    assert event_data(events.parse_event(sized(MAX_EVENT_DATA))) == sized(MAX_EVENT_DATA)
    with pytest.raises(FormatError, match="16385 bytes"):
        events.parse_event(sized(MAX_EVENT_DATA + 1))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda records: renumbered(records, 1), Code.LOG_RECNUM),
        (lambda records: tuple(replace(one, pcr=14) for one in records), Code.LOG_PCR),
        (lambda records: tuple(replace(one, digests=one.digests[:3]) for one in records), Code.LOG_BANK),
        (lambda records: tuple(replace(one, digests=one.digests[1:]) for one in records), Code.LOG_BANK),
    ],
)
def test_what_is_wrong_with_all_records_is_seen_in_columns(change, code):
    host = usual_host()
    bundle = host.bundle()
    data = build_evidence(replace(bundle, records=change(bundle.records)))
    assert isinstance(parse_evidence(data).records, Columns)
    assert refused(data, session(host)) is code


@pytest.mark.parametrize("changes", [{"seq": 9}, {"epoch": Epoch(reset=7, restart=3, boot_id=BOOT)}])
def test_an_event_of_another_place_is_refused_however_it_is_read(changes):
    host = usual_host()
    host.measure(Operation.POD_GC, pod=POD, **changes)
    assert refused(host.bundle(), session(host)) is Code.SEM
