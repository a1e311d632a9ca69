"""Archives between secrun, skopeo, podman and umoci; and what signatures mean for an image in one."""

import json
import tempfile

import pytest

from support import registry
from support.images import BUSYBOX, busybox_image
from support.secrun import Secrun
from support.tools import tool

ANY = "--insecure-options=image"


@pytest.fixture
def secrun(tmp_path):
    return Secrun(root=tmp_path / "root", run_root=tmp_path / "run", options=("--attest=off",))


@pytest.fixture
def podman():
    """The words of a podman command with a store of its own, at a path as short as podman wants it."""
    with tempfile.TemporaryDirectory(prefix="podman-") as folder:
        yield ("podman", f"--root={folder}/root", f"--runroot={folder}/run", "--storage-driver=vfs")


@pytest.fixture
def images(secrun, tmp_path):
    """Two stored images, of which one has a tag; their IDs."""
    busybox_image(tmp_path / "first", "first", config={"Labels": {"number": "1"}})
    busybox_image(tmp_path / "second", "second", config={"Labels": {"number": "2"}})
    found = [
        secrun("fetch", ANY, f"oci:{tmp_path}/{name}:{name}").out.split()[-1] for name in ("first", "second")
    ]
    secrun("image", "tag", found[0], "team/app:1")
    return found


def test_others_read_an_oci_archive_of_several_images(secrun, images, tmp_path, podman):
    saved = tmp_path / "saved.tar"
    secrun("image", "save", "-o", saved, "team/app:1", images[1])
    for name, image in (("localhost/team/app:1", images[0]), ("second", images[1])):
        shown = json.loads(tool("skopeo", "inspect", f"oci-archive:{saved}:{name}"))
        assert shown["Digest"] == image
    tool("skopeo", "--insecure-policy", "copy", f"oci-archive:{saved}:second", f"oci:{tmp_path}/layout:x")
    tool("umoci", "unpack", "--image", f"{tmp_path}/layout:x", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/busybox").read_bytes() == BUSYBOX.read_bytes()
    alone = tmp_path / "alone.tar"
    secrun("image", "save", "-o", alone, "team/app:1")
    assert "localhost/team/app:1" in tool(*podman, "load", "-i", alone)


def test_podman_loads_a_docker_archive_of_several_images_and_saves_them_back(
    secrun, images, tmp_path, podman
):
    saved = tmp_path / "saved.tar"
    secrun("image", "tag", images[1], "other:2")
    secrun("image", "save", "--format=docker-archive", "-o", saved, "team/app:1", "other:2")
    loaded = tool(*podman, "load", "-i", saved)
    assert "localhost/team/app:1" in loaded
    assert "localhost/other:2" in loaded
    back = tmp_path / "back.tar"
    tool(*podman, "save", "-q", "-m", "-o", back, "localhost/team/app:1", "localhost/other:2")
    elsewhere = Secrun(
        root=tmp_path / "elsewhere", run_root=tmp_path / "elsewhere-run", options=("--attest=off",)
    )
    assert len(elsewhere("image", "load", ANY, "-i", back).out.split()) == 2
    rows = json.loads(elsewhere("image", "inspect", "--format=json", "team/app:1", "other:2").out)["images"]
    assert [row["config"]["labels"]["number"] for row in rows] == ["1", "2"]


def test_signatures_travel_and_count_where_a_key_may_sign_files(secrun, tmp_path):
    with registry.running_registry(tmp_path / "registry") as running:
        plain = ("--tls-verify=false",)
        busybox_image(tmp_path / "layout")
        secrun("trust", "generate-key", tmp_path / "team")
        name = running.reference("team/app:1")
        secrun("image", "copy", *plain, f"oci:{tmp_path}/layout:busybox", name)
        secrun("sign", *plain, "--key", tmp_path / "team.key", name)
        secrun(
            "trust", "add", "--prefix", running.address, "--skip-fingerprint-review", tmp_path / "team.pub"
        )
        reject = tmp_path / "policy.json"
        reject.write_text(json.dumps({"default": [{"type": "reject"}]}))
        policy = f"--policy={reject}"
        secrun("fetch", *plain, policy, name)
    saved = tmp_path / "saved.tar"
    secrun("image", "save", "-o", saved, name.removeprefix("docker://"))
    elsewhere = Secrun(root=tmp_path / "b", run_root=tmp_path / "b-run", options=("--attest=off",))
    # Nobody may sign files there: the name that a file gives its image is worth nothing.
    elsewhere(
        "trust", "add", "--prefix", running.address, "--skip-fingerprint-review", tmp_path / "team.pub"
    )
    refused = elsewhere("image", "load", policy, "-i", saved, code=120)
    assert elsewhere("image", "list", "-q").out == ""
    assert str(saved) in refused.err
    elsewhere("trust", "add", "--root", "--skip-fingerprint-review", tmp_path / "team.pub")
    loaded = elsewhere("image", "load", policy, "-i", saved).out.strip()
    saved.unlink()
    busybox_image(tmp_path / "unsigned", config={"Labels": {"signed": "no"}})
    secrun("fetch", ANY, f"oci:{tmp_path}/unsigned:busybox")
    secrun("image", "tag", f"oci:{tmp_path}/unsigned:busybox", "unsigned:1")
    secrun("image", "save", "-o", saved, "unsigned:1")
    elsewhere("image", "load", policy, "-i", saved, code=120)
    elsewhere("image", "tag", loaded, "app:1")
    verified = elsewhere("image", "verify", policy, "app:1").out
    assert "cosign signature" in verified
    # Without the key the tag is worth as little as the file.
    (key,) = (elsewhere.root / "trust/root.d").iterdir()
    elsewhere("trust", "rm", key.name)
    assert "reject" in elsewhere("image", "verify", policy, "app:1", code=120).out
