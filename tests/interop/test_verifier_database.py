"""The store on SQLite and on PostgreSQL: one behaviour, also when several instances share a database."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from secrun_attest.service.database import DuplicateError, open_database
from secrun_attest.service.keys import Keyring
from secrun_attest.service.store import NewHost, Passed, Store, StoredKey, StoredSession
from secrun_attest.service.trouble import ServiceError
from secrun_attest.verify import Enrolment
from support.attest_bench import NOW, POD, usual_host
from support.postgres import cluster
from support.verifier import READER, Client, opened_desk
from support.verifier_server import private_folder, serving, usual_options

KINDS = ["sqlite", "postgresql"]


@pytest.fixture(scope="module")
def postgres():
    with cluster() as address:
        yield address


@pytest.fixture(params=KINDS)
def address(request, tmp_path):
    """An empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "verifier.db")
    base = request.getfixturevalue("postgres")
    database = open_database(base)
    name = f"test{abs(hash(tmp_path)):x}"
    database.run(f"CREATE DATABASE {name}")
    database.close()
    return base.replace("/postgres?", f"/{name}?")


@pytest.fixture
def store(address):
    made = Store(open_database(address))
    made.open("boot-1")
    yield made
    made.database.close()


def new_host(name="h", ek=b"ek", ak=b"ak", token=b"token", **more):
    return NewHost(enrolment=Enrolment(host=name, ak_name=ak, **more), ek_name=ek, token_hash=token, now=NOW)


def session(name="s", host="h", digest=None):
    return StoredSession(
        id=name,
        host=host,
        nonce=b"n" * 32,
        issued=NOW,
        expires=NOW + 60,
        audience="a",
        state_digest=digest,
    )


def passed(old=None, new=b"d1", ak=b"ak"):
    return Passed(
        host="h",
        ak_name=ak,
        old_digest=old,
        state=b"state " + new,
        state_digest=new,
        verdict="affirming",
        summary=b"{}",
        pods=b"{}",
        now=NOW,
    )


def test_opening_twice_changes_nothing(store, address):
    store.enrol(new_host())
    again = Store(open_database(address))
    again.open("boot-1")
    assert again.host("h") == store.host("h")
    again.database.close()


def test_many_instances_may_start_at_once(address):
    def start(_):
        made = Store(open_database(address))
        made.open("boot-1")
        key = Keyring(made, lifetime=1000).signer(NOW).key_id
        made.database.close()
        return key

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(start, range(6)))) == 1


def test_tables_of_another_version_are_refused(store, address):
    store.database.run("UPDATE meta SET value = '0' WHERE name = 'schema'")
    again = Store(open_database(address))
    with pytest.raises(ServiceError, match="version 0"):
        again.open("boot-1")
    again.database.close()


def test_after_a_reboot_local_sessions_are_void(store, address):
    """SQLite may lose the last commits in a crash of the machine, and with them the use of a nonce."""
    store.add_session(session())
    store.add_pending("p", b"x", NOW)
    store.open("boot-2")
    assert (store.session("s") is None) == (not address.startswith("postgresql"))
    assert (store.take_pending("p") is None) == (not address.startswith("postgresql"))


def test_a_host_comes_back_as_it_was_put(store):
    enrolment = Enrolment(host="h", ak_name=b"\x00\xffak", parent=b"\x00parent", software=True)
    store.enrol(NewHost(enrolment=enrolment, ek_name=b"ek", token_hash=b"t", now=NOW))
    found = store.host("h")
    assert (found.enrolment, found.enrolled, found.verdict) == (enrolment, NOW, "none")
    assert (found.state_digest, found.seen, found.summary, found.failure) == (None, None, None, None)
    assert store.host_of_token(b"t") == "h"
    assert store.host_of_token(b"u") is None
    assert store.host("x") is None


def test_id_and_ek_belong_together(store):
    assert store.enrol(new_host())
    assert not store.enrol(new_host(ek=b"other", token=b"2"))
    assert not store.enrol(new_host(name="g", token=b"3"))
    assert store.enrol(new_host(token=b"4"))
    assert store.host_of_token(b"token") is None
    assert sorted(store.owners("h", b"nothing") + store.owners("nobody", b"ek")) == [("h", b"ek")] * 2
    assert store.forget("h")
    assert not store.forget("h")
    assert store.enrol(new_host(ek=b"other"))


def test_another_ak_drops_the_state(store):
    store.enrol(new_host())
    store.add_session(session())
    assert store.complete("s", passed(), b"answer")
    store.enrol(new_host(token=b"2"))
    assert store.host("h").state_digest == b"d1"
    store.enrol(new_host(ak=b"ak2", token=b"3"))
    assert store.host("h").state_digest is None
    assert store.state("h") is None


def test_the_state_is_set_only_over_the_one_that_was_read(store):
    store.enrol(new_host())
    store.add_session(session())
    assert store.complete("s", passed(), b"one")
    assert (store.state("h"), store.host("h").state_digest) == (b"state d1", b"d1")
    assert not store.complete("s", passed(old=None, new=b"d2"), b"two")
    assert not store.complete("s", passed(old=b"dx", new=b"d2"), b"two")
    assert not store.complete("s", passed(old=b"d1", new=b"d2", ak=b"other"), b"two")
    assert store.session("s").answer == b"one"
    assert store.complete("s", passed(old=b"d1", new=b"d2"), b"two")
    assert (store.session("s").outcome, store.session("s").answer) == ("complete", b"two")


def test_a_session_is_consumed_once(store):
    store.add_session(session())
    assert store.consume("s", "other", NOW) is None
    taken = store.consume("s", "h", NOW + 1)
    assert taken == replace(session(), consumed=NOW + 1)
    assert store.consume("s", "h", NOW + 2) is None
    assert store.consume("x", "h", NOW) is None
    store.end("s")
    assert store.session("s") is None


def test_of_many_that_consume_at_once_one_succeeds(store, address):
    others = [Store(open_database(address)) for _ in range(4)]
    pool = ThreadPoolExecutor(8)  # a connection belongs to a thread
    try:
        for number in range(10):
            store.add_session(session(f"s{number}"))
            barrier = threading.Barrier(8)

            def consume(index, name=f"s{number}", barrier=barrier):
                barrier.wait()
                return others[index % 4].consume(name, "h", index)

            assert sum(found is not None for found in pool.map(consume, range(8))) == 1
    finally:
        pool.shutdown()
        for other in others:
            other.database.close()


def test_of_many_that_complete_at_once_one_succeeds(store, address):
    store.enrol(new_host())
    store.add_session(session())
    others = [Store(open_database(address)) for _ in range(4)]
    try:
        barrier = threading.Barrier(4)

        def complete(index):
            barrier.wait()
            return others[index].complete("s", passed(new=b"n%d" % index), b"%d" % index)

        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(complete, range(4)))
        assert sum(done) == 1
        assert store.host("h").state_digest == b"n%d" % done.index(True)
        assert store.session("s").answer == b"%d" % done.index(True)
    finally:
        for other in others:
            other.database.close()


def test_a_failure_is_kept_with_the_host_and_goes_with_the_next_success(store):
    store.enrol(new_host())
    store.add_session(session())
    store.fail("s", b"no", host="h", failure=b"{}", now=NOW + 1)
    found = store.host("h")
    assert (found.verdict, found.failure, found.seen) == ("rejected", b"{}", NOW + 1)
    assert (store.session("s").outcome, store.session("s").answer) == ("failed", b"no")
    store.fail("s", b"no", host="h", failure=None, now=NOW + 2)
    assert store.host("h").seen == NOW + 1
    store.complete("s", passed(), b"yes")
    assert store.host("h").failure is None
    assert store.verdicts() == [("affirming", 1)]


def test_a_transaction_that_fails_leaves_nothing(store):
    def twice():
        with store.database.transaction():
            store.add_session(session("one"))
            store.add_session(session("one"))

    with pytest.raises(DuplicateError):
        twice()
    assert store.session("one") is None
    store.add_session(session("one"))  # the connection is as good as before


def test_a_pending_enrolment_is_taken_once(store):
    store.add_pending("p", b"\x00data", NOW)
    assert store.take_pending("p") == (b"\x00data", NOW)
    assert store.take_pending("p") is None


def test_documents_only_get_newer(store):
    put = [("p", "a", 2, b"2", b"two"), ("p", "a", 2, b"2", b"two"), ("p", "a", 3, b"3", b"three")]
    assert [store.put_document(*one) for one in put] == [True] * 3
    for version, digest in ((2, b"2"), (3, b"x"), (1, b"1")):
        assert not store.put_document("p", "a", version, digest, b"older")
    assert store.document("p", "a") == b"three"
    assert store.document("q", "a") is None
    assert store.digests(("p", "a"), ("q", "a")) == (b"3", None)


def test_what_expired_goes(store):
    store.add_session(session())
    store.add_pending("p", b"x", NOW)
    store.purge(NOW + 60, NOW)
    assert store.session("s") is not None
    assert store.take_pending("p") is not None
    store.add_pending("p", b"x", NOW)
    store.purge(NOW + 61, NOW + 1)
    assert store.session("s") is None
    assert store.take_pending("p") is None


def test_keys_come_newest_first_and_go(store):
    for number in range(3):
        key = StoredKey(id=f"k{number}", public=b"p", private=b"s" if number else None, created=NOW + number)
        store.put_key(key, NOW + 100 + number)
    assert [key.id for key in store.keys(NOW)] == ["k2", "k1", "k0"]
    assert store.keys(NOW)[2].private is None
    assert [key.id for key in store.keys(NOW + 101)] == ["k2"]
    store.drop_keys(NOW + 101)
    assert [key.id for key in store.keys(0)] == ["k2"]


def test_a_service_on_it_does_all_that_a_host_needs(tmp_path, address):
    with opened_desk(tmp_path / "desk", address) as desk:
        client = Client(desk).enrol()
        assert client.attest().json["status"] == "affirming"
        assert client.attest(values={15: bytes(32)}).code == "E_REPLAY"
        assert desk("GET", f"/v1/hosts/host-1/pods/{POD}", token=READER).status == 200
        assert desk("GET", "/v1/hosts", token=READER).json["hosts"][0]["verdict"] == "rejected"


@pytest.mark.parametrize("kind", KINDS)
def test_of_answers_to_two_instances_one_counts(kind, postgres):
    """Two processes on one database, one nonce, many threads: one verdict."""
    with private_folder() as folder:
        database = str(folder / "shared.db") if kind == "sqlite" else postgres
        options = [*usual_options(folder), "--database", database]
        with serving(folder, *options) as one, serving(folder, *options, name="stderr-2") as two:
            for number in range(4):
                host = usual_host(name=f"{kind}-{number}")
                client = Client((one, two)[number % 2].link(), host=host).enrol()
                challenge = client.challenge()
                evidence = client.evidence(challenge)
                links = [server.link() for server in (one, two) for _ in range(4)]
                for link in links:
                    assert link("GET", "/healthz").status == 200
                barrier = threading.Barrier(len(links))

                def answer(link, client=client, challenge=challenge, evidence=evidence, barrier=barrier):
                    barrier.wait()
                    return replace(client, ask=link).answer(challenge, evidence)

                with ThreadPoolExecutor(len(links)) as pool:
                    answers = list(pool.map(answer, links))
                assert sorted(each.status for each in answers) == [200] + [409] * 7
                assert {each.code for each in answers if each.status == 409} == {"E_NONCE_USED"}
                # Whoever did not answer knows it all the same, and signs with the same key.
                other = (two, one)[number % 2].link()
                assert other("GET", f"/v1/hosts/{host.name}", token=READER).json["verdict"] == "affirming"
                assert replace(client, ask=other).challenge()["log_from"] == len(host.records)
            keys = [server.link()("GET", "/.well-known/jwks.json").json for server in (one, two)]
            assert keys[0] == keys[1]
            assert len(keys[0]["keys"]) == 1


def test_a_database_that_goes_away_is_said_and_comes_back(tmp_path):
    with cluster() as address, opened_desk(tmp_path, address) as desk:
        client = Client(desk).enrol()
        other = open_database(address)
        other.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        other.close()
        # Each thread's connection is gone: each finds out once, and is well the time after.
        answers = [desk("GET", "/healthz") for _ in range(20)]
        refused = [answer for answer in answers if answer.status != 200]
        assert refused
        assert all((each.status, each.code) == (503, "E_DATABASE") for each in refused)
        assert all("retry-after" in each.headers for each in refused)
        assert answers[-1].status == 200
        assert client.attest().status == 200


def test_a_password_does_not_get_out():
    with pytest.raises(ServiceError) as caught:
        open_database("postgresql://user:hunter2secret@127.0.0.1:1/none")
    assert "hunter2secret" not in caught.value.message
