"""A verifier and a host in memory, for what `attest push` decides; and a server that may be hostile."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from secrun.measure.identity import HostIdentity
from secrun.measure.prover import Standing
from secrun.measure.verifierclient import Answer
from secrun.measure.verifierfile import Membership
from secrun_attest.endorsement import EkKind, Endorsement
from secrun_attest.fields import to_base64
from secrun_attest.record import Epoch
from secrun_attest.tpm import TpmKind

EPOCH = Epoch(reset=7, restart=2, boot_id="11111111-2222-4333-8444-555555555555")
ADDRESS = "https://verifier.example:8443"
AUDIENCE = "verifier.example"
TOKEN = "t" * 43
SECRET = b"\x05" * 32
AK = b"\0\x0b" + bytes(32)
IDENTITY = HostIdentity(
    host="web-1",
    kind=TpmKind.SOFTWARE,
    tcti="",
    pcr=15,
    ak_name=AK,
    ak_public=b"public",
    manufacturer="IBM",
    firmware="0",
    ek_certificate=False,
)


def member(**changes: Any) -> Membership:
    usual = {
        "verifier": ADDRESS,
        "audience": AUDIENCE,
        "host": "web-1",
        "ak_name": AK.hex(),
        "software": True,
        "token": TOKEN,
    }
    return Membership(**(usual | changes))


def begun(**changes: Any) -> dict[str, Any]:
    return {
        "id": "enrolment-1",
        "host": "web-1",
        "audience": AUDIENCE,
        "expires": 1800000060,
        "credential_blob": to_base64(b"blob"),
        "encrypted_secret": to_base64(b"seed"),
    } | changes


def enrolled(**changes: Any) -> dict[str, Any]:
    return {"host": "web-1", "ak_name": AK.hex(), "software": True, "token": TOKEN} | changes


def challenge(**changes: Any) -> dict[str, Any]:
    return {
        "id": "session-1",
        "state": "waiting",
        "host": "web-1",
        "nonce": "ab" * 32,
        "issued": 1800000000,
        "expires": 1800000060,
        "audience": AUDIENCE,
        "bank": "sha256",
        "pcrs": [0, 7, 15],
        "runtime_pcr": 15,
        "epoch": None,
        "log_from": 0,
        "log_base": None,
    } | changes


def verdict(**changes: Any) -> dict[str, Any]:
    return {
        "id": "session-1",
        "state": "complete",
        "host": "web-1",
        "status": "affirming",
        "policy": f"sha256:{'cd' * 32}",
        "appraised": 1800000003,
        "epoch": {"reset": 7, "restart": 2, "boot_id": EPOCH.boot_id},
        "log_count": 9,
        "head": "ef" * 32,
        "modules": {"host": {"status": "affirming", "reasons": []}},
        "token": "a.b.c",
    } | changes


def problem(code: str, status: int, **changes: Any) -> tuple[int, dict[str, Any]]:
    return status, {
        "type": f"urn:secrun:problem:{code}",
        "title": "no",
        "status": status,
        "code": code,
        "step": None,
        "detail": f"about {code}",
        "hint": "",
        "retry": False,
    } | changes


Said = tuple[int, Any]


@dataclass
class FakeVerifier:
    """Answers each kind of request from a list, whose last answer stays; keeps what it was sent."""

    enroll: list[Said] = field(default_factory=lambda: [(201, begun())])
    proof: list[Said] = field(default_factory=lambda: [(200, enrolled())])
    sessions: list[Said] = field(default_factory=lambda: [(201, challenge())])
    evidence: list[Said] = field(default_factory=lambda: [(200, verdict())])
    retry_after: float | None = None
    seen: list[tuple[str, bytes, str]] = field(default_factory=list)

    def post(self, path: str, body: bytes, *, token: str, limit: int) -> Answer:
        self.seen.append((path, body, token))
        answers = {"/v1/enroll": self.enroll, "/v1/sessions": self.sessions}.get(path)
        if answers is None:
            answers = self.proof if path.endswith("/proof") else self.evidence
        said = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(said, Exception):
            raise said
        status, document = said
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        assert len(data) <= limit
        return Answer(status=status, body=data, retry_after=self.retry_after)

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.seen]


@dataclass
class FakeHost:
    """A host whose TPM says what it is told."""

    identity: HostIdentity = IDENTITY
    count: int = 9
    asked: list[Any] = field(default_factory=list)

    def standing(self, *, anyway: bool) -> Standing:
        return Standing(epoch=EPOCH, count=self.count)

    def evidence(self, asked: Any, standing: Standing) -> bytes:
        self.asked.append(asked)
        return b"evidence"

    def endorsement(self) -> Endorsement:
        return Endorsement(kind=EkKind.P_256, public=b"ek", name=b"name", certificate=None)

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        assert (credential_blob, encrypted_secret) == (b"blob", b"seed")
        return SECRET


@dataclass
class FakeKeeper:
    kept: Membership | None = None

    def load(self) -> Membership | None:
        return self.kept

    def store(self, membership: Membership) -> None:
        self.kept = membership


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Let `serve` have each connection to a loopback port; an error of its peer's leaving is not one."""
    door = socket.create_server(("127.0.0.1", 0))

    def each(one: socket.socket) -> None:
        try:
            with one:
                serve(one)
        except OSError:
            pass

    def accept() -> None:
        while True:
            try:
                one, _ = door.accept()
            except OSError:
                return
            threading.Thread(target=each, args=(one,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield door.getsockname()[1]
    finally:
        door.shutdown(socket.SHUT_RDWR)
        door.close()


def request_of(one: socket.socket) -> bytes:
    """Read a request's headers and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = one.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    size = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ),
        0,
    )
    while len(body) < size and (piece := one.recv(65536)):
        body += piece
    return head + b"\r\n\r\n" + body


def response(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
