"""Doubles of a TPM with real PCR arithmetic: one in memory, one in a file that outlives its process."""

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from secrun_attest import checkpoint
from secrun_attest.errors import TpmError, TpmTransportError
from secrun_attest.logfile import EventLog
from secrun_attest.record import Bank, Epoch, Event, Operation, parse_event_data
from secrun_attest.replay import replay, zeros
from secrun_attest.tpm import TpmClock
from support.waiting import wait_until

PCR = 15
BOOT_ID = "6c1f2a5e-0d57-4a0e-9b1e-3f5a7c9d1e2b"
EPOCH = Epoch(reset=7, restart=0, boot_id=BOOT_ID)
SIZES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}


def event(seq=0, operation=Operation.POD_START, epoch=EPOCH, **fields):
    return Event(operation=operation, seq=seq, epoch=epoch, t=1_700_000_000_000, fields=fields)


def open_log(folder, tpm, **words):
    """Return the log as a new process opens it."""
    words = {"opening": {"runtime": "1.0"}, "boot_id": lambda: BOOT_ID, "now": lambda: 5} | words
    return EventLog(folder / "measure", tpm, PCR, **words)


def operations(records):
    return [parse_event_data(record.event_data).operation.value for record in records]


def agrees(records, tpm):
    return replay(records, zeros(tpm.banks)) == tpm.read_pcr_quietly(PCR)


def the_file(folder, suffix="cel"):
    (found,) = (folder / "measure").glob(f"*.{suffix}")
    return found


def write_later(path, data):
    """Write a file so that its time of change is another, however coarse the kernel's clock is."""
    before = path.stat().st_ctime_ns
    wait_until(lambda: path.write_bytes(data) and path.stat().st_ctime_ns != before)


class Killed(BaseException):
    """Stands for the end of the process at an instant."""


def append_killed_at(log, point):
    def hook(name):
        if name == point:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "hook", hook)
        with pytest.raises(Killed):
            log.append(Operation.POD_START, {})


class FakeTpm:
    """A TPM in memory. The next extend raises `fail`, having happened unless `lost`."""

    def __init__(self, banks=tuple(Bank), reset=7):
        self.values: dict[tuple[int, Bank], bytes] = {}
        self.banks = banks
        self.reset, self.restart, self.safe = reset, 0, True
        self.fail: Exception | None = None
        self.lost = False
        self.unreadable = 0
        self.extends = 0
        self.reads = 0

    def clock(self) -> TpmClock:
        return TpmClock(reset=self.reset, restart=self.restart, safe=self.safe, clock=1000)

    def read_pcr(self, pcr: int) -> dict[Bank, bytes]:
        self.reads += 1
        if self.unreadable and self.extends:
            self.unreadable -= 1
            raise TpmTransportError("no answer")
        return {bank: self.values.get((pcr, bank), bytes(SIZES[bank.value])) for bank in self.banks}

    def extend(self, pcr: int, digests: Mapping[Bank, bytes]) -> None:
        self.extends += 1
        failure, self.fail = self.fail, None
        if isinstance(failure, TpmError) or (failure and self.lost):
            raise failure
        now = self.read_pcr_quietly(pcr)
        assert digests.keys() == now.keys()
        for bank, value in digests.items():
            assert len(value) == SIZES[bank.value]
            self.values[pcr, bank] = hashlib.new(bank.value, now[bank] + value).digest()
        if failure:
            raise failure

    def read_pcr_quietly(self, pcr: int) -> dict[Bank, bytes]:
        return {bank: self.values.get((pcr, bank), bytes(SIZES[bank.value])) for bank in self.banks}

    # The rows of the table of reboots: what each does to the counters and to the PCR.

    def resume(self) -> None:
        self.restart += 1

    def sleep_and_lose(self) -> None:
        self.restart += 1
        self.values.clear()

    def reboot(self) -> None:
        self.reset, self.restart = self.reset + 1, 0
        self.values.clear()

    def power_cut(self) -> None:
        self.reboot()
        self.safe = False


class FileTpm:
    """One PCR in a file. Each extend is one write, so a killed process has extended or has not."""

    LAYOUT = struct.Struct("20s32s48s64s")

    def __init__(self, path: Path):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def clock(self) -> TpmClock:
        return TpmClock(reset=1, restart=0, safe=True, clock=0)

    def read_pcr(self, pcr: int) -> dict[Bank, bytes]:
        data = os.pread(self.fd, self.LAYOUT.size, 0).ljust(self.LAYOUT.size, b"\0")
        return dict(zip(Bank, self.LAYOUT.unpack(data), strict=True))

    def extend(self, pcr: int, digests: Mapping[Bank, bytes]) -> None:
        now = self.read_pcr(pcr)
        new = [hashlib.new(bank.value, now[bank] + digests[bank]).digest() for bank in Bank]
        os.pwrite(self.fd, self.LAYOUT.pack(*new), 0)
