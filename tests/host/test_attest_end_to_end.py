"""From pods to a verdict: a host runs pods and quotes; somebody without root and TPM verifies."""

import base64
import dataclasses
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.images import LayoutWriter, busybox_image, busybox_layer, symlink, tar_layer
from support.secrun import Secrun, eventually
from support.unprivileged import OrdinaryUser, open_up

RELAXED = ("--pull=never", "--insecure-options=image")
ZEROS = tuple(f"--pcr-value={number}={'00' * 32}" for number in range(8))


@dataclasses.dataclass(frozen=True)
class Proof:
    """A host with a software TPM, and a verifier that knows its key and the images' layout."""

    host: Secrun
    verifier: OrdinaryUser
    policy: Path
    folder: Path

    def pods(self) -> tuple[str, str]:
        """Run one pod to its end, start another and enter it."""
        first = self.folder / "first"
        self.host("run", *RELAXED, f"--uuid-file-save={first}", self.host.image, "--", "true")
        second = self.host.detach("sleep", "1000")
        self.host("enter", second, "--", "true")
        return first.read_text().strip(), second

    def evidence(self, *options: str) -> tuple[str, Path]:
        nonce = secrets.token_hex(32)
        path = self.folder / f"evidence-{nonce[:8]}.json"
        path.write_text(self.host("attest", "evidence", "--nonce", nonce, *options).out)
        open_up(path)
        return nonce, path

    def verify(self, nonce: str, path: Path, *options: str, code: int = 0) -> dict:
        words = ("--insecure-options=policy", "--policy", self.policy, "--nonce", nonce, "--format=json")
        return json.loads(self.verifier("attest", "verify", *words, *options, path, code=code).out)


@pytest.fixture
def proof(tmp_path: Path) -> Iterator[Proof]:
    busybox_image(tmp_path / "layout")
    host = Secrun(root=tmp_path / "root", run_root=tmp_path / "run")
    image = host("fetch", "--insecure-options=image", f"oci:{tmp_path}/layout:busybox").out.split()[-1]
    host("attest", "init", "--host", "web-1")
    host("stage1", "build")
    verifier = OrdinaryUser(tmp_path / "user")
    open_up(tmp_path / "layout")
    predicted = verifier.folder / "image.json"
    words = ("attest", "predict", "--format=json", "--insecure-options=image")
    words = (*words, f"oci:{tmp_path}/layout:busybox")
    predicted.write_text(verifier(*words).out)
    # A stage1 image is built from a host's packages: its values come from a host like the one judged.
    stage1 = verifier.folder / "stage1.json"
    stage1.write_text(host(*words).out)
    open_up(verifier.folder)
    key = json.loads(host("attest", "status", "--format=json").out)["ak"]
    policy = verifier.folder / "policy.json"
    made = ("--id=test", "--key", key, "--software-tpm", "--from", predicted, "--from", stage1, *ZEROS)
    verifier("attest", "policy", "init", *made, "--out", policy)
    yield Proof(
        host=dataclasses.replace(host, image=image), verifier=verifier, policy=policy, folder=tmp_path
    )
    for pod in host.pods():
        host("stop", "--force", str(pod["uuid"]), code=None)
    host("gc", "--grace-period=0s", "--expire-prepared=0s")
    host("attest", "stop")


def test_the_verdict_affirms_each_pod_and_shows_the_entry(proof: Proof):
    first, second = proof.pods()
    verdict = proof.verify(*proof.evidence())
    assert verdict["host"]["status"] == "affirming"
    pods = {pod["uuid"]: pod for pod in verdict["pods"]}
    assert {uuid: pod["status"] for uuid, pod in pods.items()} == {first: "affirming", second: "affirming"}
    assert (pods[first]["entries"], pods[second]["entries"]) == (0, 1)
    assert (pods[first]["state"], pods[second]["state"]) == ("exited", "started")


def test_the_tpms_own_tools_agree(proof: Proof):
    proof.pods()
    nonce, folder = secrets.token_hex(32), proof.folder / "quote"
    command = proof.host("attest", "quote", "--nonce", nonce, "--out", folder).out.split()
    subprocess.run(command, check=True, capture_output=True)
    wrong = [secrets.token_hex(32) if word == nonce else word for word in command]
    assert subprocess.run(wrong, check=False, capture_output=True).returncode != 0
    log = folder / "exported"
    words = proof.host.argv("attest", "log", "--format=tcg")
    log.write_bytes(subprocess.run(words, check=True, capture_output=True).stdout)
    told = subprocess.run(["tpm2_eventlog", log], check=True, capture_output=True, text=True).stdout
    tcti = f"swtpm:path={proof.host.run_root}/tpm/sock"
    banks = ("sha1", "sha256", "sha384", "sha512")
    read = subprocess.run(
        ["tpm2_pcrread", "-T", tcti, "+".join(f"{bank}:15" for bank in banks)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    values = [line.split("0x")[1].lower() for line in read.splitlines() if "0x" in line]
    assert len(values) == len(banks)
    for value in values:
        assert f"0x{value}" in told.lower()


def a_byte_of_the_log(evidence: dict) -> None:
    record = evidence["log"]["records"][2]["content"]
    record["event_data"] = record["event_data"][:-2] + "20"


def a_record_less(evidence: dict) -> None:
    evidence["log"]["records"].pop()
    evidence["header"]["log_count"] -= 1


def a_byte_of_a_pods_manifest(evidence: dict) -> None:
    change_content(evidence, b'"hostname"')


def a_byte_of_an_images_manifest(evidence: dict) -> None:
    change_content(evidence, b'"schemaVersion"')


def change_content(evidence: dict, marked: bytes) -> None:
    for digest, text in evidence["contents"].items():
        data = base64.b64decode(text)
        if marked in data:
            evidence["contents"][digest] = base64.b64encode(data.replace(b'"', b"'", 1)).decode()
            return
    raise AssertionError(f"no content has {marked!r}")


def another_host(evidence: dict) -> None:
    evidence["header"]["host"] = "web-2"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (a_byte_of_the_log, "E_NONCE_BIND E_LOG_DIGEST"),
        (a_record_less, "E_NONCE_BIND"),
        (a_byte_of_a_pods_manifest, "E_CONTENT"),
        (a_byte_of_an_images_manifest, "E_CONTENT"),
        (another_host, "E_NONCE_BIND"),
    ],
)
def test_evidence_that_is_changed_on_its_way_is_rejected(
    proof: Proof, change: Callable[[dict], None], code: str
):
    proof.pods()
    nonce, path = proof.evidence()
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    assert proof.verify(nonce, path, code=121)["code"] in code.split()


def test_an_answer_to_another_nonce_is_rejected(proof: Proof):
    _, path = proof.evidence()
    assert proof.verify(secrets.token_hex(32), path, code=121)["code"] == "E_NONCE_UNKNOWN"


def test_manifests_that_are_changed_on_the_host_are_rejected(proof: Proof):
    """Root of the host changes what it said it ran; the measured digests stay."""
    first, _ = proof.pods()
    path = proof.host.root / "pods/run" / first / "manifest"
    path.write_bytes(path.read_bytes().replace(b"true", b"TRUE", 1))
    assert proof.verify(*proof.evidence(), code=121)["code"] == "E_CONTENT"


def test_an_image_with_one_other_byte_is_contraindicated_and_the_others_stay(proof: Proof):
    _, second = proof.pods()
    layer = tar_layer([symlink("new", "bin")])
    LayoutWriter(proof.folder / "other").add_image("x", [busybox_layer(), layer])
    words = ("--insecure-options=image", f"oci:{proof.folder}/other:x", "--", "true")
    saved = proof.folder / "third"
    proof.host("run", f"--uuid-file-save={saved}", *words)
    verdict = proof.verify(*proof.evidence(), code=121)
    pods = {pod["uuid"]: pod for pod in verdict["pods"]}
    assert pods[second]["status"] == "affirming"
    assert pods[saved.read_text().strip()]["status"] == "contraindicated"
    assert "is not a reference value" in " ".join(pods[saved.read_text().strip()]["reasons"])


def test_a_rootfs_image_that_is_changed_on_disk_does_not_start_and_its_end_is_told(proof: Proof):
    (rootfs,) = (proof.host.root / "rootfs").glob("*.erofs")
    with rootfs.open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"\xff")
    proof.host("run", *RELAXED, proof.host.image, "--", "true", code=125)
    assert [pod["state"] for pod in proof.verify(*proof.evidence())["pods"]] == ["prepared"]


def test_only_new_records_are_sent_to_a_verifier_that_keeps_its_state(proof: Proof):
    first, second = proof.pods()
    state = ("--state", str(proof.verifier.folder / "state"))
    nonce, path = proof.evidence()
    proof.verify(nonce, path, *state)
    count = json.loads(path.read_text())["header"]["log_count"]
    proof.host("stop", second)
    eventually(lambda: proof.host.status(second)["state"] == "exited", "the end of the pod")
    nonce, path = proof.evidence("--since", str(count))
    assert len(json.loads(path.read_text())["log"]["records"]) == 1
    pods = {pod["uuid"]: pod["state"] for pod in proof.verify(nonce, path, *state)["pods"]}
    assert pods == {first: "exited", second: "exited"}


def test_a_policy_may_forbid_to_enter_pods(proof: Proof):
    _, second = proof.pods()
    document = json.loads(proof.policy.read_text())
    document["workload"]["forbidden_operations"] = ["PodExec"]
    proof.policy.write_text(json.dumps(document))
    verdict = proof.verify(*proof.evidence(), code=121)
    statuses = {pod["uuid"]: pod["status"] for pod in verdict["pods"]}
    assert statuses.pop(second) == "contraindicated"
    assert set(statuses.values()) == {"affirming"}
