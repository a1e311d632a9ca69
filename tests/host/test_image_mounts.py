"""An image is looked at where root has mounted it: judged, checked, and so that nothing in it can be run."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.paths import Layout
from support import roots
from support.images import LayoutWriter, busybox_layer
from support.secrun import Secrun

ANY = "--insecure-options=image"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Secrun]:
    with roots.mounting(tmp_path) as made:
        yield made


@pytest.fixture
def image(root: Secrun, tmp_path: Path) -> str:
    LayoutWriter(tmp_path / "layout").add_image("one", [busybox_layer()])
    return root("fetch", ANY, f"oci:{tmp_path}/layout:one").out.split()[-1]


def options_of(path: str) -> set[str]:
    (line,) = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {path} " in line]
    return set(line.split(" ")[3].split(","))


def test_an_image_is_mounted_once_read_only_and_unmounted(root, image):
    path = root("image", "mount", ANY, image).out.strip()
    assert (Path(path) / "etc/passwd").read_text().startswith("root:")
    assert {"ro", "nosuid", "nodev", "noexec"} <= options_of(path)
    assert root("image", "mount", ANY, image).out.strip() == path
    assert [row["path"] for row in json.loads(root("image", "mount", "--format=json").out)["mounts"]] == [
        path
    ]
    refused = root("image", "rm", image, code=125)
    assert "secrun image unmount" in refused.err
    assert image not in root("image", "prune", "--all").out
    with pytest.raises(PermissionError):
        subprocess.run([f"{path}/bin/busybox", "true"], check=True)
    assert Path(path).parent.stat().st_mode & 0o077 == 0
    assert root("image", "unmount", image).out.strip() == path
    assert not Path(path).exists()
    assert "is not mounted" in root("image", "unmount", image, code=125).err
    root("image", "rm", image)


def test_who_works_in_it_keeps_it_until_somebody_forces(root, image):
    path = root("image", "mount", ANY, image).out.strip()
    fd = os.open(f"{path}/etc/passwd", os.O_RDONLY)
    try:
        assert "is in use" in root("image", "unmount", image, code=125).err
        assert (Path(path) / "etc").exists()
        root("image", "unmount", "--force", image)
        assert not Path(path).exists()
        assert os.read(fd, 5) == b"root:"
    finally:
        os.close(fd)


def test_what_no_policy_admits_and_what_is_damaged_is_not_mounted(root, image, tmp_path):
    policy = tmp_path / "reject.json"
    policy.write_text('{"default": [{"type": "reject"}]}')
    root("image", "mount", f"--policy={policy}", image, code=120)
    (rootfs,) = (root.root / "rootfs").glob("*.erofs")
    data = bytearray(rootfs.read_bytes())
    data[len(data) // 2] ^= 1
    rootfs.write_bytes(data)
    assert "verity root" in root("image", "mount", ANY, image, code=125).err
    assert json.loads(root("image", "mount", "--format=json").out)["mounts"] == []
    assert list((root.run_root / "mounts").iterdir()) == []


def test_gc_removes_what_a_killed_mount_left_and_leaves_what_is_mounted(root, image):
    path = root("image", "mount", ANY, image).out.strip()
    stale = Layout(root=root.root, run_root=root.run_root).mounts / ("ab" * 32)
    stale.mkdir()
    root("gc")
    assert not stale.exists()
    assert (Path(path) / "etc/passwd").exists()
