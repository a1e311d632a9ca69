"""umoci and buildah as judges of the flattened tree."""

import json
import os
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import rootfs
from secrun.image.rootfs import Compression, LayerSource
from secrun.launch import run
from secrun.paths import Layout
from support.erofs_judges import mounted, walk
from support.layers import Member, file, folder, gnu_long, hardlink, merge, pax, symlink, tar
from support.merge_judge import difference, random_layers, without_unpack_times

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
LONG = b"/".join([b"long-name-%03d" % number for number in range(30)])

IMAGES = {
    "whiteouts": [
        tar(
            folder(b"a"),
            file(b"a/x"),
            folder(b"a/s"),
            file(b"a/s/y"),
            file(b"z"),
            folder(b"o"),
            file(b"o/1"),
        ),
        tar(
            file(b"a/.wh.x"), file(b"a/s/new"), file(b"o/.wh..wh..opq"), file(b"o/2"), file(b".wh..wh.plnk")
        ),
        tar(file(b".wh.z"), file(b"a/.wh.s")),
    ],
    "opaque in the layer of its entries": [
        tar(folder(b"d"), file(b"d/old")),
        tar(folder(b"d"), file(b"d/before"), file(b"d/.wh..wh..opq"), file(b"d/after")),
    ],
    "hard links": [
        tar(file(b"f", b"data"), hardlink(b"g", b"f"), symlink(b"s", b"f"), hardlink(b"t", b"s")),
        tar(hardlink(b"h", b"/g"), hardlink(b"i", b"../f"), file(b"g", b"replaced")),
    ],
    "escapes": [
        tar(
            file(b"../../dotdot", b"1"),
            file(b"/absolute", b"2"),
            symlink(b"up", b"../../.."),
            symlink(b"e", b"/etc"),
        ),
        tar(file(b"up/through", b"3"), file(b"e/passwd", b"4"), file(b"e/../x", b"5")),
    ],
    "odd names": [
        tar(
            file(b"new\nline"),
            file(b"\xff\xfe\x80"),
            file(b" "),
            file(b"-rf"),
            file(b"n" * 99),
            pax(file(b"short"), (b"path", b"x" * 255)),
            gnu_long(file(b"short"), name=LONG),
            gnu_long(symlink(b"longlink", b"t"), link=LONG),
        )
    ],
    "metadata": [
        tar(
            pax(file(b"caps", b"x"), (b"SCHILY.xattr.security.capability", CAPABILITY)),
            pax(
                file(b"user", b"x"),
                (b"SCHILY.xattr.user.key", b"v\0\n"),
                (b"mtime", b"1500000000.123456789"),
            ),
            pax(folder(b"dir"), (b"SCHILY.xattr.user.key", b"on a folder"), (b"mtime", b"-1.5")),
            Member(name=b"suid", mode=0o6755, uid=1, gid=2_000_000),
            Member(name=b"null", type=b"3", device=(1, 3), mode=0o666),
            Member(name=b"disk", type=b"4", device=(259, 70_000), mode=0o660),
            Member(name=b"fifo", type=b"6", mode=0o600),
            folder(b"sticky", mode=0o1777),
            Member(name=b"bigid", uid=2**32 - 2, gid=2**31),
        )
    ],
    "replacements": [
        tar(
            folder(b"d"),
            file(b"d/in"),
            file(b"f"),
            symlink(b"l", b"d"),
            file(b"twice", b"1"),
            file(b"twice", b"22"),
        ),
        tar(file(b"d"), folder(b"f"), file(b"f/in"), folder(b"l"), file(b"l/own"), folder(b"twice")),
    ],
    "sparse": [
        tar(
            pax(
                Member(name=b"GNUSparseFile.0/s", data=b"A" * 100 + b"B" * 600),
                (b"GNU.sparse.major", b"0"),
                (b"GNU.sparse.minor", b"1"),
                (b"GNU.sparse.size", b"300000"),
                (b"GNU.sparse.numblocks", b"2"),
                (b"GNU.sparse.name", b"s"),
                (b"GNU.sparse.map", b"1000,100,250000,600"),
            )
        )
    ],
    "empty layer": [tar(), tar(file(b"only")), b""],
}


@pytest.mark.parametrize("name", IMAGES)
def test_tree_is_what_umoci_unpacks(tmp_path: Path, name: str) -> None:
    accepted, found = difference(IMAGES[name], tmp_path)
    assert found == ""
    assert accepted


@pytest.mark.parametrize(
    "layers",
    [
        [tar(hardlink(b"h", b"absent"))],
        [tar(folder(b"d"), hardlink(b"h", b"d"))],
        [tar(file(b"f"), file(b"f/below"))],
        [tar(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x"))],
        [tar(symlink(b"/", b"etc"))],
        [tar(file(b"n"))[:300]],
        [tar(Member(name=b"n", checksum=b"1"))],
        [tar(Member(name=b"v", type=b"V"))],
    ],
)
def test_what_umoci_refuses_is_refused(tmp_path: Path, layers: list[bytes]) -> None:
    accepted, found = difference(layers, tmp_path)
    assert found == ""
    assert not accepted


@pytest.mark.parametrize("seed", range(150))
def test_random_layers_merge_as_umoci_unpacks_them(tmp_path: Path, seed: int) -> None:
    _, found = difference(random_layers(seed), tmp_path)
    assert found == "", f"seed {seed}"


def buildah(*words: str | Path, work: Path) -> str:
    storage = ["--storage-driver=vfs", f"--root={work / 'storage'}", f"--runroot={work / 'runroot'}"]
    return run(["buildah", *storage, *words]).stdout.decode().strip()


@pytest.fixture
def buildah_layout(tmp_path: Path) -> Path:
    """An image that buildah built in three commits, with a deletion, a hard link and a capability."""
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    (tree / "dir" / "gone").write_text("gone")
    (tree / "kept").write_text("kept")
    os.link(tree / "kept", tree / "linked")
    os.setxattr(tree / "kept", "security.capability", CAPABILITY)
    os.chown(tree / "dir", 1000, 1001)
    container = buildah("from", "scratch", work=tmp_path)
    buildah("copy", container, tree, "/", work=tmp_path)
    buildah("commit", container, "one", work=tmp_path)
    second = buildah("from", "localhost/one", work=tmp_path)
    place = Path(buildah("mount", second, work=tmp_path))
    (place / "dir" / "gone").unlink()
    (place / "new\nline").symlink_to("kept")
    buildah("umount", second, work=tmp_path)
    layout = tmp_path / "layout"
    buildah("commit", second, "two", work=tmp_path)
    buildah("push", "--format=oci", "localhost/two", f"oci:{layout}:t", work=tmp_path)
    buildah("rm", "--all", work=tmp_path)
    return layout


def sources(layout: Path) -> list[LayerSource]:
    """Read the layers of the only image of an OCI layout."""

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    (listed,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = json.loads(blob(listed["digest"]).read_bytes())
    config = json.loads(blob(manifest["config"]["digest"]).read_bytes())
    return [
        LayerSource(
            path=blob(layer["digest"]),
            digest=Digest.parse(layer["digest"]),
            size=layer["size"],
            compression=Compression.GZIP if layer["mediaType"].endswith("gzip") else Compression.NONE,
            diff_id=Digest.parse(diff_id),
        )
        for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
    ]


def test_image_of_buildah_renders_as_umoci_unpacks_it(tmp_path: Path, buildah_layout: Path) -> None:
    image = rootfs.ensure(Layout(tmp_path / "root", tmp_path / "run"), sources(buildah_layout))
    run(["umoci", "unpack", f"--image={buildah_layout}:t", tmp_path / "bundle"])
    unpacked = walk(os.fsencode(tmp_path / "bundle" / "rootfs"))
    with mounted(image.path, tmp_path / "mnt") as top:
        own = without_unpack_times(walk(top), unpacked)
    assert own == unpacked
    assert b"dir/gone" not in own
    assert (b"security.capability", CAPABILITY) in own[b"kept"][6]


def test_hostile_whiteouts_that_umoci_would_follow_outside_are_refused() -> None:
    # Not shown to umoci: taken literally this name is the parent of the root.
    with pytest.raises(ImageError, match="whiteout"):
        merge(tar(file(b".wh...")))
