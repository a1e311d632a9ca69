"""Images travel in archives: the same images arrive, judged by the rules for files, or nothing does."""

import io
import json
import tarfile

import pytest

from secrun.cli.main import main
from secrun.errors import ImageError, UsageError
from secrun.image import listing, save, tags
from secrun.image.fetch import ensure_image
from secrun.image.store import ImageStore
from secrun.paths import Layout
from secrun.record import replace
from support.images import Entry, LayoutWriter, tar_layer
from support.stored import ARCH, LAYER, OTHER, reference


@pytest.fixture
def two(layout, options, writer):
    """Two stored images that share a layer."""
    folder = writer.path.with_name("second")
    LayoutWriter(folder).add_image("r.example/team/two:2", [LAYER, OTHER], architecture=ARCH)
    return [
        ensure_image(layout, word, options)
        for word in (reference(writer), f"oci:{folder}:r.example/team/two:2")
    ]


@pytest.fixture
def elsewhere(tmp_path):
    """Another host."""
    return Layout(root=tmp_path / "elsewhere", run_root=tmp_path / "elsewhere-run")


@pytest.fixture
def accepted(options):
    return f"--policy={options.policy}"


def command(layout, *words, code=0):
    # No TPM is to be started for a refusal.
    roots = ("--root", str(layout.root), "--run-root", str(layout.run_root), "--attest=off")
    assert main([*roots, "image", *words]) == code


def ids(layout):
    return {entry.digest for entry in ImageStore(layout).entries()}


def saved(layout, tmp_path, images, kind="oci-archive"):
    path = tmp_path / f"saved.{kind}"
    command(
        layout, "save", f"--format={kind}", "-o", str(path), *(str(item.manifest_digest) for item in images)
    )
    return path


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_what_was_saved_is_loaded(elsewhere, two, tmp_path, options, kind):
    layout = Layout(root=tmp_path / "root", run_root=tmp_path / "run")
    path = saved(layout, tmp_path, two, kind)
    command(elsewhere, "load", "-i", str(path), f"--policy={options.policy}")
    loaded = {
        entry.given: ImageStore(elsewhere).needed_facts(entry).config.diff_ids
        for entry in ImageStore(elsewhere).entries()
    }
    names = {"one", "r.example/team/two:2"} if kind == "oci-archive" else {"", "r.example/team/two:2"}
    assert loaded == dict(zip(sorted(names), [item.config.diff_ids for item in two], strict=True))
    if kind == "oci-archive":
        assert ids(elsewhere) == ids(layout)
    # The file need not stay, and the names in it find the images.
    path.unlink()
    never = replace(options, pull="never")
    assert ensure_image(elsewhere, "team/two:2", never).config == two[1].config
    # The same images give the same bytes.
    first = saved(layout, tmp_path, two, kind).read_bytes()
    path.unlink()
    assert saved(layout, tmp_path, two, kind).read_bytes() == first


def test_each_image_of_an_archive_is_judged(layout, elsewhere, two, tmp_path, capsys):
    path = saved(layout, tmp_path, two)
    strict = tmp_path / "strict.json"
    anything = [{"type": "insecureAcceptAnything"}]
    strict.write_text(
        json.dumps({"default": anything, "transports": {"oci-archive": {str(path): [{"type": "reject"}]}}})
    )
    command(elsewhere, "load", "-i", str(path), f"--policy={strict}", code=120)
    assert ids(elsewhere) == set()
    assert str(path) in capsys.readouterr().err


def test_a_damaged_image_keeps_no_other_from_its_turn(elsewhere, two, tmp_path, accepted, capsys):
    path = saved(Layout(root=tmp_path / "root", run_root=tmp_path / "run"), tmp_path, two)
    # The one layer that only the second image has.
    blob = two[1].layers[1].path.read_bytes()
    path.write_bytes(path.read_bytes().replace(blob, b"x" * len(blob)))
    command(elsewhere, "load", "-i", str(path), accepted, code=125)
    assert ids(elsewhere) == {two[0].manifest_digest}
    assert "image-digest" in capsys.readouterr().err


def test_a_damaged_store_writes_no_archive(layout, two, tmp_path, capsys):
    path = two[0].layers[0].path
    path.write_bytes(b"x" * path.stat().st_size)
    target = tmp_path / "x.tar"
    command(layout, "save", "-o", str(target), str(two[0].manifest_digest), code=125)
    assert "is damaged" in capsys.readouterr().err
    assert not target.exists()
    path.unlink()
    command(layout, "save", "-o", str(target), str(two[0].manifest_digest), code=125)
    assert not target.exists()


def test_a_file_that_exists_is_not_replaced_unasked(layout, two, tmp_path):
    target = tmp_path / "x.tar"
    target.write_text("precious")
    word = str(two[0].manifest_digest)
    command(layout, "save", "-o", str(target), word, code=125)
    assert target.read_text() == "precious"
    command(layout, "save", "-o", str(target), "--overwrite", word)
    assert tarfile.is_tarfile(target)
    assert [item.name for item in tmp_path.glob(".x.tar*")] == []


def test_two_images_of_one_name_do_not_go_into_one_archive(layout, writer, options, two):
    folder = writer.path.with_name("third")
    LayoutWriter(folder).add_image("one", [OTHER], architecture=ARCH)
    ensure_image(layout, f"oci:{folder}:one", options)
    with pytest.raises(UsageError, match="two images are called one"):
        save.oci_archive(layout, ImageStore(layout).entries(), io.BytesIO())


def test_a_tag_is_the_name_in_the_archive(layout, two, tmp_path):
    store = ImageStore(layout)
    tags.add(store, str(two[0].manifest_digest), ("app:1",))
    path = tmp_path / "x.tar"
    command(layout, "save", "-o", str(path), "app:1")
    assert [item.tag for item in listing.images_in(path)] == ["localhost/app:1"]


def tar(folder, members):
    path = folder / "archive.tar"
    path.write_bytes(tar_layer([Entry(name=name, data=data) for name, data in members.items()]))
    return path


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({}, "neither oci-layout nor manifest.json"),
        ({"manifest.json": b"["}, "not valid JSON"),
        ({"manifest.json": b"{}"}, "expected a list"),
        ({"oci-layout": b"{}"}, "no file index.json"),
        ({"oci-layout": b"{}", "index.json": b"[]"}, "expected an object"),
        ({"oci-layout": b"{}", "index.json": b'{"manifests":[{}]}'}, "mediaType"),
    ],
)
def test_an_archive_that_is_none_is_an_error(tmp_path, members, said):
    with pytest.raises(ImageError, match=said):
        listing.images_in(tar(tmp_path, members))


def test_what_docker_writes_today_is_listed_by_its_full_names(tmp_path):
    listed = [
        {"Config": "c", "Layers": [], "RepoTags": ["r.example/a:1", "r.example/a:2"]},
        {"Config": "d", "Layers": []},
    ]
    members = {"oci-layout": b"{}", "index.json": b"{}", "manifest.json": json.dumps(listed).encode()}
    path = tar(tmp_path, members)
    assert [str(item) for item in listing.images_in(path)] == [
        f"docker-archive:{path}:r.example/a:1",
        f"docker-archive:{path}:@1",
    ]


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b" + b"x" * 600, b"x" * 600])
def test_a_file_that_is_no_archive_is_an_error(tmp_path, data):
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(ImageError):
        listing.images_in(path)
