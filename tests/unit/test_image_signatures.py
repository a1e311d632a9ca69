"""Signatures on their way: what is asked of a registry and when, what is kept, when it is judged again."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from secrun.digest import Digest
from secrun.errors import DeniedError, UsageError
from secrun.image import admit
from secrun.image.fetch import PullPolicy, ensure_image
from secrun.image.store import ImageStore
from secrun.record import replace
from secrun.trust import bundle, cosign, judge
from support import signing
from support.hostile import Reply, hostile_server
from support.images import OCI_INDEX, OCI_MANIFEST
from support.signing import NOW, Sigstore, b64
from support.stored import ARCH, OTHER, accepting, serve

NAME = "t/app"


@pytest.fixture
def key():
    return signing.new_key()


@pytest.fixture(autouse=True)
def no_settings_of_this_host(tmp_path, monkeypatch):
    home = tmp_path / "home/.config/containers"
    (home / "registries.d").mkdir(parents=True)
    (home / "registries.conf").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def demanding(options, *requirements):
    """Let the policy of `options` demand signatures."""
    options.policy.write_text(json.dumps({"default": list(requirements)}))
    return options


def by_key(key, **fields):
    return {"type": "sigstoreSigned", "keyData": b64(signing.public_pem(key)), **fields}


def blob(server, data, name=NAME):
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    server.replies[f"/v2/{name}/blobs/{digest}"] = [Reply(body=data)]
    return {"digest": digest, "size": len(data)}


def offer(server, reference, document, name=NAME, kind=OCI_MANIFEST):
    data = json.dumps(document).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    reply = Reply(headers={"Content-Type": kind}, body=data)
    for item in (reference, digest):
        server.replies[f"/v2/{name}/manifests/{item}"] = [reply]
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def layer(server, key, said, name=NAME):
    signature = b64(signing.signed(key, said))
    annotations = {cosign.SIGNATURE: signature}
    return {"mediaType": cosign.MEDIA_TYPE, **blob(server, said, name), "annotations": annotations}


def sign(server, digest, *layers, name=NAME):
    """Offer cosign's tag with some layers."""
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", **blob(server, b"{}", name)}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": list(layers)}
    return offer(server, f"sha256-{digest.hex}.sig", document, name)


def said(server, digest, tag="1", name=NAME):
    return signing.simple(digest=digest, name=f"{server.address}/{name}:{tag}")


@pytest.fixture
def server():
    with hostile_server() as running:
        yield running


@pytest.fixture
def image(server, writer):
    """An image that the server offers; its manifest's digest."""
    digest = writer.add_image("two", [OTHER], architecture=ARCH)
    serve(server, writer, digest)
    return digest


@pytest.fixture
def lab(layout, tmp_path, server, image, key):
    return layout, tmp_path, server, image, key


def name_of(server, tag="1"):
    return f"docker://{server.address}/{NAME}:{tag}"


def blobs_asked(server):
    return [item.path for item in server.requests if "/blobs/" in item.path]


def refusal(layout, server, options):
    with pytest.raises(DeniedError) as caught:
        ensure_image(layout, name_of(server), options)
    assert caught.value.exit_code == 120
    assert name_of(server) in caught.value.message
    assert str(options.policy) in caught.value.message
    assert caught.value.hint
    assert ImageStore(layout).entries() == ()
    return caught.value.message


def test_an_unsigned_image_is_refused_before_any_of_it_is_downloaded(layout, tmp_path, server, image, key):
    options = demanding(accepting(tmp_path), by_key(key))
    assert "no such signature" in refusal(layout, server, options)
    assert blobs_asked(server) == []


def test_a_policy_that_rejects_asks_the_registry_nothing(layout, tmp_path, server, image, key):
    options = demanding(accepting(tmp_path), by_key(key), {"type": "reject"})
    refusal(layout, server, options)
    assert server.requests == []


def test_a_signed_image_is_admitted_and_the_verdict_is_kept(layout, tmp_path, server, image, key):
    sign(server, image, layer(server, key, said(server, image)))
    options = demanding(accepting(tmp_path), by_key(key))
    found = ensure_image(layout, name_of(server), options)
    (signature,) = found.admission.signatures
    assert signature.signer.startswith("key:")
    (entry,) = ImageStore(layout).entries()
    assert admit.last_admission(entry) == replace(found.admission, reason="")
    before = len(server.requests)
    again = ensure_image(layout, name_of(server), options)
    assert again.admission.signatures == found.admission.signatures
    assert len(server.requests) == before


def test_an_image_admitted_before_needs_no_cryptography(layout, tmp_path, server, image, key):
    sign(server, image, layer(server, key, said(server, image)))
    options = demanding(accepting(tmp_path), by_key(key))
    ensure_image(layout, name_of(server), options)
    script = (
        "import sys; from pathlib import Path; from secrun.paths import Layout;"
        "from secrun.image.fetch import FetchOptions, ensure_image;"
        f"ensure_image(Layout(root=Path({str(layout.root)!r}), run_root=Path({str(layout.run_root)!r})),"
        f" {name_of(server)!r}, FetchOptions(policy=Path({str(options.policy)!r})));"
        "print(*sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(done.stdout.split())
    assert loaded & {"cryptography", "pysequoia", "nacl", "yaml", "urllib3", "secrun.trust.judge"} == set()


@pytest.mark.parametrize("change", ["policy", "key", "signatures"])
def test_what_changed_is_judged_again_without_the_network(lab, change):
    layout, tmp_path, server, image, key = lab
    sign(server, image, layer(server, key, said(server, image)))
    options = demanding(accepting(tmp_path), by_key(key))
    ensure_image(layout, name_of(server), options)
    before = len(server.requests)
    if change == "policy":
        demanding(
            options,
            by_key(key, signedIdentity={"type": "exactRepository", "dockerRepository": "x.example/y"}),
        )
    elif change == "key":
        demanding(options, by_key(signing.new_key()))
    else:
        demanding(options, {"type": "signedBy", "keyType": "GPGKeys", "keyData": b64(b"\x99")})
    with pytest.raises(DeniedError):
        ensure_image(layout, name_of(server), options)
    demanding(options, by_key(key))
    assert ensure_image(layout, name_of(server), options).admission.signatures
    demanding(options, by_key(key, signedIdentity={"type": "matchRepository"}))
    assert ensure_image(layout, name_of(server), options).admission.signatures
    assert len(server.requests) == before


def test_a_decision_that_ran_out_is_made_again(lab, monkeypatch):
    layout, tmp_path, server, image, key = lab
    sign(server, image, layer(server, key, said(server, image)))
    options = demanding(accepting(tmp_path), by_key(key))
    ensure_image(layout, name_of(server), options)
    store = ImageStore(layout)
    (entry,) = store.entries()
    calls = []

    def counted(*words, **more):
        calls.append(1)
        return real(*words, **more)

    real = judge.judge
    monkeypatch.setattr(judge, "judge", counted)
    for expires, expected in ((0, 0), (NOW * 2, 0), (1, 1)):
        last = replace(admit.last_admission(entry), expires=expires)
        store.add(replace(entry, admission=json.dumps(last.to_json())))
        calls.clear()
        ensure_image(layout, name_of(server), options)
        assert len(calls) == expected


def test_a_decision_on_an_image_that_was_removed_meanwhile_does_not_bring_it_back(lab):
    layout, tmp_path, server, image, key = lab
    sign(server, image, layer(server, key, said(server, image)))
    ensure_image(layout, name_of(server), demanding(accepting(tmp_path), by_key(key)))
    store = ImageStore(layout)
    (entry,) = store.entries()
    store.remove([entry], in_use=())
    store.revise(entry, replace(entry, admission="{}"))
    assert store.entries() == ()


def test_an_image_fetched_under_no_demand_says_that_its_signatures_are_unknown(
    layout, tmp_path, server, image, key
):
    options = accepting(tmp_path)
    ensure_image(layout, name_of(server), options)
    sign(server, image, layer(server, key, said(server, image)))
    demanding(options, by_key(key))
    with pytest.raises(DeniedError) as caught:
        ensure_image(layout, name_of(server), options)
    assert "none were fetched" in caught.value.message
    assert "secrun fetch" in caught.value.hint
    for pull in (PullPolicy.NEWER, PullPolicy.ALWAYS):
        assert ensure_image(layout, name_of(server), replace(options, pull=pull)).admission.signatures


# A registry that lies.


def test_a_tag_that_moves_after_the_first_answer_changes_nothing(lab, writer):
    layout, tmp_path, server, image, key = lab
    moved = writer.add_image("moved", [OTHER, OTHER], architecture=ARCH)
    sign(server, image, layer(server, key, said(server, image)))
    path = f"/v2/{NAME}/manifests/1"
    serve(server, writer, moved, tag="2")
    server.replies[path] = [*server.replies[path], *server.replies[f"/v2/{NAME}/manifests/2"]]
    options = demanding(accepting(tmp_path), by_key(key))
    found = ensure_image(layout, name_of(server), options)
    assert found.manifest_digest == image
    assert len(server.asked(path)) == 1
    # The registry now serves the other one, which nobody signed.
    with pytest.raises(DeniedError):
        ensure_image(layout, name_of(server), replace(options, pull=PullPolicy.ALWAYS))
    assert ensure_image(layout, name_of(server), options).manifest_digest == image


def test_signatures_that_hang_on_another_image_do_not_count(lab, writer):
    layout, tmp_path, server, image, key = lab
    other = Digest.of(b"other")
    sign(server, image, layer(server, key, said(server, other)))
    assert str(other) in refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))


def test_a_gigabyte_of_signature_is_not_downloaded(layout, tmp_path, server, image, key):
    huge = layer(server, key, said(server, image))
    huge["size"] = 1 << 30
    sign(server, image, huge)
    options = demanding(accepting(tmp_path), by_key(key))
    assert str(1 << 30) in refusal(layout, server, options)
    assert blobs_asked(server) == []
    sign(server, image, huge, layer(server, key, signing.simple(image, f"{server.address}/{NAME}:1")))
    assert ensure_image(layout, name_of(server), options).admission.signatures


def test_a_signature_that_is_longer_than_promised_is_cut_off(layout, tmp_path, server, image, key):
    item = layer(server, key, said(server, image))
    server.replies[f"/v2/{NAME}/blobs/{item['digest']}"] = [
        Reply(body=b"x" * 4096, endless=True, length=1 << 40)
    ]
    sign(server, image, item)
    assert "larger than" in refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"schemaVersion": 2, "layers": 1}', b'{"schemaVersion": 2, "layers": [{}]}']
)
def test_a_list_of_signatures_that_is_garbage_refuses_in_words(lab, body):
    layout, tmp_path, server, image, key = lab
    server.replies[f"/v2/{NAME}/manifests/sha256-{image.hex}.sig"] = [
        Reply(headers={"Content-Type": OCI_MANIFEST}, body=body)
    ]
    assert "signatures sha256-" in refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))


def test_a_hundred_and_more_signatures_are_not_all_looked_at(layout, tmp_path, server, image, key):
    bad = [layer(server, signing.new_key(), said(server, image)) for _ in range(3)]
    sign(server, image, *(bad * 50))
    message = refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))
    assert len(blobs_asked(server)) == 100
    assert "more" in message


# Referrers.


@pytest.fixture
def by_digest(layout):
    layout.trust.mkdir(parents=True)
    (layout.trust / "trust.toml").write_text('[[rule]]\nscope = "default"\nbundle-identity = "digest"\n')


def refer(server, image, key, subject=None):
    """Offer a bundle as a referrer; return its descriptor as a list of referrers has it."""
    data = json.dumps(Sigstore().bundle(image, key=key)).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": bundle.MEDIA_TYPE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", **blob(server, b"{}")},
        "layers": [{"mediaType": bundle.MEDIA_TYPE, **blob(server, data)}],
        "subject": {"mediaType": OCI_MANIFEST, "digest": str(subject or image), "size": 7},
    }
    return {**offer(server, "unlisted", document), "artifactType": bundle.MEDIA_TYPE}


def index(*members):
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(members)}


def referrers(server, image, *replies):
    server.replies[f"/v2/{NAME}/referrers/{image}"] = [
        Reply(headers={"Content-Type": OCI_INDEX, **headers}, body=json.dumps(document).encode())
        for document, headers in replies
    ]


def test_a_bundle_is_found_by_the_api_of_referrers(lab, by_digest):
    layout, tmp_path, server, image, key = lab
    referrers(server, image, (index(refer(server, image, key)), {}))
    found = ensure_image(layout, name_of(server), demanding(accepting(tmp_path), by_key(key)))
    assert found.admission.signatures[0].kind == "bundle"
    assert found.admission.rule.endswith("trust.toml")


def test_a_bundle_is_found_by_the_tag_that_stands_in(lab, by_digest):
    layout, tmp_path, server, image, key = lab
    offer(server, f"sha256-{image.hex}", index(refer(server, image, key)), kind=OCI_INDEX)
    found = ensure_image(layout, name_of(server), demanding(accepting(tmp_path), by_key(key)))
    assert found.admission.signatures[0].kind == "bundle"


def test_a_list_of_referrers_that_leads_in_a_circle_ends(lab, by_digest):
    layout, tmp_path, server, image, key = lab
    path = f"/v2/{NAME}/referrers/{image}"
    inner = offer(server, f"sha256-{image.hex}", index(), kind=OCI_INDEX)
    referrers(server, image, (index(inner), {"Link": f'<{path}?n=1>; rel="next"'}))
    refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))
    assert len(server.asked(path)) == 2
    pages = iter(range(1000))
    server.replies[path] = lambda _: Reply(
        headers={"Content-Type": OCI_INDEX, "Link": f'<{path}?n={next(pages)}>; rel="next"'},
        body=json.dumps(index()).encode(),
    )
    before = len(server.asked(path))
    refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))
    assert len(server.asked(path)) - before == 10


def test_pages_of_another_server_are_not_followed(lab, by_digest):
    layout, tmp_path, server, image, key = lab
    with hostile_server() as other:
        referrers(server, image, (index(), {"Link": f'<http://{other.address}/x>; rel="next"'}))
        refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))
        assert other.requests == []


def test_a_referrer_that_is_about_something_else_does_not_count(lab, by_digest):
    layout, tmp_path, server, image, key = lab
    other = Digest.of(b"other")
    referrers(server, image, (index(refer(server, image, key, subject=other)), {}))
    assert str(other) in refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))


# What the host says about registries.


def test_signatures_in_the_registry_are_not_looked_for_where_that_is_off(
    layout, tmp_path, server, image, key
):
    sign(server, image, layer(server, key, said(server, image)))
    folder = tmp_path / "home/.config/containers/registries.d"
    (folder / "x.yaml").write_text(f"docker:\n  {server.address}:\n    use-sigstore-attachments: false\n")
    refusal(layout, server, demanding(accepting(tmp_path), by_key(key)))


def test_a_mirror_is_asked_first_and_the_image_keeps_its_name(lab, writer):
    layout, tmp_path, server, image, key = lab
    settings = tmp_path / "home/.config/containers/registries.conf"
    settings.write_text(
        f'[[registry]]\nlocation = "r.example"\n[[registry.mirror]]\nlocation = "{server.address}/gone"\n'
        f'[[registry.mirror]]\nlocation = "{server.address}/t"\n'
    )
    sign(server, image, layer(server, key, signing.simple(image, "r.example/app:1")))
    options = demanding(accepting(tmp_path), by_key(key))
    found = ensure_image(layout, "docker://r.example/app:1", options)
    assert found.reference == "docker://r.example/app:1"
    assert found.manifest_digest == image
    assert server.asked("/v2/gone/app/manifests/1")


def test_a_blocked_registry_is_not_asked(layout, tmp_path, server, image):
    settings = tmp_path / "home/.config/containers/registries.conf"
    settings.write_text(f'[[registry]]\nlocation = "{server.address}"\nblocked = true\n')
    with pytest.raises(DeniedError) as caught:
        ensure_image(layout, name_of(server), accepting(tmp_path))
    assert caught.value.code == "denied-registry"
    assert server.requests == []


def test_an_alias_stands_for_a_name_in_full(layout, tmp_path, server, image):
    settings = tmp_path / "home/.config/containers/registries.conf"
    settings.write_text(f'[aliases]\n"short" = "{server.address}/{NAME}"\n')
    found = ensure_image(layout, "short:1", accepting(tmp_path))
    assert found.reference == name_of(server)


def test_a_mistyped_id_is_not_looked_for_in_a_registry(layout, tmp_path, server):
    settings = tmp_path / "home/.config/containers/registries.conf"
    settings.write_text(f'unqualified-search-registries = ["{server.address}"]\n')
    with pytest.raises(UsageError):
        ensure_image(layout, "0a1b2c3d4e5f", accepting(tmp_path))
    assert server.requests == []


# The store.


def test_signatures_stay_as_long_as_their_image(layout, tmp_path, server, image, key):
    sign(server, image, layer(server, key, said(server, image)))
    ensure_image(layout, name_of(server), demanding(accepting(tmp_path), by_key(key)))
    store = ImageStore(layout)
    (entry,) = store.entries()
    path = store.blob_path(Digest.parse(entry.signatures))
    store.collect(in_use=())
    assert path.exists()
    store.remove([entry], in_use=())
    assert not path.exists()


def test_signatures_that_were_changed_in_the_store_are_noticed(layout, tmp_path, server, image, key):
    from secrun.errors import StateError

    sign(server, image, layer(server, key, said(server, image)))
    options = demanding(accepting(tmp_path), by_key(key))
    ensure_image(layout, name_of(server), options)
    store = ImageStore(layout)
    (entry,) = store.entries()
    store.blob_path(Digest.parse(entry.signatures)).write_bytes(b"{}")
    demanding(options, by_key(key, signedIdentity={"type": "matchRepository"}))
    with pytest.raises(StateError):
        ensure_image(layout, name_of(server), options)
