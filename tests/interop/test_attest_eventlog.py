"""tpm2_eventlog and a software TPM as judges of the exported log and of our PCR arithmetic."""

import re
import subprocess

import pytest

from secrun_attest.exports import LogFormat, export
from secrun_attest.logfile import EventLog
from secrun_attest.record import Bank, Operation
from secrun_attest.replay import replay, zeros
from support.attested import ShortTpm
from support.eventlog import BOOT_ID, FakeTpm

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


def test_a_software_tpm_holds_our_values_and_accepts_our_log(tmp_path, swtpm):
    records = filled(tmp_path, ShortTpm(swtpm.tcti))
    text = swtpm.tool("tpm2_pcrread", "+".join(f"{bank}:{PCR}" for bank in Bank))
    found = re.findall(r"(sha\d+):\n +\d+ *: 0x([0-9A-F]+)", text)
    real = {Bank(name): bytes.fromhex(value) for name, value in found}
    assert set(real) == set(Bank)
    assert replay(records, zeros(Bank)) == real
    assert judged(tmp_path, records, tuple(Bank))[1] == real
