"""The second boot is shut down in order while a pod runs: its audit log is closed; the third exports it."""

import json
import re
import time
from pathlib import Path

from vmhost.kit import (
    AUDIT,
    IDLE,
    LAYOUT,
    RELAXED,
    after_the_power_cut,
    after_the_shutdown,
    attest_status,
    eventually,
    note,
    noted,
    secrun,
    status,
    tool,
)
from vmhost.selinuxchecks import unexpected

BUNDLE, KEY = Path("/srv/audit.tar"), Path("/srv/audit.pem")


@after_the_power_cut
def a_pod_runs_when_the_host_is_shut_down() -> None:
    assert (
        tool("systemctl", "is-active", "secrun-audit.service", "secrun-gc.timer").split() == ["active"] * 2
    )
    # Not in the control group of the service that these checks are: systemd ends what is left of it.
    uuid = tool(
        "systemd-run", "--scope", "--quiet", "secrun", "run", "-d", *RELAXED, LAYOUT, "--", *IDLE
    ).strip()
    eventually(lambda: secrun("logs", uuid) == "up\n", "the first line of the log")
    said = {"pod": uuid, "epoch": attest_status()["epoch"], "time": time.time()}
    noted("shutdown", json.dumps(said))


@after_the_shutdown
def the_pod_was_ended_in_order_and_the_host_is_well() -> None:
    before = json.loads(note("shutdown"))
    assert status(before["pod"])["state"] == "exited"
    assert status(before["pod"])["exit_code"] == 0, status(before["pod"])
    assert attest_status()["epoch"] != before["epoch"]
    assert tool("systemctl", "--failed", "--no-legend", "--plain") == ""


@after_the_shutdown
def the_epoch_was_closed_by_the_shutdown_and_is_exported() -> str:
    """Only the power cut has left an epoch that nobody closed."""
    before = json.loads(note("shutdown"))
    KEY.write_text(secrun("audit", "key"))
    secrun("audit", "export", "--out", BUNDLE)
    verify = ("audit", "verify", "--key", KEY)
    refused = secrun(*verify, BUNDLE, code=121)
    assert "not-closed" in refused, refused
    said = json.loads(secrun(*verify, "--accept=not-closed", "--format=json", BUNDLE))
    (bundle,) = said["bundles"]
    findings = [item for item in bundle["findings"] if item["fault"] == "not-closed"]
    said_then = tool("journalctl", "--boot=-1", "--unit=secrun-audit.service", "--no-pager", code=None)
    assert len(findings) == 1, f"{bundle['findings']}\n{said_then}"
    assert before["epoch"] not in json.dumps(findings)
    rows = secrun("audit", "export", "--format=jsonl").splitlines()
    ours = [row["event"] for row in map(json.loads, rows) if row.get("pod") == before["pod"]]
    assert ours[-1] == "PodExit", ours
    return json.dumps(findings)


@after_the_shutdown
def neither_shutdown_nor_boot_gave_a_denial() -> None:
    since = json.loads(note("shutdown"))["time"]
    lines = [line for line in AUDIT.read_text(errors="replace").splitlines() if "avc:  denied" in line]
    found = [
        line for line in lines if (at := re.search(r"audit\((\d+\.\d+)", line)) and float(at[1]) > since
    ]
    left = unexpected(found)
    assert not left, "\n".join(left)
