"""Stored images written to files: the same bytes each time, and what a reader of the format takes."""

import hashlib
import json
import os
import tarfile

import pytest

from secrun.errors import ImageError, StateError
from secrun.image import export, rootfs
from secrun.image.aci import describe
from secrun.image.aci.unpack import unpack
from secrun.image.config import parse as parse_config
from secrun.image.fetch import ensure_image
from secrun.image.rootfs.model import Passwd
from secrun.image.store import ImageStore
from support import aci
from support.images import Entry, LayoutWriter, directory, hardlink, symlink, tar_layer
from support.stored import ARCH, accepting

PAX = {"mtime": "1700000000.25", "SCHILY.xattr.user.a": "b"}
LOWER = tar_layer(
    [
        directory("bin"),
        Entry(name="bin/tool", mode=0o4755, uid=7, gid=8, data=b"tool" * 1000, pax=PAX),
        hardlink("bin/other", "bin/tool"),
        symlink("bin/link", "/bin/tool"),
        Entry(name="bin/null", kind=tarfile.CHRTYPE, device=(1, 3)),
        Entry(name="gone", data=b"x"),
        Entry(name="etc/" + "n" * 120, data=b"long"),
    ]
)
UPPER = tar_layer([Entry(name=".wh.gone"), Entry(name="bin/new", data=b"new")])
CONFIG = {
    "Entrypoint": ["/bin/tool"],
    "Cmd": ["-v"],
    "Env": ["A=b=c"],
    "User": "app",
    "WorkingDir": "/bin",
    "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
    "Volumes": {"/var/data": {}, "/var-data": {}},
}


@pytest.fixture
def stored(layout, tmp_path):
    """Store an image of two layers and return its entry."""

    def put(config=CONFIG):
        writer = LayoutWriter(tmp_path / f"source-{len(list(tmp_path.iterdir()))}")
        writer.add_image("one", [LOWER, UPPER], architecture=ARCH, config=config)
        image = ensure_image(layout, f"oci:{writer.path}:one", accepting(tmp_path))
        return next(item for item in ImageStore(layout).entries() if item.reference == image.reference)

    return put


def take_apart(path, folder):
    folder.mkdir()
    fd = os.open(path, os.O_RDONLY)
    try:
        return unpack(fd, folder, what="it")
    finally:
        os.close(fd)


def test_an_image_becomes_an_aci_that_validates_and_holds_the_same_tree(layout, stored, tmp_path):
    entry = stored()
    image_id = export.aci(layout, entry, tmp_path / "out.aci")
    assert image_id.hex == hashlib.sha512((tmp_path / "out.aci").read_bytes()).hexdigest()
    found = take_apart(tmp_path / "out.aci", tmp_path / "apart")
    assert found.image_id == image_id
    app = found.manifest.app
    assert (app.exec, app.user, app.group) == (("/bin/tool", "-v"), "app", "0")
    assert (app.environment, app.working_directory) == ((("A", "b=c"),), "/bin")
    assert [(port.name, port.port) for port in app.ports] == [("53-udp", 53), ("80-tcp", 80)]
    assert sorted((item.name, item.path) for item in app.mount_points) == [
        ("volume-var-data", "/var-data"),
        ("volume-var-data-1", "/var/data"),
    ]
    before = ensure_image(layout, entry.reference, accepting(tmp_path))
    after = ensure_image(layout, str(tmp_path / "out.aci"), accepting(tmp_path))
    trees = [rootfs.ensure(layout, image.layers).tree_digest for image in (before, after)]
    assert trees[0] == trees[1]


def test_the_same_image_gives_the_same_bytes(layout, stored, tmp_path):
    entry = stored()
    for kind in (export.aci, export.oci):
        names = [tmp_path / f"{kind.__name__}-{number}" for number in range(2)]
        ids = [kind(layout, entry, name) for name in names]
        assert ids[0] == ids[1]
        assert names[0].read_bytes() == names[1].read_bytes()


def test_an_aci_keeps_its_manifest_without_what_is_in_its_files_now(layout, tmp_path):
    options = accepting(tmp_path)
    aci.write(
        tmp_path / "base.aci", aci.manifest("example.com/base"), [Entry(name="rootfs/base", data=b"1")]
    )
    whole = aci.manifest(
        app={"isolators": [{"name": "os/linux/no-new-privileges", "value": True}]},
        dependencies=[{"imageName": "example.com/base"}],
        pathWhitelist=["/base", "/own"],
    )
    aci.write(tmp_path / "app.aci", whole, [Entry(name="rootfs/own"), Entry(name="rootfs/left-out")])
    ensure_image(layout, str(tmp_path / "base.aci"), options)
    ensure_image(layout, str(tmp_path / "app.aci"), options)
    entry = next(item for item in ImageStore(layout).entries() if item.reference.endswith("app.aci"))
    export.aci(layout, entry, tmp_path / "out.aci")
    with tarfile.open(tmp_path / "out.aci") as archive:
        assert archive.getnames() == ["manifest", "rootfs", "rootfs/base", "rootfs/own"]
        document = json.load(archive.extractfile("manifest"))
    assert document == {key: whole[key] for key in whole if key not in ("dependencies", "pathWhitelist")}


def test_a_file_that_exists_stays_unless_it_is_to_be_replaced(layout, stored, tmp_path):
    entry = stored()
    out = tmp_path / "out"
    out.write_bytes(b"mine")
    for kind in (export.aci, export.oci):
        with pytest.raises(StateError):
            kind(layout, entry, out)
        assert out.read_bytes() == b"mine"
    export.oci(layout, entry, out, overwrite=True)
    assert out.read_bytes() != b"mine"


def test_nothing_is_left_of_an_image_that_cannot_be_written(layout, stored, tmp_path):
    entry = stored({"Entrypoint": ["/x"], "Env": ["A B=c"]})
    with pytest.raises(ImageError, match="cannot be said"):
        export.aci(layout, entry, tmp_path / "out.aci")
    layer = ensure_image(layout, entry.reference, accepting(tmp_path)).layers[0]
    layer.path.write_bytes(bytes(layer.size))
    with pytest.raises(ImageError, match="damaged"):
        export.oci(layout, entry, tmp_path / "out.oci")
    assert [item.name for item in tmp_path.iterdir() if "out" in item.name] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("docker.io/library/busybox", "docker.io/library/busybox"),
        ("localhost:5000/Team/App__x", "localhost-5000/team/app-x"),
        ("..//--", "image"),
        ("a" * 300, "a" * 255),
    ],
)
def test_names_become_ac_identifiers(name, expected):
    assert describe.identifier(name) == expected


def test_the_group_is_the_users_own_where_none_is_named(layout, stored, tmp_path):
    entry = stored()
    image = ensure_image(layout, entry.reference, accepting(tmp_path))
    rendered = rootfs.ensure(layout, image.layers)
    from secrun.record import replace

    known = replace(rendered, users=(Passwd(name="app", uid=5, gid=6, home="/"),))
    for user, expected in (
        ("app", ("app", "6")),
        ("5", ("5", "6")),
        ("9", ("9", "0")),
        ("app:x", ("app", "x")),
    ):
        document = {
            "architecture": ARCH,
            "os": "linux",
            "config": {"Entrypoint": ["/x"], "User": user},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
        config = parse_config(json.dumps(document).encode(), what="config")
        made = json.loads(describe.describe(config, known, own=None, name="a", version="1", what="it"))
        assert (made["app"]["user"], made["app"]["group"]) == expected
        assert {"name": "version", "value": "1"} in made["labels"]
