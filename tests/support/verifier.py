"""The verifier service without a socket, and hosts that enrol with TPMs made of `cryptography` keys."""

import asyncio
import base64
import hashlib
import hmac
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from secrun_attest.enrolproof import proof_of, transcript
from secrun_attest.fields import to_base64
from secrun_attest.service.auth import Peer
from secrun_attest.service.config import Limits, Rate, ServiceConfig
from secrun_attest.service.main import Service, build
from support.attest_bench import AUDIENCE, NOW, Host, b2, number, policy_document, usual_host

ADMIN, READER = "admin-token-of-the-tests", "reader-token-of-the-tests"
EK_ATTRIBUTES = 0x000300B2
PLENTY = Rate(per_second=1e6, burst=1e6)
NO_LIMITS = Limits(peer=PLENTY, host=PLENTY, token=PLENTY)


@dataclass
class Ek:
    """An endorsement key whose private half is here; change a field to get one that must be refused."""

    key: object = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    attributes: int = EK_ATTRIBUTES
    symmetric: bytes = struct.pack(">HHH", 6, 128, 0x43)
    name_alg: int = 0xB

    @property
    def area(self) -> bytes:
        policy = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
        if isinstance(self.key, rsa.RSAPrivateKey):
            modulus = number(self.key.public_key().public_numbers().n, self.key.key_size // 8)
            kind, tail = 1, struct.pack(">HHI", 0x10, self.key.key_size, 0) + b2(modulus)
        else:
            point = self.key.public_key().public_numbers()
            kind, tail = 0x23, struct.pack(">HHH", 0x10, 3, 0x10) + b2(number(point.x)) + b2(number(point.y))
        return struct.pack(">HHI", kind, self.name_alg, self.attributes) + b2(policy) + self.symmetric + tail

    @property
    def public(self) -> bytes:
        return b2(self.area)

    @property
    def name(self) -> bytes:
        return b"\x00\x0b" + hashlib.sha256(self.area).digest()

    def activate(self, ak_name: bytes, blob: bytes, encrypted: bytes) -> bytes | None:
        """Do what TPM2_ActivateCredential does; None is an integrity failure."""
        seed = self._seed(encrypted[2:])
        inner = blob[2:]
        size = int.from_bytes(inner[:2], "big")
        mac, identity = inner[2 : 2 + size], inner[2 + size :]
        wanted = hmac.digest(kdfa(seed, b"INTEGRITY", b"", 256), identity + ak_name, "sha256")
        if not hmac.compare_digest(mac, wanted):
            return None
        cipher = Cipher(algorithms.AES(kdfa(seed, b"STORAGE", ak_name, 128)), CFB(bytes(16))).decryptor()
        return (cipher.update(identity) + cipher.finalize())[2:]

    def _seed(self, secret: bytes) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            sha = hashes.SHA256()
            return self.key.decrypt(secret, padding.OAEP(padding.MGF1(sha), sha, label=b"IDENTITY\0"))
        x, y = secret[2:34], secret[36:68]
        point = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        )
        shared = self.key.exchange(ec.ECDH(), point.public_key())
        own = number(self.key.public_key().public_numbers().x)
        # KDFe: one block of SHA-256 is all of the seed.
        return hashlib.sha256(struct.pack(">I", 1) + shared + b"IDENTITY\0" + x + own).digest()


def kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa of one block at most (TPM 2.0 part 1, 11.4.10.2)."""
    text = struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", bits)
    return hmac.digest(key, text, "sha256")[: bits // 8]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["code"]


async def call_app(
    app: Any,
    method: str,
    path: str,
    *,
    body: bytes | list[bytes] = b"",
    headers: dict[str, str] | None = None,
    peer: Peer | None = None,
    client: str = "192.0.2.1",
) -> Answer:
    """Send one request through the application's ASGI door."""
    where, _, query = path.partition("?")
    parts = [body] if isinstance(body, bytes) else list(body)
    got = {k.lower(): v for k, v in (headers or {}).items()}
    if isinstance(body, bytes) and body:
        got.setdefault("content-length", str(len(body)))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": where,
        "raw_path": where.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "https",
        "headers": [(k.encode(), v.encode()) for k, v in got.items()],
        "client": (client, 1),
        "server": ("verifier.example", 443),
        "state": {"peer": peer},
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start = sent[0]
    return Answer(
        status=start["status"],
        headers={k.decode(): v.decode() for k, v in start["headers"]},
        body=b"".join(message.get("body", b"") for message in sent[1:]),
    )


@dataclass
class Desk:
    """A service and a clock that stands still until it is moved."""

    service: Service | None = None
    now: float = NOW
    log: list[str] = field(default_factory=list)

    def __call__(self, method: str, path: str, body: Any = b"", token: str = "", **more: Any) -> Answer:
        headers = dict(more.pop("headers", {}))
        if token:
            headers.setdefault("authorization", f"Bearer {token}")
        if not isinstance(body, bytes | list):
            body = json.dumps(body).encode()
        if body:
            headers.setdefault("content-type", "application/json")
        return asyncio.run(call_app(self.service.app, method, path, body=body, headers=headers, **more))


@contextmanager
def opened_desk(folder: Path, database: str = "", **changes: Any) -> Iterator[Desk]:
    """Start a service with the tests' policy, tokens and software TPMs allowed."""
    folder.mkdir(exist_ok=True)
    for name, token in (("admin", ADMIN), ("reader", READER)):
        (folder / name).write_text(token + "\n")
    policy = folder / "policy.json"
    if not policy.exists():
        policy.write_text(
            json.dumps(policy_document(**changes.pop("policy_changes", {"software_tpm": True})))
        )
    settings = {
        "host": "127.0.0.1",
        "port": 0,
        "database": database or str(folder / "verifier.db"),
        "audience": AUDIENCE,
        "policy": policy,
        "admin_token_file": folder / "admin",
        "reader_token_file": folder / "reader",
        "allow_software_tpm": True,
        "limits": NO_LIMITS,
    }
    desk = Desk()
    desk.service = build(ServiceConfig(**(settings | changes)), clock=lambda: desk.now, log=desk.log.append)
    try:
        yield desk
    finally:
        desk.service.close()


@dataclass
class Client:
    """A host that follows the protocol; `ask(method, path, body, token)` reaches the service."""

    ask: Any
    host: Host = field(default_factory=usual_host)
    ek: Ek = field(default_factory=Ek)
    ak_parent: str = "endorsement"
    chain: tuple[bytes, ...] = ()
    token: str = ""

    def wish(self, **changes: Any) -> dict[str, Any]:
        return {
            "host": self.host.name,
            "ek_pub": to_base64(self.ek.public),
            "ek_chain": [to_base64(item) for item in self.chain],
            "ak_pub": to_base64(self.host.ak.public),
            "ak_parent": self.ak_parent,
        } | changes

    def begin_enrolment(self, **changes: Any) -> Answer:
        return self.ask("POST", "/v1/enroll", self.wish(**changes))

    def proof(self, begun: dict[str, Any], **changes: Any) -> dict[str, str]:
        """Answer a credential honestly, or over a transcript with `changes`."""
        blob, encrypted = (base64.b64decode(begun[k]) for k in ("credential_blob", "encrypted_secret"))
        secret = self.ek.activate(self.host.ak.name, blob, encrypted)
        assert secret is not None, "the credential is not for this AK"
        members = {k: v for k, v in begun.items() if k != "expires"} | self.wish() | changes
        return {"proof": proof_of(secret, transcript(members)).hex()}

    def prove(self, begun: dict[str, Any]) -> Answer:
        return self.ask("POST", f"/v1/enroll/{begun['id']}/proof", self.proof(begun))

    def enrol(self) -> "Client":
        begun = self.begin_enrolment()
        assert begun.status == 201, begun.body
        done = self.prove(begun.json)
        assert done.status == 200, done.body
        self.token = done.json["token"]
        return self

    def challenge(self) -> dict[str, Any]:
        epoch = self.host.epoch
        have = {"reset": epoch.reset, "restart": epoch.restart, "boot_id": epoch.boot_id}
        body = {"host": self.host.name, "have": {"epoch": have, "recnum": len(self.host.records)}}
        begun = self.ask("POST", "/v1/sessions", body, self.token)
        assert begun.status == 201, begun.body
        return begun.json

    def evidence(self, challenge: dict[str, Any], **changes: Any) -> bytes:
        nonce = bytes.fromhex(challenge["nonce"])
        return self.host.evidence(nonce=nonce, begin=challenge["log_from"], **changes)

    def answer(self, challenge: dict[str, Any], evidence: bytes) -> Answer:
        return self.ask("POST", f"/v1/sessions/{challenge['id']}", evidence, self.token)

    def attest(self, **changes: Any) -> Answer:
        challenge = self.challenge()
        return self.answer(challenge, self.evidence(challenge, **changes))


def public_keys(desk):
    """Read the published keys as a relying party does."""

    def number(text):
        return int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")

    found = desk("GET", "/.well-known/jwks.json").json["keys"]
    assert all((key["kty"], key["crv"], key["alg"]) == ("EC", "P-256", "ES256") for key in found)
    return {
        key["kid"]: ec.EllipticCurvePublicNumbers(
            number(key["x"]), number(key["y"]), ec.SECP256R1()
        ).public_key()
        for key in found
    }
