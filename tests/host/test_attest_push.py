"""Hosts that prove their pods to a verifier: enrolment, pushes, tampering, and verifiers that misbehave."""

import hashlib
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.browser import browse, row
from support.certificates import Authority
from support.images import Entry, LayoutWriter, busybox_layer, tar_layer
from support.pushing import listening, request_of, response
from support.registry import free_port
from support.roots import made
from support.secrun import Secrun, eventually
from support.swtpm import manufacture, running
from support.verifier import ADMIN, READER
from support.verifier_server import Server, private_folder, serving, tls_files

AUDIENCE = "verifier.example"
ENROLL = "enroll-token-of-the-tests"
RELAXED = ("--pull=never", "--insecure-options=image")


@dataclass
class Verifier:
    """A verifier with the tests' policy, which can be stopped and started at one address."""

    folder: Path
    options: tuple[str, ...]
    server: Server | None = None

    @property
    def url(self) -> str:
        return self.server.url

    def words(self, *more: str) -> tuple[str, ...]:
        return ("attest", "push", "--verifier", self.url, "--ca", str(self.folder / "server-ca.pem"), *more)

    def push(self, root: Secrun, *more: str, code: int = 0):
        return root(*self.words("--once", *more), code=code)

    def host(self, name: str) -> dict:
        answer = self.server.link()("GET", f"/v1/hosts/{name}", token=READER)
        assert answer.status == 200, answer.body
        return answer.json

    @contextmanager
    def running(self) -> Iterator["Verifier"]:
        with serving(self.folder, *self.options, ca=self.folder / "server-ca.pem") as self.server:
            yield self


@pytest.fixture(scope="module")
def policy(secrun: Secrun) -> str:
    """What a verifier has to know of the busybox image, computed from the image alone."""
    secrun.run("true")  # builds stage1, which is to be known too
    words = ("--image", f"oci:{secrun.root.parent / 'layout'}:busybox", "--insecure-options=image")
    # A software TPM is not extended by any firmware.
    words += ("--software-tpm", "--pcr-value", f"7={'00' * 32}")
    return secrun("attest", "policy", "init", "--id", "tests", *words).out


@contextmanager
def verifying(policy: str, *more: str) -> Iterator[Verifier]:
    with private_folder() as folder:
        tokens = {"admin": ADMIN, "reader": READER, "enroll": ENROLL}
        for name, token in tokens.items():
            (folder / f"{name}.token").write_text(token)
        (folder / "policy.json").write_text(policy)
        options = (
            *("--listen", f"127.0.0.1:{free_port()}", "--audience", AUDIENCE, "--allow-software-tpm"),
            *("--policy", str(folder / "policy.json"), "--admin-token-file", str(folder / "admin.token")),
            *("--reader-token-file", str(folder / "reader.token"), *tls_files(folder)),
        )
        wanted = tuple(word.replace("FOLDER", str(folder)) for word in more)
        with Verifier(folder, (*options, *wanted)).running() as verifier:
            yield verifier


@pytest.fixture(scope="module")
def verifier(policy: str) -> Iterator[Verifier]:
    with verifying(policy) as running:
        yield running


@contextmanager
def host(secrun: Secrun, folder: Path, name: str) -> Iterator[Secrun]:
    """A root with a log, a software TPM and a name of its own."""
    with made(secrun, folder) as root:
        root("attest", "init", "--host", name)
        yield root


@pytest.fixture
def root(secrun: Secrun, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Secrun]:
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    with host(secrun, tmp_path, f"host-{name}") as one:
        yield one


def name_of(root: Secrun) -> str:
    return json.loads((root.root / "measure/identity.json").read_text())["host"]


def kept(root: Secrun) -> Path:
    (path,) = (root.root / "measure/verifiers").iterdir()
    return path


def token_of(root: Secrun) -> str:
    return json.loads(kept(root).read_text())["token"]


def other_image(root: Secrun, folder: Path) -> str:
    """Fetch an image that no policy lists."""
    layout = LayoutWriter(folder / "other")
    layout.add_image("other", [busybox_layer(), tar_layer([Entry(name="other", data=b"other")])])
    return root("fetch", "--insecure-options=image", f"oci:{folder / 'other'}:other").out.split()[-1]


def test_two_hosts_are_proved_and_the_one_that_changes_is_seen(
    secrun: Secrun, verifier: Verifier, tmp_path: Path
):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with host(secrun, tmp_path / "one", "db-1") as one, host(secrun, tmp_path / "two", "db-2") as two:
        pods = {root: root.detach("sleep", "1000") for root in (one, two)}
        two.run("true")
        one("enter", pods[one], "--", "true")
        for root in (one, two):
            result = verifier.push(root)
            assert re.match(
                rf"affirming  {name_of(root)}: \d+ records, policy sha256:\w{{64}}\n", result.out
            )
            assert "enrolled with" in result.err
        seen = {item["host"]: item for item in listed(verifier)}
        assert [seen[name]["verdict"] for name in ("db-1", "db-2")] == ["affirming", "affirming"]
        assert all(seen[name]["software"] for name in seen)
        for root, entries in ((one, 1), (two, 0)):
            (pod,) = verifier.host(name_of(root))["pods"]
            assert (pod["pod"], pod["state"], pod["entries"]) == (pods[root], "started", entries)
            assert pod["apps"][0]["manifest"] == root.image

        image = other_image(two, tmp_path)
        uuid = two("run", "-d", *RELAXED, image, "--", "sleep", "1000").out.strip()
        refused = verifier.push(two, code=121)
        assert refused.out.startswith("contraindicated  db-2: ")
        reason = f"pod:{uuid} contraindicated: "
        assert reason in refused.out
        assert "[evidence-contraindicated]" in refused.err
        assert verifier.push(one).out.startswith("affirming")
        assert [verifier.host(name)["verdict"] for name in ("db-1", "db-2")] == [
            "affirming",
            "contraindicated",
        ]

        dom = browse(verifier.server, tmp_path, f"/#token={READER}")
        good, bad = row(dom, "db-1"), row(dom, "db-2")
        assert 'class="badge affirming">affirming<' in good
        assert 'class="badge contraindicated">contraindicated<' in bad
        assert uuid in bad
        text = refused.out.partition(reason)[2].splitlines()[0].partition(" sha256")[0]
        assert f'<ul class="bad"><li>{text}' in bad
        assert 'class="bad"' not in good


def listed(verifier: Verifier) -> list[dict]:
    return verifier.server.link()("GET", "/v1/hosts?limit=1000", token=READER).json["hosts"]


def test_a_foreign_extend_is_told_to_the_verifier_and_rejected(
    root: Secrun, verifier: Verifier, tmp_path: Path
):
    root.run("true")
    verifier.push(root)
    tcti = f"swtpm:path={root.run_root}/tpm/sock"
    subprocess.run(["tpm2_pcrextend", "-T", tcti, f"15:sha256={'ab' * 32}"], check=True)
    assert "log-broken" in root("attest", "evidence", "--nonce", "00" * 32, code=125).err
    refused = verifier.push(root, code=121)
    assert "rejects the evidence by check 14" in refused.err
    assert "[E_REPLAY]" in refused.err
    seen = verifier.host(name_of(root))
    assert (seen["verdict"], seen["failure"]["code"], seen["failure"]["step"]) == (
        "rejected",
        "E_REPLAY",
        14,
    )
    shown = row(browse(verifier.server, tmp_path, f"/#token={READER}"), name_of(root))
    assert 'class="badge rejected">rejected<' in shown
    assert '<p class="bad">E_REPLAY (check 14): PCR 15 is quoted as' in shown
    root("attest", "stop")  # a new epoch: the log begins again
    root.run("true")
    assert verifier.push(root).out.startswith("affirming")


@dataclass
class Session:
    """A session that the test answers itself, with the host's own token."""

    root: Secrun
    verifier: Verifier
    challenge: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        begin = {"host": name_of(self.root), "have": None}
        self.challenge = self.ask("/v1/sessions", begin).json

    def ask(self, path: str, body: object):
        return self.verifier.server.link()("POST", path, body, token_of(self.root))

    def evidence(self) -> dict:
        asked = self.challenge
        words = (
            "--nonce",
            asked["nonce"],
            "--since",
            str(asked["log_from"]),
            "--audience",
            asked["audience"],
        )
        return json.loads(self.root("attest", "evidence", *words).out)

    def answer(self, evidence: dict):
        return self.ask(f"/v1/sessions/{self.challenge['id']}", evidence)


def test_a_byte_of_the_log_that_changed_is_noticed_here_and_there(root: Secrun, verifier: Verifier):
    root.run("true")
    verifier.push(root)
    root.run("true")
    session = Session(root, verifier)
    lying = session.evidence()
    content = lying["log"]["records"][0]["content"]
    content["event_data"] = content["event_data"][:-2] + "7e"
    answer = session.answer(lying)
    assert (answer.status, answer.code, answer.json["step"]) == (422, "E_LOG_DIGEST", 13)
    assert verifier.host(name_of(root))["verdict"] == "rejected"

    (log,) = (root.root / "measure").glob("*.cel")
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b'"recnum":1}', b'"recnum":7}'))
    failed = verifier.push(root, code=125)
    assert "[host-measure]" in failed.err
    log.write_bytes(whole)
    assert verifier.push(root).out.startswith("affirming")


def test_evidence_counts_once_and_for_its_own_session(root: Secrun, verifier: Verifier):
    root.run("true")
    verifier.push(root)
    uuid = root.detach("true")
    eventually(lambda: root.status(uuid)["state"] == "exited", "the end of the pod")
    news = Session(root, verifier).evidence()
    manifest = root("cat-manifest", uuid).out.rstrip("\n").encode()
    assert hashlib.sha256(manifest).hexdigest() in news["contents"]
    verifier.push(root)
    first = Session(root, verifier)
    evidence = first.evidence()
    assert (evidence["log"]["records"], evidence["contents"]) == ([], {})
    assert first.answer(evidence).json["status"] == "affirming"
    again = first.answer(evidence)
    assert (again.status, again.code) == (409, "E_NONCE_USED")
    elsewhere = Session(root, verifier).answer(evidence)
    assert (elsewhere.status, elsewhere.code) == (404, "E_NONCE_UNKNOWN")
    assert verifier.host(name_of(root))["verdict"] == "affirming"


def test_a_host_that_was_forgotten_enrols_again(root: Secrun, verifier: Verifier):
    root.run("true")
    verifier.push(root)
    old = token_of(root)
    assert old not in verifier.push(root, "--format=json").out
    assert kept(root).stat().st_mode & 0o777 == 0o600
    assert verifier.server.link()("DELETE", f"/v1/hosts/{name_of(root)}", token=ADMIN).status == 204
    result = verifier.push(root)
    assert "does not take our token any more" in result.err
    assert "(E_AUTH)" in result.err
    assert token_of(root) != old
    kept(root).unlink()
    assert "enrolled with" in verifier.push(root).err


def test_a_name_that_another_tpm_has_is_not_given_away(secrun: Secrun, verifier: Verifier, tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with host(secrun, tmp_path / "one", "twin") as one, host(secrun, tmp_path / "two", "twin") as two:
        verifier.push(one)
        result = verifier.push(two, code=125)
        assert "[verifier-enrol]" in result.err
        assert "E_EK_CONFLICT" in result.err
        assert not (two.root / "measure/verifiers").exists()
        assert verifier.push(one).out.startswith("affirming")


def test_who_may_enrol_can_be_limited(root: Secrun, policy: str, tmp_path: Path):
    with verifying(policy, "--enroll-token-file", "FOLDER/enroll.token") as verifier:
        result = verifier.push(root, code=125)
        assert "[verifier-enrol]" in result.err
        assert "--enroll-token-file" in result.err
        good, bad = tmp_path / "good", tmp_path / "bad"
        good.write_text(f"{ENROLL}\n")
        bad.write_text("two words that are no token\n")
        unfit = verifier.push(root, "--enroll-token-file", str(bad), code=2)
        assert "two words" not in unfit.err
        assert verifier.push(root, "--enroll-token-file", str(good)).out.startswith("affirming")
        assert ENROLL not in kept(root).read_text()
        assert verifier.push(root).out.startswith("affirming")


def test_a_tpm_that_its_maker_vouches_for_is_no_software_tpm(secrun: Secrun, policy: str, tmp_path: Path):
    with running(manufacture(tmp_path / "tpm", certificates=True)) as tpm, verifying(policy) as verifier:
        maker = tmp_path / "tpm/ca"
        roots = verifier.folder / "roots"
        roots.mkdir()
        (root_certificate,) = maker.glob("*rootca-cert.pem")
        (roots / "maker.pem").write_bytes(root_certificate.read_bytes())
        strict = tuple(word for word in verifier.options if word != "--allow-software-tpm")
        verifier.server.stop()
        verifier.options = (*strict, "--ek-roots", str(roots))
        with verifier.running(), made(secrun, tmp_path, "--tcti", tpm.tcti) as root:
            root("attest", "init", "--host", "certified")
            # The certificate is that of the RSA key, and there is one between it and the root.
            assert "E_EK_UNTRUSTED" in verifier.push(root, code=125).err
            words = ("--ek-chain", str(maker / "cert.pem"))
            result = verifier.push(root, *words)
            assert "TPM that its maker vouches for" in result.err
            assert verifier.host("certified")["software"] is False
            nothing = tmp_path / "nothing"
            nothing.write_text("nothing")
            assert "[usage-ek-chain]" in verifier.push(root, "--ek-chain", str(nothing), code=2).err


def test_pushes_at_the_same_time_do_not_fail_for_each_other(root: Secrun, verifier: Verifier):
    root.run("true")
    verifier.push(root)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: verifier.push(root, code=None), range(4)))
    assert [result.code for result in results] == [0] * 4, results


def test_a_host_may_show_a_certificate(root: Secrun, policy: str):
    with verifying(policy) as verifier:
        clients = Authority(verifier.folder, "others", 1)
        cert, key = clients.issue("stranger")
        words = ("--cert", str(cert), "--key", str(key))
        # One that the verifier's client CA did not sign ends the handshake.
        assert "does it know the CA of --cert?" in verifier.push(root, *words, code=125).err
        assert "go together" in verifier.push(root, *words[:2], code=2).err
        assert verifier.push(root).out.startswith("affirming")


def test_a_verifier_that_nobody_vouches_for_gets_nothing(root: Secrun, verifier: Verifier, tmp_path: Path):
    stranger = Authority(tmp_path, "stranger", verifier.server.process.pid)
    for words in (("--ca", str(stranger.pem)), ()):
        result = root("attest", "push", "--once", "--verifier", verifier.url, *words, code=125)
        assert "[verifier-tls]" in result.err
        assert "certificate that is not accepted" in result.err
    assert not (root.root / "measure/verifiers").exists()
    elsewhere = verifier.url.replace("127.0.0.1", "localhost.example")
    assert "[verifier-away]" in root("attest", "push", "--once", "--verifier", elsewhere, code=125).err
    plain = root("attest", "push", "--once", "--verifier", "http://192.0.2.1", code=2)
    assert "in the clear" in plain.err


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (response(200, b" " * 300_000), "verifier-answer"),
        (response(201, b"<html>\x1b[31m"), "verifier-answer"),
        (response(201, b"[" * 60_000), "verifier-answer"),
        (response(201, b'{"id":"../../x"}'), "verifier-answer"),
        (response(302, b"", "location: http://127.0.0.1:1/"), "verifier-redirect"),
        (response(418, b"no"), "verifier-enrol"),
        (b"SSH-2.0-x\r\n", "verifier-answer"),
    ],
    ids=["huge", "html", "deep", "members", "redirect", "status", "ssh"],
)
def test_a_hostile_verifier_is_survived(root: Secrun, answer: bytes, code: str):
    def serve(one):
        request_of(one)
        one.sendall(answer)

    with listening(serve) as port:
        result = root("attest", "push", "--once", "--verifier", f"http://127.0.0.1:{port}", code=125)
    assert f"[{code}]" in result.err
    assert "Traceback" not in result.err
    assert "\x1b" not in result.err


class Loop:
    """`attest push` in the background; its lines of JSON and its complaints."""

    def __init__(self, root: Secrun, verifier: Verifier, *more: str):
        words = root.argv(*verifier.words("--format=json", *more))
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict] = []
        self.errors: list[str] = []
        self.threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines, json.loads)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors, str)),
        ]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def _read(stream, into, parse):
        for line in stream:
            into.append(parse(line))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)
        for thread in self.threads:
            thread.join(60)
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()

    @property
    def error(self) -> str:
        return "".join(self.errors)

    def sockets(self) -> list[str]:
        links = [path.readlink() for path in Path(f"/proc/{self.process.pid}/fd").iterdir()]
        return [str(link) for link in links if str(link).startswith("socket:")]


def test_the_loop_follows_the_log_through_a_restart_of_the_verifier(root: Secrun, policy: str):
    with verifying(policy) as verifier, Loop(root, verifier, "--interval=3600") as loop:
        eventually(lambda: loop.lines, "the first push")
        assert loop.lines[0]["status"] == "affirming"
        uuid = root.detach("sleep", "1000")
        eventually(
            lambda: [pod["state"] for pod in verifier.host(name_of(root))["pods"]] == ["started"], "the pod"
        )
        # Between pushes it holds neither the TPM, which has room for one, nor the verifier.
        eventually(lambda: not loop.sockets(), "the end of the push")
        assert verifier.server.stop() == 0
        root("enter", uuid, "--", "true")
        eventually(lambda: "[verifier-away]" in loop.error, "a complaint")
        with verifier.running():
            eventually(
                lambda: [pod["entries"] for pod in verifier.host(name_of(root))["pods"]] == [1], "the entry"
            )
            eventually(lambda: "pushed again" in loop.error, "the word that all is well")
            assert loop.error.count("[verifier-") == 1
            assert loop.error.count("enrolled with") == 1
            loop.process.terminate()
            assert loop.process.wait(60) == 0


def test_the_loop_ends_while_a_verifier_keeps_it_waiting(root: Secrun):
    arrived = threading.Event()

    def serve(one):
        request_of(one)
        arrived.set()
        one.recv(1)

    with listening(serve) as port:
        words = root.argv("attest", "push", "--verifier", f"http://127.0.0.1:{port}")
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert arrived.wait(60)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_the_loop_pushes_though_nothing_happens(root: Secrun, verifier: Verifier):
    with Loop(root, verifier, "--interval=1") as loop:
        eventually(lambda: len(loop.lines) >= 3, "three pushes")
        assert {line["log_count"] for line in loop.lines} == {1}
        loop.process.send_signal(2)
        assert loop.process.wait(60) == 0


@pytest.mark.parametrize("interval", ["0", "3601", "-1"])
def test_an_interval_that_makes_no_sense_is_refused(root: Secrun, verifier: Verifier, interval: str):
    result = root(*verifier.words(f"--interval={interval}"), code=2)
    assert f"--interval is {interval}" in result.err
