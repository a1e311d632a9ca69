"""A stored image is read anew: one wrong byte is told, and what can be made anew is."""

import json

import pytest

from secrun.cli.main import main
from secrun.image import rootfs
from secrun.image.fetch import ensure_image
from support.stored import reference


@pytest.fixture
def image(layout, options, writer):
    made = ensure_image(layout, reference(writer), options)
    rootfs.ensure(layout, made.layers)
    return made


@pytest.fixture
def verify(layout, options, image, capsys):
    """Verify the image; return its row, what was noted, and check the status."""

    def run(*words, code):
        capsys.readouterr()
        place = ("--root", str(layout.root), "--run-root", str(layout.run_root))
        policy = f"--policy={options.policy}"
        words = ("image", "verify", "--format=json", policy, *words, str(image.manifest_digest))
        assert main([*place, *words]) == code
        said = capsys.readouterr()
        (row,) = json.loads(said.out)["images"]
        return row, said.err

    return run


def flip(path):
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_good_has_no_damage(verify):
    row, _ = verify(code=0)
    assert (row["damage"], row["decision"]) == ([], "accept")


@pytest.mark.parametrize("what", ["layer", "config", "manifest", "gone"])
def test_a_blob_with_another_byte_is_found_and_fetched_again(layout, options, image, verify, what):
    blobs = layout.images / "blobs/sha256"
    digests = {"config": image.config_digest, "manifest": image.manifest_digest}
    path = blobs / digests.get(what, image.layers[0].digest).hex
    good = path.read_bytes()
    if what == "gone":
        path.unlink()
    else:
        flip(path)
    row, _ = verify(code=125)
    assert path.name in row["damage"][0]
    _, said = verify("--repair", code=125)
    assert "fetch brings them in again" in said
    assert not path.exists()
    ensure_image(layout, image.reference, options)
    assert path.read_bytes() == good
    assert verify(code=0)[0]["damage"] == []


def test_a_damaged_rootfs_image_is_made_anew(layout, image, verify):
    path = rootfs.ensure(layout, image.layers).path
    good = path.read_bytes()
    flip(path)
    row, _ = verify(code=125)
    assert "verity root" in row["damage"][0]
    assert path.read_bytes() != good
    _, said = verify("--repair", code=125)
    assert "made anew" in said
    assert path.read_bytes() == good
    assert verify(code=0)[0]["damage"] == []
