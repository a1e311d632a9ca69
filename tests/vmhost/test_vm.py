"""secrun on a Debian 12 of its own with a TPM: each check of the guest's, and its evidence judged here."""

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import swtpm, vm
from support.images import busybox_image
from vmhost import guest, kit

PROGRAMS = ("debootstrap", "setfiles", "mkfs.ext4", "qemu-system-x86_64", "busybox", "swtpm", "swtpm_setup")
FIRMWARE_PCRS = range(8)


@dataclass(frozen=True)
class Story:
    """Three boots of one machine: what each check said, what it handed out, and the nonces it was given."""

    rows: dict[str, dict[str, object]]
    files: dict[str, bytes]
    nonces: tuple[str, str]
    folder: Path

    def denials(self) -> str:
        """Return every denial of all boots, those that the tests asked for included."""
        text = self.files["audit-third.log"].decode(errors="replace")
        return "".join(f"{line}\n" for line in text.splitlines() if "avc:  denied" in line)


def told(rows: list[dict[str, object]]) -> tuple[dict[str, dict[str, object]], dict[str, bytes]]:
    files = {name: kit.unpacked(text) for row in rows for name, text in row["files"].items()}
    return {str(row["name"]): row for row in rows}, files


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Story:
    """Boot the machine and run every check in it: until it cuts its power, is shut down, and once more."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    assert not missing, f"missing programs: {' '.join(missing)}; run ci/setup --test"
    assert os.geteuid() == 0, "building the machine needs root"
    folder = tmp_path_factory.mktemp("vm")
    machine, tpm = vm.build(repository), swtpm.manufacture(folder / "tpm", certificates=True)
    payload = vm.payload(repository, Path(guest.__file__).parent, folder / "payload.tar")
    disk, nonces = vm.disk_copy(machine, folder / "disk"), (secrets.token_hex(32), secrets.token_hex(32))

    def boot(name: str, *words: str) -> tuple[dict[str, dict[str, object]], dict[str, bytes]]:
        given = vm.Boot(disk=disk, payload=payload, tpm=tpm, words=(f"secrun.boot={name}", *words))
        return told(vm.boot(machine, given, folder / name))

    try:
        rows, files = boot("first", f"secrun.nonce={nonces[0]}")
        note = base64.b64encode(files["note.json"]).decode()
        for name, *words in (
            ("second", f"secrun.nonce={nonces[1]}", f"secrun.note={note}"),
            ("third",),
        ):
            more, others = boot(name, *words)
            rows, files = rows | more, files | others
    finally:
        disk.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return Story(rows=rows, files=files, nonces=nonces, folder=folder)


# Debootstrap, once, and all runs of the machine fall into the first test.
first = pytest.mark.timeout(vm.BUILD_SECONDS + 3 * vm.DEADLINE_SECONDS)


@first
@pytest.mark.parametrize("name", [*guest.FIRST, *guest.SECOND, *guest.THIRD])
def test_on_debian(story: Story, name: str):
    row = story.rows[name]
    print(f"{row['seconds']} s\n{row['said']}")
    for log in sorted(story.files):
        if log.endswith(".log"):
            print(f"{log}: {story.folder / log}")
    print(story.denials(), end="")
    assert row["passed"]


@dataclass(frozen=True)
class Verifier:
    """Somebody elsewhere, who has the image, this version of secrun, and the files that the host gave."""

    folder: Path
    story: Story

    def __call__(self, *words: str | Path, code: int = 0) -> str:
        argv = [sys.executable, "-P", "-m", "secrun", "--root", self.folder / "root", *words]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def file(self, name: str, data: bytes | None = None) -> Path:
        path = self.folder / name
        path.write_bytes(self.story.files[name] if data is None else data)
        return path

    def predicted(self) -> Path:
        """Compute the values of image and secrun here; stage1, made of Debian's files, is the host's."""
        words = ("attest", "predict", "--format=json", "--insecure-options=image")
        ours = json.loads(self(*words, f"oci:{self.folder}/images:busybox"))
        theirs = json.loads(self.story.files["prediction.json"])
        assert ours["runtime"] == theirs["runtime"]
        assert ours["stage1"] == []
        return self.file("ours.json", json.dumps(ours | {"stage1": theirs["stage1"]}).encode())

    def policy(self) -> Path:
        """Write a policy by which this kind of machine boots as it did the first time."""
        values = evidence(self.story.files["evidence.json"])["pcr_values"]["sha256"]
        pcrs = [f"--pcr-value={number}={values[str(number)]}" for number in FIRMWARE_PCRS]
        key = json.loads(self.story.files["status.json"])["ak"]
        path = self.folder / "policy.json"
        words = ("--id=test", "--key", key, "--software-tpm", "--from", self.predicted(), *pcrs)
        self("attest", "policy", "init", *words, "--out", path)
        return path

    def verify(self, policy: Path, nonce: str, path: Path, *options: str | Path, code: int = 0) -> dict:
        words = ("--insecure-options=policy", "--policy", policy, "--nonce", nonce, "--format=json")
        return json.loads(self("attest", "verify", *words, *options, path, code=code))


def evidence(data: bytes) -> dict:
    return json.loads(data)


@pytest.fixture
def verifier(story: Story, tmp_path: Path) -> Verifier:
    busybox_image(tmp_path / "images", "busybox")
    return Verifier(folder=tmp_path, story=story)


@first
def test_its_evidence_is_affirmed_elsewhere_with_the_firmware_log(verifier: Verifier, story: Story):
    verdict = verifier.verify(verifier.policy(), story.nonces[0], verifier.file("evidence.json"))
    assert verdict["host"]["status"] == "affirming"
    assert verdict["host"]["tpm"] == "software"
    assert {pod["status"] for pod in verdict["pods"]} == {"affirming"}
    assert [pod["state"] for pod in verdict["pods"]].count("started") == 1
    assert base64.b64decode(evidence(story.files["evidence.json"])["firmware_log"])


@first
def test_both_boots_are_affirmed_in_their_order_and_no_other(verifier: Verifier, story: Story):
    policy, state = verifier.policy(), ("--state", verifier.folder / "state")
    first_path, second_path = verifier.file("evidence.json"), verifier.file("second.json")
    old = verifier.verify(policy, story.nonces[0], first_path, *state)
    new = verifier.verify(policy, story.nonces[1], second_path, *state)
    assert new["status"] == "affirming"
    assert new["epoch"]["reset"] == old["epoch"]["reset"] + 1
    again = verifier.verify(policy, story.nonces[0], first_path, *state, code=121)
    assert again["code"] == "E_EPOCH"


@first
def test_another_firmware_log_is_rejected(verifier: Verifier, story: Story):
    document = evidence(story.files["evidence.json"])
    log = bytearray(base64.b64decode(document["firmware_log"]))
    log[-1] ^= 1
    document["firmware_log"] = base64.b64encode(log).decode()
    path = verifier.file("changed.json", json.dumps(document).encode())
    assert verifier.verify(verifier.policy(), story.nonces[0], path, code=121)["code"] == "E_BASELINE"
