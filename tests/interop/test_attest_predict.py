"""What is predicted anywhere is what a host stores and mounts; what we sign, openssl verifies."""

import base64
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from secrun_attest import dsse
from secrun_attest.evidence import build_evidence
from secrun_attest.policyfile import PAYLOAD_TYPE, open_policy
from secrun_attest.record import Operation
from support import registry
from support.attest_bench import AUDIENCE, NONCE, NOW, POD, Ak, Host, policy_document, raw
from support.images import LayoutWriter, busybox_image, busybox_layer, symlink, tar_layer
from support.secrun import Secrun
from support.unprivileged import OrdinaryUser, open_up

ANY = "--insecure-options=image"


@pytest.fixture
def layout(tmp_path):
    busybox_image(tmp_path / "layout")
    return f"oci:{tmp_path}/layout:busybox"


@pytest.fixture
def host(tmp_path):
    """A host that runs images, as root."""
    return Secrun(root=tmp_path / "host", run_root=tmp_path / "host-run")


@pytest.fixture
def verifier(tmp_path):
    """Another machine, where an ordinary user without a home runs secrun with a root of its own."""
    user = OrdinaryUser(tmp_path / "user")

    def predict(*words):
        open_up(tmp_path)
        return json.loads(user("attest", "predict", "--format=json", ANY, *words).out)

    return predict


def fetched(host, *words):
    return json.loads(host("fetch", ANY, "--format=json", *words).out)


def same(predicted, stored, host):
    rendered = json.loads((host.root / "rootfs" / f"{stored['rootfs'].partition(':')[2]}.json").read_text())
    assert predicted["manifest"] == stored["id"]
    assert (predicted["config"], predicted["rootfs"]) == (stored["config"], stored["rootfs"])
    assert (predicted["tree"], predicted["verity_root"]) == (stored["tree"], rendered["verity_root"])


def test_an_ordinary_user_predicts_what_a_host_stores(tmp_path, layout, host, verifier):
    registry.skopeo("copy", layout, f"oci-archive:{tmp_path}/image.tar:x")
    registry.skopeo("copy", layout, f"docker-archive:{tmp_path}/docker.tar:example/app:1")
    references = (layout, f"oci-archive:{tmp_path}/image.tar:x", f"docker-archive:{tmp_path}/docker.tar")
    found = verifier(*references)
    for predicted, reference in zip(found["images"], references, strict=True):
        assert predicted["reference"].partition(":")[0] == reference.partition(":")[0]
        same(predicted, fetched(host, reference), host)
    assert len({image["tree"] for image in found["images"]}) == 1
    assert len(list((host.root / "rootfs").glob("*.erofs"))) == 1
    # What is stored now answers to its name, with its source gone.
    shutil.rmtree(tmp_path / "layout")
    (again,) = verifier("--pull=never", found["images"][0]["manifest"])["images"]
    # It came by two names, of which either may be told.
    assert {**again, "reference": ""} == {**found["images"][0], "reference": ""}


def test_an_image_of_a_registry_is_predicted_as_it_will_be_pulled(tmp_path, layout, host, verifier):
    with registry.running_registry(tmp_path / "registry") as server:
        server.push(layout, "team/app:1")
        reference = server.reference("team/app:1")
        predicted = verifier("--tls-verify=false", reference)["images"][0]
        same(predicted, fetched(host, "--tls-verify=false", reference), host)


def test_the_stage1_of_a_host_is_part_of_its_prediction(layout, host):
    host("stage1", "build")
    shown = json.loads(host("stage1", "show", "--format=json").out)
    found = json.loads(host("attest", "predict", "--format=json", ANY, layout).out)
    (stage1,) = found["stage1"]
    assert (stage1["digest"], stage1["tree"]) == (shown["digest"], shown["tree_digest"])
    assert stage1["file"] == f"sha256:{shown['file_sha256']}"


def ran(path, image, stage1, runtime, key):
    """Evidence of a host that ran a pod of `image`, as its measured events would say."""
    bench = Host(ak=key)
    bench.open(runtime={"version": "1", "digest": runtime})
    bench.admit(
        **{name: image[name] for name in ("reference", "manifest", "config", "rootfs", "tree")},
        verity_root=image["verity_root"],
    )
    bench.prepare(image=image["manifest"], tree=image["tree"], stage1=stage1)
    for operation in (Operation.POD_START, Operation.POD_EXIT):
        bench.measure(operation, pod=POD)
    path.write_bytes(build_evidence(replace(bench.bundle(), contents=())))
    return path


def test_a_policy_made_of_predictions_affirms_the_pod_of_that_image_and_no_other(tmp_path, layout, host):
    LayoutWriter(tmp_path / "other").add_image("x", [busybox_layer(), tar_layer([symlink("new", "bin")])])
    host("stage1", "build")
    predicted = host("attest", "predict", "--format=json", ANY, layout).out
    (tmp_path / "prediction").write_text(predicted)
    values = json.loads(predicted)
    other = json.loads(host("attest", "predict", "--format=json", ANY, f"oci:{tmp_path}/other:x").out)
    key, private, public = Ak(), tmp_path / "k", tmp_path / "p"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    policy = tmp_path / "policy"
    made = ("--id=e2e", "--from", tmp_path / "prediction", "--key", key.name.hex(), "--sign", private)
    pcr = f"--pcr-value=7={raw('pcr7').hex()}"
    assert host("attest", "policy", "init", *made, pcr, "--out", policy).err == ""

    def verified(image, code):
        evidence = ran(tmp_path / "evidence", image, values["stage1"][0], values["runtime"]["digest"], key)
        words = ("--nonce", NONCE.hex(), "--audience", AUDIENCE, "--policy", policy, "--policy-key", public)
        return json.loads(host("attest", "verify", "--format=json", *words, evidence, code=code).out)

    assert verified(values["images"][0], 0)["status"] == "affirming"
    assert verified(other["images"][0], 121)["pods"][0]["status"] == "contraindicated"
    # The right manifest, mounted as something else.
    mixed = values["images"][0] | {"tree": other["images"][0]["tree"]}
    assert verified(mixed, 121)["pods"][0]["status"] == "contraindicated"


def openssl(*words):
    done = subprocess.run(["openssl", *map(os.fspath, words)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


KINDS = {
    "p256": (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], ["-digest", "sha256"]),
    "ed25519": (["-algorithm", "ed25519"], []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_openssl_makes_the_keys_verifies_our_signatures_and_makes_its_own(tmp_path, host, kind):
    make, digest = KINDS[kind]
    private, public, pae, signature = (tmp_path / name for name in ("k", "p", "pae", "sig"))
    openssl("genpkey", *make, "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    document = json.dumps(policy_document()).encode()
    (tmp_path / "policy").write_bytes(document)
    out = tmp_path / "signed"
    host("attest", "policy", "sign", "--key", private, "--out", out, tmp_path / "policy")
    envelope = json.loads(out.read_bytes())
    pae.write_bytes(
        b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(document), document)
    )
    signature.write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    common = ["pkeyutl", "-rawin", *digest, "-in", pae]
    openssl(*common, "-verify", "-pubin", "-inkey", public, "-sigfile", signature)
    der = openssl("pkey", "-pubin", "-in", public, "-outform", "DER")
    assert envelope["signatures"][0]["keyid"] == openssl_digest(der, tmp_path)
    theirs = openssl(*common, "-sign", "-inkey", private)
    envelope["signatures"] = [{"sig": base64.b64encode(theirs).decode()}]
    key = dsse.load_public_key(public.read_bytes(), what="key")
    data = json.dumps(envelope).encode()
    assert open_policy(data, [key], require_signature=True, now=NOW).policy.id == "test"


def openssl_digest(data: bytes, folder: Path) -> str:
    (folder / "der").write_bytes(data)
    return openssl("dgst", "-sha256", "-r", folder / "der").split()[0].decode()
