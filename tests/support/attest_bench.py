"""A TPM made of `cryptography` keys, and a host with a log: genuine evidence, and every way to bend it."""

import hashlib
import json
import struct
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from secrun_attest.evidence import (
    Evidence,
    Header,
    LogRecord,
    binding,
    build_evidence,
    log_digest,
)
from secrun_attest.policy import Policy, parse_policy
from secrun_attest.record import Bank, Epoch, Event, Operation, digest, event_data
from secrun_attest.tpm import TpmKind
from secrun_attest.verify import Enrolment, Session
from secrun_attest.wire import Hierarchy

NOW = 1_800_000_000
NONCE = bytes(range(32))
BOOT = "0a1b2c3d-0000-4000-8000-000000000001"
AUDIENCE = "verifier.example"
HOST = "host-1"
SELECTION = (0, 1, 2, 3, 4, 5, 6, 7, 15)
AK_ATTRIBUTES = 0x00050072  # fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign
POD = "11111111-2222-4333-8444-555555555555"
BANKS = tuple(Bank)
ALGS = {"sha1": 4, "sha256": 0xB, "sha384": 0xC, "sha512": 0xD}


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def raw(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


RUNTIME, TREE = sha("secrun"), sha("tree")
STAGE1 = {"digest": sha("stage1"), "tree": sha("stage1 tree")}
ROOT = "00" * 32
MACHINE = {
    "accelerator": "kvm",
    "model": "q35",
    "vcpus": 1,
    "memory_bytes": 512 << 20,
    "storage_bytes": 0,
    "vtpm": False,
    "kernel": sha("kernel"),
    "initrd": sha("initrd"),
    "command_line": "console=ttyS0 quiet",
    "pod_root": "11" * 32,
    "pod_blocks": 9,
}
GUEST = {name: MACHINE[name] for name in ("kernel", "initrd")} | {"command_lines": [MACHINE["command_line"]]}
IMAGE_MANIFEST = b'{"schemaVersion":2}'
IMAGE = "sha256:" + hashlib.sha256(IMAGE_MANIFEST).hexdigest()
POD_MANIFEST = b'{"apps":["web"]}'
POD_DIGEST = "sha256:" + hashlib.sha256(POD_MANIFEST).hexdigest()
REFERENCE = "docker://registry.example/web:1"


def b2(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def number(value: int, size: int = 32) -> bytes:
    return value.to_bytes(size, "big")


@dataclass
class Ak:
    """A restricted signing key; change a field to get one that must be refused."""

    key: object = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    attributes: int = AK_ATTRIBUTES
    hash: int = 0xB
    curve: int = 3
    symmetric: bytes = b"\x00\x10"
    scheme: int = 0

    @property
    def area(self) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            numbers = self.key.public_key().public_numbers()
            scheme = struct.pack(">HH", self.scheme or 0x14, self.hash)
            tail = struct.pack(">HI", self.key.key_size, 0) + b2(number(numbers.n, self.key.key_size // 8))
            kind = 1
        else:
            numbers = self.key.public_key().public_numbers()
            scheme = struct.pack(">HH", self.scheme or 0x18, self.hash)
            tail = struct.pack(">HH", self.curve, 0x10) + b2(number(numbers.x)) + b2(number(numbers.y))
            kind = 0x23
        return struct.pack(">HHI", kind, 0xB, self.attributes) + b2(b"") + self.symmetric + scheme + tail

    @property
    def public(self) -> bytes:
        return b2(self.area)

    @property
    def name(self) -> bytes:
        return b"\x00\x0b" + hashlib.sha256(self.area).digest()

    def qualified(self, parent: bytes = b"\x40\x00\x00\x0b") -> bytes:
        return b"\x00\x0b" + hashlib.sha256(parent + self.name).digest()

    def sign(self, data: bytes) -> bytes:
        algorithm = {0xB: hashes.SHA256, 0xC: hashes.SHA384, 4: hashes.SHA1}[self.hash]()
        if isinstance(self.key, rsa.RSAPrivateKey):
            pad = padding.PKCS1v15()
            if self.scheme == 0x16:
                pad = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=algorithm.digest_size)
            signed = self.key.sign(data, pad, algorithm)
            return struct.pack(">HH", self.scheme or 0x14, self.hash) + b2(signed)
        r, s = decode_dss_signature(self.key.sign(data, ec.ECDSA(algorithm)))
        return struct.pack(">HH", 0x18, self.hash) + b2(number(r)) + b2(number(s))


@dataclass
class Host:
    """A host with a TPM and a log; `evidence` answers a challenge honestly unless told otherwise."""

    ak: Ak = field(default_factory=Ak)
    name: str = HOST
    epoch: Epoch = field(default_factory=lambda: Epoch(reset=7, restart=2, boot_id=BOOT))
    clock: int = 1_000_000
    restart: int = 2
    safe: int = 1
    banks: tuple = BANKS
    base: dict = field(default_factory=dict)
    records: list = field(default_factory=list)
    firmware: bytes | None = None
    static: dict = field(default_factory=lambda: {index: raw(f"pcr{index}") for index in range(8)})

    def __post_init__(self) -> None:
        self.base = self.base or {bank: bytes(hashlib.new(bank).digest_size) for bank in self.banks}

    def measure(
        self, operation: Operation, seq: int | None = None, epoch: Epoch | None = None, **fields
    ) -> None:
        number_ = len(self.records)
        event = Event(
            operation=operation,
            seq=number_ if seq is None else seq,
            epoch=epoch or self.epoch,
            t=NOW * 1000,
            fields=fields,
        )
        self.log(event_data(event))

    def log(self, data: bytes) -> None:
        digests = tuple((bank, digest(bank, data)) for bank in self.banks)
        self.records.append(
            LogRecord(
                recnum=len(self.records),
                pcr=15,
                digests=digests,
                content_type="pcclient_std",
                event_type="EV_EVENT_TAG",
                data=data,
            )
        )

    def open(self, **changes) -> None:
        fields = {
            "baseline": {str(bank): value.hex() for bank, value in self.base.items()},
            "runtime": {"version": "0.2.0", "digest": RUNTIME},
            "ak": self.ak.name.hex(),
            "tpm": {"kind": "hardware"},
            "mode": "strict",
        }
        self.measure(Operation.LOG_OPEN, **fields | changes)

    def admit(self, **changes) -> None:
        fields = {
            "reference": REFERENCE,
            "manifest": IMAGE,
            "config": sha("config"),
            "rootfs": sha("rootfs"),
            "tree": TREE,
            "verity_root": ROOT,
            "verdict": {"policy": "/etc/containers/policy.json", "bypass": False},
        }
        self.measure(Operation.IMAGE_ADMIT, **fields | changes)

    def prepare(
        self,
        pod: str = POD,
        relaxations: tuple = (),
        stage1: object = STAGE1,
        machine: object = None,
        **app,
    ) -> None:
        known = {"name": "web", "image": IMAGE, "tree": TREE, "relaxations": [], "bundle": sha("bundle")}
        apps = [known | app]
        self.measure(
            Operation.POD_PREPARE,
            pod=pod,
            manifest=POD_DIGEST,
            stage1=stage1,
            apps=apps,
            relaxations=[*relaxations],
            **({} if machine is None else {"machine": machine}),
        )

    def pod(self, uuid: str = POD) -> None:
        self.prepare(uuid)
        self.measure(Operation.POD_START, pod=uuid)
        self.measure(Operation.POD_EXIT, pod=uuid, code=0)

    def pcr(self, bank: str = "sha256", upto: int | None = None) -> bytes:
        value = self.base[bank]
        for record in self.records[:upto]:
            value = hashlib.new(bank, value + dict(record.digests)[bank]).digest()
        return value

    def header(self, begin: int = 0) -> Header:
        return Header(
            host=self.name,
            epoch=self.epoch,
            log_count=len(self.records),
            log_sha256=log_digest(self.records[begin:]),
            firmware_log_sha256=None if self.firmware is None else hashlib.sha256(self.firmware).digest(),
            channel_key=None,
            audience=AUDIENCE,
            tpm=TpmKind.HARDWARE,
        )

    def quote(self, extra: bytes, digest_: bytes, **changes) -> bytes:
        """Return a TPMS_ATTEST; `changes` replace what an honest TPM writes."""
        get = {
            "magic": 0xFF544347,
            "type": 0x8018,
            "signer": self.ak.qualified(),
            "selections": [(0xB, SELECTION)],
            "reset": self.epoch.reset,
            "tail": b"",
        } | changes
        self.clock += 10
        selections = get["selections"]
        return (
            struct.pack(">IH", get["magic"], get["type"])
            + b2(get["signer"])
            + b2(extra)
            + struct.pack(">QIIBQ", self.clock, get["reset"], self.restart, self.safe, 0x2022)
            + struct.pack(">I", len(selections))
            + b"".join(select(*one) for one in selections)
            + b2(digest_)
            + get["tail"]
        )

    def bundle(
        self, nonce: bytes = NONCE, begin: int = 0, header: Header | None = None, **quote
    ) -> Evidence:
        header = header or self.header(begin)
        values = {**self.static, 15: self.pcr()} | quote.pop("values", {})
        hash_ = {0xB: "sha256", 0xC: "sha384", 4: "sha1"}[self.ak.hash]
        signed = hashlib.new(hash_, b"".join(values[index] for index in sorted(values))).digest()
        attest = self.quote(
            quote.pop("extra", binding(nonce, header)), quote.pop("digest_", signed), **quote
        )
        return Evidence(
            header=header,
            nonce=nonce,
            ak_pub=self.ak.public,
            quote=attest,
            signature=self.ak.sign(attest),
            pcr_values=(("sha256", tuple(sorted(values.items()))),),
            log_from=begin,
            base_pcr=tuple((bank, self.pcr(bank, begin)) for bank in self.banks),
            records=tuple(self.records[begin:]),
            firmware_log=self.firmware,
            contents=((raw_of(IMAGE), IMAGE_MANIFEST), (raw_of(POD_DIGEST), POD_MANIFEST))
            if begin == 0
            else (),
            agent="secrun 0.2.0",
        )

    def evidence(self, **arguments) -> bytes:
        return build_evidence(self.bundle(**arguments))


def raw_of(digest_: str) -> bytes:
    return bytes.fromhex(digest_.removeprefix("sha256:"))


def select(alg: int, pcrs: tuple) -> bytes:
    bits = sum(1 << index for index in pcrs)
    return struct.pack(">HB", alg, 3) + bits.to_bytes(3, "little")


def enrolled(host: Host, /, **changes) -> Enrolment:
    return replace(
        Enrolment(host=host.name, ak_name=host.ak.name, hierarchy=Hierarchy.ENDORSEMENT), **changes
    )


def session(host: Host, /, **changes) -> Session:
    first = Session(
        nonce=NONCE, issued=NOW - 5, expires=NOW + 55, audience=AUDIENCE, enrolment=enrolled(host)
    )
    return replace(first, **changes)


def policy_document(**changes) -> dict:
    workload = {
        "manifests": [IMAGE],
        "trees": [],
        "references": [],
        "forbidden_operations": [],
        "forbidden_relaxations": [],
    }
    return {
        "v": 1,
        "id": "test",
        "version": 1,
        "not_before": NOW - 1000,
        "not_after": NOW + 1000,
        "pcr": 15,
        "bank": "sha256",
        "selection": [*SELECTION],
        "hierarchies": ["endorsement"],
        "keys": None,
        "software_tpm": False,
        "max_age": 60,
        "platform": {"pcrs": {"7": [raw("pcr7").hex()]}},
        "runtime": {"binaries": [RUNTIME], "stage1": [STAGE1["tree"]]} | changes.pop("runtime", {}),
        "workload": workload | changes.pop("workload", {}),
    } | changes


def policy(**changes) -> Policy:
    return parse_policy(json.dumps(policy_document(**changes)).encode())


def usual_host(**changes) -> Host:
    """A host that opened its log, admitted an image and ran one pod to its end."""
    host = Host(**changes)
    host.open()
    host.admit()
    host.pod()
    return host


def firmware_log(events: list, banks: tuple = ("sha256",)) -> bytes:
    """A crypto-agile log of (pcr, type, data); each digest is that of the data."""
    algs = b"".join(struct.pack("<HH", ALGS[bank], hashlib.new(bank).digest_size) for bank in banks)
    body = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + algs + b"\0"
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(body)) + body
    for pcr, kind, data in events:
        log += struct.pack("<III", pcr, kind, len(banks))
        for bank in banks:
            log += struct.pack("<H", ALGS[bank]) + hashlib.new(bank, data).digest()
        log += struct.pack("<I", len(data)) + data
    return log
