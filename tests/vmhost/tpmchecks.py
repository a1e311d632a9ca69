"""Measured pods on a host with a TPM of the kernel's, and the judges of what is measured there.

The TPM is a swtpm outside of the machine: to this kernel it is a chip, but it says who made it.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

from secrun_attest.record import Bank
from secrun_attest.tss import Tss
from vmhost.kit import (
    IDLE,
    LAYOUT,
    RELAXED,
    attest_status,
    check,
    commands,
    events,
    eventually,
    from_outside,
    hand_out,
    life,
    nothing_remains,
    run,
    secrun,
    started_service,
    status,
    tool,
)

DEVICE = "device:/dev/tpmrm0"
PCR = 15
FIRMWARE_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
FIRMWARE_PCRS = range(8)
# A root of its own, whose TPM is a program that secrun starts.
OWN = (Path("/var/lib/own"), Path("/run/own"))
OWN_ROOT = (f"--root={OWN[0]}", f"--run-root={OWN[1]}")


def pcr_values(text: str) -> dict[tuple[str, int], str]:
    """Read PCR values as tpm2-tools print them: a bank, below it a line for each PCR."""
    values, bank = {}, ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"\s*(sha\d+):\s*", line):
            bank = heading[1]
        elif value := re.fullmatch(r"\s*(\d+)\s*:\s*0x([0-9A-Fa-f]+)\s*", line):
            values[bank, int(value[1])] = value[2].lower()
    return values


def held(*pcrs: int) -> dict[tuple[str, int], str]:
    """Ask the TPM, by a program that is not secrun's, in every bank."""
    numbers = ",".join(map(str, pcrs))
    return pcr_values(tool("tpm2_pcrread", "-T", DEVICE, "+".join(f"{bank}:{numbers}" for bank in Bank)))


@check
def the_kernels_tpm_is_pinned() -> str:
    shown = json.loads(secrun("attest", "init", "--format=json"))
    assert (shown["tcti"], shown["pcr"]) == (DEVICE, PCR)
    # Its place is hardware's, but its maker says IBM, as every swtpm does: that makes it a program.
    assert (shown["tpm"], shown["manufacturer"]) == ("software", "IBM")
    assert shown["ek_certificate"] is True
    assert "swtpm" not in set(commands())
    return json.dumps(shown)


@check
def a_pods_life_is_measured() -> str:
    uuid = secrun("run", "-d", *RELAXED, LAYOUT, "--", *IDLE).strip()
    secrun("enter", uuid, "--", "true")
    secrun("stop", uuid)
    eventually(lambda: status(uuid)["state"] == "exited", "the end of the pod")
    secrun("rm", uuid)
    assert life(uuid) == ["PodPrepare", "PodStart", "PodExec", "PodExit", "PodGC"]
    names = [operation for operation, _ in events()]
    assert names[:3] == ["LogOpen", "ImageAdmit", "PodPrepare"]
    assert not {"Unmeasured", "RuntimeUpgrade"} & set(names)
    return " ".join(names)


@check
def the_log_gives_what_the_tpm_holds_in_every_bank() -> str:
    log = Path("/run/log.tcg")
    with log.open("wb") as out:
        subprocess.run(["secrun", "attest", "log", "--format=tcg"], check=True, stdout=out)
    replayed = pcr_values(tool("tpm2_eventlog", log))
    found = held(PCR)
    assert {bank for bank, _ in found} == set(Bank)
    assert {key: replayed[key] for key in found} == found
    assert all(int(value, 16) for value in found.values())
    return f"{found}"


@check
def the_firmware_log_gives_what_the_tpm_holds() -> str:
    replayed = pcr_values(tool("tpm2_eventlog", FIRMWARE_LOG))
    found = held(*FIRMWARE_PCRS)
    assert {key: value for key, value in replayed.items() if key[1] in FIRMWARE_PCRS} == found
    return f"{len(FIRMWARE_LOG.read_bytes())} bytes"


@check
def a_pod_starts_while_another_program_keeps_a_key_in_the_tpm() -> None:
    """A software TPM's socket would be taken; behind the kernel's resource manager nobody waits."""
    with Tss(DEVICE) as tss:
        tss.create_ak()
        assert run("echo", "started") == "started\n"
        tss.quote(bytes(32), Bank.SHA256, [PCR])


def quotes_amid_pods() -> list[int]:
    """Run two pods, quote until both have ended; return the quotes' counts of records between those."""
    begin, counts = attest_status()["records"], []
    pods = [subprocess.Popen(["secrun", "run", "--rm", *RELAXED, LAYOUT, "--", "true"]) for _ in range(2)]
    while any(pod.poll() is None for pod in pods):
        counts.append(json.loads(secrun("attest", "evidence", "--nonce", "ab" * 32))["header"]["log_count"])
    assert [pod.wait() for pod in pods] == [0, 0]
    assert counts == sorted(counts)
    end = attest_status()["records"]
    assert end == begin + 8
    return [count for count in counts if begin < count < end]


@check
def quotes_are_taken_while_pods_start_and_end() -> None:
    eventually(quotes_amid_pods, "a quote between the first and the last event of two pods")


@check
def evidence_is_given_to_a_verifier() -> None:
    uuid = secrun("run", "-d", *RELAXED, LAYOUT, "--", *IDLE).strip()
    hand_out("evidence.json", secrun("attest", "evidence", "--nonce", from_outside("nonce")))
    secrun("stop", uuid)
    secrun("rm", uuid)
    nothing_remains()
    words = ("attest", "predict", "--format=json", "--insecure-options=image")
    hand_out("prediction.json", secrun(*words, LAYOUT))
    hand_out("status.json", json.dumps(attest_status()))


@check
def a_software_tpm_outlives_the_service_that_starts_it() -> str:
    # A root takes the kernel's TPM where there is one; a service without devices sees none.
    init = ("systemd-run", "--pipe", "--wait", "--quiet", "--property=PrivateDevices=yes", "secrun")
    shown = json.loads(tool(*init, *OWN_ROOT, "attest", "init", "--format=json"))
    assert shown["tcti"] == "software TPM of this root"
    assert "swtpm" in set(commands())
    secrun(*OWN_ROOT, "attest", "stop")
    secrun(*OWN_ROOT, "fetch", "--insecure-options=image", LAYOUT)
    uuid = started_service("own", "--rm", root=OWN_ROOT)
    before = attest_status(*OWN_ROOT)
    tool("systemctl", "stop", "own")
    eventually(lambda: secrun(*OWN_ROOT, "list", "-q") == "", "the end of the pod")
    after = attest_status(*OWN_ROOT)
    assert after["epoch"] == before["epoch"]
    told = [operation for operation, fields in events(*OWN_ROOT) if fields.get("pod") == uuid]
    assert told == ["PodPrepare", "PodStart", "PodExit", "PodGC"]
    secrun(*OWN_ROOT, "attest", "stop")
    for folder in OWN:
        shutil.rmtree(folder)
    nothing_remains()
    return f"{after}"
