"""The host's HTTP against servers that do what they should not; the loop and what it keeps."""

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from secrun.errors import HostError, SecrunError, StateError, VerifierError
from secrun.measure import verifierfile
from secrun.measure.pushloop import Budget, LogWatch, Loop
from secrun.measure.verifieraddress import TlsFiles, parse_address
from secrun.measure.verifierclient import VerifierClient
from secrun.paths import Layout
from support.pushing import ADDRESS, TOKEN, listening, member, request_of, response
from support.waiting import wait_until


def client(port, *, seconds=10.0):
    return VerifierClient(parse_address(f"http://127.0.0.1:{port}"), TlsFiles(), seconds=seconds)


def ask(port, *, seconds=10.0, limit=1000):
    return client(port, seconds=seconds).post("/v1/x", b"{}", token=TOKEN, limit=limit)


def answering(data):
    def serve(one):
        request_of(one)
        one.sendall(data)

    return serve


def refused(serve, **options):
    """The error that a server's behaviour ends in."""
    with listening(serve) as port, pytest.raises(VerifierError) as caught:
        ask(port, **options)
    assert TOKEN not in caught.value.message
    return caught.value


def test_a_request_carries_token_and_body_and_an_answer_its_status():
    seen = []

    def serve(one):
        seen.append(request_of(one))
        one.sendall(response(429, b"{}", "retry-after: 7"))

    with listening(serve) as port:
        answer = ask(port)
    assert (answer.status, answer.body, answer.retry_after) == (429, b"{}", 7.0)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert f"authorization: bearer {TOKEN}".encode() in head.lower()
    assert f"host: 127.0.0.1:{port}".encode() in head.lower()
    assert body == b"{}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    other = []
    with listening(lambda one: other.append(request_of(one))) as elsewhere:
        moved = response(status, b"", f"location: http://127.0.0.1:{elsewhere}/")
        assert refused(answering(moved)).code == "verifier-redirect"
    assert other == []


def test_an_answer_that_is_too_large_is_not_read_to_its_end():
    sent = []

    def serve(one):
        request_of(one)
        one.sendall(b"HTTP/1.1 200 X\r\ncontent-length: 999999999\r\n\r\n")
        while True:
            sent.append(one.send(b" " * 65536))

    error = refused(serve, limit=100_000, seconds=60.0)
    assert error.code == "verifier-answer"
    assert "100000 bytes" in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc X\r\n\r\n",
        b"HTTP/1.1 200 X\r\n" + b"x: y\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_as_such(data):
    assert refused(answering(data)).code == "verifier-answer"


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\n{"])
def test_a_connection_that_is_cut_is_told_as_such(data):
    assert refused(answering(data)).code == "verifier-cut"


def test_nobody_there():
    with listening(lambda _: None) as port:
        pass
    with pytest.raises(VerifierError) as caught:
        ask(port)
    assert caught.value.code == "verifier-away"


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 X\r\n", b"x: y\r\n"),
        (b"HTTP/1.1 200 X\r\ncontent-length: 500\r\n\r\n", b" "),
        (b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_all_of_an_answer_has_one_deadline(first, drop):
    def serve(one):
        request_of(one)
        one.sendall(first)
        while drop:
            one.sendall(drop)
            time.sleep(0.05)
        one.recv(1)  # until the client has left

    assert refused(serve, seconds=0.6).code == "verifier-timeout"


def test_a_handshake_has_a_deadline_too():
    done = threading.Event()
    with listening(lambda _: done.wait(60)) as port, pytest.raises(VerifierError) as caught:
        VerifierClient(parse_address(f"https://127.0.0.1:{port}"), TlsFiles(), seconds=0.5).post(
            "/", b"", token="", limit=1
        )
    done.set()
    assert caught.value.code == "verifier-timeout"


def test_a_server_without_tls_is_told_as_such():
    def serve(one):
        one.recv(10)
        one.sendall(b"HTTP/1.1 400 X\r\n\r\n")

    with listening(serve) as port, pytest.raises(VerifierError) as caught:
        VerifierClient(parse_address(f"https://127.0.0.1:{port}"), TlsFiles()).post(
            "/", b"", token="", limit=1
        )
    assert caught.value.code == "verifier-tls"


def test_an_answer_that_comes_before_the_body_is_read_counts():
    def serve(one):
        one.recv(100)
        one.sendall(response(413, b"{}"))

    with listening(serve) as port:
        assert client(port).post("/", b" " * 20_000_000, token="", limit=100).status == 413


def test_whoever_waits_for_an_answer_can_be_told_to_stop():
    arrived = threading.Event()

    def serve(one):
        request_of(one)
        arrived.set()
        one.recv(1)

    with listening(serve) as port:
        door = client(port, seconds=60.0)
        threading.Thread(target=lambda: (arrived.wait(60), door.stop()), daemon=True).start()
        for _ in range(2):  # and it stays so
            with pytest.raises(VerifierError) as caught:
                door.post("/", b"", token="", limit=1)
            assert caught.value.code != "verifier-timeout"


# What is kept.


def test_what_is_kept_is_for_root_alone_and_comes_back(tmp_path):
    layout = Layout(root=tmp_path, run_root=tmp_path / "run")
    assert verifierfile.load(layout, ADDRESS) is None
    os.umask(old := os.umask(0))
    try:
        os.umask(0)
        verifierfile.store(layout, member())
    finally:
        os.umask(old)
    place = verifierfile.path(layout, ADDRESS)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert verifierfile.load(layout, ADDRESS) == member()
    assert TOKEN not in repr(member())
    assert verifierfile.path(layout, ADDRESS) != verifierfile.path(layout, f"{ADDRESS}/other")
    place.write_bytes(b'{"schema":"secrun.dev/verifier/v1"}')
    with pytest.raises(StateError):
        verifierfile.load(layout, ADDRESS)


# The loop.


def test_only_a_log_that_grows_is_news(tmp_path):
    watch = LogWatch(tmp_path / "measure")
    before = watch.mark()
    (tmp_path / "measure").mkdir()
    assert not watch.grew(before)
    (tmp_path / "measure/seen.json").write_text("{}")
    assert not watch.grew(before)
    log = tmp_path / "measure/1-0.cel"
    log.write_text("one\n")
    assert watch.grew(before)
    before = watch.mark()
    assert not watch.grew(before)
    with log.open("a") as stream:
        stream.write("two\n")
    assert watch.grew(before)
    before = watch.mark()
    later = tmp_path / "measure/2-0.cel"
    later.write_text("one\n")
    os.utime(later, (time.time() + 5,) * 2)
    wait_until(lambda: watch.grew(before))


def test_pushes_have_a_budget_that_time_fills():
    budget = Budget(0.0)
    waits = [budget.seconds(0.0) for _ in range(19)]
    assert waits[:15] == [0.0] * 15
    assert 0 < waits[15] < waits[16] < waits[18] < 3
    assert budget.seconds(100.0) == 0.0


class Run:
    """A loop in a thread, and what it says."""

    def __init__(self, folder: Path, push, interval=60.0):
        self.told, self.complaints, self.said = [], [], []
        self.loop = Loop(
            LogWatch(folder),
            interval=interval,
            tell=self.told.append,
            complain=self.complaints.append,
            say=self.said.append,
        )
        self.thread = threading.Thread(target=self.loop.run, args=(push,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.loop.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_the_loop_pushes_at_once_when_the_log_grows_and_as_time_passes(tmp_path):
    pushes = []

    def push():
        pushes.append(time.monotonic())
        return len(pushes)

    with Run(tmp_path, push) as run:
        wait_until(lambda: len(pushes) == 1)
        (tmp_path / "1-0.cel").write_text("one\n")
        grown = time.monotonic()
        wait_until(lambda: len(pushes) == 2)
        assert pushes[1] - grown < 2
        wait_until(lambda: run.told == [1, 2])
    with Run(tmp_path, push, interval=0.3):
        wait_until(lambda: len(pushes) >= 5)


def test_what_is_measured_while_a_push_is_under_way_is_pushed_next(tmp_path):
    pushes = []

    def push():
        pushes.append(1)
        if len(pushes) == 1:
            (tmp_path / "1-0.cel").write_text("one\n")

    with Run(tmp_path, push):
        wait_until(lambda: len(pushes) == 2)


def test_trouble_is_told_once_and_its_end_too(tmp_path):
    answers: list[SecrunError | str] = [
        VerifierError("away", code="verifier-away"),
        VerifierError("still away", code="verifier-away"),
        HostError("the TPM", code="host-measure"),
        "fine",
    ]

    def push():
        answer = answers.pop(0)
        if isinstance(answer, SecrunError):
            raise answer
        return answer

    with Run(tmp_path, push) as run:
        wait_until(lambda: run.told == ["fine"])
    assert [error.message for error in run.complaints] == ["away", "the TPM"]
    assert run.said == ["pushed again"]
