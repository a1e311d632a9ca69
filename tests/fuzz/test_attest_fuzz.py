"""Writers killed at every instant, and logs with random damage."""

import hashlib
import json
import random

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
from secrun_attest.jcs import parse_canonical
from secrun_attest.record import Bank, Operation, make_record, parse_event_data
from support.eventlog import FakeTpm, FileTpm, agrees, event, open_log, operations, the_file
from support.eventlog_writer import check_killed_writers

ROUNDS = 12
PER_WRITER = 22


def test_the_log_replays_to_the_pcr_whatever_kills_its_writers(tmp_path, fuzz_scale):
    count = check_killed_writers(
        tmp_path, lambda: FileTpm(tmp_path / "tpm"), rounds=ROUNDS * fuzz_scale, count=PER_WRITER
    )
    assert count >= 500


def bent(chance, data):
    """Return a head of which something is wrong, though its checksum is right."""
    text = data.split(b"\n", 1)[1]
    if chance.random() < 0.5:
        text = mutate(chance, text)
    else:
        value = json.loads(text)
        name = chance.choice(sorted(value))
        value[name] = chance.choice(
            (value[chance.choice(sorted(value))], 0, 1, value["count"] - 1, "", [], {})
        )
        text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def test_whatever_a_head_says_log_and_tpm_agree(tmp_path, fuzz_scale):
    chance = random.Random(4)
    written = 0
    for folder in (tmp_path / str(number) for number in range(8 * fuzz_scale)):
        tpm = FakeTpm()
        log = open_log(folder, tpm)
        for _ in range(6):
            log.append(Operation.IMAGE_ADMIT, {"manifest": "m", "tree": "t"})
            head = the_file(folder, "head")
            head.write_bytes(bent(chance, head.read_bytes()))
            open_log(folder, tpm).append(Operation.POD_START, {})
            written += 2
        records = log.recover()
        assert operations(records) == ["LogOpen"] + ["ImageAdmit", "PodStart"] * 6
        assert agrees(records, tpm)
    assert written == 96 * fuzz_scale


PARSERS = {
    LogFormat.TCG: parse_tcg,
    LogFormat.CEL_JSON: parse_cel_json,
    LogFormat.CEL_JSON_SEQ: parse_cel_json_seq,
    LogFormat.CEL_TLV: parse_cel_tlv,
}


def mutate(chance, data):
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(out) or 1)
        kind = chance.randrange(4)
        if kind == 0 and out:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at : at + chance.choice((1, 4, 40))]
        elif kind == 2:
            out[at:at] = chance.choice((b"\xff\xff\xff\xff", b"[" * 5000, b"\0", b'{"a":', b"1e9", out[:at]))
        else:
            out[at : at + 4] = chance.randbytes(4)
    return bytes(out)


def parsed(parser, data):
    try:
        return list(parser(data))
    except FormatError:
        return None


def test_damaged_logs_are_refused_or_read_as_what_they_say(fuzz_scale):
    chance = random.Random(1)
    records = [make_record(event(at, pod=f"p{at}"), pcr=15, banks=Bank) for at in range(3)]
    whole = {form: export(records, form, tuple(Bank)) for form in PARSERS}
    forms = [
        (PARSERS[form], lambda got, form=form: export(got, form, tuple(Bank)), whole[form])
        for form in PARSERS
    ]
    lines = b"".join(map(celjson.line, records))
    forms.append((celjson.parse_lines, lambda got: b"".join(map(celjson.line, got)), lines))
    refused = 0
    for parser, write, data in forms:
        for _ in range(400 * fuzz_scale):
            damaged = mutate(chance, data)
            got = parsed(parser, damaged)
            refused += got is None
            if got and parser in (celjson.parse_lines, parse_tcg):
                assert write(got) == damaged  # these two forms have one text per record
    assert refused > 1000 * fuzz_scale


def test_the_quick_reader_of_lines_takes_what_the_thorough_one_takes(fuzz_scale):
    chance = random.Random(3)
    taken = 0
    for banks in (tuple(Bank), (Bank.SHA256,), (Bank.SHA512, Bank.SHA1)):
        text = celjson.line(make_record(event(pod="p"), pcr=15, banks=banks))[:-1]
        for _ in range(400 * fuzz_scale):
            damaged = mutate(chance, text)
            quick = parsed(lambda data: [celjson.parse_line(data)], damaged)
            thorough = parsed(
                lambda data: [celjson.from_json(parse_canonical(data, what="it", limit=10**6))], damaged
            )
            assert quick == thorough
            taken += quick is not None
    assert taken > 100 * fuzz_scale


def test_damaged_events_are_refused_or_are_other_events(fuzz_scale):
    chance = random.Random(2)
    data = make_record(event(pod="p", args=[1, 2, {"a": None}]), pcr=15, banks=[Bank.SHA1]).event_data
    for _ in range(3000 * fuzz_scale):
        damaged = mutate(chance, data)
        try:
            got = parse_event_data(damaged)
        except FormatError:
            continue
        assert make_record(got, pcr=15, banks=[Bank.SHA1]).event_data == damaged
