"""Checks 1 to 10: honest evidence passes; a wrong form, nonce, key or quote ends at its own check."""

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from secrun_attest.rejection import Code
from secrun_attest.tpm import TpmKind
from secrun_attest.verify import Status, appraise
from secrun_attest.wire import Hierarchy, qualified_name
from support.attest_bench import (
    NONCE,
    NOW,
    POD,
    SELECTION,
    Ak,
    enrolled,
    policy,
    raw,
    session,
    usual_host,
)
from support.attest_refusal import edited, refused

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def test_honest_evidence_is_affirmed_per_host_and_per_pod():
    host = usual_host()
    verdict = appraise(host.evidence(), session(host), policy(), None, NOW)
    assert verdict.status is Status.AFFIRMING
    assert [(uuid, one.status) for uuid, one in verdict.pods] == [(POD, Status.AFFIRMING)]
    assert (verdict.state.recnum, verdict.head) == (5, host.pcr())


@pytest.mark.parametrize("scheme", [0x14, 0x16])
def test_an_rsa_key_is_as_good(scheme):
    host = usual_host(ak=Ak(key=RSA_KEY, scheme=scheme))
    assert appraise(host.evidence(), session(host), policy(), None, NOW).status is Status.AFFIRMING


def test_a_key_under_the_endorsement_key_is_as_good_when_enrolled_so():
    host = usual_host()
    parent = qualified_name(b"\x40\x00\x00\x0b", Ak().name)
    asked = session(host, enrolment=enrolled(host, parent=parent))
    good = host.evidence(signer=host.ak.qualified(parent))
    assert appraise(good, asked, policy(), None, NOW).status is Status.AFFIRMING
    assert refused(host.evidence(), asked) is Code.QN


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("v",), 2),
        (("v",), True),
        (("surprise",), 1),
        (("header", "surprise"), 1),
        (("header", "tpm"), ...),
        (("header", "tpm"), "virtual"),
        (("header", "tpm"), None),
        (("header", "epoch", "boot_id"), "first"),
        (("header", "host"), "e\u0301"),
        (("header", "host"), "\ud800"),
        (("log", "records", 0, "surprise"), 1),
        (("log", "records", 0, "content", "surprise"), 1),
        (("log", "format"), "tcg"),
        (("log", "from"), 2**32),
        (("log", "from"), -1),
        (("log", "from"), 1.0),
        (("log", "records"), {}),
        (("log", "records", 0, "digests", 0, "hashAlg"), "sm3_256"),
        (("log", "records", 0, "digests", 0, "digest"), "00"),
        (("log", "records", 0, "content", "event_data"), "00" * 16385),
        (("pcr_values", "sha256", "24"), "00" * 32),
        (("pcr_values", "sha256", "07"), "00" * 32),
        (("pcr_values", "md5"), {}),
        (("nonce",), "00" * 31),
        (("nonce",), NONCE.hex().upper()),
        (("nonce",), ...),
        (("quote",), "AA="),
        (("quote",), "AB=="),
        (("quote",), ""),
        (("signature",), "AAA="),
        (("ak_pub",), "AAA="),
        (("contents",), {"00": ""}),
    ],
)
def test_what_has_another_form_is_refused_before_anything_else(path, value):
    assert refused(edited(usual_host().evidence(), path, value), None) is Code.FORMAT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 200_000,
        b'{"v":' * 100_000,
        b'{"v":1,"v":1}',
        b'{"v":1e3}',
        b'{"v":NaN}',
        b"9" * 9999,
    ],
)
def test_what_is_not_strict_json_is_refused(data):
    assert refused(data, None) is Code.FORMAT


def test_members_that_say_they_may_be_ignored_are():
    host = usual_host()
    data = edited(host.evidence(), ("x_note",), [1])
    assert appraise(data, session(host), policy(), None, NOW).status is Status.AFFIRMING


def test_the_size_of_evidence_is_bounded(monkeypatch):
    monkeypatch.setattr("secrun_attest.evidence.MAX_EVIDENCE", 1000)
    assert refused(usual_host().evidence(), None) is Code.FORMAT


def test_structures_with_impossible_sizes_are_refused():
    host = usual_host()
    good = host.bundle()
    for quote in (good.quote[:-1], good.quote + bytes(3000), good.quote[:6] + b"\xff\xff" + good.quote[8:]):
        assert refused(replace(good, quote=quote), session(host)) in (Code.FORMAT, Code.SIG)
    at = good.quote.index(b"\0\0\0\x01\0\x0b\x03")
    huge = good.quote[:at] + b"\xff\xff\xff\xff" + good.quote[at + 4 :]
    assert refused(replace(good, quote=huge, signature=host.ak.sign(huge)), session(host)) is Code.QUOTE_TYPE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"used": True}, Code.NONCE_USED),
        ({"expires": NOW}, Code.NONCE_EXPIRED),
        ({"issued": NOW + 1}, Code.NONCE_EXPIRED),
        ({"nonce": bytes(32)}, Code.NONCE_UNKNOWN),
    ],
)
def test_a_nonce_counts_once_and_in_time(changes, code):
    host = usual_host()
    assert refused(host.evidence(), session(host, **changes)) is code


def test_evidence_without_a_session_is_refused():
    assert refused(usual_host().evidence(), None) is Code.NONCE_UNKNOWN


def test_a_nonce_is_judged_before_the_signature_is():
    host = usual_host()
    broken = replace(host.bundle(), signature=host.ak.sign(b"other"))
    assert refused(broken, session(host, used=True)) is Code.NONCE_USED


def test_only_the_enrolled_host_and_key_count():
    host, other = usual_host(), usual_host()
    assert refused(host.evidence(), session(other)) is Code.AK_UNKNOWN
    assert refused(host.evidence(), session(host, enrolment=None)) is Code.AK_UNKNOWN
    assert refused(host.evidence(), session(host, enrolment=enrolled(host, host="other"))) is Code.AK_UNKNOWN


BAD_KEYS = {
    "not restricted": {"attributes": 0x00040072},
    "decrypts": {"attributes": 0x00070072},
    "does not sign": {"attributes": 0x00010072},
    "may leave the TPM": {"attributes": 0x00050070},
    "may leave its parent": {"attributes": 0x00050062},
    "was imported": {"attributes": 0x00050052},
    "signs with SHA-1": {"hash": 4},
    "another curve": {"curve": 4},
    "symmetric part": {"symmetric": b"\0\x06\0\x80\0\x43"},
    "short RSA": {"key": rsa.generate_private_key(public_exponent=65537, key_size=1024)},
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_that_proves_nothing_is_refused(name):
    host = usual_host(ak=Ak(**BAD_KEYS[name]))
    evidence = (
        replace(host.bundle(), signature=Ak().sign(b"x")) if name == "signs with SHA-1" else host.bundle()
    )
    assert refused(evidence, session(host)) is Code.AK_ATTR


def test_the_signature_is_over_exactly_the_quote_by_exactly_the_key():
    host = usual_host()
    good = host.bundle()
    flipped = good.quote[:-1] + bytes([good.quote[-1] ^ 1])
    for bad in (
        replace(good, quote=flipped),
        replace(good, signature=Ak().sign(good.quote)),
        replace(good, signature=Ak(key=RSA_KEY).sign(good.quote)),
        replace(good, signature=Ak(key=host.ak.key, hash=0xC).sign(good.quote)),
        replace(good, signature=b"\0\x18\0\x0b\0\0\0\0"),
    ):
        assert refused(bad, session(host)) is Code.SIG


def test_a_point_off_the_curve_is_refused():
    host = usual_host()
    good = host.bundle()
    area = bytearray(good.ak_pub)
    area[-1] ^= 1
    name = b"\0\x0b" + hashlib.sha256(bytes(area[2:])).digest()
    asked = session(host, enrolment=enrolled(host, ak_name=name))
    assert refused(replace(good, ak_pub=bytes(area)), asked) is Code.SIG


@pytest.mark.parametrize("change", [{"magic": 0xFF544348}, {"type": 0x8017}, {"tail": b"\0"}])
def test_a_good_signature_over_something_else_is_no_quote(change):
    host = usual_host()
    assert refused(host.bundle(**change), session(host)) is Code.QUOTE_TYPE


def test_the_signer_must_be_in_the_enrolled_hierarchy():
    host = usual_host()
    owner = host.bundle(signer=host.ak.qualified(b"\x40\x00\x00\x01"))
    assert refused(owner, session(host)) is Code.QN
    platform = session(host, enrolment=enrolled(host, hierarchy=Hierarchy.PLATFORM))
    assert refused(host.bundle(), platform) is Code.QN


def test_a_quote_for_another_nonce_header_or_audience_is_refused():
    host = usual_host()
    old = host.bundle(nonce=bytes(32))
    assert refused(replace(old, nonce=NONCE), session(host)) is Code.NONCE_BIND
    for change in ({"channel_key": "stolen"}, {"tpm": TpmKind.SOFTWARE}):
        header = replace(host.header(), **change)
        assert refused(replace(host.bundle(), header=header), session(host)) is Code.NONCE_BIND
    assert refused(host.bundle(), session(host, audience="another")) is Code.NONCE_BIND
    assert refused(host.bundle(extra=NONCE), session(host)) is Code.NONCE_BIND


@pytest.mark.parametrize(
    "selections",
    [
        [],
        [(0xB, SELECTION[:-1])],
        [(0xB, (*SELECTION, 16))],
        [(0xC, SELECTION)],
        [(0x12, SELECTION)],
        [(0xB, SELECTION), (0xC, (15,))],
        [(0xB, SELECTION), (0xB, SELECTION)],
    ],
)
def test_the_selection_must_be_the_demanded_one(selections):
    host = usual_host()
    assert refused(host.bundle(selections=selections), session(host)) is Code.PCRSEL


def test_pcr_values_must_be_the_quoted_ones():
    host = usual_host()
    good = host.bundle()
    values = dict(good.pcr_values[0][1])
    for bad in (
        (("sha256", tuple((values | {7: raw("other")}).items())),),
        (("sha256", tuple((values | {8: raw("more")}).items())),),
        (("sha256", tuple(values.items())[:-1]),),
        (*good.pcr_values, ("sha1", ())),
        (),
    ):
        assert refused(replace(good, pcr_values=bad), session(host)) is Code.PCRDIGEST


def test_a_sha384_key_quotes_a_digest_of_its_own_hash():
    host = usual_host(ak=Ak(hash=0xC))
    assert appraise(host.evidence(), session(host), policy(), None, NOW).status is Status.AFFIRMING
