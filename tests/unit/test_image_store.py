"""Images enter the store whole or not at all, are found again cheaply, and leave nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from secrun import locks
from secrun.digest import Digest
from secrun.errors import ImageError, StateError, UsageError
from secrun.image import reference as references
from secrun.image import resolve
from secrun.image.fetch import PullPolicy, ensure_image
from secrun.image.platform import Platform
from secrun.image.rootfs import rootfs_key
from secrun.image.store import ImageStore, purge_stale
from secrun.record import replace
from support.images import OCI_MANIFEST, LayoutWriter
from support.stored import ARCH, LAYER, OTHER, reference


def blobs(layout):
    return {path.name for path in (layout.images / "blobs/sha256").iterdir()}


def leftovers(layout):
    """Everything below the root that belongs neither to the layout nor to a rootfs image."""
    known = {"oci-layout", "index.json"}
    return [
        str(path)
        for path in layout.root.rglob("*")
        if path.is_file() and path.name not in known and path.parent.name not in ("sha256", "rootfs")
    ]


# Bringing in.


def test_an_image_is_stored_byte_for_byte_as_a_layout(layout, options, writer):
    image = ensure_image(layout, reference(writer), options)
    source = {path.name: path.read_bytes() for path in (writer.path / "blobs/sha256").iterdir()}
    assert {path.name: path.read_bytes() for path in (layout.images / "blobs/sha256").iterdir()} == source
    assert json.loads((layout.images / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert image.manifest_digest.hex in source
    assert image.layers[0].path.read_bytes() == source[image.layers[0].digest.hex]
    assert image.config.diff_ids == (Digest.of(LAYER),)
    assert image.names == (reference(writer),)
    assert leftovers(layout) == []


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_files_of_the_store_have_the_same_modes_under_any_umask(layout, options, writer, umask):
    before = os.umask(umask)
    try:
        image = ensure_image(layout, reference(writer), options)
    finally:
        os.umask(before)
    assert image.layers[0].path.stat().st_mode & 0o777 == 0o644
    assert (layout.images / "index.json").stat().st_mode & 0o777 == 0o644
    assert (layout.images / "blobs/sha256").stat().st_mode & 0o777 == 0o755
    assert layout.scratch.stat().st_mode & 0o777 == 0o700


def test_a_stored_image_needs_its_source_no_more(layout, options, writer):
    first = ensure_image(layout, reference(writer), options)
    writer.path.rename(writer.path.with_name("gone"))
    assert ensure_image(layout, reference(writer), options) == first
    with pytest.raises(ImageError):
        ensure_image(layout, reference(writer), replace(options, pull=PullPolicy.ALWAYS))


def test_a_layout_that_was_written_again_is_read_again(layout, options, writer):
    first = ensure_image(layout, reference(writer), options)
    again = LayoutWriter(writer.path)
    again.add_image("one", [OTHER], architecture=ARCH)
    assert ensure_image(layout, reference(writer), replace(options, pull=PullPolicy.NEVER)) == first
    second = ensure_image(layout, reference(writer), options)
    assert second.manifest_digest != first.manifest_digest
    assert [entry.digest for entry in ImageStore(layout).entries()] == [second.manifest_digest]


def test_two_platforms_of_one_reference_are_stored_side_by_side(layout, options, writer):
    descriptors = [writer.image_descriptor([LAYER], architecture=name) for name in ("amd64", "arm64")]
    writer.add_index("both", descriptors)
    found = {
        name: ensure_image(
            layout, reference(writer, "both"), replace(options, platform=Platform.parse(f"linux/{name}"))
        )
        for name in ("amd64", "arm64")
    }
    assert {name: image.config.architecture for name, image in found.items()} == {
        "amd64": "amd64",
        "arm64": "arm64",
    }
    entries = ImageStore(layout).entries()
    assert len({entry.name for entry in entries}) == len(entries) == 2
    for name, image in found.items():
        wanted = replace(options, platform=Platform.parse(f"linux/{name}"))
        assert ensure_image(layout, "both", wanted).manifest_digest == image.manifest_digest
        other = replace(options, platform=Platform.parse("linux/s390x"))
        with pytest.raises(ImageError, match=f"is for linux/{name}, expected linux/s390x"):
            ensure_image(layout, image.manifest_digest.hex, other)
    assert len(resolve.lookup(entries, references.parse("both"))) == 2


def test_an_image_for_another_platform_is_refused_unless_asked_for(layout, options, writer):
    writer.add_image("foreign", [LAYER], architecture="s390x")
    with pytest.raises(ImageError, match=r"linux/s390x, expected") as caught:
        ensure_image(layout, reference(writer, "foreign"), options)
    assert caught.value.code == "image-platform"
    asked = replace(options, platform=Platform.parse("linux/s390x"))
    assert ensure_image(layout, reference(writer, "foreign"), asked).config.architecture == "s390x"


def spoil_missing(path):
    path.unlink()


def spoil_bytes(path):
    path.write_bytes(path.read_bytes()[::-1])


def spoil_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def spoil_long(path):
    path.write_bytes(path.read_bytes() + b"x")


def spoil_fifo(path):
    path.unlink()
    os.mkfifo(path)


def spoil_link(path):
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
@pytest.mark.parametrize(
    "spoil", [spoil_missing, spoil_bytes, spoil_short, spoil_long, spoil_fifo, spoil_link]
)
def test_a_layout_with_a_bad_part_leaves_the_store_as_it_was(layout, options, writer, part, spoil):
    good = writer.add_image("good", [OTHER], architecture=ARCH)
    ensure_image(layout, reference(writer, "good"), options)
    digest = next(entry for entry in json.loads((writer.path / "index.json").read_bytes())["manifests"])[
        "digest"
    ]
    manifest = json.loads(writer.blob(digest).read_bytes())
    parts = {
        "manifest": digest,
        "config": manifest["config"]["digest"],
        "layer": manifest["layers"][0]["digest"],
    }
    spoil(writer.blob(parts[part]))
    with pytest.raises(ImageError):
        ensure_image(layout, reference(writer), options)
    assert [entry.digest for entry in ImageStore(layout).entries()] == [good]
    assert leftovers(layout) == []
    assert list(layout.scratch.iterdir()) == []


@pytest.mark.parametrize("says", [100_000_000, 500])
def test_a_manifest_of_a_hundred_megabytes_is_refused_unread(layout, options, writer, says):
    digest = "1" * 64
    with writer.blob(digest).open("wb") as stream:
        stream.truncate(100_000_000)
    writer.add_entry("large", {"mediaType": OCI_MANIFEST, "digest": f"sha256:{digest}", "size": says})
    with pytest.raises(ImageError, match="4194304") as caught:
        ensure_image(layout, reference(writer, "large"), options)
    assert caught.value.code == "image-limit"
    assert leftovers(layout) == []


@pytest.mark.parametrize("tag", ["", "none"])
def test_a_layout_with_several_images_needs_a_tag_that_exists(layout, options, writer, tag):
    writer.add_image("two", [OTHER], architecture=ARCH)
    text = f"oci:{writer.path}:{tag}" if tag else f"oci:{writer.path}"
    with pytest.raises(UsageError, match="one, two"):
        ensure_image(layout, text, options)


# Damage and removal.


def test_a_store_that_lost_a_layer_heals_by_fetching_again(layout, options, writer):
    image = ensure_image(layout, reference(writer), options)
    image.layers[0].path.unlink()
    with pytest.raises(StateError):
        ensure_image(layout, reference(writer), replace(options, pull=PullPolicy.NEVER))
    assert ensure_image(layout, reference(writer), options).layers[0].path.exists()


def test_a_manifest_that_was_changed_in_the_store_is_noticed(layout, options, writer):
    image = ensure_image(layout, reference(writer), options)
    path = layout.images / "blobs/sha256" / image.manifest_digest.hex
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(StateError) as caught:
        ensure_image(layout, reference(writer), options)
    assert caught.value.code == "state-image-store"


def fetch_two(layout, options, writer):
    """Store two images that share a layer; give each a rootfs image."""
    writer.add_image("two", [LAYER, OTHER], architecture=ARCH)
    images = [ensure_image(layout, reference(writer, tag), options) for tag in ("one", "two")]
    layout.rootfs.mkdir()
    for image in images:
        key = rootfs_key(image.config.diff_ids).hex
        for suffix in ("erofs", "json"):
            (layout.rootfs / f"{key}.{suffix}").write_bytes(b"x")
    return images


def test_removal_takes_what_only_that_image_needed(layout, options, writer):
    one, two = fetch_two(layout, options, writer)
    (layout.rootfs / "unfinished.tmp").touch()
    store = ImageStore(layout)
    removed = [entry for entry in store.entries() if entry.digest == two.manifest_digest]
    done = store.remove(removed, in_use=())
    assert done.kept == ""
    assert blobs(layout) == {one.manifest_digest.hex, one.config_digest.hex, one.layers[0].digest.hex}
    key = rootfs_key(one.config.diff_ids).hex
    assert {path.name for path in layout.rootfs.iterdir()} == {
        f"{key}.erofs",
        f"{key}.json",
        "unfinished.tmp",
    }
    store.remove(store.entries(), in_use=())
    assert blobs(layout) == set()
    assert {path.name for path in layout.rootfs.iterdir()} == {"unfinished.tmp"}


def test_an_image_in_use_is_not_removed(layout, options, writer):
    one, two = fetch_two(layout, options, writer)
    store = ImageStore(layout)
    before = blobs(layout)
    with pytest.raises(StateError) as caught:
        store.remove(store.entries(), in_use=[two.manifest_digest])
    assert caught.value.code == "state-image-used"
    assert blobs(layout) == before
    assert len(store.entries()) == 2
    assert one.manifest_digest in {entry.digest for entry in store.entries()}


def test_what_a_pod_uses_outlives_its_name(layout, options, writer):
    first = ensure_image(layout, reference(writer), options)
    again = LayoutWriter(writer.path)
    again.add_image("one", [OTHER], architecture=ARCH)
    ensure_image(layout, reference(writer), options)
    store = ImageStore(layout)
    store.collect(in_use=[first.manifest_digest])
    assert first.layers[0].path.exists()
    store.collect(in_use=[])
    assert not first.layers[0].path.exists()


def test_a_removal_beside_a_fetch_leaves_the_fetchs_blobs_alone(layout, options, writer):
    fetch_two(layout, options, writer)
    store = ImageStore(layout)
    before = blobs(layout)
    with store.importing():
        done = store.remove(store.entries(), in_use=())
        assert done.kept
        assert blobs(layout) == before
        assert store.entries() == ()
    store.collect(in_use=())
    assert blobs(layout) == set()


def test_only_the_scratch_of_the_dead_is_purged(layout):
    layout.scratch.mkdir(parents=True)
    for name in ("fetch-dead", "fetch-alive", "rootfs-other"):
        (layout.scratch / name).mkdir()
        (layout.scratch / name / "part").touch()
    fd = locks.open_dir(layout.scratch / "fetch-alive")
    assert locks.lock_fd(fd)
    assert purge_stale(layout) == 1
    assert {path.name for path in layout.scratch.iterdir()} == {"fetch-alive", "rootfs-other"}
    os.close(fd)
    assert purge_stale(layout) == 1


def test_a_damaged_index_is_an_error_and_not_an_empty_store(layout, options, writer):
    ensure_image(layout, reference(writer), options)
    (layout.images / "index.json").write_bytes(b"{")
    with pytest.raises(StateError, match="damaged"):
        ImageStore(layout).entries()


# Cost.


def test_a_stored_image_loads_no_network_code(layout, options, writer, tmp_path):
    ensure_image(layout, reference(writer), options)
    script = (
        "import sys; from pathlib import Path; from secrun.paths import Layout;"
        "from secrun.image.fetch import FetchOptions, ensure_image;"
        f"ensure_image(Layout(root=Path({str(layout.root)!r}), run_root=Path({str(layout.run_root)!r})),"
        f" {reference(writer)!r}, FetchOptions(policy=Path({str(options.policy)!r})));"
        "print(*sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    heavy = {
        "urllib3",
        "ssl",
        "socket",
        "http.client",
        "subprocess",
        "tarfile",
        "zstandard",
        "tempfile",
        "shutil",
    }
    assert set(done.stdout.split()) & heavy == set()
    assert "secrun.image.store" in done.stdout


def test_an_index_that_a_dead_process_left_half_written_goes_with_the_next_write(layout, options, writer):
    ensure_image(layout, reference(writer), options)
    (layout.images / ".index.json.4711.tmp").write_bytes(b"{")
    ensure_image(layout, reference(writer), replace(options, pull=PullPolicy.ALWAYS))
    assert leftovers(layout) == []


def test_nothing_is_made_by_looking(layout):
    assert ImageStore(layout).entries() == ()
    assert not Path(layout.root).exists()
