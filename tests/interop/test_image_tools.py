"""skopeo, umoci, buildah and podman read what secrun stores, and secrun stores what they make."""

import dataclasses
import json
import subprocess
import tempfile

import pytest

from secrun.digest import Digest
from secrun.errors import UsageError
from secrun.image import identity, reference
from secrun.image.store import ImageStore
from secrun.paths import Layout
from secrun.trust import plan, policy
from secrun.trust.admission import Decision
from secrun.trust.ring import KeyRing
from support import aci, registry
from support.images import BUSYBOX, Entry, LayoutWriter, busybox_image, symlink, tar_layer
from support.secrun import Secrun
from support.tools import tool

ANY = "--insecure-options=image"


@pytest.fixture
def secrun(tmp_path):
    return Secrun(root=tmp_path / "root", run_root=tmp_path / "run")


@pytest.fixture
def busybox(tmp_path):
    busybox_image(tmp_path / "busybox")
    return f"oci:{tmp_path}/busybox:busybox"


def fetched(secrun, *references):
    """Fetch; return one JSON object per image."""
    done = secrun("fetch", ANY, "--format=json", *references)
    return [json.loads(line) for line in done.out.splitlines()]


def entries(secrun):
    return ImageStore(Layout(root=secrun.root, run_root=secrun.run_root)).entries()


def diff_ids(secrun, image):
    shown = json.loads(secrun("image", "inspect", "--format=json", image["id"]).out)["images"][0]
    return [layer["diff_id"] for layer in shown["layers"]]


# What secrun stores.


@pytest.mark.parametrize("name", ["app:1.0", "a_b/c.d-e:T_1", "a__b/c---d:x--y", "a/b:_odd_"])
def test_other_tools_read_the_store_under_every_kind_of_name(secrun, busybox, tmp_path, name):
    with registry.running_registry(tmp_path / "registry") as running:
        running.push(busybox, name)
        (image,) = fetched(secrun, "--tls-verify=false", running.reference(name))
    (entry,) = entries(secrun)
    store = f"{secrun.root}/images:{entry.name}"
    if "__" not in name and "---" not in name and "_odd_" not in name:
        assert entry.name == f"{running.address}/{name}"
    assert json.loads(tool("skopeo", "inspect", f"oci:{store}"))["Digest"] == image["id"]
    tool("skopeo", "copy", "--insecure-policy", f"oci:{store}", f"oci:{tmp_path}/copy:x")
    copied = json.loads((tmp_path / "copy/index.json").read_bytes())["manifests"][0]["digest"]
    assert copied == image["id"]
    tool("umoci", "unpack", "--image", store, tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/busybox").read_bytes() == BUSYBOX.read_bytes()


def test_other_tools_still_read_the_store_after_a_removal(secrun, busybox, tmp_path):
    writer = LayoutWriter(tmp_path / "second")
    writer.add_image("two", [tar_layer([Entry(name="x", data=b"x")])])
    first, second = fetched(secrun, busybox, f"oci:{writer.path}:two")
    secrun("image", "rm", first["id"])
    assert tool("umoci", "ls", "--layout", secrun.root / "images").split() == [entries(secrun)[0].name]
    tool("umoci", "gc", "--layout", secrun.root / "images")
    assert fetched(secrun, second["id"], "--pull=never")[0]["id"] == second["id"]


# What other tools make.


@pytest.fixture
def podman():
    """The words of a podman command with a store of its own, at a path as short as podman wants it."""
    with tempfile.TemporaryDirectory(prefix="podman-") as folder:
        yield ("podman", f"--root={folder}/root", f"--runroot={folder}/run", "--storage-driver=vfs")


def test_archives_of_skopeo_and_podman_are_one_image(secrun, busybox, tmp_path, podman):
    tool("skopeo", "copy", "--insecure-policy", busybox, f"docker-archive:{tmp_path}/s.tar:localhost/one:1")
    tool("skopeo", "copy", "--insecure-policy", busybox, f"oci-archive:{tmp_path}/so.tar:one")
    number = tool(*podman, "pull", "-q", busybox).strip()
    tool(*podman, "tag", number, "localhost/two:2")
    tool(*podman, "save", "-q", "--format=docker-archive", "-o", tmp_path / "p.tar", "localhost/two:2")
    tool(*podman, "save", "-q", "--format=oci-archive", "-o", tmp_path / "po.tar", "localhost/two:2")
    images = fetched(
        secrun,
        busybox,
        f"docker-archive:{tmp_path}/s.tar",
        f"docker-archive:{tmp_path}/p.tar:localhost/two:2",
        f"oci-archive:{tmp_path}/so.tar:one",
        f"oci-archive:{tmp_path}/po.tar",
    )
    assert images[1]["id"] == images[2]["id"]
    assert images[0]["id"] == images[3]["id"]
    assert len({tuple(diff_ids(secrun, image)) for image in images}) == 1
    assert len({image["config"] for image in images}) == 1
    # All of them have one root file system.
    assert len({image["tree"] for image in images}) == 1
    assert fetched(secrun, "--pull=never", "localhost/two:2")[0]["id"] == images[2]["id"]


def test_images_of_buildah_are_stored(secrun, tmp_path):
    buildah = ("buildah", "--root", tmp_path / "b", "--runroot", tmp_path / "r", "--storage-driver=vfs")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/tool").write_bytes(BUSYBOX.read_bytes())
    container = tool(*buildah, "from", "scratch").strip()
    tool(*buildah, "add", container, tmp_path / "context", "/bin")
    tool(*buildah, "config", "--cmd=/bin/tool", "--env=A=b c", "--user=7:8", container)
    tool(*buildah, "commit", "-q", container, f"oci:{tmp_path}/built:tag")
    tool(*buildah, "commit", "-q", container, f"docker-archive:{tmp_path}/built.tar:localhost/built:1")
    tool(*buildah, "rm", container)
    for image in fetched(secrun, f"oci:{tmp_path}/built:tag", f"docker-archive:{tmp_path}/built.tar"):
        shown = json.loads(secrun("image", "inspect", "--format=json", image["id"]).out)["images"][0]
        assert shown["config"]["cmd"] == ["/bin/tool"]
        assert "A=b c" in shown["config"]["env"]
        assert shown["config"]["user"] == "7:8"


def test_images_of_umoci_are_stored(secrun, tmp_path):
    name = f"{tmp_path}/made:x"
    tool("umoci", "init", "--layout", tmp_path / "made")
    tool("umoci", "new", "--image", name)
    tool("umoci", "unpack", "--image", name, tmp_path / "bundle")
    (tmp_path / "bundle/rootfs/file").write_text("content")
    tool("umoci", "repack", "--image", name, tmp_path / "bundle")
    tool("umoci", "config", "--image", name, "--config.cmd=/file")
    (image,) = fetched(secrun, f"oci:{name}")
    assert image["id"] == json.loads(tool("skopeo", "inspect", f"oci:{name}"))["Digest"]
    assert len(diff_ids(secrun, image)) == 1


def test_an_old_docker_archive_with_linked_layers_is_stored(secrun, tmp_path):
    layer = tar_layer([Entry(name="hello", data=b"hello\n")])
    config = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"}}
    config["rootfs"]["diff_ids"] = [str(Digest.of(layer))] * 2
    listing = [{"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}]
    archive = tar_layer(
        [
            Entry(name="a/layer.tar", data=layer),
            symlink("b/layer.tar", "../a/layer.tar"),
            Entry(name="c.json", data=json.dumps(config).encode()),
            Entry(name="manifest.json", data=json.dumps(listing).encode()),
        ]
    )
    (tmp_path / "old.tar").write_bytes(archive)
    (image,) = fetched(secrun, "--platform=linux/amd64", f"docker-archive:{tmp_path}/old.tar")
    assert diff_ids(secrun, image) == [str(Digest.of(layer))] * 2


def test_a_hostile_archive_is_read_without_rights_and_refused(secrun, tmp_path):
    (tmp_path / "bad.tar").write_bytes(tar_layer([symlink("manifest.json", "/etc/passwd")]))
    done = secrun("fetch", ANY, f"docker-archive:{tmp_path}/bad.tar", code=125)
    assert "has no file manifest.json" in done.err
    (tmp_path / "cut.tar").write_bytes(tar_layer([Entry(name="x", data=b"y" * 5000)])[:3000])
    assert "[image-tar]" in secrun("fetch", ANY, f"oci-archive:{tmp_path}/cut.tar", code=125).err
    assert list((secrun.root / "scratch").iterdir()) == []


# Policies: containers/image is the judge.


ACCEPT, REJECT = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
POLICIES = {
    "default": {},
    "registry": {"docker": {"REGISTRY": ACCEPT}},
    "repository": {"docker": {"REGISTRY/a/b": ACCEPT}},
    "namespace": {"docker": {"REGISTRY/a": ACCEPT}},
    "part of a name": {"docker": {"REGISTRY/a/": ACCEPT, "REGISTRY/a/bc": ACCEPT}},
    "tag": {"docker": {"REGISTRY/a/b:1": ACCEPT}},
    "other tag": {"docker": {"REGISTRY/a/b:2": ACCEPT}},
    "tag over repository": {"docker": {"REGISTRY/a/b:1": REJECT, "REGISTRY/a/b": ACCEPT}},
    "repository over registry": {"docker": {"REGISTRY/a/b": ACCEPT, "REGISTRY": REJECT}},
    "transport": {"docker": {"": ACCEPT}},
    "registry over transport": {"docker": {"REGISTRY": REJECT, "": ACCEPT}},
    "wildcard": {"docker": {"*.0.0.1": ACCEPT}},
    "short wildcard": {"docker": {"*.1": ACCEPT}},
    "wildcard with port": {"docker": {"*.0.0.1:PORT": ACCEPT}},
    "other transport": {"oci": {"": ACCEPT}},
    "layout": {"oci": {"LAYOUT": ACCEPT}},
    "layout and tag": {"oci": {"LAYOUT:busybox": ACCEPT}},
    "folder": {"oci": {"FOLDER": ACCEPT}},
    "folder beside": {"oci": {"FOLDER/busy": ACCEPT}},
    "bad field": {"docker": {"": [{"type": "reject", "x": 1}]}},
    "bad type": {"docker": {"": [{"type": "maybe"}]}},
    "bad path": {"oci": {"relative": ACCEPT}},
    "empty": {"docker": {"": []}},
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A registry and a layout that have the same image."""
    folder = tmp_path_factory.mktemp("judged")
    busybox_image(folder / "busybox")
    with registry.running_registry(folder / "registry") as running:
        running.push(f"oci:{folder}/busybox:busybox", "a/b:1")
        yield folder, running


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("default", [ACCEPT, REJECT], ids=["accept", "reject"])
def test_secrun_and_skopeo_judge_alike(judged, tmp_path, name, default):
    folder, running = judged
    words = {
        "REGISTRY": running.address,
        "PORT": str(running.port),
        "LAYOUT": str(folder / "busybox"),
        "FOLDER": str(folder),
    }
    text = json.dumps({"default": default, "transports": POLICIES[name]})
    for word, value in words.items():
        text = text.replace(word, value)
    path = tmp_path / "policy.json"
    path.write_text(text)
    for source in (running.reference("a/b:1"), f"oci:{folder}/busybox:busybox"):
        done = subprocess.run(
            ["skopeo", "--policy", path, "copy", "--src-tls-verify=false", source, f"dir:{tmp_path}/out"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == accepts(path, source), (source, done.stderr)


def accepts(path, source):
    parsed = reference.localize(reference.parse(source))
    try:
        found = policy.parse(path.read_bytes(), source=str(path))
    except UsageError:
        return False
    context = plan.TrustContext(policy=found, ring=KeyRing(path.parent / "no-keys"))
    return plan.unsigned(context.plan(identity.subject(parsed))).decision is Decision.ACCEPT


# What secrun writes, and old images.


def test_a_stored_image_is_exported_for_others(secrun, busybox, tmp_path):
    (image,) = fetched(secrun, busybox)
    oci, aci_file = tmp_path / "out.tar", tmp_path / "out.aci"
    assert secrun("image", "export", "--format=oci", image["id"], oci).out == f"{image['id']}\n"
    assert json.loads(tool("skopeo", "inspect", f"oci-archive:{oci}"))["Digest"] == image["id"]
    image_id = secrun("image", "export", image["id"], aci_file).out.strip()
    assert image_id == f"sha512-{tool('sha512sum', aci_file).split()[0]}"
    names = tool("tar", "-tf", aci_file).splitlines()
    assert names[:2] == ["manifest", "rootfs/"]
    assert "rootfs/bin/busybox" in names
    assert "exists already" in secrun("image", "export", image["id"], aci_file, code=125).err
    (again,) = fetched(secrun, aci_file)
    assert again["tree"] == image["tree"]
    shown = json.loads(secrun("image", "cat-manifest", "--pretty-print", again["id"]).out)
    assert (shown["acKind"], shown["app"]["exec"]) == ("ImageManifest", ["/bin/sh"])
    other = json.loads(secrun("image", "cat-manifest", image["id"]).out)
    assert other["manifest"]["config"]["digest"] == image["config"]


def test_an_aci_made_by_tar_and_signed_by_gpg_is_read_by_skopeo_once_stored(secrun, tmp_path):
    # A refusal is measured, and would start a TPM that outlives the test.
    secrun = dataclasses.replace(secrun, options=("--attest=off",))
    (tmp_path / "made/rootfs/etc").mkdir(parents=True)
    (tmp_path / "made/rootfs/etc/motd").write_text("hello\n")
    document = json.dumps(aci.manifest(app={}))
    (tmp_path / "made/manifest").write_text(document)
    image = tmp_path / "app.aci"
    tool("tar", "-C", tmp_path / "made", "--owner=0", "--group=0", "-cJf", image, "manifest", "rootfs")
    signer = aci.Signer(tmp_path / "gpg")
    try:
        signer.sign(image)
        (tmp_path / "key").write_bytes(signer.public)
    finally:
        signer.close()
    (tmp_path / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    words = ("fetch", "--policy", tmp_path / "policy.json", image)
    secrun(*words, code=120)
    secrun("trust", "add", "--prefix", "example.com", "--skip-fingerprint-review", tmp_path / "key")
    secrun(*words)
    assert secrun("image", "cat-manifest", "app:1.0.0").out == f"{document}\n"
    (entry,) = entries(secrun)
    config = json.loads(tool("skopeo", "inspect", "--config", f"oci:{secrun.root}/images:{entry.name}"))
    assert config["config"]["Entrypoint"] == ["/bin/sh"]
