"""Events have one text each, and it is what every reader of TCG logs sees."""

import hashlib
import json
from unicodedata import is_normalized

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from secrun_attest import jcs
from secrun_attest.errors import FormatError
from secrun_attest.record import (
    Bank,
    Epoch,
    Event,
    Operation,
    Record,
    digest,
    digests,
    event_data,
    make_record,
    parse_event_data,
)
from secrun_attest.replay import extend, find_prefix, replay, zeros
from support.eventlog import BOOT_ID, EPOCH, SIZES, FakeTpm, event

# A test vector of our own, by hand from the layout: tag and size little-endian, then the text.
VECTOR_TEXT = (
    b'secrun.v1 PodStart {"epoch":{"boot_id":"6c1f2a5e-0d57-4a0e-9b1e-3f5a7c9d1e2b","reset":7,"restart":0},'
    b'"pod":"p","seq":3,"t":1700000000000,"v":1}'
)
VECTOR = b"\x4c\x45\x41\x41" + len(VECTOR_TEXT).to_bytes(4, "little") + VECTOR_TEXT

texts = st.text(st.characters(codec="utf-8")).filter(lambda text: is_normalized("NFC", text))
keys = st.text(st.characters(codec="ascii"), max_size=8)
integers = st.integers(-(2**53) + 1, 2**53 - 1)
values = st.recursive(
    st.none() | st.booleans() | integers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
fields = st.dictionaries(keys.filter(lambda k: k not in {"v", "seq", "epoch", "t"}), values, max_size=5)
events = st.builds(
    Event,
    operation=st.sampled_from(Operation),
    seq=st.integers(0, 999_999),
    epoch=st.builds(
        Epoch,
        reset=st.integers(0, 2**32 - 1),
        restart=st.integers(0, 2**32 - 1),
        boot_id=st.uuids().map(str),
    ),
    t=st.integers(0, 2**53 - 1),
    fields=fields,
)


def code_of(call, *words, **named):
    with pytest.raises(FormatError) as caught:
        call(*words, **named)
    return caught.value.code


def test_the_bytes_of_an_event():
    assert event_data(event(3, pod="p")) == VECTOR
    assert digest(Bank.SHA256, VECTOR) == hashlib.sha256(VECTOR).digest()


@given(values)
def test_canonical_json_is_that_of_rfc_8785(value):
    assert jcs.encode(value) == rfc8785.dumps(value)
    assert jcs.parse(jcs.encode(value), what="it", limit=10**6) == value


@given(events)
def test_events_come_back_whole(one):
    assert parse_event_data(event_data(one)) == one


@pytest.mark.parametrize("bank", Bank)
def test_digests_and_extends_are_those_of_hashlib(bank):
    assert digest(bank, b"x") == hashlib.new(bank.value, b"x").digest()
    assert extend(b"\0" * SIZES[bank], b"\1" * SIZES[bank], bank) == (
        hashlib.new(bank.value, b"\0" * SIZES[bank] + b"\1" * SIZES[bank]).digest()
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b'{"a":1,"a":1}', "json"),
        (b'{"a":1.0}', "json"),
        (b'{"a":1e3}', "json"),
        (b'{"a":NaN}', "json"),
        (b'{"a":-Infinity}', "json"),
        (b'{"a":9007199254740992}', "json"),
        (b'{"a":-9007199254740992}', "json"),
        (b'{"a":' + b"9" * 5000 + b"}", "json"),
        (b'{"a":1} x', "json"),
        (b'{"a":', "json"),
        (b"\xef\xbb\xbf{}", "json"),
        (b'{"a":"\xff"}', "json"),
        (b'{"a":"\xed\xa0\x80"}', "json"),
        (b'{"a":"\\ud800"}', "json-text"),
        (b'{"a":"e\\u0301"}', "json-text"),
        ('{"a":"e\u0301"}'.encode(), "json-text"),
        ('{"\u00e9":1}'.encode(), "json-key"),
        (b'{"\\u00e9":1}', "json-key"),
        (b'{"a":' + b"[" * 16 + b"]" * 16 + b"}", "json-depth"),
        (b'{"a":' + b"[" * 60000 + b"]" * 60000 + b"}", "json-depth"),
        (b"[]", "json-object"),
        (b"null", "json-object"),
        (b'{"a":"' + b"x" * 200_000 + b'"}', "json-size"),
    ],
)
def test_json_that_two_parsers_could_read_in_two_ways_is_refused(text, code):
    assert code_of(jcs.parse_object, text, what="it", limit=200_000) == code
    assert code_of(jcs.parse_canonical, text, what="it", limit=200_000) in (code, "json-canonical")


def test_the_deepest_json_that_is_allowed():
    text = b'{"a":' + b"[" * 15 + b"]" * 15 + b"}"
    assert jcs.encode(jcs.parse(text, what="it", limit=100)) == text
    assert jcs.parse(b'{"a":-9007199254740991}', what="it", limit=100) == {"a": -(2**53) + 1}


@pytest.mark.parametrize(
    "text",
    [
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b'{"a":-0}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\/"}',
        b'{"a":1}\n',
        b'{"a":1,"a":1}',
    ],
)
def test_json_that_is_not_canonical_is_refused(text):
    assert code_of(jcs.parse_canonical, text, what="it", limit=100) in ("json-canonical", "json")


@pytest.mark.parametrize("value", [1.5, float("nan"), b"x", {1, 2}, 2**53])
def test_values_that_have_no_canonical_form_are_not_written(value):
    assert code_of(jcs.encode, {"a": [value]}).startswith("json-")


def tagged(text, tag=b"LEAA", size=None):
    return tag + (len(text) if size is None else size).to_bytes(4, "little") + text


HEAD, _, PAYLOAD = VECTOR_TEXT.partition(b"{")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "event-tag"),
        (VECTOR[:7], "event-tag"),
        (tagged(VECTOR_TEXT, b"AAEL"), "event-tag"),
        (tagged(VECTOR_TEXT, size=len(VECTOR_TEXT) - 1), "event-tag"),
        (tagged(VECTOR_TEXT, size=2**32 - 1), "event-tag"),
        (VECTOR + b" ", "event-tag"),
        (tagged(VECTOR_TEXT.replace(b"v1", b"v2", 1)), "event-domain"),
        (tagged(b"secrun.v1 PodStart"), "event-domain"),
        (tagged(VECTOR_TEXT.replace(b"PodStart", b"PodDance")), "event-operation"),
        (tagged(VECTOR_TEXT.replace(b"PodStart ", b"PodStart  ")), "json-canonical"),
        (tagged(VECTOR_TEXT.replace(b'"v":1', b'"v":2')), "event-version"),
        (tagged(VECTOR_TEXT.replace(b'"v":1', b'"v":true')), "event-version"),
        (tagged(VECTOR_TEXT.replace(b',"v":1', b"")), "event-field"),
        (tagged(VECTOR_TEXT.replace(b'"seq":3', b'"seq":-3')), "event-integer"),
        (tagged(VECTOR_TEXT.replace(b'"seq":3', b'"seq":true')), "event-integer"),
        (tagged(VECTOR_TEXT.replace(b'"seq":3', b'"seq":1000000')), "event-integer"),
        (tagged(VECTOR_TEXT.replace(b'"reset":7', b'"reset":4294967296')), "event-integer"),
        (tagged(VECTOR_TEXT.replace(b'"reset":7', b'"reset":"7"')), "event-epoch"),
        (tagged(VECTOR_TEXT.replace(b'"reset":7,', b"")), "event-epoch"),
        (tagged(VECTOR_TEXT.replace(b"6c1f", b"6C1F")), "event-epoch"),
        (tagged(VECTOR_TEXT.replace(b'"pod":"p"', b'"pod":"%b"' % (b"p" * 16384))), "event-size"),
    ],
)
def test_events_that_are_not_ours_are_refused(data, code):
    assert code_of(parse_event_data, data) == code


def test_an_event_may_not_set_what_every_event_has():
    assert code_of(event, v=2) == "event-field"


def test_an_event_has_16_kib_at_most():
    room = 16384 - len(event_data(event(pod="")))
    assert len(event_data(event(pod="x" * room))) == 16384
    assert code_of(event_data, event(pod="x" * (room + 1))) == "event-size"


def test_a_record_refuses_digests_of_a_wrong_size():
    assert (
        code_of(Record, recnum=0, pcr=15, digests={Bank.SHA1: b"x"}, event_data=b"") == "record-digest-size"
    )
    assert code_of(Record, recnum=0, pcr=15, digests={}, event_data=b"") == "record-digests"
    good = digests(Bank, b"x")
    assert code_of(Record, recnum=0, pcr=24, digests=good, event_data=b"") == "event-integer"


def test_matches_looks_at_every_bank():
    good = make_record(event(), pcr=15, banks=Bank)
    assert good.matches()
    for bank in Bank:
        bad = {**good.digests, bank: bytes(SIZES[bank])}
        assert not Record(recnum=0, pcr=15, digests=bad, event_data=good.event_data).matches()


some_events = st.lists(st.sampled_from(Operation), max_size=6)


def recorded(operations, banks=tuple(Bank)):
    return [
        make_record(event(number, operation), pcr=15, banks=banks)
        for number, operation in enumerate(operations)
    ]


@given(some_events, st.sets(st.sampled_from(Bank), min_size=1))
def test_replay_is_what_a_tpm_does(operations, banks):
    tpm = FakeTpm(banks=tuple(banks))
    records = recorded(operations, tuple(banks))
    for record in records:
        tpm.extend(15, record.digests)
    assert replay(records, zeros(banks)) == tpm.read_pcr(15)


@given(some_events, st.data())
def test_a_quote_shows_one_prefix(operations, data):
    records = recorded(operations)
    count = data.draw(st.integers(0, len(records)))
    first = data.draw(st.integers(0, len(records)))
    target = {Bank.SHA256: replay(records[:count], zeros(Bank))[Bank.SHA256]}
    found = find_prefix(records, zeros(Bank), target, first=first)
    assert found == (count if first <= count else None)


def test_no_prefix_explains_a_foreign_value():
    records = recorded([Operation.LOG_OPEN, Operation.POD_START])
    assert find_prefix(records, zeros(Bank), {Bank.SHA1: b"\1" * 20}, first=0) is None
    half = replay(records, zeros(Bank)) | {Bank.SHA1: b"\1" * 20}
    assert find_prefix(records, zeros(Bank), half, first=0) is None


@pytest.mark.parametrize("banks", [(Bank.SHA256,), tuple(Bank)])
def test_replay_wants_the_banks_of_the_base_and_no_other(banks):
    base = zeros([Bank.SHA1, Bank.SHA256])
    assert code_of(replay, recorded([Operation.LOG_OPEN], banks), base) == "record-banks"
    assert code_of(find_prefix, [], base, {Bank.SHA512: bytes(64)}, first=0) == "record-banks"
    assert code_of(find_prefix, [], base, {}, first=0) == "record-banks"


def test_the_epoch_is_checked_when_it_is_made():
    assert code_of(Epoch, reset=-1, restart=0, boot_id=BOOT_ID) == "event-integer"
    assert code_of(Epoch, reset=0, restart=0, boot_id="x") == "event-epoch"


def test_the_payload_is_plain_json():
    text = event_data(event(2, answer=42))[8:].split(b" ", 2)[2]
    assert json.loads(text) == {
        "v": 1,
        "seq": 2,
        "t": 1_700_000_000_000,
        "answer": 42,
        "epoch": {"reset": EPOCH.reset, "restart": EPOCH.restart, "boot_id": EPOCH.boot_id},
    }
