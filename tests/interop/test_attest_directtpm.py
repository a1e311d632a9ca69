"""tpm2-tools as judges of the TPM client that needs no tpm2-tss, on a real software TPM."""

import errno
import os
import pty
import re
import select
import socket
import threading
import tty
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from secrun_attest.directtpm import DirectTpm
from secrun_attest.errors import TpmError, TpmTransportError
from secrun_attest.logfile import EventLog
from secrun_attest.record import DIGEST_SIZES, Bank, Operation, digests
from secrun_attest.replay import extend_all, replay, zeros
from support.eventlog import BOOT_ID
from support.swtpm import Swtpm

PCR = 15


@pytest.fixture
def swtpm(tmp_path) -> Iterator[Swtpm]:
    started = Swtpm(tmp_path / "swtpm")
    started.start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def tpm(swtpm) -> Iterator[DirectTpm]:
    with closing(DirectTpm(swtpm.tcti)) as opened:
        yield opened


def judged(swtpm, pcr=PCR) -> dict[Bank, bytes]:
    """Return what tpm2_pcrread finds."""
    text = swtpm.tool("tpm2_pcrread", "+".join(f"{bank}:{pcr}" for bank in Bank))
    found = re.findall(r"(sha\d+):\n +\d+ *: 0x([0-9A-F]+)", text)
    return {Bank(name): bytes.fromhex(value) for name, value in found}


def test_values_are_those_of_tpm2_pcrread_in_all_banks(swtpm, tpm):
    values = {bank: bytes([number]) * size for number, (bank, size) in enumerate(DIGEST_SIZES.items())}
    words = ",".join(f"{bank}={value.hex()}" for bank, value in values.items())
    for pcr in (0, 8, 15, 23):
        swtpm.tool("tpm2_pcrextend", f"{pcr}:{words}")
        read = tpm.read_pcr(pcr)
        tpm.close()
        assert read == judged(swtpm, pcr) == extend_all(zeros(Bank), values)


def test_an_extend_is_that_of_tpm2_pcrextend_in_all_banks(swtpm, tpm):
    before = tpm.read_pcr(PCR)
    given = digests(Bank, b"an event")
    tpm.extend(PCR, given)
    tpm.close()
    assert judged(swtpm) == extend_all(before, given)
    assert judged(swtpm, PCR - 1) == before


def test_the_clock_is_that_of_tpm2_readclock_over_boots(swtpm, tpm):
    found = []
    for end in (swtpm.stop, swtpm.kill, swtpm.stop):
        clock = tpm.clock()
        tpm.close()
        text = swtpm.tool("tpm2_readclock")
        number = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", text)}
        assert (clock.reset, clock.restart) == (number["reset_count"], number["restart_count"])
        assert clock.safe is ("safe: yes" in text)
        assert 0 <= number["clock"] - clock.clock < 10_000
        found.append(clock)
        end()
        swtpm.start()
    assert [clock.reset - found[0].reset for clock in found] == [0, 1, 2]
    assert not found[2].safe  # the end before it was a power cut


def test_a_bank_that_is_not_allocated_is_neither_read_nor_extended(swtpm, tpm):
    swtpm.tool("tpm2_pcrallocate", "sha256:all+sha1:none+sha384:none+sha512:none")
    swtpm.stop()
    swtpm.start()
    assert tpm.read_pcr(PCR) == zeros([Bank.SHA256])
    tpm.extend(PCR, digests([Bank.SHA256], b"an event"))
    tpm.close()
    assert judged(swtpm) == extend_all(zeros([Bank.SHA256]), digests([Bank.SHA256], b"an event"))


def test_what_the_tpm_refuses_did_not_happen(swtpm, tpm):
    before = tpm.read_pcr(17)
    with pytest.raises(TpmError, match=r"PCR_Extend: TPM_RC LOCALITY \(0x907\)"):
        tpm.extend(17, digests(Bank, b"an event"))
    with pytest.raises(TpmError, match=r"PCR_Extend: TPM_RC VALUE of handle 1 \(0x184\)"):
        tpm.extend(24, digests(Bank, b"an event"))
    assert tpm.read_pcr(17) == before == {bank: b"\xff" * size for bank, size in DIGEST_SIZES.items()}


def test_a_killed_tpm_is_a_lost_connection_and_the_next_one_is_used(swtpm, tpm):
    first = tpm.clock()
    swtpm.kill()
    with pytest.raises(TpmTransportError):
        tpm.extend(PCR, digests(Bank, b"an event"))
    with pytest.raises(TpmTransportError, match=r"No such file|refused"):
        tpm.clock()
    swtpm.start()
    assert tpm.clock().reset == first.reset + 1


def test_what_waits_behind_a_neighbour_is_never_done_late(swtpm):
    with socket.socket(socket.AF_UNIX) as neighbour:
        neighbour.connect(str(swtpm.socket))
        waiting = DirectTpm(swtpm.tcti, seconds=0.2)
        with pytest.raises(TpmTransportError, match=r"no answer within 0\.2 s"):
            waiting.extend(PCR, digests(Bank, b"an event"))
    assert judged(swtpm) == zeros(Bank)


def test_a_client_waits_its_turn_behind_many(swtpm):
    with ExitStack() as stack:
        for _ in range(100):
            neighbour = stack.enter_context(socket.socket(socket.AF_UNIX))
            neighbour.setblocking(False)
            if neighbour.connect_ex(str(swtpm.socket)) == errno.EAGAIN:
                break
        else:
            pytest.fail("swtpm's backlog has no end")
        waiting = DirectTpm(swtpm.tcti, seconds=0.2)
        with pytest.raises(TpmTransportError, match=r"no answer within 0\.2 s"):
            waiting.clock()
        patient = closing(DirectTpm(swtpm.tcti, seconds=20))
        with ThreadPoolExecutor(1) as pool, patient as tpm:
            answer = pool.submit(tpm.clock)
            stack.close()
            assert answer.result(20).safe


def test_a_closed_client_lets_others_in(swtpm, tpm):
    for number in range(3):
        tpm.extend(PCR, digests(Bank, b"%d" % number))
        tpm.close()
        assert judged(swtpm) != zeros(Bank)


@pytest.fixture
def device(swtpm) -> Iterator[str]:
    """A character device that behaves as /dev/tpmrm0 does: one write, one command, one reply, one read."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    ended, end = os.pipe()

    def forward() -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(swtpm.socket))
            while master in select.select([master, ended], [], [])[0]:
                line.sendall(os.read(master, 4096))
                os.write(master, line.recv(4096))

    thread = threading.Thread(target=forward)
    thread.start()
    try:
        yield f"device:{os.ttyname(slave)}"
    finally:
        os.close(end)
        thread.join(60)
        for fd in (ended, master, slave):
            os.close(fd)


def test_a_device_is_spoken_to_in_whole_commands(device):
    given = digests(Bank, b"an event")
    with closing(DirectTpm(device)) as tpm:
        assert tpm.clock().safe
        tpm.extend(PCR, given)
        assert tpm.read_pcr(PCR) == extend_all(zeros(Bank), given)


def test_an_event_log_over_it_replays_to_what_tpm2_pcrread_finds(swtpm, tpm, tmp_path):
    log = EventLog(tmp_path / "measure", tpm, PCR, opening={}, boot_id=lambda: BOOT_ID)
    for number in range(5):
        log.append(Operation.POD_START, {"number": number})
    records = log.records()
    tpm.close()
    assert len(records) == 6
    assert replay(records, zeros(Bank)) == judged(swtpm)
