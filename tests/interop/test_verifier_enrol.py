"""A software TPM and tpm2-tools as judges: credentials, endorsement certificates, a quote end to end."""

import base64
import re
import struct
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from secrun_attest.evidence import binding, build_evidence
from secrun_attest.record import Bank, Epoch
from secrun_attest.service.credential import check_ek, make_credential
from secrun_attest.wire import name_of, parse_public
from support.attest_bench import BOOT, SELECTION, Host, raw
from support.swtpm import Swtpm, manufacture, running
from support.verifier import READER, Client, opened_desk

# TCG EK Credential Profile 2.5, 2.2.1.4: where a TPM keeps the certificate of its RSA-2048 key.
RSA_CERTIFICATE = "0x01c00002"


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    with running(manufacture(tmp_path_factory.mktemp("tpm") / "one", certificates=True)) as started:
        yield started


@dataclass
class Keys:
    """An EK and an AK under it, made by tpm2-tools; public areas as files."""

    tpm: Swtpm
    folder: Path
    kind: str

    def __post_init__(self) -> None:
        tool, at = self.tpm.tool, self.path
        tool("tpm2_createek", "-c", at("ek.ctx"), "-G", self.kind, "-u", at("ek.pub"))
        scheme = {"rsa": "rsassa", "ecc": "ecdsa"}[self.kind]
        words = ["-G", self.kind, "-g", "sha256", "-s", scheme, "-u", at("ak.pub"), "-n", at("ak.name")]
        tool("tpm2_createak", "-C", at("ek.ctx"), "-c", at("ak.ctx"), *words)
        tool("tpm2_flushcontext", "-t")

    def path(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def activate(self, blob: bytes, encrypted: bytes) -> bytes:
        """Open a credential; an assertion of `tool` fails if the TPM refuses."""
        tool, at = self.tpm.tool, self.path
        at("credential").write_bytes(struct.pack(">II", 0xBADCC0DE, 1) + blob + encrypted)
        tool("tpm2_startauthsession", "--policy-session", "-S", at("session"))
        try:
            tool("tpm2_policysecret", "-S", at("session"), "-c", "e")
            keys = ["-c", at("ak.ctx"), "-C", at("ek.ctx"), "-P", f"session:{at('session')}"]
            tool("tpm2_activatecredential", *keys, "-i", at("credential"), "-o", at("secret"))
            return self.read("secret")
        finally:
            tool("tpm2_flushcontext", at("session"))
            tool("tpm2_flushcontext", "-t")


@pytest.fixture(scope="module", params=["ecc", "rsa"])
def keys(request, tpm, tmp_path_factory):
    return Keys(tpm, tmp_path_factory.mktemp(request.param), request.param)


def test_a_tpm_opens_our_credential_and_no_other(keys):
    ek, ak = parse_public(keys.read("ek.pub")), parse_public(keys.read("ak.pub"))
    check_ek(ek)
    assert name_of(ak) == keys.read("ak.name")
    secret = bytes(range(32))
    made = make_credential(ek, name_of(ak), secret)
    assert keys.activate(made.blob, made.encrypted_secret) == secret
    flipped = made.blob[:-1] + bytes([made.blob[-1] ^ 1])
    with pytest.raises(AssertionError, match="integrity check failed"):
        keys.activate(flipped, made.encrypted_secret)
    other = make_credential(ek, b"\x00\x0b" + bytes(32), secret)
    with pytest.raises(AssertionError, match="integrity check failed"):
        keys.activate(other.blob, other.encrypted_secret)


def test_our_structures_are_those_of_tpm2_makecredential(keys):
    ek, at = parse_public(keys.read("ek.pub")), keys.path
    at("plain").write_bytes(b"s" * 32)
    name = keys.read("ak.name").hex()
    keys.tpm.tool(
        "tpm2_makecredential", "-u", at("ek.pub"), "-s", at("plain"), "-n", name, "-o", at("theirs")
    )
    theirs = keys.read("theirs")[8:]
    made = make_credential(ek, keys.read("ak.name"), b"s" * 32)
    ours = made.blob + made.encrypted_secret
    assert len(ours) == len(theirs)
    size = 2 + int.from_bytes(theirs[:2], "big")
    assert len(made.blob) == size
    assert keys.activate(theirs[:size], theirs[size:]) == b"s" * 32


@dataclass
class TpmEk:
    """Stands in for the tests' own EK: activation is the TPM's."""

    keys: Keys

    @property
    def public(self) -> bytes:
        return self.keys.read("ek.pub")

    def activate(self, _ak_name: bytes, blob: bytes, encrypted: bytes) -> bytes:
        return self.keys.activate(blob, encrypted)


@dataclass
class TpmAk:
    """Stands in for the tests' own AK: the TPM holds it."""

    keys: Keys
    hash: int = 0xB

    @property
    def public(self) -> bytes:
        return self.keys.read("ak.pub")

    @property
    def name(self) -> bytes:
        return self.keys.read("ak.name")

    def qualified(self) -> bytes:
        return b""

    def sign(self, _data: bytes) -> bytes:
        return b""


@dataclass
class TpmHost(Host):
    """A host whose log is extended into a TPM and quoted by it."""

    tpm: Swtpm = field(kw_only=True)

    def log(self, data: bytes) -> None:
        super().log(data)
        words = ",".join(f"{bank}={value.hex()}" for bank, value in self.records[-1].digests)
        self.tpm.tool("tpm2_pcrextend", f"15:{words}")

    def bundle(self, nonce: bytes, begin: int = 0, **_: object):
        header, at = self.header(begin), self.ak.keys.path
        found = super().bundle(nonce=nonce, begin=begin)
        listed = "sha256:" + ",".join(map(str, SELECTION))
        extra = binding(nonce, header).hex()
        files = ["-m", at("quote"), "-s", at("signature")]
        self.tpm.tool("tpm2_quote", "-c", at("ak.ctx"), "-l", listed, "-q", extra, *files)
        self.tpm.tool("tpm2_flushcontext", "-t")
        return replace(found, quote=at("quote").read_bytes(), signature=at("signature").read_bytes())

    def evidence(self, **arguments: object) -> bytes:
        return build_evidence(self.bundle(**arguments))


def real_host(keys, name):
    tpm = keys.tpm
    text = tpm.tool("tpm2_readclock")
    found = {key: int(value) for key, value in re.findall(r"(\w+_count): (\d+)", text)}
    epoch = Epoch(reset=found["reset_count"], restart=found["restart_count"], boot_id=BOOT)
    static = {index: bytes(32) for index in range(8)}
    return TpmHost(ak=TpmAk(keys), name=name, epoch=epoch, banks=tuple(Bank), static=static, tpm=tpm)


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_a_host_with_a_real_tpm_enrols_and_attests(tmp_path, kind):
    with running(manufacture(tmp_path / "tpm")) as tpm:
        keys = Keys(tpm, tmp_path, kind)
        host = real_host(keys, "real")
        zero = {"pcrs": {"7": ["00" * 32]}}
        changes = {"software_tpm": True, "platform": zero}
        with opened_desk(tmp_path / "desk", policy_changes=changes) as desk:
            client = Client(desk, host=host, ek=TpmEk(keys), ak_parent="ek").enrol()
            for step in (host.open, host.admit, host.pod):
                step()
            first = client.attest()
            assert first.status == 200, first.body
            assert first.json["status"] == "affirming"
            host.pod("22222222-2222-4333-8444-555555555555")
            assert client.attest().json["log_count"] == 8
            # An event that the log does not tell.
            tpm.tool("tpm2_pcrextend", f"15:sha256={raw('unseen').hex()}")
            refused = client.attest()
            assert (refused.status, refused.code) == (422, "E_PCRDIGEST")


def test_the_makers_certificate_is_held_against_its_root(tmp_path, tpm, tmp_path_factory):
    keys = Keys(tpm, tmp_path_factory.mktemp("certified"), "rsa")
    tpm.tool("tpm2_nvread", "-C", "o", RSA_CERTIFICATE, "-o", keys.path("ek.crt"))
    chain = (keys.read("ek.crt"), der(tpm.folder / "ca/cert.pem"))
    roots = tmp_path / "roots"
    roots.mkdir()
    root = next((tpm.folder / "ca").glob("*rootca-cert.pem"))
    (roots / "maker.pem").write_bytes(root.read_bytes())
    with opened_desk(tmp_path, ek_roots=roots, allow_software_tpm=False) as desk:
        desk.now = time.time()
        host = real_host(keys, "certified")
        client = Client(desk, host=host, ek=TpmEk(keys), ak_parent="ek", chain=chain).enrol()
        assert desk("GET", f"/v1/hosts/{host.name}", token=READER).json["software"] is False
        assert desk("POST", "/v1/enroll", client.wish(ek_chain=[])).code == "E_EK_UNTRUSTED"
        incomplete = client.wish()["ek_chain"][:1]
        assert desk("POST", "/v1/enroll", client.wish(ek_chain=incomplete)).code == "E_EK_UNTRUSTED"


def der(path):
    text = path.read_text().partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END")[0]
    return base64.b64decode(text)
