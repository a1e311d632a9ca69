"""A host whose audit log goes over several boots: a TPM in memory with a key that signs real quotes."""

import hashlib
import io
import tarfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519

from secrun_attest.audit import heads, host
from secrun_attest.audit.chain import opened
from secrun_attest.audit.entries import State
from secrun_attest.audit.export import BundleWriter, Span, about_of, scope_of
from secrun_attest.audit.merkle import leaf_hash
from secrun_attest.audit.note import Signer, Verifier
from secrun_attest.audit.verify import verify_bundle
from secrun_attest.celjson import parse_line
from secrun_attest.logfile import EventLog
from secrun_attest.record import Bank, Operation
from secrun_attest.tss import AttestationKey, Quoted
from support.attest_bench import Ak, b2, select
from support.eventlog import PCR, FakeTpm

NAME = "secrun.dev/audit/host-1"
MINUTE = 60_000
BEGIN = 1_790_000_000_000


def sha(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass
class AuditedHost:
    """Each pod takes a minute of the host's clock."""

    folder: Path
    banks: tuple[Bank, ...] = (Bank.SHA1, Bank.SHA256)
    ak: Ak = field(default_factory=Ak)
    now: int = BEGIN
    boot_id: str = field(default_factory=lambda: str(uuid.UUID(int=1)))
    serial: int = 0
    accounts: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tpm = FakeTpm(banks=self.banks)
        self.place = host.Place(folder=self.folder / "audit", logs=self.folder / "measure", name=NAME)

    @property
    def going(self) -> str:
        return f"{self.tpm.reset}-{self.tpm.restart}"

    def tick(self) -> int:
        self.now += MINUTE
        return self.now

    def log(self) -> EventLog:
        def opening():
            return {
                "ak": self.ak.name.hex(),
                "runtime": {"digest": sha("runtime"), "version": "1"},
                "tpm": {"kind": "hardware"},
                "previous": host.previous_of(self.place, self.going, self.now),
            }

        return EventLog(
            self.place.logs, self.tpm, PCR, opening=opening, boot_id=lambda: self.boot_id, now=self.tick
        )

    def measure(self, *events) -> None:
        self.log().append_many(events)

    def pod(self, *, code: int = 0, relaxations: tuple[str, ...] = (), signer: str = "key:release") -> str:
        self.serial += 1
        pod = str(uuid.UUID(int=self.serial, version=4))
        begun = self.keep(f'{{"finished":null,"pod":"{pod}"}}'.encode())
        digest = self.keep(f'{{"pod":"{pod}"}}'.encode())
        events = pod_events(
            pod, code=code, relaxations=relaxations, signer=signer, begun=begun, account=digest
        )
        self.measure(*events)
        return pod

    def keep(self, account: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(account).hexdigest()}"
        self.accounts[digest] = account
        return digest

    def reboot(self) -> None:
        self.tpm.reboot()
        self.boot_id = str(uuid.UUID(int=self.tpm.reset))

    def quote(self, qualifying, bank, moving):
        value = self.tpm.read_pcr_quietly(PCR)[bank]
        digest = hashlib.sha256(value).digest()
        clock = self.now.to_bytes(8, "big") + self.tpm.reset.to_bytes(4, "big")
        clock += self.tpm.restart.to_bytes(4, "big") + b"\1" + bytes(8)
        body = (1).to_bytes(4, "big") + select({"sha1": 4, "sha256": 0xB}[bank.value], (PCR,)) + b2(digest)
        attest = b"\xff\x54\x43\x47\x80\x18" + b2(self.ak.qualified()) + b2(qualifying) + clock + body
        key = AttestationKey(public=self.ak.public, name=self.ak.name, qualified_name=self.ak.qualified())
        return key, Quoted(attest=attest, signature=self.ak.sign(attest), pcrs=((PCR, value),))

    def close(self, state: State = State.CLOSED):
        with self.log().held() as held:
            fields = host.anchor_of(self.place, self.going, self.now)
            held.append(Operation.CHECKPOINT, fields)
        return host.close(self.place, self.going, quote=self.quote, state=state, now=self.tick)

    def bundle(self, span: Span | None = None) -> bytes:
        """Export as the command does: close what goes on, then write."""
        self.close(State.OPEN)
        return self.written(span)

    def written(self, span: Span | None = None) -> bytes:
        out = io.BytesIO()
        with opened(self.place.folder, self.place.logs) as chain:
            key = heads.signer(self.place.folder, NAME)
            scope = scope_of(chain, key, span or Span())
            about = about_of(scope, host="host-1", tool="secrun 1", made=self.now)
            BundleWriter(chain, scope, key, about).write(out, self.folder / "scratch", self.accounts.get)
        return out.getvalue()

    @property
    def key(self) -> Verifier:
        return heads.public_key(self.place.folder)

    def signer(self) -> Signer:
        return heads.signer(self.place.folder, NAME)

    def judged(self, data: bytes):
        return verify_bundle(io.BytesIO(data), self.key).report


def pod_events(pod, *, code, relaxations, signer, account, begun=None):
    image, tree = sha("image"), sha("tree")
    signature = {"kind": "cosign", "signer": signer, "digest": sha("signature")}
    verdict = {
        "policy": "/etc/containers/policy.json",
        "scope": "registry.example",
        "requirements": ["sigstoreSigned"],
        "bypass": not signer,
        "rule": "",
        "signatures": [signature] if signer else [],
    }
    admit = {
        "reference": "docker://registry.example/web:1",
        "manifest": image,
        "tree": tree,
        "verdict": verdict,
    }
    app = {"name": "web", "image": image, "tree": tree, "relaxations": list(relaxations)}
    prepare = {
        "pod": pod,
        "manifest": sha(pod),
        "stage1": {"flavour": "nspawn", "digest": sha("stage1"), "tree": sha("stage1 tree")},
        "relaxations": [] if signer else ["insecure-options:image"],
        "policy": "",
        "confinement": sha("confinement"),
        "apps": [app],
    }
    start = {"pod": pod, "by": {"login": 1000, "uid": 0, "unit": "web.service"}}
    return (
        (Operation.IMAGE_ADMIT, admit),
        (Operation.POD_PREPARE, prepare),
        (Operation.POD_START, start if begun is None else {**start, "account": begun}),
        (
            Operation.POD_EXIT,
            {"pod": pod, "code": code, "apps": [{"name": "web", "code": code}], "account": account},
        ),
    )


def members(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def packed(files: dict[str, bytes], key: Signer | None = None) -> bytes:
    """Pack a bundle anew; with the host's key as one who has it would."""
    from secrun_attest.audit.tarball import TarWriter

    out = io.BytesIO()
    tar = TarWriter(out)
    sums, signature = files.pop("SHA256SUMS"), files.pop("SHA256SUMS.sig")
    for name, data in files.items():
        tar.add(name, data)
    if key is not None:
        sums = "".join(f"{digest}  {name}\n" for name, digest in tar.sums.items()).encode()
        signature = key.sign(sums)
    tar.add("SHA256SUMS", sums)
    tar.add("SHA256SUMS.sig", signature)
    tar.end()
    return out.getvalue()


def leaf_of(line: bytes) -> bytes:
    return leaf_hash(parse_line(line.removesuffix(b"\n")).event_data)


def other_key() -> Signer:
    return Signer(NAME, ed25519.Ed25519PrivateKey.generate())
