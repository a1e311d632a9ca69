"""The door: sizes, types, times, how often and how much at once; the log; what every answer carries."""

import asyncio
import base64
import hashlib
import json
import re

import pytest

from secrun_attest.service.asgi import INLINE_BYTES
from secrun_attest.service.config import Limits, Rate
from secrun_attest.service.metrics import Metrics
from secrun_attest.service.rate import Buckets, Gate
from secrun_attest.service.trouble import ServiceError
from support.attest_bench import usual_host
from support.verifier import ADMIN, NO_LIMITS, PLENTY, READER, Client, call_app, opened_desk


@pytest.fixture
def desk(tmp_path):
    with opened_desk(tmp_path) as opened:
        yield opened


def small(**changes):
    return Limits(**({"peer": PLENTY, "host": PLENTY, "token": PLENTY} | changes))


def test_a_body_that_says_it_is_too_large_is_not_read(desk):
    headers = {"content-length": str(NO_LIMITS.request + 1)}

    class NeverRead(list):
        def pop(self, *_):
            raise AssertionError("the body was read")

    answer = asyncio.run(
        call_app(
            desk.service.app,
            "POST",
            "/v1/enroll",
            body=NeverRead([b"x"]),
            headers=headers | {"content-type": "application/json"},
        )
    )
    assert (answer.status, answer.code) == (413, "E_TOO_LARGE")


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "9" * 30, "１"])  # noqa: RUF001 - a digit that is none
def test_a_length_that_is_no_number_is_too_large(desk, length):
    headers = {"content-length": length.encode().decode("latin-1")}
    assert desk("POST", "/v1/enroll", b"{}", headers=headers).code == "E_TOO_LARGE"


def test_a_body_without_length_is_cut_off_at_the_limit(tmp_path):
    with opened_desk(tmp_path, limits=small(request=1000)) as desk:
        assert desk("POST", "/v1/enroll", [b"x" * 600, b"x" * 600]).code == "E_TOO_LARGE"
        assert desk("POST", "/v1/enroll", [b"{", b"}"]).code == "E_REQUEST"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/jsonx"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_only_plain_json_is_read(desk, headers):
    answer = desk("POST", "/v1/enroll", b"{}", headers=headers)
    assert (answer.status, answer.code) == (415, "E_MEDIA_TYPE")
    assert (
        desk("POST", "/v1/enroll", b"{}", headers={"content-type": "Application/JSON; charset=utf-8"}).status
        == 422
    )


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path):
    with opened_desk(tmp_path, limits=small(body_seconds=0.05)) as desk:
        headers = {"content-length": "10", "content-type": "application/json"}
        answer = asyncio.run(call_app(desk.service.app, "POST", "/v1/enroll", body=[], headers=headers))
        assert (answer.status, answer.code) == (408, "E_TIMEOUT")


def test_a_client_that_leaves_is_not_an_error(desk):
    async def leave():
        async def receive():
            return {"type": "http.disconnect"}

        sent = []

        async def send(message):
            sent.append(message)

        headers = [(b"content-length", b"9"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/enroll", "headers": headers}
        rest = {
            "query_string": b"",
            "client": ("192.0.2.1", 1),
            "state": {},
            "root_path": "",
            "scheme": "https",
        }
        await desk.service.app(scope | rest | {"server": ("x", 1)}, receive, send)
        return sent

    assert asyncio.run(leave())[0]["status"] == 408


def test_strangers_share_a_bucket_per_address(tmp_path):
    with opened_desk(tmp_path, limits=small(peer=Rate(per_second=0.1, burst=3))) as desk:
        for _ in range(3):
            assert desk("GET", "/healthz").status == 200
        refused = desk("GET", "/healthz")
        assert (refused.status, refused.code) == (429, "E_RATE")
        assert 1 <= int(refused.headers["retry-after"]) <= 11
        assert desk("GET", "/healthz", client="192.0.2.2").status == 200
        # Who has credentials does not pay for the neighbours.
        assert desk("GET", "/v1/hosts", token=READER).status == 200


def test_guessing_tokens_is_slow(tmp_path):
    with opened_desk(tmp_path, limits=small(peer=Rate(per_second=0.1, burst=3))) as desk:
        codes = [desk("GET", "/v1/hosts", token="x" * 43).code for _ in range(5)]
        assert codes == ["E_AUTH"] * 3 + ["E_RATE"] * 2


def test_each_host_has_a_bucket_of_its_own(tmp_path):
    with opened_desk(tmp_path, limits=small(host=Rate(per_second=0.1, burst=2))) as desk:
        one = Client(desk).enrol()
        two = Client(desk, host=usual_host(name="host-2")).enrol()
        codes = [desk("GET", "/v1/hosts/host-1", token=one.token).status for _ in range(3)]
        assert codes == [200, 200, 429]
        assert desk("GET", "/v1/hosts/host-2", token=two.token).status == 200


def test_a_bucket_fills_again():
    buckets = Buckets(Rate(per_second=2, burst=2))
    for now in (0.0, 0.0, 0.5, 1.0):
        buckets.take("a", now)
    with pytest.raises(ServiceError):
        buckets.take("a", 1.0)
    for now in (100.0, 100.0):  # never more than the burst
        buckets.take("a", now)
    with pytest.raises(ServiceError):
        buckets.take("a", 100.0)


def test_buckets_take_bounded_memory():
    buckets = Buckets(Rate(per_second=1, burst=1), capacity=10)
    for number in range(1000):
        buckets.take(str(number), 0.0)
    assert len(buckets._levels) == 10
    with pytest.raises(ServiceError):
        buckets.take("999", 0.0)


def test_only_so_much_is_in_work_at_once():
    gate = Gate(2, 100)
    with gate.enter(60), pytest.raises(ServiceError) as caught, gate.enter(60):
        pass
    assert (caught.value.code, caught.value.retry_after) == ("E_BUSY", 1)
    with gate.enter(0), gate.enter(0), pytest.raises(ServiceError), gate.enter(0):
        pass
    with gate.enter(1000):  # alone, the largest body may come
        pass
    assert (gate.requests, gate.size) == (0, 0)


def test_the_gate_counts_while_a_body_is_read(tmp_path):
    with opened_desk(tmp_path, limits=small(in_flight=1, body_seconds=0.2)) as desk:
        headers = {"content-length": "10", "content-type": "application/json"}

        async def both():
            slow = asyncio.create_task(
                call_app(desk.service.app, "POST", "/v1/enroll", body=[], headers=headers)
            )
            await asyncio.sleep(0)
            while not desk.service.app or not slow.done():
                quick = await call_app(desk.service.app, "GET", "/healthz")
                if quick.status == 503:
                    break
            return quick, await slow

        quick, slow = asyncio.run(both())
        assert (quick.status, quick.code, slow.status) == (503, "E_BUSY", 408)
        assert quick.headers["retry-after"] == "1"


def test_large_evidence_does_not_stop_the_others(desk):
    client = Client(desk).enrol()
    assert client.attest().status == 200
    assert not desk.service.executor._threads  # small ones are not worth a thread
    challenge = client.challenge()
    padded = client.evidence(challenge)[:-1] + b',"x_padding":"' + b"x" * INLINE_BYTES + b'"}'
    assert client.answer(challenge, padded).status == 200
    assert desk.service.executor._threads


def test_every_answer_says_what_it_may_be_used_for(desk):
    for method, path in (("GET", "/"), ("GET", "/healthz"), ("GET", "/nothing"), ("PUT", "/healthz")):
        headers = desk(method, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_page_may_run_its_own_script_and_style_only(desk):
    page = desk("GET", "/")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    for tag in ("script", "style"):
        inside = re.search(rb"<%s>(.*?)</%s>" % (tag.encode(), tag.encode()), page.body, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    for name in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[name] == "'none'"


def test_unknown_pages_and_methods_are_problems_too(desk):
    missing = desk("GET", "/v2/hosts")
    assert (missing.status, missing.code) == (404, "E_NOT_FOUND")
    wrong = desk("PATCH", "/v1/hosts")
    assert (wrong.status, wrong.code) == (405, "E_METHOD")
    assert "GET" in wrong.headers["allow"]
    assert missing.headers["content-type"] == wrong.headers["content-type"] == "application/problem+json"


def test_the_log_has_a_line_per_answer_and_no_secret(desk):
    client = Client(desk).enrol()
    challenge = client.challenge()
    client.answer(challenge, client.evidence(challenge))
    desk("GET", "/v1/hosts", token="x" * 43)
    desk("POST", f"/v1/appraise?host=host-1&nonce={'ab' * 32}", {}, READER)
    lines = [json.loads(line) for line in desk.log]
    assert [line["status"] for line in lines] == [201, 200, 201, 200, 401, 422]
    assert [line["who"] for line in lines] == ["anyone", "anyone", "host", "host", "anyone", "reader"]
    assert lines[3]["host"] == "host-1"
    assert (lines[4]["code"], lines[5]["code"]) == ("E_AUTH", "E_FORMAT")
    assert lines[3]["path"] == {"id": challenge["id"]}
    text = "".join(desk.log)
    for secret in (client.token, READER, ADMIN, "x" * 43, challenge["nonce"], "ab" * 32):
        assert secret not in text


def test_metrics_count_requests_and_appraisals(desk):
    client = Client(desk).enrol()
    client.attest()
    challenge = client.challenge()
    client.answer(challenge, b"{}")
    text = desk("GET", "/metrics", token=READER).body.decode()
    for line in (
        'requests_total{method="POST",path="/v1/sessions",status="201"} 2',
        'requests_total{method="POST",path="/v1/sessions/{id}",status="422"} 1',
        'appraisals_total{outcome="affirming"} 1',
        'appraisals_total{outcome="E_FORMAT"} 1',
        "appraisal_seconds_count 2",
        'appraisal_seconds_bucket{le="+Inf"} 2',
        'hosts{verdict="rejected"} 1',
    ):
        assert f"secrun_verifier_{line}\n" in text
    assert text.count("# TYPE") == 5


def test_labels_are_escaped():
    metrics = Metrics()
    metrics.appraisal('a"b\\c\nd', 99.0)
    text = metrics.text(in_flight=0, hosts=())
    assert 'outcome="a\\"b\\\\c\\nd"' in text
    assert 'le="5"} 0' in text
