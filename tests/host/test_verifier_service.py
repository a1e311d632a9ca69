"""The verifier service as a process: TLS, client certificates, races, its end, its page in a browser."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from secrun_attest.record import Operation
from support.attest_bench import POD, usual_host
from support.browser import browse, row
from support.certificates import Authority
from support.verifier import READER, Client
from support.verifier_server import Link, private_folder, serving, tls_files, usual_options
from support.waiting import wait_until

BAD = "sha256:" + "ee" * 32
POD_2 = "22222222-2222-4333-8444-555555555555"
HOSTILE = "docker://x/<img src=x onerror=\"document.title='owned'\">\u202etxt</td><script>alert(1)</script>"


@pytest.fixture(scope="module")
def server():
    with private_folder() as folder:
        options = [*usual_options(folder), *tls_files(folder)]
        with serving(folder, *options, ca=folder / "server-ca.pem") as running:
            yield running


def enrolled(server, name, **changes):
    return Client(server.link(), host=usual_host(name=name), **changes).enrol()


def test_it_runs_without_root(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    assert re.search(r"^Uid:\t(\d+)", status, re.MULTILINE)[1] != "0"
    assert re.search(r"^CapEff:\t(\w+)", status, re.MULTILINE)[1] == "0" * 16


def test_its_files_are_its_own_business(server):
    for path in (server.folder / "root").glob("verifier.db*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_it_speaks_tls_and_nothing_else(server):
    plain = Link(server.url.replace("https", "http"))
    with pytest.raises((OSError, http.client.HTTPException)):
        plain("GET", "/healthz")
    stranger = Link(server.url, ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger("GET", "/healthz")
    where = server.url.removeprefix("https://")
    for version, good in (("-tls1_2", True), ("-tls1_1", False)):
        words = ["openssl", "s_client", "-connect", where, version, "-cipher", "DEFAULT@SECLEVEL=0"]
        done = subprocess.run(words, input=b"", capture_output=True, timeout=30, check=False)
        assert (done.returncode == 0) is good, done.stderr


def test_a_certificate_of_the_client_ca_names_a_host():
    with private_folder() as folder:
        now = time.time()
        clients, others = (Authority(folder, name, now) for name in ("clients", "others"))
        mine, admin = clients.issue("cert-host"), clients.issue("boss", "boss.example")
        cert, key = Authority(folder, "server-ca", now).issue("server", "127.0.0.1")
        options = [*usual_options(folder), "--tls-cert", str(cert), "--tls-key", str(key)]
        options += ["--client-ca", str(clients.pem), "--admin-cert", str(admin[0])]
        with serving(folder, *options, ca=folder / "server-ca.pem") as server:
            client = enrolled(server, "cert-host")
            by_certificate = replace(client, ask=server.link(mine), token="")
            assert by_certificate.attest().status == 200
            assert server.link(mine)("GET", "/v1/hosts").code == "E_FORBIDDEN"
            assert server.link(mine)("GET", "/v1/hosts/other").code == "E_FORBIDDEN"
            assert server.link(admin)("DELETE", "/v1/hosts/cert-host").status == 204
            # The same name, signed by another CA, does not get through the handshake.
            with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
                server.link(others.issue("cert-host"))("GET", "/healthz")


def test_two_hosts_of_which_one_was_tampered_with(server):
    good, bad, worse = (enrolled(server, name) for name in ("good", "bad", "worse"))
    assert all(client.attest().json["status"] == "affirming" for client in (good, bad, worse))
    bad.host.measure(Operation.IMAGE_ADMIT, reference=HOSTILE, manifest=BAD, tree=BAD)
    bad.host.prepare(POD_2, image=BAD, tree=BAD)
    assert bad.attest().json["status"] == "contraindicated"
    worse.host.pod(POD_2)
    challenge = worse.challenge()
    worse.host.records.pop()  # the log hides that the pod ended; the TPM does not
    lying = worse.evidence(challenge, values={15: bytes(32)})
    refused = worse.answer(challenge, lying)
    assert (refused.status, refused.code) == (422, "E_REPLAY")
    reader = server.link()
    seen = {host["host"]: host for host in reader("GET", "/v1/hosts?limit=1000", token=READER).json["hosts"]}
    verdicts = [seen[name]["verdict"] for name in ("good", "bad", "worse")]
    assert verdicts == ["affirming", "contraindicated", "rejected"]
    assert seen["worse"]["failure"]["detail"] == refused.json["detail"]


def test_of_many_answers_to_one_nonce_one_counts(server):
    for number in range(5):
        client = enrolled(server, f"many-{number}")
        challenge = client.challenge()
        evidence = client.evidence(challenge)
        links = [server.link() for _ in range(8)]
        for link in links:
            link("GET", "/healthz")
        barrier = threading.Barrier(len(links))

        def answer(link, client=client, challenge=challenge, evidence=evidence, barrier=barrier):
            barrier.wait()
            return replace(client, ask=link).answer(challenge, evidence)

        with ThreadPoolExecutor(len(links)) as pool:
            answers = list(pool.map(answer, links))
        assert sorted(answer.status for answer in answers) == [200] + [409] * 7
        assert {answer.code for answer in answers if answer.status == 409} == {"E_NONCE_USED"}
        for link in links:
            link.close()


def test_headers_have_a_limit(server):
    link = server.link()
    assert link("GET", "/healthz", x="a" * 10_000).status == 200
    answer = link("GET", "/healthz", x="a" * 20_000)
    assert answer.status == 400
    assert server.link()("GET", "/healthz").status == 200


def raw(server, data, *, seconds=60.0):
    """Send bytes over TLS; return all that comes until the server closes."""
    context = ssl.create_default_context(cafile=server.ca)
    host, port = server.url.removeprefix("https://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=seconds)
    with context.wrap_socket(sock, server_hostname=host) as channel:
        channel.sendall(data)
        got = b""
        while piece := channel.recv(65536):
            got += piece
        return got


def test_a_client_that_sends_no_headers_is_cut_off(server):
    begin = time.monotonic()
    assert raw(server, b"GET / HTTP/1.1\r\nHost: x\r\n") == b""
    assert time.monotonic() - begin > 8


def test_what_is_not_wanted_is_not_read_to_its_end(server):
    head = b"POST /v1/enroll HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    got = raw(server, head + b"Content-Length: 99999999\r\n\r\n{")
    assert got.startswith(b"HTTP/1.1 413 ")
    assert b"E_TOO_LARGE" in got


def test_it_finishes_what_it_has_and_takes_no_more():
    with private_folder() as folder, serving(folder, *usual_options(folder)) as server:
        client = enrolled(server, "last")
        challenge = client.challenge()
        evidence = client.evidence(challenge)
        idle = server.link()
        assert idle("GET", "/healthz").status == 200
        half = server.link().connect()
        half.putrequest("POST", f"/v1/sessions/{challenge['id']}")
        half.putheader("content-type", "application/json")
        half.putheader("authorization", f"Bearer {client.token}")
        half.putheader("content-length", str(len(evidence)))
        half.endheaders(evidence[:1000])
        wait_until(lambda: in_flight(server) == 2)  # the question itself is one
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server))
        assert server.process.poll() is None
        half.send(evidence[1000:])
        answer = half.getresponse()
        assert (answer.status, json.loads(answer.read())["status"]) == (200, "affirming")
        # The idle connection would be kept for 75 s.
        assert server.process.wait(60) == 0
        half.close()


def in_flight(server):
    text = server.link()("GET", "/metrics", token=READER).body.decode()
    return int(re.search(r"^secrun_verifier_in_flight (\d+)$", text, re.MULTILINE)[1])


def refuses(server):
    host, port = server.url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_new_certificate_is_read_on_sighup():
    with private_folder() as folder:
        options = [*usual_options(folder), *tls_files(folder)]
        with serving(folder, *options, ca=folder / "server-ca.pem") as server:
            first = serial(server)
            tls_files(folder)  # a new CA, a new certificate, the same files
            os.chown(folder / "server.key", folder.stat().st_uid, folder.stat().st_gid)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: serial(server) != first)
            assert server.link()("GET", "/healthz").status == 200


def serial(server):
    host, port = server.url.removeprefix("https://").split(":")
    return ssl.get_server_certificate((host, int(port)))


def started(folder, *options):
    words = [sys.executable, "-m", "secrun", "--root", str(folder / "root"), "attest", "serve", *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        (["--listen", "0.0.0.0:0"], 2, "usage-verifier"),  # tokens in the clear
        (["--listen", "localhost"], 2, "usage"),
        (["--listen", "127.0.0.1:99999"], 2, "usage"),
        (["--audience", ""], 2, "usage"),
        (["--tls-cert", "x"], 2, "usage"),
        (["--policy", "/nonexistent"], 125, "host-os"),
        (["--policy", "/etc/hostname"], 2, "usage-verifier"),
        (["--database", "postgresql://nobody@127.0.0.1:1/none"], 125, "host-verifier-database"),
        (["--database", "/nonexistent/db"], 125, "host-os"),
        (["--admin-token-file", "/dev/null"], 2, "usage-verifier"),
        (["--ek-roots", "/etc/apt"], 2, "usage-verifier"),
        (["--signing-key", "/etc/hostname"], 2, "usage-verifier"),
        (["--policy-key", "/etc/hostname"], 2, "usage-verifier"),
    ],
)
def test_what_makes_no_sense_does_not_start(tmp_path, change, status, code):
    done = started(tmp_path, *usual_options(tmp_path), *change)
    assert done.returncode == status, done.stderr
    assert f"[{code}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_shows_hosts_pods_and_reasons(server, tmp_path):
    shown, blamed, refused = (enrolled(server, f"page-{name}") for name in ("good", "bad", "worse"))
    assert shown.attest().status == 200
    blamed.host.measure(Operation.IMAGE_ADMIT, reference=HOSTILE, manifest=BAD, tree=BAD)
    blamed.host.prepare(POD_2, relaxations=("net=host",), image=BAD, tree=BAD)
    assert blamed.attest().json["status"] == "contraindicated"
    assert refused.attest(values={15: bytes(32)}).code == "E_REPLAY"
    dom = browse(server, tmp_path, f"/#token={READER}")
    good, bad, worse = (row(dom, f"page-{name}") for name in ("good", "bad", "worse"))
    assert 'class="badge affirming">affirming<' in good
    assert "software TPM" in good
    assert '<td class="number">5</td>' in good
    assert "just now" in good
    assert 'class="badge contraindicated">contraindicated<' in bad
    assert 'class="badge rejected">rejected<' in worse
    assert "E_REPLAY (check 14): PCR 15 is quoted as" in worse
    # The reasons are in a pod, so its pods are open: image, state, relaxation and reason.
    assert POD_2 in bad
    assert "prepared" in bad
    assert "relaxed: net=host" in bad
    assert "is not a reference value" in bad
    assert POD in bad


def test_the_page_renews_itself(server, tmp_path):
    before = server.log.count('"route":"/v1/hosts",')
    browse(server, tmp_path, f"/#token={READER}", "--virtual-time-budget=16000", "--dump-dom")
    assert server.log.count('"route":"/v1/hosts",') - before >= 3


def test_the_page_takes_what_hosts_say_as_text(server, tmp_path):
    blamed = enrolled(server, "page-hostile")
    blamed.host.measure(Operation.IMAGE_ADMIT, reference=HOSTILE, manifest=BAD, tree=BAD)
    blamed.host.prepare(POD_2, image=BAD, tree=BAD)
    blamed.attest()
    dom = browse(server, tmp_path, f"/#token={READER}")
    assert "&lt;img src=x onerror=" in dom
    assert "<img" not in dom
    assert "owned</title>" not in dom
    assert "\\u{202e}" in dom
    assert "\u202e" not in dom


def test_the_page_asks_for_a_token(server, tmp_path):
    dom = browse(server, tmp_path, "/")
    assert "sign in to see the hosts" in dom
    assert "page-good" not in dom
    assert "this token is not accepted" in browse(server, tmp_path, "/#token=wrong")


def test_the_page_runs_nothing_but_itself(server):
    answer = server.link()("GET", "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(rb"(?:src|href)=\"(?!data:,)", answer.body)
    assert re.findall(rb"\son\w+=", answer.body) == []
    assert answer.headers["x-frame-options"] == "DENY"
