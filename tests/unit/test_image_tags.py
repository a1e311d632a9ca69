"""Names that are given here: they find an image, and change nothing about who must have signed it."""

import json

import pytest

from secrun.cli.main import main
from secrun.errors import DeniedError, StateError, UsageError
from secrun.image import tags
from secrun.image.fetch import PullPolicy, ensure_image
from secrun.image.options import FetchOptions
from secrun.image.store import ImageStore
from secrun.record import replace
from secrun.trust.admission import Decision
from support.images import LayoutWriter
from support.stored import ARCH, OTHER, reference


@pytest.fixture
def store(layout):
    return ImageStore(layout)


@pytest.fixture
def image(layout, options, writer):
    return ensure_image(layout, reference(writer), options)


@pytest.fixture
def use(layout, options):
    """Use an image by a word."""
    return lambda word, **changed: ensure_image(layout, word, replace(options, **changed))


def other(layout, options, writer, tag="two"):
    """Store another image."""
    folder = writer.path.with_name("second")
    LayoutWriter(folder).add_image(tag, [OTHER], architecture=ARCH)
    return ensure_image(layout, f"oci:{folder}:{tag}", options)


def policy(tmp_path, **transports):
    """Write a policy that rejects all but what is named."""
    path = tmp_path / "strict.json"
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": transports}))
    return FetchOptions(policy=path, pull=PullPolicy.NEVER)


def command(layout, *words):
    return main(["--root", str(layout.root), "--run-root", str(layout.run_root), "image", *words])


@pytest.mark.parametrize("names", [("app:1", "localhost/app:1"), ("localhost/app", "app"), ("a:2", "a:2")])
@pytest.mark.parametrize("pull", list(PullPolicy))
def test_a_tag_finds_its_image_whenever_a_source_is_asked(use, store, image, names, pull):
    tags.add(store, str(image.manifest_digest), (names[0],))
    found = use(names[1], pull=pull)
    assert found.manifest_digest == image.manifest_digest
    # What is measured is where it came from.
    assert found.reference == image.reference


@pytest.fixture
def second(layout, options, writer):
    return other(layout, options, writer)


def test_a_tag_moves_and_goes_and_the_image_stays(layout, use, second, image, capsys):
    store = ImageStore(layout)
    assert command(layout, "tag", str(image.manifest_digest), "app", "more:2") == 0
    assert command(layout, "tag", str(second.manifest_digest), "app:latest") == 0
    assert use("app").manifest_digest == second.manifest_digest
    assert use("more:2").manifest_digest == image.manifest_digest
    capsys.readouterr()
    assert command(layout, "list") == 0
    shown = capsys.readouterr().out
    assert "localhost/app:latest" in shown
    assert "localhost/more:2" in shown
    assert command(layout, "untag", "more:2", "gone:1") == 125
    assert {entry.tag for entry in store.entries()} == {"", "localhost/app:latest"}
    assert use(image.reference) == image


def test_the_last_name_of_an_image_is_not_taken_away(layout, use, store, image):
    tags.add(store, str(image.manifest_digest), ("app:1",))
    assert command(layout, "rm", image.reference) == 0
    # The tag keeps the image, and answers to no other name.
    assert use("app:1").manifest_digest == image.manifest_digest
    with pytest.raises(StateError, match="not stored"):
        use(image.reference, pull=PullPolicy.NEVER)
    with pytest.raises(StateError, match="no other name"):
        tags.remove(store, "app:1")
    assert image.layers[0].path.exists()
    assert command(layout, "rm", "app:1") == 0
    assert not image.layers[0].path.exists()


def test_a_tag_stays_with_its_image_when_its_source_has_another(layout, options, writer, store, image):
    tags.add(store, str(image.manifest_digest), ("pinned:1",))
    LayoutWriter(writer.path).add_image("one", [OTHER], architecture=ARCH)
    newer = ensure_image(layout, reference(writer), options)
    assert newer.manifest_digest != image.manifest_digest
    assert ensure_image(layout, "pinned:1", options).manifest_digest == image.manifest_digest


@pytest.mark.parametrize(
    "name",
    [
        *("registry.example/app:1", "docker.io/app", "localhost:5000/app", "docker://localhost/app:1"),
        *("beef", "beef:latest", "sha256:beefbeef", "sha512-beef", f"app@sha256:{'0' * 64}"),
        *("oci:/tmp/x", "", "Upper/case:1", "a b", "./x.aci"),
    ],
)
def test_what_could_mean_something_else_is_no_tag(store, image, name):
    before = store.entries()
    with pytest.raises(UsageError):
        tags.add(store, str(image.manifest_digest), ("good:1", name))
    assert store.entries() == before


@pytest.mark.parametrize("origin", ["oci", "docker"])
@pytest.mark.parametrize("asked", ["app:1", "localhost/app:1"])
def test_a_tag_lets_no_image_pass_that_its_origin_does_not(layout, tmp_path, image, asked, origin):
    store = ImageStore(layout)
    (entry,) = store.entries()
    if origin == "docker":
        store.revise(entry, replace(entry, reference="docker://registry.example/app:1"))
    tags.add(store, str(image.manifest_digest), ("app:1",))
    anything = [{"type": "insecureAcceptAnything"}]
    strict = policy(tmp_path, docker={"localhost": anything, "localhost/app": anything})
    with pytest.raises(DeniedError):
        ensure_image(layout, asked, strict)
    where = {"registry.example/app": anything} if origin == "docker" else {"": anything}
    assert (
        ensure_image(layout, asked, policy(tmp_path, **{origin: where})).admission.decision
        is Decision.ACCEPT
    )


def test_docker_always_means_the_registry(layout, options, store, image):
    tags.add(store, str(image.manifest_digest), ("app:1",))
    with pytest.raises(StateError, match="not stored"):
        ensure_image(layout, "docker://localhost/app:1", replace(options, pull=PullPolicy.NEVER))


def test_no_archive_takes_the_place_of_a_tag(layout, options, writer, store, image):
    tags.add(store, str(image.manifest_digest), ("app:1",))
    pretender = other(layout, options, writer, tag="app:1")
    assert pretender.manifest_digest != image.manifest_digest
    assert ensure_image(layout, "app:1", options).manifest_digest == image.manifest_digest


def test_an_image_that_goes_while_it_is_tagged_leaves_no_name(store, image):
    (entry,) = store.entries()
    store.remove([entry], in_use=())
    with pytest.raises(StateError, match="just been removed"):
        store.alias(entry, replace(entry, tag="localhost/app:1"))
    assert store.entries() == ()
