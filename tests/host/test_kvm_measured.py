"""What a verifier learns of a pod in a virtual machine: from the prediction to the verdict."""

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.images import busybox_image
from support.secrun import Secrun

ZEROS = tuple(f"--pcr-value={number}={'00' * 32}" for number in range(8))
Policy = Callable[..., dict]


@pytest.fixture
def root(guests: Secrun, tmp_path: Path) -> Iterator[Secrun]:
    """A root with a log of its own and both kinds of stage1."""
    busybox_image(tmp_path / "layout")
    other = dataclasses.replace(guests, root=tmp_path / "root", run_root=tmp_path / "run")
    image = other("fetch", "--insecure-options=image", f"oci:{tmp_path}/layout:busybox").out.split()[-1]
    other("attest", "init")
    other("stage1", "build")
    other("stage1", "build", "kvm")
    yield dataclasses.replace(other, image=image)
    other("gc", "--grace-period=0s", "--expire-prepared=0s")
    other("attest", "stop")


@pytest.fixture
def judged(root: Secrun, tmp_path: Path) -> Policy:
    """Return the verdict of a policy that is made with these options, which must have this status."""
    predicted = tmp_path / "predicted.json"
    words = ("--insecure-options=image", f"oci:{tmp_path}/layout:busybox")
    predicted.write_text(root("attest", "predict", "--format=json", *words).out)
    key = json.loads(root("attest", "status", "--format=json").out)["ak"]

    def verdict(*options: str, code: int = 0) -> dict:
        policy, evidence = tmp_path / "policy", tmp_path / "evidence"
        made = ("--id=test", "--key", key, "--software-tpm", "--from", predicted, *ZEROS, *options)
        assert root("attest", "policy", "init", *made, "--out", policy).err == ""
        nonce = secrets.token_hex(32)
        evidence.write_text(root("attest", "evidence", "--nonce", nonce).out)
        asked = ("--nonce", nonce, "--insecure-options=policy", "--policy", policy, "--format=json")
        return json.loads(root("attest", "verify", *asked, evidence, code=code).out)

    return verdict


def test_a_verdict_shows_the_machine_and_holds_it_to_what_was_predicted(root: Secrun, judged: Policy):
    uuid, _ = root.kept(root.image, "--", "true")
    (pod,) = judged("--accelerator=tcg")["pods"]
    assert (pod["uuid"], pod["status"], pod["reasons"]) == (uuid, "affirming", [])
    manifest = json.loads(root("cat-manifest", uuid).out)
    shown = {name: value for name, value in manifest["machine"].items() if name != "pod_blocks"}
    assert pod["machine"] == shown
    assert pod["machine"]["accelerator"] == "tcg"
    (app,) = pod["apps"]
    assert app["verity_root"] == manifest["apps"][0]["image"]["verity_root"]
    # Emulation has to be accepted by name, and every pod on the host's kernel is missed by who wants none.
    (pod,) = judged(code=121)["pods"]
    assert pod["status"] == "contraindicated"
    assert "accelerator 'tcg' is not one of kvm" in pod["reasons"]
    plain = root(
        "run", *root.pod_options[:2], "--uuid-file-save", root.root / "plain", root.image, "--", "true"
    )
    assert plain.code == 0
    pods = judged("--accelerator=tcg", "--require-machine", code=121)["pods"]
    found = {pod["uuid"]: (pod["status"], pod["reasons"]) for pod in pods}
    assert found == {
        uuid: ("affirming", []),
        plain: ("contraindicated", ["the pod has no virtual machine, the policy requires one"]),
    }
