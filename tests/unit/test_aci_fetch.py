"""App container images from files: stored once, judged by who signed them, put upon what they depend on."""

import json
import os
import time
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.errors import DeniedError, ImageError, RegistryError
from secrun.image import config as configs
from secrun.image import rootfs, sources
from secrun.image.aci import limits, oci
from secrun.image.aci.bring import Chain
from secrun.image.aci.web import Web
from secrun.image.fetch import PullPolicy, ensure_image
from secrun.image.progress import NullProgress
from secrun.image.retry import SystemClock
from secrun.image.rootfs.model import FileKind
from secrun.image.sources import ReachedWeb
from secrun.image.store import ImageStore
from secrun.image.wire import ConnectionLostError, LossKind
from secrun.record import replace
from secrun.trust import detached
from secrun.trust.faults import SignatureFaultError
from secrun.trust.requirement import Material, Requirement, RequirementType
from secrun.trust.ring import KeyRing
from secrun.trust.verdict import Case
from support import aci, layers
from support.images import Entry, directory
from support.stored import accepting


class Notes(NullProgress):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


class NoNetwork:
    """A client of a host without a network."""

    def request(self, method, url, headers):
        raise ConnectionLostError(LossKind.REFUSED, "it does not accept connections")


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setattr(
        sources,
        "reach_web",
        lambda options: ReachedWeb(
            web=Web(NoNetwork(), SystemClock(), http=options.insecure_http), prepare=tuple
        ),
    )


@pytest.fixture
def options(tmp_path):
    return replace(accepting(tmp_path), progress=Notes())


@pytest.fixture
def rejecting(tmp_path):
    path = tmp_path / "reject.json"
    path.write_text(json.dumps({"default": [{"type": "reject"}]}))
    return replace(accepting(tmp_path), policy=path)


@pytest.fixture
def file(tmp_path):
    """Write an image of one file and return its path."""

    def write(name="example.com/app", text=b"app", path=None, **members):
        target = tmp_path / f"{path or name.rpartition('/')[2]}.aci"
        files = [directory("rootfs/etc"), Entry(name=f"rootfs/etc/{target.stem}", data=text)]
        aci.write(target, aci.manifest(name, **members), files)
        return target

    return write


def names_in(layout, image):
    """Return the files in /etc of an image."""
    rootfs.ensure(layout, image.layers)
    tree = layers.merge(*(layer.path.read_bytes() for layer in image.layers))
    return {
        path.decode().removeprefix("etc/") for path, entry in tree.items() if entry.kind is FileKind.FILE
    }


def entry_of(layout, path):
    (found,) = [item for item in ImageStore(layout).entries() if item.reference == f"aci:{path}"]
    return found


def test_a_file_is_stored_under_its_path_and_found_by_its_name_and_id(layout, options, file):
    path = file()
    image = ensure_image(layout, str(path), options)
    entry = entry_of(layout, path)
    assert (entry.given, image.is_appc) == ("example.com/app:1.0.0", True)
    assert f"sha512-{entry.source_digest.hex}" == oci_id(layout, entry)
    again = ensure_image(layout, "app:1.0.0", replace(options, pull=PullPolicy.NEVER))
    assert again.manifest_digest == image.manifest_digest
    short = f"sha512-{entry.source_digest.hex[:32]}"
    assert ensure_image(layout, short, options).manifest_digest == image.manifest_digest
    assert names_in(layout, image) == {"app"}


def oci_id(layout, entry):
    data = ImageStore(layout).read(entry.descriptor, what="it")
    return json.loads(data)["annotations"]["dev.secrun.appc.image-id"]


def test_a_file_that_was_written_again_is_read_again(layout, options, file):
    path = file()
    first = ensure_image(layout, str(path), options)
    assert ensure_image(layout, str(path), options).manifest_digest == first.manifest_digest
    path.unlink()
    with pytest.raises(ImageError, match="does not exist"):
        ensure_image(layout, str(path), replace(options, pull=PullPolicy.ALWAYS))
    file(text=b"other")
    assert ensure_image(layout, str(path), options).manifest_digest != first.manifest_digest
    assert [item.reference for item in ImageStore(layout).entries()] == [f"aci:{path}"]


def test_an_image_for_another_platform_is_refused(layout, options, file):
    path = file(labels={"os": "linux", "arch": "s390x"})
    with pytest.raises(ImageError) as caught:
        ensure_image(layout, str(path), options)
    assert caught.value.code == "image-platform"
    assert ImageStore(layout).entries() == ()


def test_nothing_is_left_when_an_image_is_refused(layout, options, tmp_path):
    (tmp_path / "bad.aci").write_bytes(b"not a tar" * 100)
    with pytest.raises(ImageError):
        ensure_image(layout, str(tmp_path / "bad.aci"), options)
    assert os.listdir(layout.scratch) == []
    assert ImageStore(layout).entries() == ()


# Dependencies.


def needs(name, **members):
    return {"imageName": name, **members}


def test_dependencies_lie_below_in_their_order(layout, options, file):
    for name in ("base", "middle"):
        ensure_image(layout, str(file(f"example.com/{name}", text=name.encode())), options)
    whole = [
        needs("example.com/base"),
        needs("example.com/middle", labels=[{"name": "os", "value": "linux"}]),
    ]
    image = ensure_image(layout, str(file(dependencies=whole)), options)
    assert names_in(layout, image) == {"base", "middle", "app"}
    parts = [ensure_image(layout, f"{name}:1.0.0", options).layers[-1].digest for name in ("base", "middle")]
    assert [layer.digest for layer in image.layers[:2]] == parts
    turned = ensure_image(layout, str(file(dependencies=whole[::-1], path="turned")), options)
    assert [layer.digest for layer in turned.layers[:2]] == parts[::-1]


def test_a_dependency_of_a_dependency_comes_along(layout, options, file):
    ensure_image(layout, str(file("example.com/base")), options)
    ensure_image(layout, str(file("example.com/middle", dependencies=[needs("example.com/base")])), options)
    image = ensure_image(layout, str(file(dependencies=[needs("example.com/middle")])), options)
    assert names_in(layout, image) == {"base", "middle", "app"}
    # What the image needs stays when the images below it are removed.
    store = ImageStore(layout)
    doomed = [item for item in store.entries() if "app" not in item.given]
    store.remove(doomed, in_use=())
    assert names_in(layout, ensure_image(layout, "app:1.0.0", options)) == {"base", "middle", "app"}


@pytest.mark.parametrize(
    "wanted",
    [
        needs("example.com/other"),
        needs("example.com/base", imageID=f"sha512-{'0f' * 16}"),
        needs("example.com/base", labels=[{"name": "version", "value": "2"}]),
        needs("example.com/base", labels=[{"name": "flavour", "value": "any"}]),
    ],
)
def test_a_dependency_that_is_not_there_is_an_error_that_names_it(layout, options, file, wanted):
    ensure_image(layout, str(file("example.com/base")), options)
    path = file(dependencies=[wanted])
    with pytest.raises(RegistryError) as caught:
        ensure_image(layout, str(path), options)
    assert f"depends on appc://{wanted['imageName']}" in caught.value.message
    assert "secrun fetch" in caught.value.hint


def test_a_dependency_by_the_beginning_of_its_id(layout, options, file):
    base = file("example.com/base")
    ensure_image(layout, str(base), options)
    digits = entry_of(layout, base).source_digest.hex
    path = file(dependencies=[needs("example.com/base", imageID=f"sha512-{digits[:40]}")])
    assert names_in(layout, ensure_image(layout, str(path), options)) == {"base", "app"}


def test_an_image_that_needs_itself_and_a_chain_without_end_are_refused():
    chain = Chain().below("a:1", "it").below("b:1", "it")
    with pytest.raises(ImageError, match="a:1 needs b:1 needs a:1") as caught:
        chain.below("a:1", "it")
    assert caught.value.code == "image-aci-loop"
    deep = Chain(names=tuple(map(str, range(limits.MAX_DEPTH))))
    with pytest.raises(ImageError, match="deep"):
        deep.below("x", "it")


def test_a_whitelist_holds_for_dependencies_and_says_what_nobody_has(layout, options, file):
    ensure_image(layout, str(file("example.com/base")), options)
    path = file(dependencies=[needs("example.com/base")], pathWhitelist=["/etc/base", "/etc/none"])
    image = ensure_image(layout, str(path), options)
    assert names_in(layout, image) == {"base"}
    assert any("/etc/none" in note for note in options.progress.said)
    assert not any("/etc/base" in note for note in options.progress.said)


# Who signed it.


@pytest.fixture(scope="module")
def signer():
    return aci.LibrarySigner(validity_seconds=3600)


@pytest.fixture(scope="module")
def stranger():
    return aci.LibrarySigner("Stranger <s@example.org>")


def trust(layout, signer, prefix):
    """Put a key into the ring, as secrun trust add does."""
    from secrun.trust import openpgp

    (certificate,) = openpgp.load(signer.public)
    path = KeyRing(layout.trust).path_of(prefix, openpgp.fingerprint(certificate))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(certificate))
    return path


def refusal(layout, path, options):
    with pytest.raises(DeniedError) as caught:
        ensure_image(layout, str(path), options)
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("prefix", ["example.com", "example.com/app", ""])
def test_a_signed_image_is_admitted_by_a_key_of_its_name(layout, rejecting, file, signer, prefix):
    path = file()
    signer.sign(path)
    assert "rejects every image" in refusal(layout, path, rejecting)
    key = trust(layout, signer, prefix)
    image = ensure_image(layout, str(path), rejecting)
    (verified,) = image.admission.signatures
    assert (verified.kind, verified.signer) == ("appc", f"openpgp:{key.name}")
    # The decision stands without the file, and ends with the key.
    path.unlink()
    never = replace(rejecting, pull=PullPolicy.NEVER)
    assert ensure_image(layout, str(path), never).admission == image.admission
    key.unlink()
    refusal(layout, path, never)


def test_a_key_that_has_expired_does_not_count_any_more(tmp_path, signer):
    (tmp_path / "file").write_bytes(b"bytes")
    image = Digest("sha512", "0f" * 64)
    material = Material(path="/key", data=signer.public)
    keys, now = {material: signer.public}, time.time()
    signature = signer.sign(tmp_path / "file").read_bytes()
    found = detached.weigh(str(tmp_path / "file"), signature, image, keys, now)
    requirement = Requirement(type=RequirementType.KEY_RING, keys=(material,))

    def verified(when, known=keys):
        case = Case(name=None, digests=frozenset((image,)), keys=known, now=when)
        return detached.verify(found, requirement, case)

    assert now < verified(now).expires <= now + 3700
    with pytest.raises(SignatureFaultError, match="is expired"):
        verified(now + 3700)
    with pytest.raises(SignatureFaultError, match="is expired"):
        detached.weigh(str(tmp_path / "file"), signature, image, keys, now + 3700)


def test_keys_of_other_names_other_keys_and_bad_signatures_do_not_count(
    layout, rejecting, file, signer, stranger
):
    path = file()
    trust(layout, signer, "example.com/other")
    signer.sign(path)
    assert "rejects every image" in refusal(layout, path, rejecting)
    trust(layout, stranger, "example.com")
    assert "none of the keys" in refusal(layout, path, rejecting)
    trust(layout, signer, "example.com/app")
    signature = Path(f"{path}.asc")
    for text in (b"", b"garbage", signature.read_bytes()[:150], b"-" * 300_000):
        signature.write_bytes(text)
        with pytest.raises((DeniedError, ImageError)):
            ensure_image(layout, str(path), rejecting)
    signature.unlink()
    assert "no such signature" in refusal(layout, path, rejecting)
    signer.sign(path)
    file(text=b"changed since")
    assert "the detached signature" in refusal(layout, path, rejecting)
    assert ImageStore(layout).entries() == ()


def test_a_signature_for_one_image_admits_no_other(layout, rejecting, file, signer):
    """What is stored says which image it was; put beside another, it counts for nothing."""
    trust(layout, signer, "example.com")
    first, second = file(), file("example.com/second")
    signer.sign(first)
    ensure_image(layout, str(first), rejecting)
    ensure_image(layout, str(second), replace(rejecting, insecure_image=True))
    store = ImageStore(layout)
    one, two = entry_of(layout, first), entry_of(layout, second)
    store.revise(two, replace(two, signatures=one.signatures, admission=one.admission))
    never = replace(rejecting, pull=PullPolicy.NEVER)
    assert "it is for the image sha512" in refusal(layout, second, never)


def test_a_dependency_must_be_admitted_by_itself(layout, rejecting, file, signer):
    trust(layout, signer, "example.com/app")
    base = file("example.com/base")
    ensure_image(layout, str(base), replace(rejecting, insecure_image=True))
    path = file(dependencies=[needs("example.com/base")])
    signer.sign(path)
    with pytest.raises(DeniedError) as caught:
        ensure_image(layout, str(path), rejecting)
    assert str(base) in caught.value.message


def test_a_policy_knows_images_by_name_and_by_place(layout, file, options, tmp_path):
    accept = [{"type": "insecureAcceptAnything"}]
    path = file()
    for scope in ("example.com/app:1.0.0", "example.com/app", "example.com", str(tmp_path)):
        policy = tmp_path / "scoped.json"
        document = {"default": [{"type": "reject"}], "transports": {"aci": {scope: accept}}}
        policy.write_text(json.dumps(document))
        image = ensure_image(layout, str(path), replace(options, policy=policy))
        assert image.admission.scope == f"aci:{scope}"


def test_a_demand_that_this_kind_of_signature_cannot_meet_refuses(layout, file, options, tmp_path, signer):
    key = tmp_path / "key.gpg"
    key.write_bytes(signer.public)
    signed_by = [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(key)}]
    policy = tmp_path / "signed.json"
    policy.write_text(json.dumps({"default": signed_by}))
    path = file()
    signer.sign(path)
    assert "signedBy" in refusal(layout, path, replace(options, policy=policy))


def test_the_manifest_stays_with_the_image(layout, options, file):
    path = file(app={"exec": ["/x"]})
    image = ensure_image(layout, str(path), options)
    data = ImageStore(layout).read_digest(image.config_digest, what="it", limit=1 << 20)
    assert json.loads(oci.text_of(configs.parse(data, what="it"))) == aci.manifest(app={"exec": ["/x"]})
