"""The store's commands killed at any instant, on a full disk, and all at once: what is left is whole."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from secrun.syscalls import MNT_DETACH, LinuxSyscalls
from support import faults, roots
from support.images import LayoutWriter, busybox_layer
from support.secrun import Secrun

ANY = "--insecure-options=image"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Secrun]:
    with roots.mounting(tmp_path) as made:
        yield made


def layout_of(folder: Path, mark: str) -> str:
    LayoutWriter(folder / mark).add_image(mark, [busybox_layer()], config={"Labels": {"mark": mark}})
    return f"oci:{folder}/{mark}:{mark}"


def killed(root: Secrun, tmp_path: Path, point: str, *words: str) -> list[str]:
    """Run a command that dies at an instant, or does not with an empty one; return the instants."""
    seen = tmp_path / "instants"
    seen.unlink(missing_ok=True)
    before = ("--root", str(root.root), "--run-root", str(root.run_root), *root.options)
    done = subprocess.run(faults.argv(str(seen), point, [*before, *words]), capture_output=True, check=False)
    assert done.returncode == (-9 if point else 0), done.stderr
    return seen.read_text().splitlines()


def sound(root: Secrun) -> set[str]:
    """Check that all that is listed is whole, and that nothing of the dead is left; return the IDs."""
    root("gc")
    images = root("image", "list", "-q").out.split()
    if images:
        root("image", "verify", *images)
    for folder in (root.root / "scratch", root.run_root / "mounts"):
        assert not folder.exists() or not any(folder.iterdir())
    assert [*(root.root / "images").glob(".index*")] == []
    return set(images)


@pytest.mark.parametrize("point", ["images-unlisted", "archive-written", "image-folder-made"])
def test_killed_at_any_instant_the_store_is_whole(root, tmp_path, point):
    image = root("fetch", ANY, layout_of(tmp_path, "one")).out.split()[-1]
    target = tmp_path / "saved" / "x.tar"
    target.parent.mkdir()
    words = {
        "images-unlisted": ("image", "prune", "--all"),
        "archive-written": ("image", "save", "-o", str(target), image),
        "image-folder-made": ("image", "mount", ANY, image),
    }[point]
    assert killed(root, tmp_path, point, *words)[-1] == point
    # No part of a file that was to be written is there, under any name.
    assert list(target.parent.iterdir()) == []
    assert sound(root) == (set() if point == "images-unlisted" else {image})
    blobs = [*(root.root / "images/blobs").glob("*/*"), *(root.root / "rootfs").glob("*")]
    assert bool(blobs) is (point != "images-unlisted")
    # It can be done again.
    killed(root, tmp_path, "", *words)


@pytest.mark.parametrize("point", ["image-mounted", "image-unmounted"])
def test_a_mount_that_was_killed_is_one_or_is_none(root, tmp_path, point):
    image = root("fetch", ANY, layout_of(tmp_path, "one")).out.split()[-1]
    if point == "image-mounted":
        killed(root, tmp_path, point, "image", "mount", ANY, image)
        (row,) = json.loads(root("image", "mount", "--format=json").out)["mounts"]
        assert (Path(row["path"]) / "bin").is_dir()
        root("image", "unmount", image)
    else:
        root("image", "mount", ANY, image)
        killed(root, tmp_path, point, "image", "unmount", image)
    assert root("image", "mount", "--no-legend").out == ""
    assert sound(root) == {image}


def test_a_full_disk_loads_nothing_and_loses_nothing(root, tmp_path):
    saved = tmp_path / "x.tar"
    image = root("fetch", ANY, layout_of(tmp_path, "one")).out.split()[-1]
    root("image", "save", "-o", saved, image)
    small = tmp_path / "small"
    small.mkdir()
    call = LinuxSyscalls()
    call.mount("none", str(small), "tmpfs", 0, "size=768k")
    try:
        other = Secrun(root=small / "root", run_root=tmp_path / "other", options=("--attest=off",))
        assert "no space left" in other("image", "load", ANY, "-i", saved, code=125).err
        assert sound(other) == set()
        call.mount("none", str(small), "tmpfs", 0x20, "size=64m")
        assert other("image", "load", ANY, "-i", saved).out.strip() == image
        assert sound(other) == {image}
    finally:
        call.umount(str(small), MNT_DETACH)


def test_all_commands_at_once_leave_a_whole_store(root, tmp_path):
    saved, marks = tmp_path / "x.tar", [f"n{number}" for number in range(3)]
    images = [root("fetch", ANY, layout_of(tmp_path, mark)).out.split()[-1] for mark in marks]
    root("image", "save", "-o", saved, *images)
    commands = [
        *(("image", "load", ANY, "-i", str(saved)) for _ in range(3)),
        *(("image", "tag", image, f"tag:{number}") for number, image in enumerate(images)),
        *(("image", "untag", f"tag:{number}") for number in range(3)),
        *(("image", "prune", "--all") for _ in range(2)),
        ("image", "gc"),
        ("image", "list"),
        *(("image", "save", "-o", str(tmp_path / f"{mark}.tar"), mark) for mark in marks),
    ]
    random.Random(7).shuffle(commands)
    running = [
        subprocess.Popen(root.argv(*words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for words in commands
    ]
    for words, process in zip(commands, running, strict=True):
        _, said = process.communicate(timeout=120)
        # An image may have gone before its name was taken, or with it; nothing is ever damaged.
        assert process.returncode in (0, 2, 125), (words, said)
        assert b"damaged" not in said, (words, said)
        assert b"Traceback" not in said, (words, said)
        if words[1] in ("load", "prune", "gc", "list"):
            assert process.returncode == 0, (words, said)
    for mark in marks:
        path = tmp_path / f"{mark}.tar"
        assert not path.exists() or os.path.getsize(path) > 500_000
    sound(root)
    root("image", "prune", "--all")
    assert sound(root) == set()
    assert [*(root.root / "images/blobs").glob("*/*")] == []
