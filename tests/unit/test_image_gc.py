"""Making room in the store: what goes, what stays, and which images a list shows."""

import json
import os
import threading

import pytest

from secrun.cli.main import main
from secrun.errors import StateError
from secrun.image.fetch import ensure_image
from secrun.image.store import ImageStore
from secrun.record import replace
from support.images import LayoutWriter
from support.stored import ARCH, OTHER, reference

DAY = 86400


@pytest.fixture
def two(layout, options, writer):
    """Two stored images: `one` was used two days ago, `two` just now."""
    first = ensure_image(layout, reference(writer), options)
    LayoutWriter(writer.path.with_name("second")).add_image(
        "two", [OTHER], architecture=ARCH, config={"Labels": {"kind": "test", "empty": ""}}
    )
    second = ensure_image(layout, f"oci:{writer.path.with_name('second')}:two", options)
    age(layout, first.manifest_digest, 2 * DAY)
    return first, second


def age(layout, digest, seconds):
    """Let an image look as if it had been used last `seconds` ago."""
    path = layout.facts / "sha256" / f"{digest.hex}.json"
    moment = path.stat().st_mtime - seconds
    os.utime(path, (moment, moment))


def said(capsys, layout, *words, code=0):
    """Run a command; return what it printed and its notes."""
    capsys.readouterr()
    assert main(["--root", str(layout.root), "--run-root", str(layout.run_root), *words]) == code
    return capsys.readouterr()


def stored(layout):
    return {entry.digest for entry in ImageStore(layout).entries()}


def test_what_nobody_used_for_a_while_goes(layout, two, capsys):
    old, new = two
    planned = said(capsys, layout, "image", "gc", "--dry-run").out
    assert str(old.manifest_digest) in planned
    assert "would free" in planned
    assert stored(layout) == {old.manifest_digest, new.manifest_digest}
    assert old.layers[0].path.exists()
    document = json.loads(said(capsys, layout, "image", "gc", "--format=json").out)
    assert [row["id"] for row in document["images"]] == [str(old.manifest_digest)]
    assert document["freed_bytes"] > old.layers[0].size
    assert stored(layout) == {new.manifest_digest}
    assert not old.layers[0].path.exists()
    assert new.layers[0].path.exists()


def test_using_an_image_keeps_it(layout, options, writer, two, capsys):
    old, _ = two
    ensure_image(layout, reference(writer), options)
    assert str(old.manifest_digest) not in said(capsys, layout, "image", "gc").out
    rows = json.loads(said(capsys, layout, "image", "list", "--format=json").out)["images"]
    assert all(row["last_used_at"] >= row["imported_at"] for row in rows)


def test_an_image_from_the_future_stays(layout, two, capsys):
    old, _ = two
    age(layout, old.manifest_digest, -10 * DAY)
    said(capsys, layout, "image", "gc", "--grace-period=0s")
    assert stored(layout) == {old.manifest_digest}


def test_prune_leaves_images_unless_all_are_meant(layout, two, capsys):
    before = stored(layout)
    stray = layout.rootfs / f"{'ab' * 32}.erofs"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x" * 100)
    stray.with_suffix(".json").write_bytes(b"{}")
    assert said(capsys, layout, "image", "prune", "--dry-run").out == "would free 102 B\n"
    assert stray.exists()
    said(capsys, layout, "image", "prune")
    assert not stray.exists()
    assert stored(layout) == before
    said(capsys, layout, "image", "prune", "--all")
    assert stored(layout) == set()


def test_gc_waits_for_who_is_about_to_use_an_image(layout, two, capsys):
    store = ImageStore(layout)
    done = threading.Event()

    def collect():
        with ImageStore(layout).sole_use():
            done.set()

    with store.using():
        other = threading.Thread(target=collect)
        other.start()
        with pytest.raises(StateError, match="locked"), store.sole_use(blocking=False):
            pass
        assert not done.is_set()
    other.join(60)
    assert done.is_set()
    with store.sole_use(blocking=False):
        pass


def test_a_damaged_image_hides_no_other_and_keeps_its_files(layout, two, capsys):
    old, new = two
    (layout.facts / "sha256" / f"{new.manifest_digest.hex}.json").write_bytes(b"nonsense")
    listed = said(capsys, layout, "image", "list", "--format=json")
    sizes = {row["id"]: row["size"] for row in json.loads(listed.out)["images"]}
    assert sizes[str(new.manifest_digest)] is None
    assert sizes[str(old.manifest_digest)] > 0
    assert new.manifest_digest.hex[:12] in listed.err
    done = said(capsys, layout, "image", "gc", code=125)
    assert "stay for now" in done.err
    assert stored(layout) == {new.manifest_digest}
    assert new.layers[0].path.exists()
    said(capsys, layout, "image", "rm", str(new.manifest_digest))
    assert not new.layers[0].path.exists()
    assert not old.layers[0].path.exists()


def test_a_store_that_was_never_filled_has_nothing_to_collect(layout, capsys):
    assert said(capsys, layout, "image", "gc").out == "freed 0 B\n"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["reference=*:two"], {"two"}),
        (["reference=oci:*"], {"one", "two"}),
        (["label=kind=test"], {"two"}),
        (["label=kind"], {"two"}),
        (["label=kind=other"], set()),
        (["label=kind", "reference=*:one"], set()),
        (["used=true"], set()),
        (["used=false"], {"one", "two"}),
        (["since=sha256:"], {"two"}),
        (["before=sha256:"], set()),
    ],
)
def test_filters_choose(layout, two, capsys, words, shown):
    old, _ = two
    store = ImageStore(layout)
    (entry,) = [item for item in store.entries() if item.digest == old.manifest_digest]
    store.revise(entry, replace(entry, imported_at="2020-01-01T00:00:00Z"))
    words = [word.replace("sha256:", str(old.manifest_digest)) for word in words]
    options = [item for word in words for item in ("--filter", word)]
    rows = json.loads(said(capsys, layout, "image", "list", "--format=json", *options).out)["images"]
    assert {row["reference"].rpartition(":")[2] for row in rows} == shown


@pytest.mark.parametrize("word", ["dangling=true", "label", "label=", "used=maybe", "=x"])
def test_a_filter_that_is_not_understood_is_an_error(layout, two, capsys, word):
    assert "--filter" in said(capsys, layout, "image", "list", "--filter", word, code=2).err
