"""The pod's own image: the guest's table, the same bytes on every host, a root hash that binds them."""

import subprocess
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.image.rootfs import RootfsImage
from secrun.stage1.volume import Volume
from secrun_kvm import podimage
from support.manifests import app, pod

FILES = {"units/pod.target": b"[Unit]\n", "system.conf": b"[Manager]\n", "apps/web/config.json": b"{}"}


def image(blocks: int) -> RootfsImage:
    return RootfsImage(
        key=Digest.of(b"key"),
        path=Path("/nowhere"),
        format_version=1,
        data_size=blocks * 4096,
        file_size=(blocks + 2) * 4096,
        tree_digest=Digest.of(b"tree"),
        verity_root="ab" * 32,
        verity_salt="cd" * 32,
        max_id=0,
        users=(),
        groups=(),
        diff_ids=(),
    )


def volume(source, target="/t", *, read_only=False) -> Volume:
    return Volume(source=str(source), target=target, read_only=read_only)


def test_the_table_names_every_image_and_volume_once(tmp_path):
    (tmp_path / "file").touch()
    apps = (
        app("web", volumes=(volume(tmp_path), volume(tmp_path / "file", read_only=True))),
        app("log", volumes=(volume(tmp_path, "/other"),)),
    )
    mounted = podimage.volumes(apps)
    text = podimage.table(
        pod(*apps), [image(7), image(9)], mounted, scratch=True, vtpm=True, networks=2
    ).decode()
    assert text.splitlines() == [
        "secrun-guest 1",
        "hostname h",
        "uuid 0a0a0a0a-1111-4111-8111-111111111111",
        f"image web app-0 7 {'ab' * 32} {'cd' * 32}",
        f"image log app-1 9 {'ab' * 32} {'cd' * 32}",
        "volume web 0 volume-0 rw .",
        "volume web 1 volume-1 ro file",
        # One source shown twice is one share.
        "volume log 0 volume-0 rw .",
        "scratch",
        "tpm",
        "networks 2",
    ]


def test_a_source_that_is_writable_for_one_app_alone_is_two_shares(tmp_path):
    apps = (app("a", volumes=(volume(tmp_path),)), app("b", volumes=(volume(tmp_path, read_only=True),)))
    shares = [item.share for item in podimage.volumes(apps)]
    assert [(share.tag, share.read_only) for share in shares] == [("volume-0", False), ("volume-1", True)]


def test_the_same_files_give_the_same_bytes_in_any_order():
    turned = dict(reversed(FILES.items()))
    assert podimage.packed(FILES) == podimage.packed(turned)
    assert podimage.packed(FILES).root != podimage.packed({**FILES, "guest": b"x\n"}).root


def test_the_root_hash_is_the_one_that_veritysetup_finds(tmp_path):
    packed = podimage.packed(FILES)
    path = tmp_path / "pod.img"
    path.write_bytes(packed.data)
    words = ["veritysetup", "verify", path, path, packed.root, f"--hash-offset={packed.blocks * 4096}"]
    subprocess.run(words, check=True, capture_output=True)
    assert podimage.root_of(packed.data, packed.blocks) == packed.root


@pytest.mark.parametrize("damage", ["flip", "short", "long", "blocks", "tree"])
def test_an_image_that_was_changed_has_not_its_root(damage):
    packed = podimage.packed(FILES)
    data, blocks = bytearray(packed.data), packed.blocks
    if damage == "flip":
        data[5000] ^= 1
    elif damage == "short":
        del data[-4096:]
    elif damage == "long":
        data += bytes(4096)
    elif damage == "blocks":
        blocks -= 1
    else:
        blocks = 0
    assert podimage.root_of(bytes(data), blocks) != packed.root
