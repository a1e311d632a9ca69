"""Signed images run, unsigned ones do not, and the log tells who let them in and what was refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import registry
from support.images import busybox_image
from support.registry import Registry
from support.roots import made
from support.secrun import Secrun


def events(secrun: Secrun, operation: str) -> list[dict]:
    """Return the fields of the log's events of one kind."""
    lines = secrun("attest", "log").out.splitlines()
    found = [(line.split(" ")[-2], json.loads(line.split(" ", 7)[-1].split(" ", 1)[-1])) for line in lines]
    return [fields for name, fields in found if name == operation]


@pytest.fixture
def root(secrun: Secrun, tmp_path: Path) -> Iterator[Secrun]:
    with made(secrun, tmp_path) as other:
        yield other


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Registry]:
    busybox_image(tmp_path / "layout")
    with registry.running_registry(tmp_path / "registry") as running:
        running.push(f"oci:{tmp_path}/layout:busybox", "team/app:1")
        yield running


def test_an_image_runs_once_its_signer_is_trusted_and_no_longer_than_that(
    root: Secrun, served: Registry, tmp_path: Path
):
    image = served.reference("team/app:1")
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    words = ("run", "--rm", "--tls-verify=false", "--policy", policy, image, "--", "true")
    root("trust", "generate-key", tmp_path / "team")
    assert "rejects every image" in root(*words, code=120).err
    root("trust", "add", "--prefix", served.address, "--skip-fingerprint-review", tmp_path / "team.pub")
    assert "no such signature" in root(*words, code=120).err
    root("sign", "--tls-verify=false", "--key", tmp_path / "team.key", image)
    root(*words)
    (admit,) = events(root, "ImageAdmit")
    (signature,) = admit["verdict"]["signatures"]
    fingerprint = root("trust", "list", "--no-legend").out.split()[-1]
    assert signature["kind"] == "cosign"
    assert signature["signer"] == f"key:{fingerprint}"
    assert admit["verdict"]["requirements"] == ["keyRing"]
    root(*words)
    assert len(events(root, "ImageAdmit")) == 1
    root("trust", "rm", fingerprint)
    root(*words, code=120)
    denied = events(root, "Denied")
    assert [item["code"] for item in denied] == ["denied-image"] * 3
    assert {item["subject"] for item in denied} == {image}
    # Added, then removed.
    assert len(events(root, "TrustChange")) == 2


def test_a_fetch_that_is_refused_is_measured_too(root: Secrun, served: Registry, tmp_path: Path):
    policy = tmp_path / "policy.json"
    policy.write_text("{")
    words = ("fetch", "--tls-verify=false", "--policy", policy, served.reference("team/app:1"))
    assert str(policy) in root(*words, code=120).err
    (denied,) = events(root, "Denied")
    assert denied["code"] == "denied-policy"


def test_a_rule_keeps_an_image_out_of_a_flavour(root: Secrun, served: Registry, tmp_path: Path):
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    rules = root.root / "trust/trust.toml"
    rules.parent.mkdir(exist_ok=True)
    rules.write_text('[[rule]]\nscope = "default"\nstage1 = ["kvm"]\n')
    words = ("--tls-verify=false", "--policy", policy, served.reference("team/app:1"))
    root("fetch", *words)
    refused = root("run", "--rm", *words, "--", "true", code=120)
    assert "stage1 nspawn" in refused.err
    rules.write_text('[[rule]]\nscope = "default"\nstage1 = ["kvm", "nspawn"]\n')
    root("run", "--rm", *words, "--", "true")
