"""Policies and reference values: only newer ones are taken, and what they say decides at once."""

import json

import pytest

from secrun_attest.service.main import build
from secrun_attest.service.trouble import ServiceError
from support.attest_bench import IMAGE, RUNTIME, policy_document, raw
from support.verifier import ADMIN, READER, Client, opened_desk

OTHER = "sha256:" + "11" * 32


@pytest.fixture
def desk(tmp_path):
    with opened_desk(tmp_path) as opened:
        yield opened


def put(desk, version=2, identifier="test", **changes):
    document = policy_document(id=identifier, version=version, software_tpm=True, **changes)
    return desk("PUT", f"/v1/policies/{identifier}", document, ADMIN)


def values(version=1, **changes):
    empty = {"binaries": [], "manifests": [], "trees": [], "references": []}
    return {"v": 1, "version": version, "pcrs": {}} | empty | changes


def test_a_newer_policy_decides_from_the_next_session_on(desk):
    client = Client(desk).enrol()
    first = client.attest().json
    assert put(desk, workload={"manifests": [OTHER]}).status == 204
    second = client.attest().json
    assert (first["status"], second["status"]) == ("affirming", "contraindicated")
    assert first["policy"] != second["policy"]


def test_a_policy_comes_back_byte_for_byte(desk):
    text = json.dumps(policy_document(version=7), indent=3).encode()
    assert desk("PUT", "/v1/policies/test", text, ADMIN).status == 204
    assert desk("GET", "/v1/policies/test", token=READER).body == text


def test_versions_only_go_up(desk):
    assert put(desk, version=5).status == 204
    for version in (4, 1):
        refused = put(desk, version=version)
        assert (refused.status, refused.code) == (409, "E_POLICY_VERSION")
    assert put(desk, version=5).status == 204  # the same again
    assert put(desk, version=5, max_age=1).code == "E_POLICY_VERSION"
    assert put(desk, version=6, max_age=1).status == 204


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("other", policy_document()),
        ("test", {"v": 1}),
        ("test", policy_document(bank="sha1")),
        ("test", b"[]"),
        (".x", policy_document()),
    ],
)
def test_what_is_no_policy_is_refused(desk, path, body):
    refused = desk("PUT", f"/v1/policies/{path}", body, ADMIN)
    assert (refused.status, refused.code) == (422, "E_REQUEST")


def test_reference_values_are_added(desk):
    client = Client(desk).enrol()
    assert (
        put(desk, platform={"pcrs": {}}, runtime={"binaries": []}, workload={"manifests": []}).status == 204
    )
    before = client.attest().json
    assert before["status"] == "warning"
    full = values(pcrs={"7": [raw("pcr7").hex()]}, binaries=[RUNTIME], manifests=[IMAGE])
    assert desk("PUT", "/v1/reference-values", full, ADMIN).status == 204
    after = client.attest().json
    assert after["status"] == "affirming"
    assert after["policy"] not in (before["policy"], "")


def test_reference_values_do_not_turn_a_bad_value_good_elsewhere(desk):
    client = Client(desk).enrol()
    # Of a PCR that is not selected, of the runtime's own, of another bank's size: they say nothing.
    odd = values(pcrs={"9": ["22" * 32], "15": ["22" * 32], "7": ["22" * 48], "6": ["22" * 48]})
    assert desk("PUT", "/v1/reference-values", odd, ADMIN).status == 204
    assert client.attest().json["status"] == "affirming"
    wrong = values(version=2, pcrs={"6": ["22" * 32]})
    assert desk("PUT", "/v1/reference-values", wrong, ADMIN).status == 204
    assert client.attest().json["status"] == "contraindicated"


def test_versions_of_reference_values_go_up_too(desk):
    assert desk("PUT", "/v1/reference-values", values(version=3), ADMIN).status == 204
    refused = desk("PUT", "/v1/reference-values", values(version=2), ADMIN)
    assert (refused.status, refused.code) == (409, "E_POLICY_VERSION")
    assert desk("PUT", "/v1/reference-values", values(version=4, more=1), ADMIN).code == "E_REQUEST"


def test_the_verifier_tells_what_it_expects(desk):
    about = desk("GET", "/.well-known/secrun-verifier").json
    assert about["policy"] == Client(desk).enrol().attest().json["policy"]
    assert (about["pcrs"], about["runtime_pcr"]) == ([0, 1, 2, 3, 4, 5, 6, 7, 15], 15)


def test_the_file_of_the_start_does_not_turn_back_a_newer_policy(tmp_path):
    with opened_desk(tmp_path) as desk:
        assert put(desk, version=9, max_age=7).status == 204
    with opened_desk(tmp_path) as desk:
        assert desk("GET", "/v1/policies/test", token=READER).json["version"] == 9


def test_another_file_of_the_same_version_stops_the_start(tmp_path):
    with opened_desk(tmp_path):
        pass
    (tmp_path / "policy.json").write_text(json.dumps(policy_document(max_age=1)))
    with pytest.raises(ServiceError) as caught, opened_desk(tmp_path):
        pass
    assert caught.value.code == "E_POLICY_VERSION"


def test_a_file_that_is_no_policy_stops_the_start(tmp_path):
    (tmp_path / "policy.json").write_text("{}")
    with pytest.raises(ServiceError, match=r"policy\.json"), opened_desk(tmp_path):
        pass


def test_two_instances_see_each_others_policies(tmp_path):
    with opened_desk(tmp_path) as one, opened_desk(tmp_path) as two:
        client = Client(one).enrol()
        assert client.attest().json["status"] == "affirming"
        assert put(two, workload={"manifests": [OTHER]}).status == 204
        assert client.attest().json["status"] == "contraindicated"
    assert callable(build)
