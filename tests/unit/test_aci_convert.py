"""App container images become OCI images: checked layout, the same bytes each time, whitelists, owners."""

import io
import json
import os
import tarfile

import pytest

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.aci import embedded, limits, oci
from secrun.image.aci.unpack import narrowed, unpack
from secrun.image.config import parse as parse_config
from secrun.image.manifest import parse_manifest
from secrun.image.platform import Platform
from secrun.image.rootfs.model import Compression, LayerSource
from support import aci, layers
from support.images import Entry, directory, hardlink, symlink, tar_layer

HOST = Platform(os="linux", architecture="amd64")
FILES = [
    directory("rootfs/bin", 0o2755),
    Entry(
        name="rootfs/bin/tool",
        mode=0o4755,
        uid=7,
        gid=8,
        data=b"tool",
        pax={"mtime": "1700000000.5", "SCHILY.xattr.user.a": "b"},
    ),
    hardlink("rootfs/bin/other", "rootfs/bin/tool"),
    symlink("rootfs/bin/link", "../../../etc/passwd"),
    Entry(name="rootfs/bin/" + "l" * 150, data=b"long"),
    Entry(name="rootfs/dev/null", kind=tarfile.CHRTYPE, device=(1, 3)),
    Entry(name="rootfs/bin/pipe", kind=tarfile.FIFOTYPE),
]


@pytest.fixture
def take_apart(tmp_path):
    """Unpack the bytes of a file in a folder of its own."""
    counter = iter(range(1000))

    def run(data):
        folder = tmp_path / str(next(counter))
        folder.mkdir()
        (folder / "file").write_bytes(data)
        fd = os.open(folder / "file", os.O_RDONLY)
        try:
            return unpack(fd, folder, what="it")
        finally:
            os.close(fd)

    return run


def converted(unpacked, made=(), **changes):
    own = oci.Layer(digest=unpacked.layer.digest, size=unpacked.layer.size)
    return oci.convert(
        unpacked.manifest,
        unpacked.text,
        unpacked.image_id,
        owner=(unpacked.user, unpacked.group),
        layers=[*made, own],
        platform=changes.get("platform", HOST),
        what="it",
    )


def members(path):
    with tarfile.open(path) as archive:
        return {info.name: info for info in archive}


@pytest.mark.parametrize("packed", sorted(aci.PACKERS))
@pytest.mark.parametrize("last", [False, True])
def test_every_packing_and_order_gives_the_same_image(take_apart, packed, last):
    data = aci.tar(aci.manifest(app={}), FILES, last=last)
    found = take_apart(aci.PACKERS[packed](data))
    assert f"sha512-{found.image_id.hex}" == aci.image_id(data)
    assert json.loads(found.text) == aci.manifest(app={})
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        before = {info.name: info for info in archive if info.name != "manifest"}
    after = members(found.layer.path)
    assert set(after) == {name.replace("rootfs", ".", 1).removeprefix("./") for name in before}
    for name, info in before.items():
        if info.islnk():
            continue  # it says of the file what the first name says
        other = after[name.replace("rootfs", ".", 1).removeprefix("./")]
        for what in ("type", "mode", "uid", "gid", "mtime", "devmajor", "devminor", "size"):
            assert getattr(other, what) == getattr(info, what), (name, what)
    assert after["bin/other"].linkname == "bin/tool"
    assert after["bin/link"].linkname == "../../../etc/passwd"
    assert after["bin/tool"].pax_headers["SCHILY.xattr.user.a"] == "b"
    assert Digest.of(found.layer.path.read_bytes()) == found.layer.digest
    # A layer is what the renderer takes, and two files of one name stay one.
    tree = layers.merge(found.layer.path.read_bytes())
    assert tree[b"bin/tool"].link_group == tree[b"bin/other"].link_group != 0
    assert tree[b"bin/tool"].mtime_ns == 1_700_000_000_500_000_000


def test_the_oci_image_says_what_the_manifest_said(take_apart):
    document = aci.manifest(
        app={
            "exec": ["/bin/tool", "a b"],
            "user": "/bin/tool",
            "group": "/bin/tool",
            "workingDirectory": "/bin",
            "environment": [{"name": "A", "value": "b=c"}],
            "ports": [{"name": "x", "port": 80, "count": 2, "protocol": "udp"}],
        },
        annotations=[
            {"name": "homepage", "value": "https://example.com"},
            {"name": "created", "value": "now"},
        ],
    )
    found = take_apart(aci.tar(document, FILES))
    made = converted(found)
    config = parse_config(made.config, what="config")
    assert (config.entrypoint, config.cmd) == (("/bin/tool", "a b"), ())
    assert (config.user, config.working_dir, config.env) == ("7:8", "/bin", ("A=b=c",))
    assert config.exposed_ports == ("80/udp", "81/udp")
    assert config.platform == HOST
    assert dict(config.labels)["version"] == "1.0.0"
    assert oci.text_of(config) == json.dumps(document)
    assert embedded.manifest_of(config, "it") == found.manifest
    manifest = parse_manifest(made.manifest, "", what="manifest")
    assert [layer.digest for layer in manifest.layers] == list(config.diff_ids) == [found.layer.digest]
    annotations = json.loads(made.manifest)["annotations"]
    assert annotations["dev.secrun.appc.image-id"] == aci.image_id(aci.tar(document, FILES))
    assert annotations["org.opencontainers.image.url"] == "https://example.com"
    # What is no time would keep other tools from reading the image.
    assert "org.opencontainers.image.created" not in annotations
    assert made == converted(take_apart(aci.PACKERS["xz"](aci.tar(document, FILES))))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"os": "linux", "arch": "i386"}, "linux/386"),
        ({"os": "linux", "arch": "aarch64"}, "linux/arm64/v8"),
        ({"os": "linux"}, "linux/amd64"),
        ({}, "linux/amd64"),
    ],
)
def test_the_platform_is_that_of_the_labels_or_the_one_that_asks(take_apart, labels, expected):
    found = take_apart(aci.tar(aci.manifest(labels=labels)))
    assert str(oci.platform_of(found.manifest, HOST, "it")) == expected


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        ({"os": "linux", "arch": "vax"}, "image-platform"),
        ({"arch": "amd64"}, "image-aci-manifest"),
    ],
)
def test_labels_that_name_no_platform_are_refused(take_apart, labels, code):
    found = take_apart(aci.tar(aci.manifest(labels=labels)))
    with pytest.raises(ImageError) as caught:
        oci.platform_of(found.manifest, HOST, "it")
    assert caught.value.code == code


def test_a_label_cannot_pass_for_one_of_secruns(take_apart):
    found = take_apart(aci.tar(aci.manifest(labels={"dev.secrun.appc.manifest": "x"})))
    with pytest.raises(ImageError, match="secrun's own"):
        converted(found)


ROOTFS = directory("rootfs")
OWN = Entry(name="manifest", data=json.dumps(aci.manifest()).encode())


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([ROOTFS], "no manifest"),
        ([OWN], "no rootfs"),
        ([OWN, ROOTFS, Entry(name="./manifest", data=OWN.data)], "two members"),
        ([OWN, ROOTFS, Entry(name="rootfs/a"), Entry(name="rootfs/./a")], "two members"),
        ([OWN, ROOTFS, Entry(name="etc/passwd")], "neither the manifest nor below rootfs"),
        ([OWN, ROOTFS, Entry(name="rootfs.d")], "neither the manifest nor below rootfs"),
        ([OWN, ROOTFS, Entry(name="rootfs/../../etc/passwd")], "leads out"),
        ([OWN, ROOTFS, Entry(name="/rootfs/etc/passwd")], "leads out"),
        ([OWN, ROOTFS, hardlink("rootfs/shadow", "/etc/shadow")], "leads out"),
        ([OWN, ROOTFS, hardlink("rootfs/shadow", "rootfs/../../etc/shadow")], "leads out"),
        ([OWN, ROOTFS, hardlink("rootfs/m", "manifest")], "leads out of rootfs"),
        ([OWN, ROOTFS, Entry(name="rootfs/x"), hardlink("rootfs/m", "other/x")], "leads out of rootfs"),
        ([OWN, ROOTFS, hardlink("rootfs/m", "rootfs/none")], "nothing before it"),
        ([OWN, ROOTFS, directory("rootfs/d"), hardlink("rootfs/m", "rootfs/d")], "a folder"),
        ([OWN, symlink("rootfs", "/")], "not a folder"),
        ([symlink("manifest", "/etc/passwd"), ROOTFS], "not a regular file"),
        ([OWN, ROOTFS, Entry(name="rootfs/etc/.wh.passwd")], ".wh."),
        ([Entry(name="manifest", data=b"{"), ROOTFS], "not valid JSON"),
        ([Entry(name="manifest", data=b"x" * (limits.MAX_MANIFEST_BYTES + 1)), ROOTFS], "the limit is"),
    ],
)
def test_a_file_with_another_layout_is_refused(take_apart, entries, said):
    with pytest.raises(ImageError) as caught:
        take_apart(tar_layer(entries))
    assert said in caught.value.message
    assert caught.value.message.startswith("it: ")


def test_a_manifest_of_a_gigabyte_is_not_read(take_apart):
    """Its header promises that much, and nothing is there."""
    member = layers.Member(name=b"manifest", size=b"%011o\0" % (1 << 30), data=b"")
    with pytest.raises(ImageError):
        take_apart(layers.tar(member, layers.folder(b"rootfs")))


@pytest.mark.parametrize("packed", ["gzip", "bzip2", "xz"])
def test_damaged_and_cut_files_are_errors(take_apart, packed):
    data = aci.PACKERS[packed](aci.tar(aci.manifest(), [Entry(name="rootfs/x", data=os.urandom(5000))]))
    for bad in (data[:-20], data[: len(data) // 2], data[:40] + bytes(40) + data[80:]):
        with pytest.raises(ImageError):
            take_apart(bad)
    with pytest.raises(ImageError, match="lz4 data is not taken"):
        take_apart(b"\x04\x22\x4d\x18" + data)


def test_a_bomb_is_stopped_at_the_ratio(take_apart, monkeypatch):
    from secrun.image.rootfs import limits as rootfs_limits

    monkeypatch.setattr(rootfs_limits, "RATIO_FLOOR_BYTES", 1 << 20)
    data = aci.tar(aci.manifest(), [Entry(name="rootfs/x", data=bytes(8 << 20))])
    for packed in ("gzip", "bzip2", "xz"):
        with pytest.raises(ImageError, match="MAX_RATIO"):
            take_apart(aci.PACKERS[packed](data))


def test_the_owner_of_a_path_that_is_not_there_is_an_error(take_apart):
    with pytest.raises(ImageError, match="no such file"):
        take_apart(aci.tar(aci.manifest(app={"user": "/none"})))


LISTED = [
    directory("rootfs/a"),
    directory("rootfs/a/b"),
    Entry(name="rootfs/a/b/kept", data=b"1"),
    Entry(name="rootfs/a/b/gone", data=b"2"),
    directory("rootfs/c"),
    Entry(name="rootfs/c/x", data=b"3"),
    hardlink("rootfs/a/first", "rootfs/a/b/gone"),
    hardlink("rootfs/a/second", "rootfs/a/b/gone"),
    hardlink("rootfs/a/third", "rootfs/a/b/kept"),
]
WANTED = ["/a/b/kept", "/a/first", "/a/second", "/c", "/absent"]


def test_a_whitelist_keeps_its_paths_and_the_folders_that_lead_to_them(take_apart):
    found = take_apart(aci.tar(aci.manifest(pathWhitelist=WANTED), LISTED))
    after = members(found.layer.path)
    assert set(after) == {".", "a", "a/b", "a/b/kept", "a/first", "a/second", "c"}
    assert found.found == {"/a/b/kept", "/a/first", "/a/second", "/c"}
    # The first name of the two is not kept: the content stays, and both are one file as before.
    assert (after["a/first"].isreg(), after["a/second"].linkname) == (True, "a/first")
    with tarfile.open(found.layer.path) as archive:
        assert archive.extractfile("a/second").read() == b"2"


def test_layers_of_dependencies_are_narrowed_by_the_image_above(take_apart, tmp_path):
    found = take_apart(aci.tar(aci.manifest(), LISTED))
    source = LayerSource(
        path=found.layer.path,
        digest=found.layer.digest,
        size=found.layer.size,
        compression=Compression.NONE,
        diff_id=found.layer.digest,
    )
    (layer,), there = narrowed([source], ["/a/b/kept"], tmp_path, what="it")
    assert set(members(layer.path)) == {".", "a", "a/b", "a/b/kept"}
    assert there == {"/a/b/kept"}
