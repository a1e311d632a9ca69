"""Root believes no process that reads what strangers wrote: each lie it could tell is found out."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.digest import Digest
from secrun.errors import DeniedError, ImageError, SecrunError, StateError, UsageError
from secrun.image import apart, facts, frames, judging, sources
from secrun.image.fetch import ensure_image
from secrun.image.files import FolderFiles, hold_folder
from secrun.image.frames import Channel, ClosedError, Frame, Kind
from secrun.image.helper import Helper
from secrun.image.layout import LayoutSource
from secrun.image.platform import host_platform
from secrun.image.progress import NullProgress
from secrun.image.remote import RemoteSource
from secrun.image.reported import error_of, fields_of, shown
from secrun.image.serving import Notes, source_handlers
from secrun.image.source import Document
from secrun.image.store import ImageStore
from secrun.jsonio import JsonObject
from secrun.paths import Layout
from secrun.trust.signatures import SignatureSet
from support import signing
from support.images import OCI_INDEX, OCI_MANIFEST, Entry, tar_layer
from support.signing import NOW, b64
from support.stored import ARCH, LAYER, OTHER, one_image, reference

EVIL = tar_layer([Entry(name="bin/sh", data=b"evil")])
PLATFORM = host_platform()


class Told:
    """The end of a channel that keeps what is sent."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def send(self, kind: Kind, data: bytes) -> None:
        self.frames.append(Frame(kind=kind, data=data))


Answer = tuple[list[Frame], JsonObject]


class Liar(Helper):
    """A helper that answers as a real one does, and then changes its mind about some of it."""

    def __init__(self, source: LayoutSource, lies: dict[str, Callable[[list[Frame], JsonObject], Answer]]):
        self._handlers = source_handlers(source, Notes())
        self._lies = lies

    def call(self, name, fields, *, take=None, data=None, fd=None):
        told = Told()
        answer = self._handlers[name](dict(fields), told)
        sent = told.frames
        if name in self._lies:
            sent, answer = self._lies[name](sent, answer)
        for frame in sent:
            take(frame)
        return answer

    def kill(self) -> None:
        pass


@pytest.fixture
def lying(monkeypatch, writer):
    """Let fetches go by way of a helper that lies."""

    def patch(**lies: Callable[[list[Frame], JsonObject], Answer]) -> None:
        @contextmanager
        def opened(asked, options) -> Iterator[RemoteSource]:
            inner = LayoutSource(FolderFiles(Path(asked.path), "it"), asked.tag, what="it")
            yield RemoteSource(Liar(inner, lies), options.progress)

        monkeypatch.setattr(sources, "open_source", opened)

    return patch


def stored(layout: Layout) -> list[str]:
    return [entry.reference for entry in ImageStore(layout).entries()]


def refused(layout, options, writer, code: str) -> SecrunError:
    with pytest.raises(SecrunError) as caught:
        ensure_image(layout, reference(writer), options)
    assert caught.value.code == code
    assert stored(layout) == []
    return caught.value


def test_an_honest_helper_brings_the_same_image(layout, options, writer, lying, tmp_path):
    plain = ensure_image(layout, reference(writer), options)
    lying()
    other = Layout(root=tmp_path / "other", run_root=tmp_path / "other-run")
    image = ensure_image(other, reference(writer), options)
    assert image.manifest_digest == plain.manifest_digest
    assert image.config == plain.config
    assert [layer.digest for layer in image.layers] == [layer.digest for layer in plain.layers]
    # What is known of it was kept: nothing is parsed again.
    assert ensure_image(other, reference(writer), options).config == plain.config


def test_an_image_that_the_index_does_not_name_is_refused(layout, options, writer, lying):
    digest = writer.add_image("evil", [EVIL], architecture=ARCH)
    evil = writer.blob(digest).read_bytes()
    members = [{"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"{}")), "size": 2}]
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": members}).encode()

    def root(sent: list[Frame], answer: JsonObject) -> Answer:
        return [Frame(kind=Kind.BYTES, data=index)], {**answer, "types": [OCI_INDEX]}

    def walk(sent: list[Frame], answer: JsonObject) -> Answer:
        document = json.loads(evil)
        return [Frame(kind=Kind.BYTES, data=evil)], {**answer, "types": [OCI_MANIFEST], "manifest": document}

    lying(root=root, walk=walk)
    refused(layout, options, writer, "image-digest")


def test_what_the_helper_says_of_a_manifest_is_no_part_of_the_image(layout, options, writer, lying):
    def walk(sent: list[Frame], answer: JsonObject) -> Answer:
        manifest = dict(answer["manifest"])
        layer = dict(manifest["layers"][0])
        manifest["layers"] = [{**layer, "digest": str(Digest.of(EVIL)), "size": len(EVIL)}]
        return sent, {**answer, "manifest": manifest}

    lying(walk=walk)
    image = ensure_image(layout, reference(writer), options)
    (layer,) = json.loads(writer.blob(image.manifest_digest).read_bytes())["layers"]
    assert [str(item.digest) for item in image.layers] == [layer["digest"]]
    assert not ImageStore(layout).blob_path(Digest.of(EVIL)).exists()


def test_a_config_that_the_manifest_does_not_name_is_refused(layout, options, writer, lying):
    def walk(sent: list[Frame], answer: JsonObject) -> Answer:
        manifest = dict(answer["manifest"])
        config = {**manifest["config"], "digest": str(Digest.of(b"{}")), "size": 2}
        return sent, {**answer, "manifest": {**manifest, "config": config}}

    def blob(sent: list[Frame], answer: JsonObject) -> Answer:
        return [Frame(kind=Kind.CHUNK, data=b"{}")], answer

    lying(walk=walk, blob=blob)
    # The layout has no such blob, so that the honest half of the helper already fails; else the reader does.
    with pytest.raises(SecrunError):
        ensure_image(layout, reference(writer), options)
    assert stored(layout) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "image-digest"),
        (lambda data: data + b"x", "image-size"),
        (lambda data: data[:-1], "image-size"),
    ],
)
def test_a_blob_of_other_bytes_is_refused(layout, options, writer, lying, change, code):  # noqa: PLR0917
    def blob(sent: list[Frame], answer: JsonObject) -> Answer:
        data = b"".join(frame.data for frame in sent)
        return [Frame(kind=Kind.CHUNK, data=change(data))], answer

    lying(blob=blob)
    refused(layout, options, writer, code)


def test_a_blob_may_begin_again(layout, options, writer, lying):
    def blob(sent: list[Frame], answer: JsonObject) -> Answer:
        return [Frame(kind=Kind.CHUNK, data=b"half"), Frame(kind=Kind.RESTART, data=b""), *sent], answer

    lying(blob=blob)
    assert ensure_image(layout, reference(writer), options).layers


@pytest.mark.parametrize("name", ["root", "walk", "blob"])
def test_more_than_was_asked_for_is_refused(layout, options, writer, lying, name):
    def flood(sent: list[Frame], answer: JsonObject) -> Answer:
        return [Frame(kind=Kind.BYTES, data=b"{}")] * 100, answer

    lying(**{name: flood})
    refused(layout, options, writer, "image-worker")


def test_words_of_the_helper_reach_no_terminal_as_they_are(writer):
    source = LayoutSource(FolderFiles(writer.path, "it"), "one", what="it")

    def root(sent: list[Frame], answer: JsonObject) -> Answer:
        return sent, {**answer, "given": "\x1b[31mred", "notes": ["\x1b]0;title\x07"]}

    progress = NullProgress()
    remote = RemoteSource(Liar(source, {"root": root}), progress)
    remote.root()
    assert remote.given == "?[31mred"
    assert progress.notes == ["?]0;title?"]


# The record of an image, held against its bytes.


def chain_of(writer) -> tuple[tuple[Document, ...], bytes]:
    source = LayoutSource(FolderFiles(writer.path, "it"), "two", what="it")
    root = source.root()
    config = json.loads(root.data)["config"]["digest"]
    return (root,), writer.blob(config).read_bytes()


@pytest.fixture
def two(writer):
    writer.add_image("two", [LAYER, OTHER], architecture=ARCH)
    return chain_of(writer)


def swapped(record: JsonObject) -> None:
    record["manifest"]["layers"].reverse()


def foreign_layer(record: JsonObject) -> None:
    record["manifest"]["layers"][1]["digest"] = str(Digest.of(EVIL))


def foreign_config(record: JsonObject) -> None:
    record["manifest"]["config"]["digest"] = str(Digest.of(b"{}"))


def foreign_content(record: JsonObject) -> None:
    record["config"]["rootfs"]["diff_ids"][0] = str(Digest.of(EVIL))


def swapped_content(record: JsonObject) -> None:
    record["config"]["rootfs"]["diff_ids"].reverse()


@pytest.mark.parametrize("lie", [swapped, foreign_layer, foreign_config, foreign_content, swapped_content])
def test_a_record_that_names_what_the_bytes_do_not_is_refused(two, monkeypatch, lie):
    chain, config = two
    honest = facts.read(chain, config, PLATFORM, what="it")
    record = json.loads(json.dumps(honest.to_json()))
    lie(record)
    monkeypatch.setattr(apart, "run", lambda body, preload: record)
    with pytest.raises(ImageError) as caught:
        facts.read(chain, config, PLATFORM, what="it")
    assert caught.value.code == "image-digest"


@pytest.mark.parametrize("record", [{}, {"schema": facts.SCHEMA}, {"schema": "x"}])
def test_nonsense_instead_of_a_record_is_refused(two, monkeypatch, record):
    monkeypatch.setattr(apart, "run", lambda body, preload: record)
    with pytest.raises(ImageError):
        facts.read(*two, PLATFORM, what="it")


def test_a_record_says_all_that_the_documents_say(two):
    known = facts.read(*two, PLATFORM, what="it")
    assert facts.of_bytes(known.to_bytes(), "it") == known


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=10_000))
def test_a_damaged_record_is_noticed(tmp_path_factory, noise, position):
    folder = tmp_path_factory.mktemp("damaged")
    writer = one_image(folder)
    writer.add_image("two", [LAYER, OTHER], architecture=ARCH)
    data = facts.read(*chain_of(writer), PLATFORM, what="it").to_bytes()
    position %= len(data)
    damaged = data[:position] + noise + data[position + len(noise) + 1 :]
    if damaged.rstrip(b"\n") != data.rstrip(b"\n"):
        with pytest.raises(StateError):
            facts.of_bytes(damaged, "it")


def test_a_store_of_before_the_records_gets_them(layout, options, writer):
    before = ensure_image(layout, reference(writer), options)
    for path in layout.facts.rglob("*.json"):
        path.unlink()
    again = ensure_image(layout, reference(writer), options)
    assert again.config == before.config
    assert len(list(layout.facts.rglob("*.json"))) == 1


def test_records_go_with_their_images(layout, options, writer):
    ensure_image(layout, reference(writer), options)
    store = ImageStore(layout)
    store.remove(store.entries(), in_use=())
    assert list(layout.facts.rglob("*.json")) == []


# The decision on signatures.


def a_plan(key, tmp_path):
    from secrun.image import identity
    from secrun.image import reference as references
    from secrun.trust import plan as plans

    path = tmp_path / "policy.json"
    requirement = {"type": "sigstoreSigned", "keyData": b64(signing.public_pem(key))}
    path.write_text(json.dumps({"default": [requirement]}))
    subject = identity.subject(references.parse("docker://registry.example/team/app:1"))
    return plans.load_for(subject, path, tmp_path / "trust").plan(subject)


DIGEST = Digest.of(b"manifest")
EMPTY = SignatureSet().to_bytes()


def decide(plan) -> object:
    return judging.judged(plan, frozenset((DIGEST,)), EMPTY, str(Digest.of(EMPTY)), NOW)


def accepting_word(admission: JsonObject) -> None:
    admission["decision"] = "accept"


def of_others(admission: JsonObject) -> None:
    admission["inputs"] = str(Digest.of(b"another image"))


def bypass(admission: JsonObject) -> None:
    admission["bypass"] = True


def scope(admission: JsonObject) -> None:
    admission["scope"] = "docker:elsewhere"


@pytest.mark.parametrize("lie", [accepting_word, of_others, bypass, scope])
def test_a_decision_that_is_not_about_this_image_and_policy_is_refused(tmp_path, monkeypatch, lie):
    plan = a_plan(signing.new_key(), tmp_path)
    honest = decide(plan)
    admission = honest.to_json()
    lie(admission)
    answer: JsonObject = {"admission": admission, "reason": "", "proofs": []}
    monkeypatch.setattr(apart, "run", lambda body, preload: answer)
    with pytest.raises(ImageError) as caught:
        decide(plan)
    assert caught.value.code == "image-worker"


def forged(plan, key, digest, name, *, proofs=1) -> JsonObject:
    """Return the answer of a judge that was taken over: the image is admitted by a signature of `key`'s."""
    from secrun.trust import cosign, payload
    from secrun.trust.signatures import Candidate, SignatureKind
    from secrun.trust.verdict import Verified

    said = payload.build(payload.COSIGN, digest, name, creator="x", now=NOW)
    signature = b64(signing.signed(key, said))
    candidate = Candidate(
        kind=SignatureKind.COSIGN,
        subject=digest,
        payload=said,
        origin="it",
        annotations={cosign.SIGNATURE: signature},
    )
    named = Verified(kind="cosign", signer="key:trusted", reference=name, digest=candidate.digest)
    admission = {**decide(plan).to_json(), "decision": "accept", "signatures": [named.to_json()]}
    return {"admission": admission, "reason": "", "proofs": [candidate.to_json()] * proofs}


def test_root_looks_itself_at_the_signature_by_a_key(tmp_path, monkeypatch):
    key, name = signing.new_key(), "registry.example/team/app:1"
    plan = a_plan(key, tmp_path)
    good = forged(plan, key, DIGEST, name)
    lies = [
        forged(plan, signing.new_key(), DIGEST, name),
        forged(plan, key, Digest.of(b"another image"), name),
        forged(plan, key, DIGEST, "registry.example/team/another:1"),
        forged(plan, key, DIGEST, name, proofs=0),
        forged(plan, key, DIGEST, name, proofs=2),
    ]
    monkeypatch.setattr(apart, "run", lambda body, preload: good)
    assert decide(plan).decision == "accept"
    for lie in lies:
        monkeypatch.setattr(apart, "run", lambda body, preload, lie=lie: lie)
        with pytest.raises(ImageError) as caught:
            decide(plan)
        assert caught.value.code == "image-worker"


# How they speak.


def test_errors_cross_as_what_they_are():
    for error in (DeniedError("no", hint="ask"), UsageError("bad", code="usage-x"), ImageError("broken")):
        found = error_of(fields_of(error), "it")
        assert (type(found), str(found), found.code, found.hint) == (
            type(error),
            str(error),
            error.code,
            error.hint,
        )
    assert isinstance(error_of(fields_of(OSError(28, "full")), "it"), OSError)


@given(st.dictionaries(st.text(max_size=9), st.one_of(st.text(), st.integers(), st.none(), st.booleans())))
def test_whatever_is_reported_becomes_an_error(answer):
    assert isinstance(error_of(answer, "it"), SecrunError | OSError)


@given(st.text())
def test_what_is_shown_is_printable(text):
    assert all(char.isprintable() or char == "\n" for char in shown(text))


@given(st.binary(max_size=64))
def test_garbage_on_a_channel_is_an_error(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        channel = Channel(ours)
        try:
            while True:
                channel.receive(100)
        except (ClosedError, ImageError):
            pass


def test_a_frame_has_a_limit():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes([Kind.BYTES]) + (frames.MAX_RECORD_BYTES + 1).to_bytes(4, "little"))
        with pytest.raises(ImageError):
            Channel(ours).receive(100)


# Files that are opened before rights are given up.


def test_only_regular_files_are_held(tmp_path):
    folder = tmp_path / "layout"
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "index.json").write_text("{}")
    (folder / "blobs/sha256/aa").write_text("blob")
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", folder / "blobs/sha256/bb")
    os.symlink(tmp_path, folder / "outside")
    os.mkfifo(folder / "blobs/sha256/cc")
    (folder / "blobs/sha256/deep").mkdir()
    (folder / "blobs/sha256/deep/file").write_text("too deep")
    files = hold_folder(folder, "it")
    assert files.read("blobs/sha256/aa", 9) == b"blob"
    assert files.read("index.json", 9) == b"{}"
    for name in ("blobs/sha256/bb", "outside/secret", "blobs/sha256/cc", "blobs/sha256/deep/file"):
        with pytest.raises(ImageError):
            files.read(name, 9)
    for fd in files._held.values():
        os.close(fd)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(ImageError, match="it: No such file"):
        hold_folder(tmp_path / "missing", "it")
