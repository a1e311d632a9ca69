"""What an auditor gets of a host that ran pods over several boots of its TPM, and can check alone."""

import base64
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import load
from support.images import busybox_image
from support.secrun import Secrun, eventually
from support.unprivileged import OrdinaryUser, open_up

SECRET = "hunter2-in-clear"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secrun]:
    """A root of its own: two epochs, the first closed; pods that ended, failed and were entered."""
    base = tmp_path_factory.mktemp("audit")
    busybox_image(base / "layout", "busybox")
    made = Secrun(root=base / "root", run_root=base / "run")
    fetched = made("fetch", "--insecure-options=image", f"oci:{base / 'layout'}:busybox")
    made = dataclasses.replace(made, image=fetched.out.split()[-1])
    relaxed = ("run", "--pull=never", "--insecure-options=image", "--rm")
    # A strict pod's app is held until it was read back; another may end before.
    made(*relaxed, "--profile=strict", made.image, "--env", f"TOKEN={SECRET}", "--", "echo", SECRET)
    made("attest", "stop")
    made(*relaxed, made.image, "--cap-add", "NET_RAW", "--", "sh", "-c", "exit 3", code=3)
    (base / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    made("fetch", "--policy", base / "policy.json", f"oci:{base / 'layout'}:busybox", code=120)
    sleeping = made.detach("sleep", "1000")
    made("enter", sleeping, "--", "echo", SECRET)
    yield made
    made("stop", sleeping, code=None)
    made("gc", "--grace-period=0s", "--expire-prepared=0s")
    made("attest", "stop", "--force")


@pytest.fixture(scope="module")
def bundle(audited: Secrun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("test_bundle")
    audited("audit", "export", "--out", folder / "audit.tar")
    (folder / "host.pem").write_text(audited("audit", "key").out)
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "-C", folder / "unpacked", "-xf", folder / "audit.tar"], check=True)
    return folder


def rows(bundle: Path) -> list[dict]:
    return [json.loads(line) for line in (bundle / "unpacked/trail.jsonl").read_text().splitlines()]


def test_an_ordinary_user_verifies_a_bundle_with_the_public_key(bundle: Path, tmp_path: Path) -> None:
    user = OrdinaryUser(tmp_path / "user")
    open_up(bundle)
    words = ("audit", "verify", "--key", bundle / "host.pem", "--format=json", bundle / "audit.tar")
    verdict = json.loads(user(*words).out)
    assert verdict["accepted"] is True
    (report,) = verdict["bundles"]
    assert (report["epochs"], report["pods"], report["quotes"], report["findings"]) == (2, 3, 2, [])
    assert report["software_tpm"] is True

    spoiled = tmp_path / "user" / "spoiled.tar"
    data = (bundle / "audit.tar").read_bytes()
    spoiled.write_bytes(data.replace(b"NET_RAW".hex().encode(), b"NET_ADM".hex().encode(), 1))
    assert spoiled.read_bytes() != data
    open_up(spoiled)
    refused = user("audit", "verify", "--key", bundle / "host.pem", spoiled, code=121)
    assert "REFUSED record-changed" in refused.out
    assert "evidence-record-changed" in refused.err


def test_the_trail_tells_who_ran_what_and_how_it_ended(audited: Secrun, bundle: Path) -> None:
    found = rows(bundle)
    prepared = next(
        row for row in found if row["event"] == "PodPrepare" and row["epoch"] == found[0]["epoch"]
    )
    assert prepared["images"][0]["reference"].endswith(":busybox")
    assert prepared["outcome"] == "bypassed"
    started = next(row for row in found if row["event"] == "PodStart")
    assert f"uid {os.getuid()}" in started["who"]
    ended = [row for row in found if row["event"] == "PodExit"]
    assert [row["code"] for row in ended] == [0, 3]
    assert [row["event"] for row in found if row["outcome"] == "refused"] == ["Denied"]
    relaxed = next(
        row for row in found if row.get("pod") == ended[1]["pod"] and row["event"] == "PodPrepare"
    )
    assert any("NET_RAW" in word for word in relaxed["relaxations"])
    assert sum(row["event"] == "PodExec" and "uid 0" in row["who"] for row in found) == 1


def test_accounts_say_how_pods_were_confined_and_hold_no_secret(bundle: Path) -> None:
    lines = (bundle / "unpacked/accounts.jsonl").read_bytes().splitlines()
    named = [row for row in rows(bundle) if row.get("account")]
    assert [f"sha256:{hashlib.sha256(line).hexdigest()}" for line in lines] == [
        row["account"] for row in named
    ]
    kept = [(row["event"], json.loads(line)) for row, line in zip(named, lines, strict=True)]
    started = [found for event, found in kept if event == "PodStart"]
    first, second = (found for event, found in kept if event == "PodExit")
    for begun, ended in zip(started, (first, second), strict=False):
        # What is known before the first instruction is the same; how it went is not known yet.
        for name in ("pod", "flavour", "hostname", "stage1", "network", "relaxations", "created", "started"):
            assert begun[name] == ended[name], name
        assert (begun["finished"], begun["code"], begun["apps"][0]["read_back"]) == (None, None, None)
        assert begun["apps"][0]["capabilities"] == ended["apps"][0]["capabilities"]
    (app,) = first["apps"]
    assert app["read_back"]["verdict"] == "held"
    assert "TOKEN" in app["environment"]
    assert (first["network"], app["arguments"], second["code"]) == ("none", 2, 3)
    assert "CAP_NET_RAW" in second["apps"][0]["capabilities"]
    for path in (bundle / "unpacked").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_a_pod_that_still_runs_is_told_of(audited: Secrun, bundle: Path, tmp_path: Path) -> None:
    (sleeping,) = (pod["uuid"] for pod in audited.pods() if pod["state"] == "running")
    begun = next(row for row in rows(bundle) if row["event"] == "PodStart" and row["pod"] == sleeping)
    lines = (bundle / "unpacked/accounts.jsonl").read_bytes().splitlines()
    by_digest = {f"sha256:{hashlib.sha256(line).hexdigest()}": json.loads(line) for line in lines}
    account = by_digest[begun["account"]]
    assert (account["pod"], account["finished"], account["apps"][0]["arguments"]) == (sleeping, None, 2)
    told = json.loads(audited("audit", "report", "--format=json", code=1).out)
    root = next(item for item in told["findings"] if item["id"] == "image-user")
    (shown,) = (item for item in root["evidence"] if item["pod"] == sleeping)
    assert (shown["event"], shown["index"]) == ("PodStart", begun["index"])
    page = tmp_path / "report.html"
    audited("audit", "export", "--format=html", "--out", page)
    (row,) = re.findall(rf'<tr id="pod-{sleeping}">.*?</tr>', page.read_text(), re.DOTALL)
    assert "<td>runs</td>" in row


def test_the_guide_in_a_bundle_works_as_it_is_written(bundle: Path) -> None:
    text = (bundle / "unpacked/VERIFY.md").read_text()
    unpacked = bundle / "unpacked"
    (unpacked / "host.pem").write_text((bundle / "host.pem").read_text())
    commands = [line.strip() for line in text.splitlines() if line.startswith("       ")]
    assert len(commands) == 9
    said = [
        subprocess.run(
            ["bash", "-ec", command], cwd=unpacked, capture_output=True, text=True, check=True
        ).stdout
        for command in commands
    ]
    shown = said[5].split()
    assert shown[1] == shown[2]
    assert "every record" in said[6]
    assert [command.split()[0] for command in commands[7:]] == ["tpm2_checkquote"] * 2


def test_the_trail_alone_comes_as_lines_and_as_a_table(audited: Secrun, bundle: Path) -> None:
    lines = [json.loads(line) for line in audited("audit", "export", "--format=jsonl").out.splitlines()]
    known = rows(bundle)
    assert lines[: len(known)] == known
    table = list(csv.DictReader(io.StringIO(audited("audit", "export", "--format=csv").out)))
    assert [row["event"] for row in table][: len(known)] == [row["event"] for row in known]
    late = audited("audit", "export", "--format=jsonl", "--since=2030-01-01T00:00Z")
    assert late.out == ""


def test_a_later_bundle_goes_on_from_an_earlier_one(audited: Secrun, bundle: Path, tmp_path: Path) -> None:
    audited("run", "--pull=never", "--insecure-options=image", "--rm", audited.image, "--", "true")
    audited("audit", "export", "--out", tmp_path / "later.tar")
    words = ("audit", "verify", "--key", bundle / "host.pem", bundle / "audit.tar", tmp_path / "later.tar")
    assert audited(*words).out.endswith("accepted\n")


def test_a_boot_that_ended_without_a_word_is_found(tmp_path: Path) -> None:
    busybox_image(tmp_path / "layout", "busybox")
    secrun = Secrun(root=tmp_path / "root", run_root=tmp_path / "run")
    image = secrun("fetch", "--insecure-options=image", f"oci:{tmp_path}/layout:busybox").out.split()[-1]
    run = ("run", "--pull=never", "--insecure-options=image", "--rm", image, "--", "true")
    secrun(*run)
    tpm = int((tmp_path / "run/tpm/pid").read_text())
    os.kill(tpm, 9)
    command = Path(f"/proc/{tpm}/cmdline")
    eventually(lambda: not command.exists() or not command.read_bytes(), "the end of the TPM")
    secrun(*run)
    secrun("audit", "export", "--out", tmp_path / "audit.tar")
    (tmp_path / "key").write_text(secrun("audit", "key", "--format=note").out)
    words = ("audit", "verify", "--key", tmp_path / "key", tmp_path / "audit.tar")
    assert "REFUSED not-closed" in secrun(*words, code=121).out
    assert "accepted not-closed" in secrun(*words, "--accept=not-closed").out
    secrun("audit", "close")
    secrun("attest", "stop")


def no_account_without_room(secrun: Secrun, accounts: Path) -> None:
    """A pod does not start if what the audit keeps of it cannot be kept, and the trail says so later."""
    run = ("run", "--pull=never", "--rm", secrun.image, "--", "true")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1,mode=0700", "none", accounts], check=True)
    try:
        refused = secrun(*run, code=125)
    finally:
        subprocess.run(["umount", accounts], check=True)
    assert "its account cannot be kept: No space left" in refused.err
    secrun(*run)
    found = [json.loads(line) for line in secrun("audit", "export", "--format=jsonl").out.splitlines()]
    assert [row["why"] for row in found if row["outcome"] == "refused"][-1].startswith(
        "audit-write: its account"
    )


def test_a_full_disk_under_the_log_refuses_new_pods_and_leaves_those_that_run_alone(tmp_path: Path) -> None:
    busybox_image(tmp_path / "layout", "busybox")
    secrun = Secrun(root=tmp_path / "root", run_root=tmp_path / "run")
    image = secrun("fetch", "--insecure-options=image", f"oci:{tmp_path}/layout:busybox").out.split()[-1]
    secrun = dataclasses.replace(secrun, image=image)
    disk = tmp_path / "root/measure"
    disk.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", disk], check=True)
    try:
        running = secrun.detach("sleep", "1000")
        filler = disk / "filler"
        with filler.open("wb") as stream, contextlib.suppress(OSError):
            while True:
                os.write(stream.fileno(), bytes(4096))
        refused = secrun("run", "--pull=never", "--rm", image, "--", "true", code=125)
        assert "No space left" in refused.err
        assert [pod["state"] for pod in secrun.pods()] == ["running"]
        secrun("stop", running, code=None)
        assert secrun("logs", running).out == ""
        filler.unlink()
        secrun("gc", "--grace-period=0s")
        assert secrun("run", "--pull=never", "--rm", image, "--", "echo", "again").out == "again\n"
        found = [json.loads(line) for line in secrun("audit", "export", "--format=jsonl").out.splitlines()]
        gap = next(row for row in found if row["outcome"] == "refused")
        assert gap["what"].startswith("trail ")
        assert gap["why"].startswith("log-write: cannot write")
        assert next(row["pod"] for row in found if row["event"] == "PodExit") == running
        no_account_without_room(secrun, tmp_path / "root/audit/accounts")
        secrun("attest", "stop")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_the_report_gates_by_its_exit_status(audited: Secrun) -> None:
    told = json.loads(audited("audit", "report", "--format=json", code=1).out)
    verdicts = {item["id"]: item["verdict"] for item in told["findings"]}
    failed = ("image-signed", "image-policy", "image-user", "hardware-tpm", "no-entry", "memory-limit")
    passed = (
        "measured",
        "epochs-closed",
        "not-privileged",
        "seccomp",
        "own-network",
        "capabilities",
    )
    assert [verdicts[name] for name in failed] == ["fail"] * len(failed)
    assert [verdicts[name] for name in passed] == ["pass"] * len(passed)
    table = audited("audit", "report", "--framework=cis-docker", code=1).out
    assert re.search(r"^image-user +fail +(\d)/\1 +4\.1 ", table, re.MULTILINE)
    assert "measured" not in table
    audited("audit", "report", "--since=2030-01-01")


def test_one_record_is_shown_alone(audited: Secrun, bundle: Path, tmp_path: Path) -> None:
    ended = next(row for row in rows(bundle) if row["event"] == "PodExit")
    audited("audit", "prove", str(ended["index"]), "--out", tmp_path / "proof")
    told = audited("audit", "verify", "--key", bundle / "host.pem", tmp_path / "proof").out
    assert f'"pod":"{ended["pod"]}"' in told
    assert told.endswith("accepted\n")
    audited("audit", "prove", "1000000", code=2)


def test_a_monitoring_system_sees_pods_and_the_audit_log(audited: Secrun) -> None:
    told = audited("metrics").out
    assert 'secrun_pods{state="running"} 1\n' in told
    assert re.search(r'^secrun_audit_leaves\{origin="secrun\.dev/audit/[^"]+"\} [1-9]', told, re.MULTILINE)


def test_the_page_is_what_a_browser_shows(audited: Secrun, tmp_path: Path, artifacts: Path) -> None:
    page = tmp_path / "report.html"
    audited("audit", "export", "--format=html", "--out", page)
    picture = artifacts / "audit-report.png"
    picture.unlink(missing_ok=True)
    load(page.as_uri(), tmp_path, f"--screenshot={picture}", "--window-size=1100,3000")
    assert picture.read_bytes().startswith(b"\x89PNG")
    dom = load(page.as_uri(), tmp_path)
    assert "What ran on" in dom
    assert dom.count("<rect") >= 3
    assert 'rect class="failed relaxed"' in dom
    assert "checks failed" in dom


def test_what_compliance_tools_and_a_siem_read_is_made_of_the_same_trail(
    audited: Secrun, bundle: Path
) -> None:
    document = json.loads(audited("audit", "export", "--format=oscal", "--framework=sp800-53").out)
    (result,) = document["assessment-results"]["results"]
    states = {item["target"]["target-id"]: item["target"]["status"]["state"] for item in result["findings"]}
    assert states["ac-6"] == "not-satisfied"
    assert states["sc-7"] == "satisfied"
    events = [json.loads(line) for line in audited("audit", "export", "--format=ocsf").out.splitlines()]
    assert sum(event["type_uid"] == 600203 for event in events) >= 3
    statements = audited("audit", "export", "--format=in-toto").out.splitlines()
    payload = base64.b64decode(json.loads(statements[0])["payload"])
    assert json.loads(payload)["predicateType"] == "https://secrun.dev/attestation/pod-run/v1"
    assert {"report.html", "oscal.json", "findings.json"} <= {
        path.name for path in (bundle / "unpacked").iterdir()
    }
