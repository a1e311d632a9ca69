"""Signing keys: shared, replaced in time, published until the last token has expired."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from secrun_attest import ear
from secrun_attest.service.database import open_database
from secrun_attest.service.keys import LOOK_AGAIN, PUBLISHED, Keyring
from secrun_attest.service.store import Store
from secrun_attest.service.trouble import ServiceError
from support.attest_bench import AUDIENCE, NOW
from support.verifier import Client, opened_desk, public_keys

DAY = 86_400


@pytest.fixture
def store(tmp_path):
    made = Store(open_database(str(tmp_path / "keys.db")))
    made.open("boot")
    yield made
    made.database.close()


def pem(key=None):
    key = key or ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def ids(keyring, now):
    return [key["kid"] for key in keyring.jwks(now)["keys"]]


def test_instances_share_one_key(store):
    one, two = Keyring(store, lifetime=DAY), Keyring(store, lifetime=DAY)
    assert one.signer(NOW).key_id == two.signer(NOW).key_id
    numbers = [ring.signer(NOW).key.private_numbers() for ring in (one, two)]
    assert numbers[0] == numbers[1]


def test_a_key_is_replaced_and_stays_until_its_tokens_have_expired(store):
    keyring = Keyring(store, lifetime=DAY)
    old = keyring.signer(NOW).key_id
    last = NOW + DAY - 1
    assert keyring.signer(last).key_id == old
    new = keyring.signer(NOW + DAY + LOOK_AGAIN).key_id
    assert new != old
    assert set(ids(keyring, NOW + DAY + LOOK_AGAIN)) == {old, new}
    expiry = last + LOOK_AGAIN + ear.MAX_LIFETIME  # of the last token that the old one can have signed
    assert old in ids(keyring, expiry)
    assert ids(keyring, NOW + DAY + PUBLISHED) == [new]


def test_another_instance_takes_the_new_key_soon(store):
    one, two = Keyring(store, lifetime=DAY), Keyring(store, lifetime=DAY)
    two.signer(NOW + DAY - 1)
    new = one.signer(NOW + DAY).key_id
    assert two.signer(NOW + DAY - 1 + LOOK_AGAIN).key_id == new


def test_keys_whose_tokens_have_expired_are_deleted(store):
    keyring = Keyring(store, lifetime=DAY)
    old = keyring.signer(NOW).key_id
    new = keyring.signer(NOW + DAY).key_id
    for now, left in ((NOW + DAY + PUBLISHED - 1, {old, new}), (NOW + DAY + PUBLISHED, {new})):
        store.drop_keys(now)
        assert {key.id for key in store.keys(0)} == left


def test_a_key_from_a_file_is_not_copied_into_the_database(store, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    keyring = Keyring(store, lifetime=DAY, pem=pem(key))
    signer = keyring.signer(NOW)
    assert signer.key.private_numbers() == key.private_numbers()
    assert ids(keyring, NOW) == [signer.key_id]
    assert [stored.private for stored in store.keys(NOW)] == [None]
    # A second file's key does not push the first one out while its tokens live.
    other = Keyring(store, lifetime=DAY, pem=pem())
    assert set(ids(other, NOW)) == {signer.key_id, other.signer(NOW).key_id}


@pytest.mark.parametrize(
    "data",
    [
        b"no key",
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    ],
)
def test_a_file_with_another_key_is_refused(store, data):
    with pytest.raises(ServiceError):
        Keyring(store, lifetime=DAY, pem=data)


def test_tokens_name_the_published_key_that_signed_them(tmp_path):
    with opened_desk(tmp_path) as desk:
        client = Client(desk).enrol()
        first = client.attest().json["token"]
        before = public_keys(desk)
        desk.now += 1000
        assert public_keys(desk) == before
        kid = ear._decode(first.partition(".")[0])
        (name,) = before
        assert name.encode() in kid
        ear.verify_token(first, before[name], audience=AUDIENCE, now=NOW)
