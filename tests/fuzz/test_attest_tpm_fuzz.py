"""Damaged answers of a TPM: an error of ours, or what the bytes say; never anything else."""

import random

from secrun_attest import tpmcommands
from secrun_attest.reader import WireError
from secrun_attest.record import DIGEST_SIZES, Bank
from support.tpmreplies import EXTENDED, banks, clock, reply, values

PCR = 15
VALUES = {bank: bytes([number + 1]) * size for number, (bank, size) in enumerate(DIGEST_SIZES.items())}
EXTEND = tpmcommands.pcr_extend(PCR, VALUES)
CASES = (
    (tpmcommands.read_clock(), reply(clock()), tpmcommands.parse_clock),
    (tpmcommands.get_banks(), reply(banks()), lambda data: tpmcommands.parse_banks(data, PCR)),
    (
        tpmcommands.pcr_read(PCR, Bank),
        reply(values(VALUES)),
        lambda data: tpmcommands.parse_pcr_values(data, PCR, Bank),
    ),
    (EXTEND, EXTENDED, lambda data: data),
)


def damaged(chance, data):
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(out) or 1)
        kind = chance.randrange(4)
        if kind == 0 and out:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at : at + chance.choice((1, 2, 30))]
        elif kind == 2:
            out[at:at] = chance.choice((b"\0", b"\xff\xff\xff\xff", bytes(3000), out[:at]))
        else:
            out[at : at + 4] = chance.randbytes(4)
    if chance.random() < 0.7 and len(out) >= 6:
        out[2:6] = len(out).to_bytes(4, "big")
    return bytes(out)


def test_damaged_answers_are_refused_or_say_what_they_are(fuzz_scale):
    chance = random.Random(1)
    refused = taken = 0
    for command, honest, parse in CASES:
        for _ in range(3000 * fuzz_scale):
            data = damaged(chance, honest)
            try:
                code, parameters = tpmcommands.parse_reply(command, data)
                got = parse(parameters) if code == 0 else None
            except WireError:
                refused += 1
                continue
            taken += 1
            if isinstance(got, dict):
                # Nothing of a value is made up: each stands in the answer, whole.
                assert all(len(v) == DIGEST_SIZES[bank] and v in data for bank, v in got.items())
            elif got is None:
                assert tpmcommands.describe(code)
    assert refused > 2000 * fuzz_scale
    assert taken > 500 * fuzz_scale


def test_sizes_of_answers_are_bounded_before_anything_is_read(fuzz_scale):
    chance = random.Random(2)
    for _ in range(3000 * fuzz_scale):
        header = (
            chance.randbytes(2)
            + chance.choice((chance.randbytes(4), b"\0\0" + chance.randbytes(2)))
            + bytes(4)
        )
        try:
            size = tpmcommands.reply_size(header)
        except WireError:
            continue
        assert 10 <= size <= tpmcommands.MAX_REPLY
        assert size == int.from_bytes(header[2:6], "big")
