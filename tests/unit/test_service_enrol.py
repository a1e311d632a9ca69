"""Enrolment: credentials that only one TPM can open, whose keys they are, and every reason to refuse."""

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from secrun_attest.service.credential import make_credential
from secrun_attest.service.trouble import ServiceError
from secrun_attest.wire import parse_public
from support.attest_bench import Ak, usual_host
from support.certificates import Maker
from support.verifier import ADMIN, READER, Client, Ek, opened_desk

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def desk(tmp_path):
    with opened_desk(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("key", [None, RSA_KEY], ids=["ecc", "rsa"])
def test_only_the_tpm_with_both_keys_opens_the_credential(key):
    ek, ak = Ek(key=key) if key else Ek(), Ak()
    made = make_credential(parse_public(ek.public), ak.name, b"s" * 32)
    assert ek.activate(ak.name, made.blob, made.encrypted_secret) == b"s" * 32
    assert ek.activate(Ak().name, made.blob, made.encrypted_secret) is None
    flipped = made.blob[:-1] + bytes([made.blob[-1] ^ 1])
    assert ek.activate(ak.name, flipped, made.encrypted_secret) is None


def test_no_two_credentials_are_alike():
    ek = parse_public(Ek(key=RSA_KEY).public)
    one, two = (make_credential(ek, Ak().name, bytes(32)) for _ in range(2))
    assert one.blob != two.blob
    assert one.encrypted_secret != two.encrypted_secret


@pytest.mark.parametrize("key", [None, RSA_KEY], ids=["ecc", "rsa"])
def test_a_host_enrols_and_attests(desk, key):
    client = Client(desk, ek=Ek(key=key) if key else Ek())
    begun = client.begin_enrolment()
    assert begun.status == 201
    assert begun.headers["location"] == f"/v1/enroll/{begun.json['id']}"
    done = client.prove(begun.json)
    assert done.json["software"] is True
    assert done.json["ak_name"] == client.host.ak.name.hex()
    client.token = done.json["token"]
    assert client.attest().json["status"] == "affirming"


def test_a_wrong_proof_ends_the_enrolment(desk):
    client = Client(desk)
    begun = client.begin_enrolment().json
    where = f"/v1/enroll/{begun['id']}/proof"
    assert desk("POST", where, {"proof": "00" * 32}).code == "E_PROOF"
    assert client.prove(begun).code == "E_ENROL_UNKNOWN"
    assert desk("GET", "/v1/hosts/host-1", token=READER).status == 404


@pytest.mark.parametrize("member", ["audience", "host", "id", "ek_chain", "ak_parent", "credential_blob"])
def test_the_proof_covers_what_both_sides_said(desk, member):
    client = Client(desk)
    begun = client.begin_enrolment().json
    assert (
        desk("POST", f"/v1/enroll/{begun['id']}/proof", client.proof(begun, **{member: "x"})).code
        == "E_PROOF"
    )


def test_a_proof_has_a_minute(desk):
    client = Client(desk)
    begun = client.begin_enrolment().json
    desk.now += 59
    assert client.prove(begun).status == 200
    begun = client.begin_enrolment().json
    desk.now += 60
    late = client.prove(begun)
    assert (late.status, late.code) == (410, "E_ENROL_EXPIRED")


def test_a_known_host_with_another_ek_is_a_conflict(desk):
    Client(desk).enrol()
    other = Client(desk)
    refused = other.begin_enrolment()
    assert (refused.status, refused.code) == (409, "E_EK_CONFLICT")
    assert desk("DELETE", "/v1/hosts/host-1", token=ADMIN).status == 204
    other.enrol()
    assert other.attest().status == 200


def test_two_that_race_for_one_id_do_not_both_get_it(desk):
    first, second = Client(desk), Client(desk)
    begun = [client.begin_enrolment().json for client in (first, second)]
    assert first.prove(begun[0]).status == 200
    assert second.prove(begun[1]).code == "E_EK_CONFLICT"


def test_one_tpm_is_one_host(desk):
    client = Client(desk).enrol()
    again = Client(desk, host=replace(client.host, name="host-2"), ek=client.ek)
    assert again.begin_enrolment().code == "E_EK_CONFLICT"
    racing = Client(desk, host=usual_host(name="host-3"))
    twin = Client(desk, host=usual_host(name="host-4"), ek=racing.ek)
    begun = [one.begin_enrolment().json for one in (racing, twin)]
    assert racing.prove(begun[0]).status == 200
    assert twin.prove(begun[1]).code == "E_EK_CONFLICT"


def test_enrolling_again_gives_a_new_token_and_keeps_the_state(desk):
    client = Client(desk).enrol()
    assert client.attest().status == 200
    old = client.token
    client.enrol()
    assert desk("GET", "/v1/hosts/host-1", token=old).status == 401
    assert client.challenge()["log_from"] == len(client.host.records)


def test_another_ak_begins_the_log_anew(desk):
    client = Client(desk).enrol()
    assert client.attest().status == 200
    again = Client(desk, host=usual_host(ak=Ak()), ek=client.ek).enrol()
    challenge = again.challenge()
    assert (challenge["log_from"], challenge["epoch"], challenge["log_base"]) == (0, None, None)
    assert again.answer(challenge, again.evidence(challenge)).status == 200


def test_a_child_of_the_ek_is_held_against_its_qualified_name(desk):
    ek = Ek()
    client = Client(desk, ek=ek, ak_parent="ek").enrol()
    refused = client.attest()
    assert (refused.status, refused.code, refused.json["step"]) == (422, "E_QN", 7)
    parent = b"\x00\x0b" + hashlib.sha256(b"\x40\x00\x00\x0b" + ek.name).digest()
    assert client.attest(signer=client.host.ak.qualified(parent)).status == 200


@pytest.mark.parametrize(
    "change",
    [
        {"attributes": 0x000200B2},  # not restricted
        {"attributes": 0x000300A2},  # may have come from outside
        {"attributes": 0x000700B2},  # signs too
        {"symmetric": bytes.fromhex("000601000043")},
        {"symmetric": bytes.fromhex("000600800042")},
        {"name_alg": 0xC},
        {"key": rsa.generate_private_key(public_exponent=65537, key_size=3072)},
    ],
)
def test_an_ek_of_another_kind_is_refused(desk, change):
    refused = Client(desk, ek=Ek(**change)).begin_enrolment()
    assert (refused.status, refused.code) == (422, "E_EK_ATTR")


def test_a_point_off_the_curve_is_no_ek():
    ek = parse_public(Ek().public)
    with pytest.raises(ServiceError) as caught:
        make_credential(replace(ek, unique=(b"\x01" * 32, b"\x02" * 32)), Ak().name, bytes(32))
    assert caught.value.code == "E_EK_ATTR"


@pytest.mark.parametrize("attributes", [0x00040072, 0x00070072, 0x00050070])
def test_an_ak_that_may_sign_anything_is_refused(desk, attributes):
    refused = Client(desk, host=usual_host(ak=Ak(attributes=attributes))).begin_enrolment()
    assert (refused.status, refused.code) == (422, "E_AK_ATTR")


@pytest.mark.parametrize(
    "change",
    [
        {"host": "../etc"},
        {"host": ""},
        {"host": "a" * 201},
        {"host": "-x"},
        {"ek_pub": "AAAA"},
        {"ak_pub": "no base64"},
        {"ak_parent": "owner"},
        {"ek_chain": ["AAAA"] * 9},
        {"extra": 1},
        {"ek_chain": None},
    ],
)
def test_a_request_without_meaning_is_refused(desk, change):
    refused = Client(desk).begin_enrolment(**change)
    assert (refused.status, refused.code) == (422, "E_REQUEST")


def test_an_enrolment_token_is_needed_if_one_is_set(tmp_path):
    path = tmp_path / "enroll"
    path.write_text("token-for-new-hosts-only")
    with opened_desk(tmp_path, enroll_token_file=path) as desk:
        client = Client(desk)
        assert client.begin_enrolment().status == 401
        assert desk("POST", "/v1/enroll", client.wish(), READER).status == 403
        begun = desk("POST", "/v1/enroll", client.wish(), "token-for-new-hosts-only")
        assert client.prove(begun.json).status == 200
        assert desk("GET", "/v1/hosts", token="token-for-new-hosts-only").status == 403
        assert desk("GET", "/.well-known/secrun-verifier").json["enroll_token"] is True


@pytest.fixture
def maker():
    return Maker()


@pytest.fixture
def strict(tmp_path, maker):
    roots = maker.roots(tmp_path / "roots")
    changes = {"software_tpm": False}
    with opened_desk(tmp_path, ek_roots=roots, allow_software_tpm=False, policy_changes=changes) as opened:
        yield opened


@pytest.mark.parametrize("key", [None, RSA_KEY], ids=["ecc", "rsa"])
def test_a_certified_ek_is_hardware(strict, maker, key):
    ek = Ek(key=key) if key else Ek()
    client = Client(strict, ek=ek, chain=maker.chain(ek.key)).enrol()
    assert client.attest().json["status"] == "affirming"
    assert strict("GET", "/v1/hosts/host-1", token=READER).json["software"] is False


def test_an_ek_that_nobody_vouches_for_is_refused(strict, maker):
    ek = Ek()
    chains = {
        "none": (),
        "of another maker": Maker("stranger").chain(ek.key),
        "of another key": maker.chain(Ek().key),
        "of another kind of key": maker.chain(RSA_KEY),
        "without the intermediate": maker.chain(ek.key)[:1],
        "no certificate": (b"\x30\x00",),
        "expired": maker.chain(ek.key, days=-0.5),
    }
    for what, chain in chains.items():
        refused = Client(strict, ek=ek, chain=chain).begin_enrolment()
        assert (refused.status, refused.code) == (403, "E_EK_UNTRUSTED"), what


def test_a_chain_that_fails_is_not_taken_for_a_software_tpm(tmp_path, maker):
    roots = maker.roots(tmp_path / "roots")
    with opened_desk(tmp_path, ek_roots=roots) as desk:
        ek = Ek()
        refused = Client(desk, ek=ek, chain=Maker("stranger").chain(ek.key)).begin_enrolment()
        assert refused.code == "E_EK_UNTRUSTED"
        Client(desk, ek=ek).enrol()
        assert desk("GET", "/v1/hosts/host-1", token=READER).json["software"] is True


def test_the_policy_decides_about_software_tpms_again(tmp_path):
    with opened_desk(tmp_path, policy_changes={"software_tpm": False}) as desk:
        refused = Client(desk).enrol().attest()
        assert (refused.code, refused.json["step"]) == ("E_POLICY", 17)


def test_a_folder_without_roots_stops_the_start(tmp_path):
    (tmp_path / "roots").mkdir()
    with pytest.raises(ServiceError), opened_desk(tmp_path, ek_roots=tmp_path / "roots"):
        pass
