"""tpm2_eventlog and a software TPM as judges of the exported log and of our PCR arithmetic."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun_attest.exports import LogFormat, export
from secrun_attest.logfile import EventLog
from secrun_attest.record import Bank, Operation
from secrun_attest.replay import replay, zeros
from secrun_attest.tpm import TpmClock
from support.eventlog import BOOT_ID, FakeTpm
from support.waiting import wait_until

PCR = 15
WORK = (
    (Operation.IMAGE_ADMIT, {"image": "sha256:" + "ab" * 32}),
    (Operation.POD_PREPARE, {"pod": "p", "name": 'Zoë: "quoted"\n'}),
    (Operation.POD_START, {"pod": "p"}),
    (Operation.POD_EXIT, {"pod": "p", "status": 0}),
)


def filled(folder, tpm):
    log = EventLog(folder / "measure", tpm, PCR, opening={"runtime": "1.0"}, boot_id=lambda: BOOT_ID)
    for operation, fields in WORK:
        log.append(operation, fields)
    return log.records()


def judged(folder, records, banks):
    """Return what tpm2_eventlog makes of the exported log: its events and the PCR in each bank."""
    path = folder / "log.bin"
    path.write_bytes(export(records, LogFormat.TCG, banks))
    done = subprocess.run(["tpm2_eventlog", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    text = done.stdout
    values = {
        bank: bytes.fromhex(found[1])
        for bank in Bank
        if (found := re.search(rf"^  {bank}:\n    {PCR} *: 0x([0-9a-f]+)$", text, re.MULTILINE))
    }
    return text, values


@pytest.mark.parametrize("banks", [tuple(Bank), (Bank.SHA256,), (Bank.SHA1, Bank.SHA384)])
def test_tpm2_eventlog_computes_our_values(tmp_path, banks):
    records = filled(tmp_path, FakeTpm(banks=banks))
    text, values = judged(tmp_path, records, banks)
    assert text.count("EventType: EV_EVENT_TAG") == len(WORK) + 1
    assert values == replay(records, zeros(banks))


class SwTpm:
    """swtpm driven by tpm2-tools."""

    def __init__(self, folder: Path):
        self.tcti = f"swtpm:path={folder / 'socket'}"

    def tool(self, *words: str) -> str:
        environment = os.environ | {"TPM2TOOLS_TCTI": self.tcti, "TSS2_LOG": "all+none"}
        return subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout

    def clock(self) -> TpmClock:
        text = self.tool("tpm2_readclock")
        number = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", text)}
        return TpmClock(
            reset=number["reset_count"],
            restart=number["restart_count"],
            safe="safe: yes" in text,
            clock=number["clock"],
        )

    def read_pcr(self, pcr: int) -> dict[Bank, bytes]:
        text = self.tool("tpm2_pcrread", "+".join(f"{bank}:{pcr}" for bank in Bank))
        found = re.findall(r"(sha\d+):\n +\d+ *: 0x([0-9A-F]+)", text)
        return {Bank(name): bytes.fromhex(value) for name, value in found}

    def extend(self, pcr: int, digests) -> None:
        words = ",".join(f"{bank}={value.hex()}" for bank, value in digests.items())
        self.tool("tpm2_pcrextend", f"{pcr}:{words}")


@pytest.fixture
def swtpm(tmp_path) -> Iterator[SwTpm]:
    folder = tmp_path / "swtpm"
    folder.mkdir()
    setup = ["swtpm_setup", "--tpm2", "--tpmstate", folder, "--pcr-banks", ",".join(Bank), "--not-overwrite"]
    subprocess.run(setup, capture_output=True, check=True)
    words = ["--tpm2", "--tpmstate", f"dir={folder}", "--flags", "startup-clear"]
    sockets = [
        "--server",
        f"type=unixio,path={folder}/socket",
        "--ctrl",
        f"type=unixio,path={folder}/socket.ctrl",
    ]
    with subprocess.Popen(["swtpm", "socket", *words, *sockets]) as process:
        wait_until((folder / "socket").exists)
        try:
            yield SwTpm(folder)
        finally:
            process.terminate()


def test_a_software_tpm_holds_our_values_and_accepts_our_log(tmp_path, swtpm):
    records = filled(tmp_path, swtpm)
    real = swtpm.read_pcr(PCR)
    assert set(real) == set(Bank)
    assert replay(records, zeros(Bank)) == real
    assert judged(tmp_path, records, tuple(Bank))[1] == real
