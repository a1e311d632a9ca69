"""Every form of the log tells the same records and digests, and refuses what it would not write."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun_attest import celjson
from secrun_attest.errors import FormatError
from secrun_attest.exports import (
    LogFormat,
    export,
    parse_cel_json,
    parse_cel_json_seq,
    parse_cel_tlv,
    parse_tcg,
)
from secrun_attest.record import Bank, Operation, make_record
from support.eventlog import event

BANKS = tuple(Bank)
PARSERS = {
    LogFormat.TCG: parse_tcg,
    LogFormat.CEL_JSON: parse_cel_json,
    LogFormat.CEL_JSON_SEQ: parse_cel_json_seq,
    LogFormat.CEL_TLV: parse_cel_tlv,
}


def records(count=3, banks=BANKS, start=0):
    return [
        make_record(event(start + number, word=f"w{number}"), pcr=15, banks=banks) for number in range(count)
    ]


def refused(parser, data):
    with pytest.raises(FormatError) as caught:
        list(parser(data))
    return caught.value.code


@given(
    st.lists(st.tuples(st.sampled_from(Operation), st.text('aé\n"{}', max_size=9)), max_size=5),
    st.lists(st.sampled_from(Bank), min_size=1, unique=True),
)
def test_every_form_comes_back_with_the_same_digests(operations, banks):
    made = [
        make_record(event(number, operation, text=text), pcr=15, banks=banks)
        for number, (operation, text) in enumerate(operations)
    ]
    for form, parser in PARSERS.items():
        assert list(parser(export(made, form, banks))) == made
    assert list(celjson.parse_lines(b"".join(map(celjson.line, made)))) == made


def test_the_line_of_the_log():
    record = make_record(event(word="x"), pcr=15, banks=[Bank.SHA256])
    assert json.loads(celjson.line(record)) == {
        "recnum": 0,
        "pcr": 15,
        "digests": [{"hashAlg": "sha256", "digest": record.digests[Bank.SHA256].hex()}],
        "content_type": "pcclient_std",
        "content": {"event_type": "EV_EVENT_TAG", "event_data": record.event_data.hex()},
    }


def test_the_bytes_of_the_tcg_form():
    (record,) = records(1)
    data = export([record], LogFormat.TCG, BANKS)
    header = struct.pack("<II20sI", 0, 3, bytes(20), 45) + b"Spec ID Event03\0"
    assert data.startswith(header)
    body = data[32 + 45 :]
    assert body[:12] == struct.pack("<III", 15, 6, 4)
    assert body[12:14] == b"\x04\0"
    assert body.endswith(struct.pack("<I", len(record.event_data)) + record.event_data)


def test_the_bytes_of_the_tlv_form():
    record = make_record(event(), pcr=15, banks=[Bank.SHA1])
    data = export([record], LogFormat.CEL_TLV, [Bank.SHA1])
    assert data[:13] == b"\0" + (8).to_bytes(4, "big") + bytes(8)
    assert data[13:19] == b"\x01\0\0\0\x01\x0f"
    assert data[19:24] == b"\x03" + (25).to_bytes(4, "big")


def test_text_shows_what_happened():
    (record,) = records(1)
    text = export([record], LogFormat.TEXT, [Bank.SHA256]).decode()
    assert text == f'0 15 sha256:{record.digests[Bank.SHA256].hex()} PodStart {{"word":"w0"}}\n'


def test_text_does_not_steer_a_terminal():
    record = make_record(event(word="a\u009b31m\u202e\x1b[2J"), pcr=15, banks=BANKS)
    assert b'{"word":"a\\u009b31m\\u202e\\u001b[2J"}\n' in export([record], LogFormat.TEXT, BANKS)


def test_a_part_of_a_log_keeps_its_numbers():
    part = records(2, start=40)
    assert list(parse_cel_tlv(export(part, LogFormat.CEL_TLV, BANKS))) == part
    assert list(parse_tcg(export(part, LogFormat.TCG, BANKS), first=40)) == part


def test_the_tcg_form_wants_every_declared_bank():
    with pytest.raises(FormatError):
        export(records(banks=[Bank.SHA256]), LogFormat.TCG, BANKS)


@pytest.mark.parametrize("form", PARSERS)
def test_records_out_of_order_are_refused(form):
    if form is LogFormat.TCG:
        return  # it has no numbers: the event's own seq is what tells
    first, second, third = records()
    for wrong in ([first, third], [first, first], [second, first]):
        assert refused(PARSERS[form], export(wrong, form, BANKS)) == "record-order"


@pytest.mark.parametrize("form", PARSERS)
def test_a_form_cut_anywhere_but_between_records_is_refused(form):
    data = export(records(2, banks=[Bank.SHA1]), form, [Bank.SHA1])
    whole = {len(export(records(count, banks=[Bank.SHA1]), form, [Bank.SHA1])) for count in range(3)}
    for size in range(1, len(data) - 1, 7):
        if size not in whole:
            assert refused(PARSERS[form], data[:size])


GOOD = json.loads(celjson.line(records(1)[0]))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"recnum": "0"}, "record-field"),
        ({"recnum": True}, "record-field"),
        ({"recnum": -1}, "event-integer"),
        ({"recnum": 1_000_000}, "event-integer"),
        ({"pcr": 24}, "event-integer"),
        ({"extra": 1}, "record-field"),
        ({"content_type": "cel"}, "record-content"),
        ({"content_type": 5}, "record-content"),
        ({"content": {"event_type": "EV_IPL", "event_data": ""}}, "record-content"),
        ({"content": {"event_type": 6, "event_data": ""}}, "record-content"),
        ({"content": {"event_type": "EV_EVENT_TAG"}}, "record-field"),
        ({"content": {"event_type": "EV_EVENT_TAG", "event_data": "0"}}, "record-hex"),
        ({"content": {"event_type": "EV_EVENT_TAG", "event_data": "0A"}}, "record-hex"),
        ({"content": {"event_type": "EV_EVENT_TAG", "event_data": "0 0a"}}, "record-hex"),
        ({"content": {"event_type": "EV_EVENT_TAG", "event_data": 1}}, "record-hex"),
        ({"content": {"event_type": "EV_EVENT_TAG", "event_data": "00" * 16385}}, "event-size"),
        ({"digests": []}, "record-digests"),
        ({"digests": {}}, "record-digests"),
        ({"digests": GOOD["digests"] + GOOD["digests"][:1]}, "record-digests"),
        ({"digests": [GOOD["digests"][0], GOOD["digests"][0]]}, "record-digests"),
        ({"digests": [{"hashAlg": "sm3_256", "digest": "00" * 32}]}, "record-bank"),
        ({"digests": [{"hashAlg": 11, "digest": "00" * 32}]}, "record-bank"),
        ({"digests": [{"hashAlg": "sha256", "digest": "00" * 31}]}, "record-digest-size"),
        ({"digests": [{"hashAlg": "sha256", "digest": "0G" * 32}]}, "record-hex"),
        ({"digests": [{"hashAlg": "sha256"}]}, "record-field"),
        ({"recnum": 2**60}, "json"),
    ],
)
def test_lines_that_are_not_ours_are_refused(change, code):
    text = json.dumps(GOOD | change, sort_keys=True, separators=(",", ":")).encode()
    assert refused(celjson.parse_lines, text + b"\n") == code


def test_a_line_has_one_text():
    text = json.dumps(GOOD, sort_keys=True, separators=(",", ":")).encode()
    assert list(celjson.parse_lines(text + b"\n")) == records(1)
    assert refused(celjson.parse_lines, text) == "record-torn"
    assert refused(celjson.parse_lines, text + b"\r\n") == "json-canonical"
    assert refused(celjson.parse_lines, text.replace(b":15", b": 15") + b"\n") == "json-canonical"
    assert refused(celjson.parse_lines, b"\n") == "json"


TCG = export(records(1), LogFormat.TCG, BANKS)


def patched(at, new):
    return TCG[:at] + new + TCG[at + len(new) :]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "log-cut"),
        (patched(4, b"\x08"), "log-header"),
        (patched(8, b"\1"), "log-header"),
        (patched(28, b"\xff\xff\xff\xff"), "log-cut"),
        (patched(32, b"spec"), "log-header"),
        (patched(56, b"\xff\xff\xff\xff"), "log-header"),
        (patched(56, b"\0\0\0\0"), "log-header"),
        (patched(60, b"\x12"), "record-bank"),
        (patched(62, b"\x15"), "record-bank"),
        (patched(60, b"\x0b\0\x20\0"), "record-bank"),
        (patched(76, b"\1"), "log-header"),
        (patched(77, b"\x18"), "event-integer"),
        (patched(81, b"\x03"), "log-field"),
        (patched(85, b"\x05"), "log-field"),
        (patched(85, b"\0"), "log-field"),
        (patched(89, b"\x0b"), "record-banks"),
        (patched(89 + 2 + 20 + 2 + 32 + 2 + 48 + 2 + 64, b"\xff\xff\xff\xff"), "event-size"),
        (TCG + b"\xff" * 64, "log-field"),
    ],
)
def test_tcg_logs_that_are_not_ours_are_refused(data, code):
    assert refused(parse_tcg, data) == code


TLV = export(records(1), LogFormat.CEL_TLV, BANKS)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x01" + TLV[1:], "log-field"),
        (TLV[:1] + b"\xff\xff\xff\xff" + TLV[5:], "log-cut"),
        (b"\0\0\0\0\0" + TLV[13:], "log-field"),
        (b"\0\0\0\0\x09" + bytes(9) + TLV[13:], "log-field"),
        (TLV.replace(b"\x01\0\0\0\x01\x0f", b"\x01\0\0\0\x02\0\x0f"), "log-field"),
        (TLV.replace(b"\x0b\0\0\0\x20", b"\x12\0\0\0\x20"), "record-bank"),
        (TLV.replace(b"\x0b\0\0\0\x20", b"\x04\0\0\0\x20"), "record-bank"),
        (TLV.replace(b"\0\0\0\0\x04\0\0\0\x06", b"\0\0\0\0\x04\0\0\0\x0d"), "record-content"),
    ],
)
def test_tlv_logs_that_are_not_ours_are_refused(data, code):
    assert refused(parse_cel_tlv, data) == code


def test_a_short_recnum_is_read():
    assert list(parse_cel_tlv(b"\0\0\0\0\x01\0" + TLV[13:])) == records(1)
