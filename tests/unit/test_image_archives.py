"""Archives of images: members are found by name, links stay inside, and damage is an error."""

import io
import json
import os
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import limits, tarscan
from secrun.image.blobs import BlobWriter
from secrun.image.dockerarchive import DockerArchiveSource
from secrun.image.files import ArchiveFiles
from secrun.image.layout import LayoutSource
from secrun.image.manifest import Manifest, parse
from secrun.image.progress import NullProgress
from secrun.image.tarscan import Member, MemberKind
from support.images import Entry, LayoutWriter, compress, hardlink, symlink, tar_layer

LAYER = tar_layer([Entry(name="hello", data=b"hello\n")])
OTHER = tar_layer([Entry(name="other", data=b"other\n")])


def config_bytes(*layers):
    diff_ids = [str(Digest.of(layer)) for layer in layers]
    return json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()


def saved(layers, extra=(), *, config=None):
    """Return the members of a docker-archive with `layers` by name and contents."""
    data = config_bytes(*layers.values()) if config is None else config
    listing = [{"Config": "c.json", "RepoTags": ["r.example/a:1"], "Layers": list(layers)}]
    return [
        *extra,
        Entry(name="c.json", data=data),
        Entry(name="manifest.json", data=json.dumps(listing).encode()),
    ]


@pytest.fixture
def open_archive(tmp_path):
    """Write entries as an archive and open it."""
    fds = []

    def write(entries):
        path = tmp_path / "archive.tar"
        path.write_bytes(entries if isinstance(entries, bytes) else tar_layer(entries))
        fds.append(os.open(path, os.O_RDONLY))
        answer = json.loads(json.dumps(tarscan.to_json(tarscan.scan(fds[-1]))))
        members = tarscan.from_json(answer, file_size=path.stat().st_size)
        return ArchiveFiles(fds[-1], members, "it")

    yield write
    for fd in fds:
        os.close(fd)


def copied(source, descriptor, tmp_path):
    with (tmp_path / "copy").open("w+b") as stream:
        writer = BlobWriter(stream.fileno(), descriptor, counter=NullProgress(), cancelled=threading.Event())
        source.copy_blob(descriptor, writer)
        writer.finish()
    return (tmp_path / "copy").read_bytes()


def manifest_of(source):
    root = source.root()
    found = parse(root.data, root.media_type, what="it")
    assert isinstance(found, Manifest)
    return found


def test_a_docker_archive_becomes_a_manifest_of_plain_layers(open_archive, tmp_path):
    entries = saved(
        {"x/layer.tar": LAYER, "y/layer.tar": OTHER},
        [Entry(name="./x/layer.tar", data=LAYER), Entry(name="y/layer.tar", data=OTHER)],
    )
    source = DockerArchiveSource(open_archive(entries), "", what="it")
    manifest = manifest_of(source)
    assert [layer.digest for layer in manifest.layers] == [Digest.of(LAYER), Digest.of(OTHER)]
    assert copied(source, manifest.layers[1], tmp_path) == OTHER
    assert copied(source, manifest.config, tmp_path) == config_bytes(LAYER, OTHER)
    assert source.given == "r.example/a:1"
    again = DockerArchiveSource(open_archive(list(reversed(entries))), "r.example/a:1", what="it")
    assert again.root() == source.root()


@pytest.mark.parametrize(
    "link", [symlink("old/layer.tar", "../new/layer.tar"), hardlink("old/layer.tar", "new/layer.tar")]
)
def test_a_layer_may_be_a_link_inside_the_archive(open_archive, tmp_path, link):
    entries = saved({"old/layer.tar": LAYER}, [link, Entry(name="new/layer.tar", data=LAYER)])
    source = DockerArchiveSource(open_archive(entries), "", what="it")
    assert copied(source, manifest_of(source).layers[0], tmp_path) == LAYER


@pytest.mark.parametrize(
    "links",
    [
        [symlink("l", "../../etc/passwd")],
        [symlink("l", "/etc/passwd")],
        [symlink("l", "l")],
        [symlink("l", "m"), symlink("m", "l")],
        [Entry(name="l", kind=tarfile.FIFOTYPE)],
        [Entry(name="l", kind=tarfile.CHRTYPE, device=(1, 3))],
        [],
    ],
    ids=["parent", "absolute", "itself", "loop", "fifo", "device", "nothing"],
)
def test_a_layer_that_leads_nowhere_is_missing(open_archive, links):
    with pytest.raises(ImageError, match="has no file l"):
        DockerArchiveSource(open_archive(saved({"l": LAYER}, links)), "", what="it")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_layer_is_described_by_its_own_digest(open_archive, tmp_path, compression):
    data = compress(LAYER, compression)
    entries = saved({"blobs/sha256/x": LAYER}, [Entry(name="blobs/sha256/x", data=data)])
    source = DockerArchiveSource(open_archive(entries), "@0", what="it")
    (layer,) = manifest_of(source).layers
    assert layer.digest == Digest.of(data)
    assert layer.media_type.endswith(compression)
    assert copied(source, layer, tmp_path) == data


def test_a_layer_that_is_not_the_configs_is_refused(open_archive, tmp_path):
    source = DockerArchiveSource(
        open_archive(saved({"l": LAYER}, [Entry(name="l", data=OTHER)])), "", what="it"
    )
    with pytest.raises(ImageError) as caught:
        copied(source, manifest_of(source).layers[0], tmp_path)
    assert caught.value.code == "image-digest"


def test_a_config_with_other_layers_than_the_list_is_refused(open_archive):
    entries = saved({"l": LAYER}, [Entry(name="l", data=LAYER)], config=config_bytes(LAYER, OTHER))
    with pytest.raises(ImageError, match="2 diff_ids"):
        DockerArchiveSource(open_archive(entries), "", what="it")


def test_an_oci_archive_is_a_layout(open_archive, tmp_path):
    writer = LayoutWriter(tmp_path / "layout")
    digest = writer.add_image("one", [LAYER])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(writer.path, arcname=".")
    source = LayoutSource(open_archive(out.getvalue()), "one", what="it")
    assert source.root().digest == digest
    assert copied(source, manifest_of(source).layers[0], tmp_path) == compress(LAYER, "gzip")


def test_long_names_and_repeated_members_are_read_as_tar_does(open_archive):
    name = "blobs/" + "x" * 200
    files = open_archive([Entry(name=name, data=b"1"), Entry(name=name, data=b"22")])
    assert files.read(name, 10) == b"22"
    with pytest.raises(ImageError, match="larger than 1 bytes"):
        files.read(name, 1)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_archive_is_named_as_such(open_archive, compression):
    with pytest.raises(ImageError, match=f"compressed with {compression}"):
        open_archive(compress(LAYER, compression))


def test_a_truncated_archive_is_refused(open_archive):
    data = tar_layer([Entry(name="a", data=b"x" * 4096)])
    with pytest.raises(ImageError):
        open_archive(data[:2048])


def test_an_archive_of_endless_members_is_refused(open_archive, monkeypatch):
    monkeypatch.setattr(limits, "MAX_ARCHIVE_MEMBERS", 3)
    with pytest.raises(ImageError, match="more than 3 members"):
        open_archive([Entry(name=f"m{number}") for number in range(4)])


@pytest.mark.parametrize(
    "row",
    [
        ["a", "file", 0, 11, ""],
        ["a", "file", -1, 1, ""],
        ["a", "file", 0, -1, ""],
        ["a", "pipe", 0, 1, ""],
        ["a", "file", 0, 1],
        "a",
    ],
)
def test_a_broken_sandbox_is_not_believed(row):
    with pytest.raises(ImageError):
        tarscan.from_json({"members": [row]}, file_size=10)


@pytest.mark.parametrize(
    ("name", "tidy"),
    [
        ("./a/b", "a/b"),
        ("a/../b", "b"),
        ("../a", ""),
        ("/a", "a"),
        (".", ""),
        ("a b", ""),
        ("a\n", ""),
        ("..", ""),
    ],
)
def test_names_are_made_tidy_and_odd_ones_left_out(name, tidy):
    assert tarscan.normal(name) == tidy


BASE = tar_layer(
    [Entry(name="manifest.json", data=b"[]"), symlink("a", "b"), Entry(name="x" * 120, data=b"y")]
)


@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.binary(min_size=1, max_size=8)), max_size=8))
def test_a_damaged_archive_is_read_or_refused(tmp_path_factory, changes):
    data = bytearray(BASE)
    for position, change in changes:
        data[position : position + len(change)] = change
    path = Path(tmp_path_factory.getbasetemp()) / "damaged.tar"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        members = tarscan.scan(fd)
    except ImageError:
        return
    finally:
        os.close(fd)
    assert all(isinstance(member, Member) and member.kind in MemberKind for member in members.values())
