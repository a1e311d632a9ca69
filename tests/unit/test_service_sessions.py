"""Sessions: a nonce is answered once and in time, state goes forward, and what came of it can be read."""

import hashlib
import json
from dataclasses import replace

import pytest

from secrun_attest import ear
from secrun_attest.record import Epoch, Operation
from support.attest_bench import AUDIENCE, NOW, POD, policy_document, usual_host
from support.verifier import ADMIN, READER, Client, opened_desk, public_keys

POD_2 = "22222222-2222-4333-8444-555555555555"
HOSTILE = "docker://x/<img src=x onerror=alert(1)>\u202e&amp;"


@pytest.fixture
def desk(tmp_path):
    with opened_desk(tmp_path) as opened:
        yield opened


@pytest.fixture
def client(desk):
    return Client(desk).enrol()


def test_a_session_asks_for_what_the_policy_selects(desk, client):
    challenge = client.challenge()
    assert challenge["pcrs"] == [0, 1, 2, 3, 4, 5, 6, 7, 15]
    assert (challenge["bank"], challenge["runtime_pcr"]) == ("sha256", 15)
    assert (challenge["issued"], challenge["expires"]) == (NOW, NOW + 60)
    assert challenge["audience"] == AUDIENCE
    assert (challenge["log_from"], challenge["epoch"], challenge["log_base"]) == (0, None, None)
    assert len(bytes.fromhex(challenge["nonce"])) == 32
    assert client.challenge()["nonce"] != challenge["nonce"]


def test_the_answer_is_a_token_that_a_relying_party_can_check(desk, client):
    challenge = client.challenge()
    result = client.answer(challenge, client.evidence(challenge)).json
    (key,) = public_keys(desk).values()
    claims = ear.verify_token(result["token"], key, audience=AUDIENCE, now=NOW)
    assert claims["eat_nonce"] == ear._encode(bytes.fromhex(challenge["nonce"]))
    assert claims["secrun_host"] == "host-1"
    assert claims["secrun_log"] == {"count": 5, "head": result["head"]}
    assert result["head"] == client.host.pcr().hex()
    assert claims["submods"]["host"]["ear_status"] == result["modules"]["host"]["status"] == "affirming"
    assert set(result["modules"]) == {"host", f"pod:{POD}"}
    assert claims["submods"]["host"]["ear_appraisal_policy_ids"] == [result["policy"]]


def test_the_channel_key_of_the_quote_is_in_the_token(desk, client):
    challenge = client.challenge()
    header = replace(client.host.header(), channel_key="thumb")
    token = client.answer(challenge, client.evidence(challenge, header=header)).json["token"]
    (key,) = public_keys(desk).values()
    assert ear.verify_token(token, key, audience=AUDIENCE, now=NOW)["cnf"] == {"jkt": "thumb"}


def test_only_new_records_are_asked_for_the_next_time(desk, client):
    assert client.attest().json["log_count"] == 5
    client.host.pod(POD_2)
    challenge = client.challenge()
    assert challenge["log_from"] == 5
    assert challenge["log_base"]["sha256"] == client.host.pcr(upto=5).hex()
    assert challenge["epoch"]["reset"] == client.host.epoch.reset
    result = client.answer(challenge, client.evidence(challenge)).json
    assert result["log_count"] == 8
    assert f"pod:{POD_2}" in result["modules"]


def test_a_restarted_verifier_goes_on_where_it_was(tmp_path):
    with opened_desk(tmp_path) as desk:
        client = Client(desk).enrol()
        assert client.attest().status == 200
    with opened_desk(tmp_path) as desk:
        again = Client(desk, host=client.host, ek=client.ek, token=client.token)
        challenge = again.challenge()
        assert challenge["log_from"] == 5
        assert again.answer(challenge, again.evidence(challenge)).status == 200


def test_a_state_that_cannot_be_read_is_said(desk, client):
    assert client.attest().status == 200
    desk.service.store.database.run("UPDATE hosts SET state = ?, state_digest = ?", b'{"v":0}', b"d")
    refused = desk("POST", "/v1/sessions", {"host": "host-1"}, client.token)
    assert (refused.status, refused.code) == (503, "E_DATABASE")
    assert "version 0" in refused.json["detail"]
    assert desk("DELETE", "/v1/hosts/host-1", token=ADMIN).status == 204
    assert client.enrol().attest().status == 200


def test_a_rebooted_host_begins_anew(desk, client):
    assert client.attest().status == 200
    booted = usual_host(ak=client.host.ak, epoch=Epoch(reset=8, restart=0, boot_id=POD_2), restart=0)
    again = Client(desk, host=booted, ek=client.ek, token=client.token)
    challenge = again.challenge()
    assert (challenge["log_from"], challenge["epoch"]) == (0, None)
    assert again.answer(challenge, again.evidence(challenge)).status == 200
    # And the old boot's evidence is now of the past.
    refused = client.attest()
    assert refused.code in ("E_EPOCH", "E_BASELINE")


def test_a_host_that_does_not_say_what_it_has_is_told_all(desk, client):
    client.attest()
    told = desk("POST", "/v1/sessions", {"host": "host-1"}, client.token).json
    assert (told["log_from"], told["epoch"]["restart"]) == (5, 2)


def test_a_nonce_is_answered_once(desk, client):
    challenge = client.challenge()
    evidence = client.evidence(challenge)
    assert client.answer(challenge, evidence).status == 200
    again = client.answer(challenge, evidence)
    assert (again.status, again.code, again.json["step"]) == (409, "E_NONCE_USED", 2)
    assert desk("GET", "/v1/hosts/host-1", token=READER).json["verdict"] == "affirming"


def test_malformed_evidence_uses_up_the_nonce_too(desk, client):
    challenge = client.challenge()
    assert client.answer(challenge, b"{}").code == "E_FORMAT"
    assert client.answer(challenge, client.evidence(challenge)).code == "E_NONCE_USED"


def test_a_nonce_lives_for_a_minute(desk, client):
    challenge, late = client.challenge(), client.challenge()
    desk.now += 59
    assert client.answer(challenge, client.evidence(challenge)).status == 200
    desk.now += 1
    assert desk("GET", f"/v1/sessions/{late['id']}", token=client.token).json["state"] == "expired"
    refused = client.answer(late, client.evidence(late))
    assert (refused.status, refused.code) == (410, "E_NONCE_EXPIRED")


def test_evidence_for_another_nonce_is_refused(desk, client):
    one, two = client.challenge(), client.challenge()
    refused = client.answer(one, client.evidence(two))
    assert (refused.status, refused.code) == (404, "E_NONCE_UNKNOWN")
    assert client.answer({"id": "nothing"}, client.evidence(two)).code == "E_NONCE_UNKNOWN"


def test_of_two_sessions_that_began_together_one_has_to_begin_again(desk, client):
    one, two = client.challenge(), client.challenge()
    assert client.answer(two, client.evidence(two)).status == 200
    refused = client.answer(one, client.evidence(one))
    assert (refused.status, refused.code, refused.json["retry"]) == (409, "E_STATE", True)
    host = desk("GET", "/v1/hosts/host-1", token=READER).json
    assert (host["verdict"], host["failure"]) == ("affirming", None)
    assert client.attest().status == 200


def test_a_session_shows_its_state(desk, client):
    challenge = client.challenge()
    where = f"/v1/sessions/{challenge['id']}"
    assert desk("GET", where, token=client.token).json["state"] == "waiting"
    result = client.answer(challenge, client.evidence(challenge))
    assert desk("GET", where, token=READER).body == result.body
    failed = client.challenge()
    refused = client.answer(failed, b"[]")
    shown = desk("GET", f"/v1/sessions/{failed['id']}", token=client.token).json
    assert (shown["state"], shown["problem"]) == ("failed", refused.json)
    used = client.challenge()
    desk.service.store.consume(used["id"], "host-1", NOW)
    shown = desk("GET", f"/v1/sessions/{used['id']}", token=client.token)
    assert (shown.status, shown.json["state"]) == (202, "processing")


def test_a_session_that_was_ended_is_gone(desk, client):
    challenge = client.challenge()
    where = f"/v1/sessions/{challenge['id']}"
    assert desk("DELETE", where, token=client.token).status == 204
    assert desk("GET", where, token=client.token).status == 404
    assert client.answer(challenge, client.evidence(challenge)).code == "E_NONCE_UNKNOWN"


def test_what_expired_is_forgotten_after_a_while(desk, client):
    old = client.challenge()
    pending = Client(desk, host=usual_host(name="host-2")).begin_enrolment().json
    desk.service.attestor.purge(NOW + 60 + 60)
    assert desk("GET", f"/v1/sessions/{old['id']}", token=READER).status == 200
    desk.service.attestor.purge(NOW + 60 + 61)
    assert desk("GET", f"/v1/sessions/{old['id']}", token=READER).status == 404
    assert desk("POST", f"/v1/enroll/{pending['id']}/proof", {"proof": "00" * 32}).code == "E_ENROL_UNKNOWN"


def test_a_rejected_host_is_shown_with_code_and_reason_until_it_is_well(desk, client):
    assert client.attest().status == 200
    client.host.measure(Operation.POD_GC, pod=POD)
    challenge = client.challenge()
    desk.now += 5
    refused = client.answer(challenge, client.evidence(challenge, values={15: bytes(32)}))
    assert (refused.status, refused.code, refused.json["step"]) == (422, "E_REPLAY", 14)
    host = desk("GET", "/v1/hosts/host-1", token=READER).json
    assert (host["verdict"], host["seen"], host["appraised"]) == ("rejected", NOW + 5, NOW)
    assert host["failure"] == {
        "code": "E_REPLAY",
        "step": 14,
        "detail": refused.json["detail"],
        "time": NOW + 5,
    }
    assert client.attest().status == 200
    host = desk("GET", "/v1/hosts/host-1", token=READER).json
    assert (host["verdict"], host["failure"]) == ("affirming", None)


def test_a_bad_image_contraindicates_its_pod_and_the_state_goes_on(desk, client):
    other = "sha256:" + "ee" * 32
    client.host.measure(Operation.IMAGE_ADMIT, reference=HOSTILE, manifest=other, tree=other)
    client.host.prepare(POD_2, relaxations=("net=host",), image=other, tree=other)
    result = client.attest().json
    assert result["status"] == "contraindicated"
    assert result["modules"]["host"]["status"] == "affirming"
    assert "is not a reference value" in result["modules"][f"pod:{POD_2}"]["reasons"][0]
    pod = desk("GET", f"/v1/hosts/host-1/pods/{POD_2}", token=READER).json
    assert (pod["status"], pod["state"], pod["relaxations"]) == ("contraindicated", "prepared", ["net=host"])
    assert pod["apps"][0]["reference"] == HOSTILE
    assert pod["apps"][0]["manifest"] == other
    host = desk("GET", "/v1/hosts/host-1", token=READER).json
    assert (host["verdict"], host["pod_count"], host["log_count"]) == ("contraindicated", 2, 7)
    assert client.challenge()["log_from"] == 7


def test_removed_pods_that_were_fine_are_left_out(desk, client):
    client.host.measure(Operation.POD_GC, pod=POD)
    assert client.attest().status == 200
    host = desk("GET", "/v1/hosts/host-1", token=READER).json
    assert (host["pods"], host["pod_count"]) == ([], 0)
    assert desk("GET", f"/v1/hosts/host-1/pods/{POD}", token=READER).code == "E_NOT_FOUND"


def test_hosts_come_in_pages(desk):
    for name in ("c", "a", "b"):
        Client(desk, host=usual_host(name=name)).enrol()
    first = desk("GET", "/v1/hosts?limit=2", token=READER).json
    assert ([host["host"] for host in first["hosts"]], first["next"]) == (["a", "b"], "b")
    second = desk("GET", f"/v1/hosts?limit=2&after={first['next']}", token=READER).json
    assert ([host["host"] for host in second["hosts"]], second["next"]) == (["c"], None)
    assert second["hosts"][0]["verdict"] == "none"
    for query in ("limit=0", "limit=1001", "limit=x", "page=1"):
        assert desk("GET", f"/v1/hosts?{query}", token=READER).code == "E_REQUEST"


def test_a_relying_party_may_bring_its_own_nonce(desk, client):
    nonce = hashlib.sha256(b"relying party").digest()
    where = f"/v1/appraise?host=host-1&nonce={nonce.hex()}"
    evidence = client.host.evidence(nonce=nonce)
    result = desk("POST", where, evidence, READER)
    assert result.status == 200
    assert "id" not in result.json
    assert desk("POST", where, evidence, READER).status == 200  # nothing is kept; freshness is the asker's
    assert desk("GET", "/v1/hosts/host-1", token=READER).json["verdict"] == "none"
    other = where.replace(nonce.hex(), "00" * 32)
    assert desk("POST", other, evidence, READER).code == "E_NONCE_UNKNOWN"
    assert desk("POST", f"{where}&audience=me", evidence, READER).code == "E_NONCE_BIND"
    mine = client.host.evidence(nonce=nonce, header=replace(client.host.header(), audience="me"))
    token = desk("POST", f"{where}&audience=me", mine, READER).json["token"]
    (key,) = public_keys(desk).values()
    assert ear.verify_token(token, key, audience="me", now=NOW)["aud"] == "me"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("host=host-1", "E_REQUEST"),
        ("host=host-1&nonce=ab", "E_REQUEST"),
        (f"host=host-9&nonce={'ab' * 32}", "E_NOT_FOUND"),
        (f"nonce={'ab' * 32}", "E_REQUEST"),
        (f"host=host-1&nonce={'ab' * 32}&policy=none", "E_NOT_FOUND"),
        (f"host=host-1&nonce={'ab' * 32}&x=1", "E_REQUEST"),
    ],
)
def test_an_appraisal_needs_host_and_nonce(desk, client, query, code):
    assert desk("POST", f"/v1/appraise?{query}", {}, READER).code == code


def test_an_appraisal_may_choose_the_policy(desk, client):
    strict = policy_document(id="strict", software_tpm=True, workload={"manifests": ["sha256:" + "00" * 32]})
    assert desk("PUT", "/v1/policies/strict", strict, ADMIN).status == 204
    nonce = "ab" * 32
    evidence = client.host.evidence(nonce=bytes.fromhex(nonce))
    where = f"/v1/appraise?host=host-1&nonce={nonce}"
    assert desk("POST", where, evidence, READER).json["status"] == "affirming"
    assert desk("POST", f"{where}&policy=strict", evidence, READER).json["status"] == "contraindicated"


@pytest.mark.parametrize(
    "body", [{}, {"host": 1}, {"host": "host-1", "have": {}}, {"host": "host-1", "x": 1}, []]
)
def test_a_session_needs_a_request_with_meaning(desk, client, body):
    refused = desk("POST", "/v1/sessions", json.dumps(body).encode(), client.token)
    assert (refused.status, refused.code) == (422, "E_REQUEST")


def test_without_a_policy_nothing_is_used_up(tmp_path):
    with opened_desk(tmp_path, policy=None) as desk:
        client = Client(desk).enrol()
        refused = desk("POST", "/v1/sessions", {"host": "host-1"}, client.token)
        assert (refused.status, refused.code) == (503, "E_NO_POLICY")
        assert int(refused.headers["retry-after"]) > 0
        policy = policy_document(id="default", software_tpm=True)
        assert desk("PUT", "/v1/policies/default", policy, ADMIN).status == 204
        challenge = client.challenge()
        run = desk.service.store.database.run
        run("UPDATE documents SET id = 'away'")
        assert client.answer(challenge, client.evidence(challenge)).code == "E_NO_POLICY"
        run("UPDATE documents SET id = 'default'")
        assert client.answer(challenge, client.evidence(challenge)).status == 200
