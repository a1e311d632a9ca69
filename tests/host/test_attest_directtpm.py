"""Whatever a TPM answers, the client tells what was refused from what nobody knows."""

import itertools
import struct
import threading
from contextlib import ExitStack, closing

import pytest

from secrun_attest import directtpm
from secrun_attest.directtpm import DirectTpm
from secrun_attest.errors import TpmError, TpmTransportError
from secrun_attest.record import Bank, digests
from secrun_attest.replay import zeros
from secrun_attest.tpmcommands import describe
from support.tpmreplies import EXTENDED, ScriptedTpm, banks, clock, reply, selection, values

PCR = 15
RETRY, YIELDED, TESTING, NV_RATE = 0x922, 0x908, 0x90A, 0x920
GIVEN = digests(Bank, b"an event")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(directtpm, "_FIRST_PAUSE", 0)


@pytest.fixture
def scripted(tmp_path):
    """Start a TPM that gives these answers; return it and a client."""
    with ExitStack() as stack:

        def start(*answers, seconds=10):
            tpm = stack.enter_context(ScriptedTpm(tmp_path, answers))
            return tpm, stack.enter_context(closing(DirectTpm(tpm.tcti, seconds=seconds)))

        yield start


def test_counters_and_values_are_those_of_the_answers(scripted):
    first, second = zeros(Bank), {bank: bytes([7]) * len(value) for bank, value in zeros(Bank).items()}
    answers = map(reply, (clock(reset=9, restart=2, safe=0, now=5), banks(), values(first), values(second)))
    tpm, client = scripted(*answers)
    found = client.clock()
    assert (found.reset, found.restart, found.safe, found.clock) == (9, 2, False, 5)
    assert client.read_pcr(PCR) == first
    assert client.read_pcr(PCR) == second
    # The banks are asked for once per connection.
    assert [command[6:10].hex() for command in tpm.asked] == ["00000181", "0000017a", "0000017e", "0000017e"]


def test_an_extend_is_one_command_with_a_digest_per_bank(scripted):
    tpm, client = scripted(EXTENDED)
    client.extend(PCR, GIVEN)
    (command,) = tpm.asked
    listed = b"".join(
        struct.pack(">H", alg) + GIVEN[bank] for alg, bank in zip((4, 11, 12, 13), Bank, strict=True)
    )
    handle, session = struct.pack(">I", PCR), struct.pack(">IIHBH", 9, 0x40000009, 0, 1, 0)
    assert command[10:] == handle + session + struct.pack(">I", 4) + listed
    assert command[:10] == struct.pack(">HII", 0x8002, len(command), 0x182)


@pytest.mark.parametrize("code", [RETRY, YIELDED, TESTING, NV_RATE])
def test_a_tpm_that_is_busy_is_asked_again(scripted, code):
    tpm, client = scripted(reply(code=code), reply(code=code), EXTENDED)
    client.extend(PCR, GIVEN)
    assert len(tpm.asked) == 3
    assert len(set(tpm.asked)) == 1


def test_a_tpm_that_stays_busy_has_refused(tmp_path):
    with (
        ScriptedTpm(tmp_path, itertools.repeat(reply(code=RETRY))) as tpm,
        closing(DirectTpm(tpm.tcti)) as client,
    ):
        with pytest.raises(TpmError, match="RETRY"):
            client.extend(PCR, GIVEN)
        assert 1 < len(tpm.asked) < 20


def test_another_refusal_is_final(scripted):
    tpm, client = scripted(reply(code=0x921), EXTENDED)
    with pytest.raises(TpmError, match="LOCKOUT"):
        client.extend(PCR, GIVEN)
    assert len(tpm.asked) == 1
    client.extend(PCR, GIVEN)


def test_failure_mode_says_nothing_about_the_command(scripted):
    _, client = scripted(reply(code=0x101))
    with pytest.raises(TpmTransportError, match="failure mode"):
        client.extend(PCR, GIVEN)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        EXTENDED[:9],
        EXTENDED[:-1],
        EXTENDED[:10],
        reply(tag=0x8001),
        reply(tag=0x8002),
        reply(b"\0\0\0\1x\0\0\1\0\0", tag=0x8002),
        reply(b"\0\0\0\0\0\0\0\0\0", tag=0x8002),
        reply(b"\0\0\0\0\0\0\1\0\0\0", tag=0x8002),
        reply(b"\0\0\0\0\0\1x\1\0\0", tag=0x8002),
        reply(b"\xff\xff\xff\xff\0\0\1\0\0", tag=0x8002),
        reply(code=RETRY, tag=0x8002),
        reply(b"more", code=RETRY),
        struct.pack(">HII", 0x8002, 9, 0),
        struct.pack(">HII", 0x8002, 2**32 - 1, 0),
    ],
)
def test_an_answer_that_is_none_leaves_the_extend_unknown_and_ends_the_connection(scripted, answer):
    _, client = scripted(answer, seconds=0.3)
    with pytest.raises(TpmTransportError, match="PCR_Extend"):
        client.extend(PCR, GIVEN)
    assert client._line is None


@pytest.mark.parametrize(
    "answer",
    [
        clock()[:-1],
        clock() + b"\0",
        clock(safe=2),
    ],
)
def test_a_clock_that_is_none_is_refused(scripted, answer):
    _, client = scripted(reply(answer))
    with pytest.raises(TpmTransportError, match="ReadClock"):
        client.clock()


@pytest.mark.parametrize(
    "answer",
    [
        banks(more=1),
        banks(more=2),
        banks(capability=6),
        banks(Bank.SHA1, Bank.SHA1),
        banks()[:-1],
        banks() + b"\0",
        struct.pack(">BII", 0, 5, 17) + bytes(200),
        struct.pack(">BIIHB", 0, 5, 1, 4, 5) + bytes(5),
    ],
)
def test_an_allocation_that_is_none_is_refused(scripted, answer):
    _, client = scripted(reply(answer))
    with pytest.raises(TpmTransportError, match="GetCapability"):
        client.read_pcr(PCR)


@pytest.mark.parametrize("which", [(0x12, Bank.SHA256), (0x12,)])
def test_a_bank_that_nobody_here_can_extend_is_refused(scripted, which):
    _, client = scripted(reply(banks(*which)))
    with pytest.raises(TpmError, match="0x0012") as caught:
        client.read_pcr(PCR)
    assert caught.value.code == "tpm-banks"
    assert "tpm2_pcrallocate" in caught.value.hint


def test_a_pcr_that_no_bank_has_is_refused(scripted):
    _, client = scripted(reply(struct.pack(">BI", 0, 5) + selection((Bank.SHA256,), pcr=14)))
    with pytest.raises(TpmError, match="no bank"):
        client.read_pcr(PCR)


TWO = zeros([Bank.SHA1, Bank.SHA256])


@pytest.mark.parametrize(
    "answer",
    [
        values(zeros([Bank.SHA1])),
        values(zeros([Bank.SHA256, Bank.SHA1])),
        values(zeros(Bank)),
        values(TWO, selected=selection(tuple(TWO), pcr=14)),
        values({Bank.SHA1: bytes(20), Bank.SHA256: bytes(31)}),
        values({Bank.SHA1: bytes(20), Bank.SHA256: b""}),
        values(TWO)[:-1],
        values(TWO) + b"\0",
        struct.pack(">I", 5) + selection(tuple(TWO)) + struct.pack(">I", 0),
    ],
)
def test_values_of_something_else_are_refused(scripted, answer):
    _, client = scripted(reply(banks(*TWO)), reply(answer))
    with pytest.raises(TpmTransportError, match="PCR_Read"):
        client.read_pcr(PCR)


def test_an_answer_that_drips_does_not_prolong_the_wait(scripted):
    ended = threading.Event()

    def drip(line):
        line.sendall(struct.pack(">HII", 0x8002, 2048, 0))
        while not ended.wait(0.05):
            line.sendall(b"\0")

    _, client = scripted(drip, seconds=0.3)
    try:
        with pytest.raises(TpmTransportError, match="no answer within"):
            client.extend(PCR, GIVEN)
    finally:
        ended.set()


def test_an_interrupt_ends_the_connection(scripted, monkeypatch):
    """Its answer would be taken for that of the next command."""
    _, client = scripted(EXTENDED, reply(clock(reset=8)))
    client._connected()
    with monkeypatch.context() as patch:

        def interrupt(*_):
            raise KeyboardInterrupt

        patch.setattr(directtpm._Socket, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.extend(PCR, GIVEN)
    assert client.clock().reset == 8


@pytest.mark.parametrize(
    "tcti", ["", "device", "device:tpmrm0", "swtpm:/socket", "swtpm:path=", "swtpm:path=socket", "mssim:x"]
)
def test_a_tcti_of_another_kind_is_refused_at_once(tcti):
    with pytest.raises(TpmError) as caught:
        DirectTpm(tcti)
    assert caught.value.code == "tpm-tcti"


@pytest.mark.parametrize("name", ["absent", "file"])
def test_a_device_that_is_none_is_not_written_to(tmp_path, name):
    (tmp_path / "file").write_bytes(b"whole")
    with pytest.raises(TpmTransportError, match=r"No such file|not a character device"):
        DirectTpm(f"device:{tmp_path / name}").clock()
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0x922, "TPM_RC RETRY (0x922)"),
        (0x184, "TPM_RC VALUE of handle 1 (0x184)"),
        (0x1C4, "TPM_RC VALUE of parameter 1 (0x1c4)"),
        (0x9A2, "TPM_RC BAD_AUTH of session 1 (0x9a2)"),
        (0x084, "TPM_RC VALUE (0x84)"),
        (0xB0143, "TPM_RC COMMAND_CODE of the kernel's resource manager (0xb0143)"),
        (0x1FF, "TPM_RC an error of parameter 1 (0x1ff)"),
        (0x500, "TPM_RC an error (0x500)"),
    ],
)
def test_a_response_code_is_said_in_words(code, text):
    assert describe(code) == text
