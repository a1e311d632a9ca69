"""Which image a reference means, when its source is asked, and whether a policy admits it."""

import json

import pytest

from secrun.errors import DeniedError, RegistryError, StateError, UsageError
from secrun.image import view
from secrun.image.fetch import PullPolicy, ensure_image
from secrun.image.progress import NullProgress
from secrun.image.store import ImageStore
from secrun.record import replace
from support.hostile import hostile_server
from support.images import LayoutWriter
from support.stored import ARCH, LAYER, OTHER, reference, serve

# Pull policies, against a registry.


def test_pull_policies_ask_the_registry_as_podman_does(layout, options, writer):
    digest = writer.add_image("two", [OTHER], architecture=ARCH)
    with hostile_server() as server:
        name = f"docker://{server.address}/t/app:1"

        def asked(policy):
            before = len(server.requests)
            image = ensure_image(layout, name, replace(options, pull=policy))
            return image.manifest_digest, [
                request.path.split("/")[4]
                for request in server.requests[before:]
                if "/t/app/" in request.path
            ]

        with pytest.raises(StateError) as caught:
            asked(PullPolicy.NEVER)
        assert caught.value.code == "state-image-missing"
        serve(server, writer, digest)
        assert asked(PullPolicy.MISSING) == (digest, ["manifests", "blobs", "blobs"])
        assert asked(PullPolicy.MISSING) == (digest, [])
        assert asked(PullPolicy.NEVER) == (digest, [])
        assert asked(PullPolicy.NEWER) == (digest, ["manifests"])
        assert asked(PullPolicy.ALWAYS) == (digest, ["manifests"])
        newer = writer.add_image("three", [OTHER, LAYER], architecture=ARCH)
        serve(server, writer, newer)
        assert asked(PullPolicy.MISSING) == (digest, [])
        # One of the two layers is there already.
        assert asked(PullPolicy.NEWER) == (newer, ["manifests", "blobs", "blobs"])


def test_newer_falls_back_to_the_stored_image_and_says_so(layout, options, writer):
    digest = writer.add_image("two", [OTHER], architecture=ARCH)
    progress = NullProgress()
    with hostile_server() as server:
        serve(server, writer, digest)
        name = f"docker://{server.address}/t/app:1"
        ensure_image(layout, name, options)
        server.replies.clear()
        newer = replace(options, pull=PullPolicy.NEWER, progress=progress)
        assert ensure_image(layout, name, newer).manifest_digest == digest
        assert "using the stored" in progress.notes[0]
        with pytest.raises(RegistryError):
            ensure_image(layout, name, replace(newer, pull=PullPolicy.ALWAYS))


def test_an_image_fetched_by_tag_answers_to_its_digest_in_that_repository_only(layout, options, writer):
    digest = writer.add_image("two", [OTHER], architecture=ARCH)
    never = replace(options, pull=PullPolicy.NEVER)
    with hostile_server() as server:
        serve(server, writer, digest)
        ensure_image(layout, f"docker://{server.address}/t/app:1", options)
        assert ensure_image(layout, f"{server.address}/t/app@{digest}", never).manifest_digest == digest
        with pytest.raises(StateError):
            ensure_image(layout, f"{server.address}/t/other@{digest}", never)


# Names and IDs.


def test_an_image_is_found_by_the_name_its_layout_gave_and_by_its_id(layout, options, writer):
    image = ensure_image(layout, reference(writer), options)
    digits = image.manifest_digest.hex
    for word in ("one", digits[:4], digits, f"sha256:{digits[:12]}"):
        assert ensure_image(layout, word, options).manifest_digest == image.manifest_digest
    for word in ("two", digits[:3], "0" * 12):
        with pytest.raises(UsageError, match=word) as caught:
            ensure_image(layout, word, options)
        assert caught.value.code == "usage-short-name"
        assert f"docker.io/library/{word}" in caught.value.hint


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("app:1", True),
        ("team/app:1", True),
        ("t/team/app:1", True),
        ("pp:1", False),
        ("app", False),
        ("app:2", False),
    ],
)
def test_the_end_of_a_registrys_name_finds_a_stored_image(layout, options, writer, word, found):
    digest = writer.add_image("two", [OTHER], architecture=ARCH)
    with hostile_server() as server:
        serve(server, writer, digest, name="t/team/app")
        ensure_image(layout, f"docker://{server.address}/t/team/app:1", options)
    if found:
        assert ensure_image(layout, word, options).manifest_digest == digest
    else:
        with pytest.raises(UsageError):
            ensure_image(layout, word, options)


def test_a_short_name_asks_its_registry_again_and_an_id_does_not(layout, options, writer):
    digest = writer.add_image("two", [OTHER], architecture=ARCH)
    newer = writer.add_image("three", [OTHER, LAYER], architecture=ARCH)
    always = replace(options, pull=PullPolicy.ALWAYS)
    with hostile_server() as server:
        serve(server, writer, digest)
        ensure_image(layout, f"docker://{server.address}/t/app:1", options)
        serve(server, writer, newer)
        assert ensure_image(layout, digest.hex[:12], always).manifest_digest == digest
        assert ensure_image(layout, "app:1", options).manifest_digest == digest
        assert ensure_image(layout, "app:1", always).manifest_digest == newer


def test_an_archive_cannot_pass_its_image_off_as_a_registrys(layout, options, writer):
    never = replace(options, pull=PullPolicy.NEVER)
    for name in ("localhost/app:1", "registry.example/app:1"):
        writer.add_image(name, [LAYER], architecture=ARCH)
        ensure_image(layout, reference(writer, name), options)
    assert ensure_image(layout, "localhost/app:1", never).reference == reference(writer, "localhost/app:1")
    for name in ("docker://localhost/app:1", "registry.example/app:1"):
        with pytest.raises(StateError) as caught:
            ensure_image(layout, name, never)
        assert caught.value.code == "state-image-missing"


def test_a_word_that_means_two_images_is_refused(layout, options, writer, tmp_path):
    second = LayoutWriter(tmp_path / "second")
    second.add_image("one", [OTHER], architecture=ARCH)
    for item in (writer, second):
        ensure_image(layout, reference(item), options)
    with pytest.raises(UsageError) as caught:
        ensure_image(layout, "one", options)
    assert caught.value.code == "usage-ambiguous"


def test_an_image_that_would_write_on_the_terminal_is_shown_escaped(layout, options, writer):
    writer.add_image(
        "evil", [LAYER], architecture=ARCH, config={"User": "x\x1b[2J", "Labels": {"l": "\x9b2J"}}
    )
    image = ensure_image(layout, reference(writer, "evil"), options)
    assert image.config.user == "x\x1b[2J"
    store = ImageStore(layout)
    text = view.inspect_text(view.inspect_json(store, store.entries()))
    assert all(line.isprintable() for line in text.splitlines())
    assert 'config.user="x\\u001b[2J"' in text


# Admission.


def deny(tmp_path, transports):
    path = tmp_path / "deny.json"
    path.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}], "transports": transports}))
    return path


def test_a_denied_image_is_not_even_asked_for(layout, options, tmp_path):
    with hostile_server() as server:
        path = deny(tmp_path, {"docker": {server.address: [{"type": "reject"}]}})
        with pytest.raises(DeniedError):
            ensure_image(layout, f"docker://{server.address}/t/app:1", replace(options, policy=path))
        assert server.requests == []


def test_a_stored_image_is_judged_again_at_each_use(layout, options, writer, tmp_path):
    image = ensure_image(layout, reference(writer), options)
    denying = replace(options, policy=deny(tmp_path, {"oci": {str(writer.path): [{"type": "reject"}]}}))
    for word in (reference(writer), "one", image.manifest_digest.hex):
        with pytest.raises(DeniedError) as caught:
            ensure_image(layout, word, denying)
        assert str(writer.path) in caught.value.message
        bypassed = ensure_image(layout, word, replace(denying, insecure_image=True))
        assert bypassed.admission.bypass


def test_an_id_is_admitted_if_one_of_its_references_is(layout, options, writer, tmp_path):
    copy = tmp_path / "copy"
    writer.path.rename(copy)
    copy.rename(writer.path)
    second = LayoutWriter(tmp_path / "second")
    second.add_image("elsewhere", [LAYER], architecture=ARCH)
    image = ensure_image(layout, reference(writer), options)
    ensure_image(layout, reference(second, "elsewhere"), options)
    denying = replace(options, policy=deny(tmp_path, {"oci": {str(writer.path): [{"type": "reject"}]}}))
    found = ensure_image(layout, image.manifest_digest.hex[:8], denying)
    assert found.reference == reference(second, "elsewhere")
    assert found.names == tuple(sorted([reference(writer), reference(second, "elsewhere")]))
