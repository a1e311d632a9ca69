"""OpenPGP messages: signed by whom, compressed how, and never unpacked beyond a bound."""

import bz2
import io
import time
import tracemalloc
import zlib

import pysequoia
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun import dockername
from secrun.trust import limits, openpgp, packets, payload
from secrun.trust.faults import SignatureFaultError
from secrun.trust.requirement import Material, Requirement, RequirementType
from secrun.trust.signatures import Candidate, SignatureKind
from secrun.trust.verdict import Case
from support import signing
from support.signing import IMAGE, NAME

SAID = signing.simple(kind=payload.ATOMIC)


@pytest.fixture(scope="module")
def keys():
    return pysequoia.Tsk.generate("Alice <alice@team.example>", validity_seconds=3600)


@pytest.fixture(scope="module")
def alice(keys):
    return keys.extract_certificate()


@pytest.fixture(scope="module")
def message(keys):
    return bytes(pysequoia.sign(keys.signer(), SAID, armor=False))


def packed(algorithm, data):
    """Return a compressed packet around `data`, in the old form with its length to the end."""
    if algorithm == 1:
        worker = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = worker.compress(data) + worker.flush()
    elif algorithm == 2:
        data = zlib.compress(data, 9)
    elif algorithm == 3:
        data = bz2.compress(data)
    return b"\xa3" + bytes([algorithm]) + data


def bomb(algorithm, size):
    """Return a compressed literal packet of `size` zeros.

    A deflated block that ends in a full flush stands for itself, so one is made and repeated.
    """
    if algorithm == 3:
        return packed(3, literal(bytes(size)))
    worker = zlib.compressobj(9, zlib.DEFLATED, -15 if algorithm == 1 else 15)
    head = worker.compress(literal_head(size)) + worker.flush(zlib.Z_FULL_FLUSH)
    block = worker.compress(bytes(1 << 20)) + worker.flush(zlib.Z_FULL_FLUSH)
    again = worker.compress(bytes(1 << 20)) + worker.flush(zlib.Z_FULL_FLUSH)
    assert block == again
    return b"\xa3" + bytes([algorithm]) + head + block * (size >> 20)


def literal_head(size):
    """Return what comes before the data of a literal packet with a length of five bytes."""
    body = b"b\0" + b"\0\0\0\0"
    return b"\xcb\xff" + (len(body) + size).to_bytes(4, "big") + body


def literal(data):
    return literal_head(len(data)) + data


def verified(message, *certificates, now=None):
    return openpgp.verify_message(message, list(certificates), time.time() if now is None else now)


@pytest.mark.parametrize("algorithm", [None, 0, 1, 2, 3])
def test_a_signed_message_counts_however_it_is_compressed(alice, message, algorithm):
    sent = message if algorithm is None else packed(algorithm, message)
    said, signer, _ = verified(sent, alice)
    assert said == SAID
    assert signer == alice.fingerprint.lower()


def test_messages_of_others_and_by_keys_that_ended_do_not_count(alice, message):
    other = pysequoia.Tsk.generate("Bob <bob@team.example>").extract_certificate()
    with pytest.raises(SignatureFaultError, match="none of the keys"):
        verified(message, other)
    assert verified(message, other, alice)[1] == alice.fingerprint.lower()
    end = alice.expiration.timestamp()
    assert verified(message, alice)[2] == int(end)
    with pytest.raises(SignatureFaultError, match="expired"):
        verified(message, alice, now=end + 1)


def test_a_message_is_held_against_the_image(alice, message):
    material = Material(data=bytes(alice))
    demand = Requirement(type=RequirementType.SIGNED_BY, keys=(material,))
    candidate = Candidate(kind=SignatureKind.OPENPGP, subject=IMAGE, payload=message, origin="signature-1")
    now = alice.expiration.timestamp() - 60

    def case(name, digest=IMAGE):
        parsed = dockername.parse(name)
        return Case(name=parsed, digests=frozenset([digest]), keys={material: material.data}, now=now)

    assert openpgp.verify(candidate, demand, case(NAME)).reference == NAME
    with pytest.raises(SignatureFaultError, match="expected"):
        openpgp.verify(candidate, demand, case("r.example/other:1"))
    with pytest.raises(SignatureFaultError, match="manifest"):
        openpgp.verify(candidate, demand, case(NAME, signing.Digest.of(b"other")))


@pytest.mark.parametrize("algorithm", [1, 2, 3])
def test_a_bomb_is_not_unpacked(algorithm):
    sent = bomb(algorithm, 200 << 20)
    assert len(sent) < limits.MAX_MESSAGE_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(SignatureFaultError, match="larger than"):
            packets.flattened(sent)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_nothing_compressed_is_left_inside(message):
    inner = packed(3, literal(b"\0" * (64 << 20)))
    for sent in (packed(2, inner), b"\xc4\x03abc" + inner, packed(2, b"\xc4\x03abc" + inner)):
        with pytest.raises(SignatureFaultError, match="type 8"):
            packets.flattened(sent)
    with pytest.raises(SignatureFaultError, match="follows"):
        packets.flattened(b"\xc8\x05\x02" + zlib.compress(b"x")[:4] + message)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"x", "begin"),
        (b"\xcb", "ends"),
        (b"\xcb\x05a", "ends"),
        (b"\xcb\xff\xff\xff\xff\xff", "ends"),
        (b"\xcb\xfea", "ends"),
        (b"-----BEGIN PGP MESSAGE-----\n", "armored"),
        (b"\xa3\x09x", "unknown"),
        (b"\xa3\x02x", "broken"),
        (b"\xa3\x03x", "broken"),
        (b"\xc6\x01x", "type 6"),
        (b"\xcb" * (limits.MAX_MESSAGE_BYTES + 1), "larger"),
    ],
)
def test_what_is_no_signed_message_says_why(data, word):
    with pytest.raises(SignatureFaultError, match=word):
        packets.flattened(data)


def test_bodies_in_parts_are_joined():
    whole = b"b\0\0\0\0\0" + b"y" * 600
    parts = io.BytesIO()
    parts.write(b"\xcb\xe9" + whole[:512] + bytes([len(whole) - 512]) + whole[512:])
    assert packets.flattened(parts.getvalue()) == parts.getvalue()


@given(st.binary(max_size=64) | st.builds(packed, st.sampled_from([0, 1, 2, 3]), st.binary(max_size=64)))
def test_any_bytes_are_packets_or_a_fault(data):
    try:
        packets.flattened(data)
    except SignatureFaultError:
        return
