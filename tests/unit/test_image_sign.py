"""Images that are signed and copied where they lie: layouts, indexes, the store."""

import json

import pytest

from secrun.digest import Digest
from secrun.errors import DeniedError
from secrun.image import copy
from secrun.image.attach import attach
from secrun.image.fetch import ensure_image
from secrun.image.manifest import Descriptor
from secrun.image.target import LayoutTarget
from secrun.paths import Layout
from secrun.trust import privatekey
from support import signing
from support.signing import b64
from support.stored import ARCH, OTHER, accepting


@pytest.fixture
def key():
    return signing.new_key()


@pytest.fixture
def signing_key(key):
    return privatekey.SigningKey(key=key)


def file_policy(options, key, name):
    identity = {"type": "exactReference", "dockerReference": name}
    demand = {"type": "sigstoreSigned", "keyData": b64(signing.public_pem(key)), "signedIdentity": identity}
    options.policy.write_text(json.dumps({"default": [demand]}))


def test_an_image_in_a_layout_is_signed_there(layout, tmp_path, writer, key, signing_key):
    options = accepting(tmp_path)
    file_policy(options, key, "r.example/app:1")
    place = copy.destination(f"oci:{writer.path}:one")
    with pytest.raises(DeniedError):
        ensure_image(layout, str(place), options)
    copy.sign(place, signing_key, options, identity="r.example/app:1")
    copy.sign(place, signing_key, options, identity="r.example/app:1")
    found = ensure_image(layout, str(place), options)
    assert found.admission.signatures[0].reference == "r.example/app:1"
    # The only image of a layout is still that, although its signatures are listed beside it.
    assert ensure_image(layout, f"oci:{writer.path}", options).manifest_digest == found.manifest_digest


def test_a_key_for_any_image_admits_files_too_and_a_key_of_a_prefix_does_not(
    layout, tmp_path, writer, key, signing_key
):
    options = accepting(tmp_path)
    options.policy.write_text(json.dumps({"default": [{"type": "reject"}]}))
    place = copy.destination(f"oci:{writer.path}:one")
    copy.sign(place, signing_key, options, identity="r.example/app:1")
    fingerprint = signing_key.fingerprint
    for folder, good in (("prefix.d/r.example", False), ("root.d", True)):
        path = layout.trust / folder / fingerprint
        path.parent.mkdir(parents=True)
        path.write_bytes(signing_key.public_pem)
        if good:
            assert ensure_image(layout, str(place), options).admission.signatures
        else:
            with pytest.raises(DeniedError):
                ensure_image(layout, str(place), options)
    writer.add_image("two", [OTHER], architecture=ARCH)
    with pytest.raises(DeniedError):
        ensure_image(layout, f"oci:{writer.path}:two", options)


def test_a_copy_takes_the_signatures_along(layout, tmp_path, writer, key, signing_key):
    options = accepting(tmp_path)
    copy.sign(copy.destination(f"oci:{writer.path}:one"), signing_key, options, identity="r.example/app:1")
    done = copy.copy(layout, f"oci:{writer.path}:one", f"oci:{tmp_path}/copy:x", options)
    assert done.notes == ()
    file_policy(options, key, "r.example/app:1")
    found = ensure_image(layout, f"oci:{tmp_path}/copy:x", options)
    assert found.manifest_digest == done.digest
    # And out of the store again.
    again = copy.copy(layout, found.manifest_digest.hex, f"oci:{tmp_path}/third:y", options)
    assert again.digest == done.digest
    other = Layout(root=tmp_path / "root2", run_root=tmp_path / "run2")
    assert ensure_image(other, f"oci:{tmp_path}/third:y", options).admission.signatures


def test_bundles_travel_too_and_are_found_in_a_layout(layout, tmp_path, writer, key):
    options = accepting(tmp_path)
    (entry,) = json.loads((writer.path / "index.json").read_text())["manifests"]
    digest = Digest.parse(entry["digest"])
    subject = Descriptor(media_type=entry["mediaType"], digest=digest, size=entry["size"])
    found = signing.bundled(signing.Sigstore().bundle(digest, key=key), subject=digest)
    assert attach(LayoutTarget(writer.path), [subject], [found]) == []
    layout.trust.mkdir(parents=True)
    (layout.trust / "trust.toml").write_text('[[rule]]\nscope = "default"\nbundle-identity = "digest"\n')
    file_policy(options, key, "r.example/app:1")
    admitted = ensure_image(layout, f"oci:{writer.path}:one", options)
    assert admitted.admission.signatures[0].kind == "bundle"
    copy.copy(layout, admitted.manifest_digest.hex, f"oci:{tmp_path}/copy:x", options)
    again = ensure_image(layout, f"oci:{tmp_path}/copy:x", options)
    assert again.admission.signatures[0].kind == "bundle"


def test_every_image_of_an_index_is_signed_and_copied(layout, tmp_path, writer, key, signing_key):
    members = [writer.image_descriptor([OTHER], architecture=name) for name in (ARCH, "s390x")]
    root = writer.add_index("multi", members)
    options = accepting(tmp_path)
    place = copy.destination(f"oci:{writer.path}:multi")
    signed = copy.sign(place, signing_key, options, identity="r.example/app:1")
    assert {str(item) for item in signed} == {str(root), *(str(item["digest"]) for item in members)}
    copy.copy(layout, str(place), f"oci:{tmp_path}/copy:x", options)
    file_policy(options, key, "r.example/app:1")
    found = ensure_image(layout, f"oci:{tmp_path}/copy:x", options)
    assert str(found.manifest_digest) == members[0]["digest"]
