"""The TPM through ESAPI, on real software TPMs and with tpm2-tools beside it."""

import hashlib
import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from secrun_attest import checkpoint
from secrun_attest.endorsement import EkKind
from secrun_attest.errors import FormatError, TpmError, TpmTransportError
from secrun_attest.record import DIGEST_SIZES, Bank
from secrun_attest.tpm import TpmKind
from secrun_attest.tss import Tss
from secrun_attest.verify.checks import check_key, check_signature
from secrun_attest.wire import name_of, parse_attest, parse_public, parse_quote_body, parse_signature
from support.swtpm import manufacture, running

QUALIFYING = bytes(range(32))
EK_INDEX = {EkKind.RSA_2048: "0x1c00002", EkKind.P_256: "0x1c0000a"}


def credential(endorsement, name, secret):
    """Make a credential as a verifier does, without a TPM."""
    from tpm2_pytss.types import TPM2B_NAME, TPM2B_PUBLIC
    from tpm2_pytss.utils import make_credential

    public, _ = TPM2B_PUBLIC.unmarshal(endorsement.public)
    blob, seed = make_credential(public, secret, TPM2B_NAME(name))
    return bytes(blob.marshal()), bytes(seed.marshal())


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def loaded(tpm):
    """What the TPM holds, asked by a program that flushes nothing."""
    return tpm.tool("tpm2_getcap", "handles-transient") + tpm.tool("tpm2_getcap", "handles-loaded-session")


def test_a_software_tpm_says_that_it_is_one(swtpm):
    with swtpm.tss() as tss:
        facts = tss.facts()
        quoted = tss.quote(QUALIFYING, Bank.SHA256, [15])
    assert (facts.manufacturer, facts.vendor, facts.kind) == ("IBM", "SW   TPM", TpmKind.SOFTWARE)
    assert facts.firmware == parse_attest(quoted.attest).firmware > 0


def test_the_attestation_key_is_always_the_same_and_is_what_a_verifier_demands(swtpm):
    keys = []
    for _ in range(2):
        with swtpm.tss() as tss:
            keys.append(tss.create_ak())
        swtpm.reset()
    key, again = keys
    assert key == again
    public = parse_public(key.public)
    check_key(public)
    assert len(public.area) == 88
    assert key.name == name_of(public)


def test_a_quote_is_of_the_key_the_bytes_and_the_values(swtpm):
    digests = {bank: bytes([7]) * DIGEST_SIZES[bank] for bank in Bank}
    with swtpm.tss() as tss:
        tss.extend(15, digests)
        key = tss.create_ak()
        values = tss.read_pcr(15)
        for bank in (Bank.SHA1, Bank.SHA256, Bank.SHA512):
            quoted = tss.quote(QUALIFYING, bank, range(16))
            attest = parse_attest(quoted.attest)
            check_signature(parse_public(key.public), quoted.attest, parse_signature(quoted.signature))
            assert (attest.signer, attest.extra) == (key.qualified_name, QUALIFYING)
            assert [pcr for pcr, _ in quoted.pcrs] == list(range(16))
            assert dict(quoted.pcrs)[15] == values[bank]
            joined = b"".join(value for _, value in quoted.pcrs)
            assert parse_quote_body(attest.body).digest == hashlib.sha256(joined).digest()
    assert {
        bank: hashlib.new(bank, bytes(len(value)) + digests[bank]).digest() for bank, value in values.items()
    } == (values)


def test_a_quote_is_made_again_when_a_pcr_changes_under_it(swtpm, monkeypatch):
    changes = []
    with swtpm.tss() as tss:

        def hook(_):
            if len(changes) < limit:
                changes.append(1)
                tss.extend(15, {bank: bytes(DIGEST_SIZES[bank]) for bank in Bank})

        monkeypatch.setattr(checkpoint, "hook", hook)
        limit = 2
        quoted = tss.quote(QUALIFYING, Bank.SHA256, [0, 15])
        assert dict(quoted.pcrs)[15] == tss.read_pcr(15)[Bank.SHA256]
        assert len(changes) == 2
        changes.clear()
        limit = 9
        with pytest.raises(TpmError, match="changed under each of 3 quotes") as caught:
            tss.quote(QUALIFYING, Bank.SHA256, [0, 15])
    assert (caught.value.code, len(changes)) == ("tpm-busy", 3)


def test_only_banks_that_the_tpm_has_are_quoted(tmp_path):
    with running(manufacture(tmp_path / "tpm", banks=(Bank.SHA256,))) as tpm, tpm.tss() as tss:
        assert tss.banks(15) == (Bank.SHA256,)
        assert set(tss.read_pcr(15)) == {Bank.SHA256}
        with pytest.raises(TpmError, match="no bank sha384 for PCR 15") as caught:
            tss.quote(QUALIFYING, Bank.SHA384, [0, 15])
        assert caught.value.code == "tpm-banks"
        with pytest.raises(FormatError):
            tss.quote(b"short", Bank.SHA256, [15])
        assert tss.quote(QUALIFYING, Bank.SHA256, [15]).pcrs == ((15, bytes(32)),)


def test_a_bank_that_nobody_would_extend_is_an_error(swtpm, monkeypatch):
    # This TPM can be given no such bank, so it is made to name SHA3-256.
    monkeypatch.setattr(Tss, "_allocated", lambda _self, _pcr: {0x0B, 0x27})
    with swtpm.tss() as tss:
        for ask in (tss.banks, tss.read_pcr):
            with pytest.raises(TpmError, match="a bank of hash 0x0027") as caught:
                ask(15)
            assert caught.value.code == "tpm-banks"


@pytest.mark.parametrize("kind", EkKind)
def test_a_credential_is_activated_by_its_own_keys_and_whole(tmp_path, swtpm, kind):
    secret = os.urandom(32)
    with running(manufacture(tmp_path / "other")) as other, other.tss() as tss:
        stranger = tss.create_ak()
        with swtpm.tss() as mine:
            key, endorsement = mine.create_ak(), mine.endorsement(kind)
            blob, seed = credential(endorsement, key.name, secret)
            assert mine.activate(blob, seed) == secret
            bad = [credential(endorsement, stranger.name, secret)]
            bad += [(flipped(blob, at), seed) for at in (2, 20, 40, len(blob) - 1)]
            bad += [(blob, flipped(seed, at)) for at in (4, 40, len(seed) - 1)]
            for case in bad:
                with pytest.raises(TpmError, match="not for this TPM's") as caught:
                    mine.activate(*case)
                assert caught.value.code == "tpm-credential"
            with pytest.raises(FormatError, match="does not begin with its size"):
                mine.activate(blob[:-1], seed)
            assert mine.activate(blob, seed) == secret
        with pytest.raises(TpmError):
            tss.activate(blob, seed)
    assert loaded(swtpm) == ""


def test_a_tpm_that_has_failed_is_not_taken_for_a_wrong_credential(swtpm, monkeypatch):
    with swtpm.tss() as tss:
        blob, seed = credential(tss.endorsement(EkKind.RSA_2048), tss.create_ak().name, b"s" * 32)

        def clock():
            raise TpmTransportError("no clock")

        # The TPM answers a seed that it cannot decrypt as if its self-test had failed.
        monkeypatch.setattr(tss, "clock", clock)
        with pytest.raises(TpmTransportError, match="no clock"):
            tss.activate(blob, flipped(seed, 40))


def test_two_hundred_quotes_and_activations_leave_nothing_in_the_tpm(swtpm):
    with swtpm.tss() as tss:
        key = tss.create_ak()
        sealed = [credential(tss.endorsement(kind), key.name, b"s" * 32) for kind in EkKind]
        for number in range(100):
            tss.quote(QUALIFYING, Bank.SHA256, [15])
            assert tss.activate(*sealed[min(number % 10, 1)]) == b"s" * 32
    assert loaded(swtpm) == ""
    for number in range(100):
        tss = swtpm.tss()
        tss.quote(QUALIFYING, Bank.SHA256, [15])
        tss.activate(*sealed[min(number % 10, 1)])
        tss.close()
        # The next connection would flush what this one left.
        assert number % 20 or loaded(swtpm) == ""
    assert loaded(swtpm) == ""


def test_what_a_killed_process_left_loaded_stops_nobody(swtpm):
    # A TPM without a resource manager has room for three objects.
    for _ in range(5):
        pid = os.fork()
        if not pid:
            swtpm.tss().create_ak()
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        assert "0x80000000" in loaded(swtpm)
    with swtpm.tss() as tss:
        assert tss.quote(QUALIFYING, Bank.SHA256, [15]).pcrs
    assert loaded(swtpm) == ""


def test_users_of_one_software_tpm_do_not_take_each_others_keys(swtpm):
    with swtpm.tss() as tss:
        key = tss.create_ak()
        blob, seed = credential(tss.endorsement(EkKind.P_256), key.name, b"s" * 32)
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                for _ in range(20):
                    with swtpm.tss() as tss:
                        assert tss.activate(blob, seed) == b"s" * 32
                        assert tss.quote(QUALIFYING, Bank.SHA256, [15]).pcrs
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert loaded(swtpm) == ""


def store(tpm, kind, der):
    """Put a certificate where the maker of the TPM would have."""
    path = tpm.folder / "cert.der"
    path.write_bytes(der)
    attributes = "ownerread|authread|ownerwrite|authwrite"
    tpm.tool("tpm2_nvdefine", EK_INDEX[kind], "-C", "o", "-s", str(len(der)), "-a", attributes)
    tpm.tool("tpm2_nvwrite", EK_INDEX[kind], "-C", "o", "-i", path)


def certificate_of(public):
    """A certificate for any P-256 key."""
    signer = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "maker")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(public)
    begin = datetime.now(UTC)
    builder = builder.not_valid_before(begin).not_valid_after(begin + timedelta(days=1)).serial_number(1)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_makers_certificate_is_returned_only_by_the_tpm_it_was_made_for(tmp_path, swtpm):
    with running(manufacture(tmp_path / "made", certificates=True)) as made, made.tss() as tss:
        endorsement = tss.endorsement(EkKind.RSA_2048)
        assert tss.endorsement(EkKind.P_256).certificate is None
    certificate = x509.load_der_x509_certificate(endorsement.certificate)
    issuer = x509.load_pem_x509_certificate((tmp_path / "made/ca/cert.pem").read_bytes())
    certificate.verify_directly_issued_by(issuer)
    modulus = parse_public(endorsement.public).unique[0]
    assert certificate.public_key().public_numbers().n == int.from_bytes(modulus, "big")

    with swtpm.tss() as tss:
        assert tss.endorsement(EkKind.RSA_2048).certificate is None
    store(swtpm, EkKind.RSA_2048, endorsement.certificate)
    with swtpm.tss() as tss, pytest.raises(TpmError, match="holds another key") as caught:
        tss.endorsement(EkKind.RSA_2048)
    assert caught.value.code == "tpm-ek-certificate"


@pytest.mark.parametrize(
    ("case", "text"), [("good", None), ("another", "holds another key"), ("rubbish", "cannot be read")]
)
def test_a_p256_certificate_is_held_against_the_key_too(swtpm, case, text):
    with swtpm.tss() as tss:
        x, y = (
            int.from_bytes(part, "big") for part in parse_public(tss.endorsement(EkKind.P_256).public).unique
        )
    mine = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    key = ec.generate_private_key(ec.SECP256R1()).public_key() if case == "another" else mine
    der = certificate_of(key)
    # Makers leave room behind a certificate.
    store(swtpm, EkKind.P_256, der[:-9] if case == "rubbish" else der + b"\xff" * 40)
    with swtpm.tss() as tss:
        if text is None:
            assert tss.endorsement(EkKind.P_256).certificate == der
        else:
            with pytest.raises(TpmError, match=text):
                tss.endorsement(EkKind.P_256)


def test_a_tpm_that_cannot_be_used_is_named_with_what_to_do(swtpm, capfd):
    swtpm.tool("tpm2_changeauth", "-c", "endorsement", "secret")
    with swtpm.tss() as tss, pytest.raises(TpmError, match=r"make the attestation key.*password") as caught:
        tss.create_ak()
    assert "clear theirs" in caught.value.hint
    with pytest.raises(TpmTransportError, match="cannot reach a TPM by 'nonsense:x'") as caught:
        Tss("nonsense:x")
    assert (caught.value.code, "device:/dev/tpmrm0" in caught.value.hint) == ("tpm-open", True)
    tss = swtpm.tss()
    swtpm.kill()
    with pytest.raises(TpmTransportError, match="read the TPM's clock: the way to the TPM failed"):
        tss.clock()
    tss.close()
    with pytest.raises(TpmTransportError, match="cannot reach a TPM by 'swtpm:path=") as caught:
        swtpm.tss()
    assert "swtpm runs" in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_a_tpm_before_startup_says_so(swtpm):
    swtpm.stop()
    swtpm.start(startup=False)
    with swtpm.tss() as tss:
        with pytest.raises(TpmError, match="was not started") as caught:
            tss.clock()
        assert caught.value.code == "tpm-not-started"
        tss.startup()
        tss.startup()
        assert tss.clock().restart == 0


def test_importing_the_module_loads_no_tpm_library(repository):
    code = "import sys, secrun_attest.collect, secrun_attest.quotefiles; print('tpm2_pytss' in sys.modules)"
    done = subprocess.run(
        [repository / ".venv/bin/python", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
