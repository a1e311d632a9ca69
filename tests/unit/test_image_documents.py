"""Manifests, indexes, configs and lists of archives: parsed strictly, or an error that names them."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.digest import Digest
from secrun.errors import ImageError, SecrunError, UsageError
from secrun.image import config, dockerarchive, limits, manifest, platform
from secrun.image.manifest import Descriptor, Index, Manifest
from secrun.image.platform import Platform
from secrun.image.select import select_manifest
from secrun.image.source import Document
from support.images import DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST

HEX = "ab" * 32
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{HEX}", "size": 3}
CONFIG = {"mediaType": OCI_CONFIG, "digest": f"sha256:{HEX}", "size": 2}
GOOD = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
AMD64 = Platform(os="linux", architecture="amd64")


def parse(document, media_type=""):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return manifest.parse(data, media_type, what="it")


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


def layered(**changes):
    return {**GOOD, "layers": [{**LAYER, **changes}]}


@pytest.mark.parametrize("told", ["", "application/json", "application/octet-stream", OCI_MANIFEST])
def test_a_manifest_is_known_by_itself_or_by_how_it_came(told):
    found = parse(GOOD, told)
    assert isinstance(found, Manifest)
    assert found.layers[0].digest == Digest("sha256", HEX)
    assert isinstance(parse(without("mediaType"), told), Manifest)


def test_docker_manifests_and_lists_are_read():
    kind = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    assert isinstance(parse({**layered(mediaType=kind), "mediaType": DOCKER_MANIFEST}), Manifest)
    assert isinstance(parse({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": []}), Index)


@pytest.mark.parametrize(
    ("document", "told", "code"),
    [
        ({**GOOD, "schemaVersion": 1}, "", "image-schema1"),
        (GOOD, "application/vnd.docker.distribution.manifest.v1+prettyjws", "image-schema1"),
        ({**GOOD, "schemaVersion": 3}, "", "image-manifest"),
        ({**GOOD, "manifests": []}, "", "image-ambiguous"),
        (GOOD, OCI_INDEX, "image-ambiguous"),
        ({**GOOD, "mediaType": "text/html"}, "", "image-manifest"),
        (without("config"), "", "image-manifest"),
        (without("layers"), "", "image-manifest"),
        (
            {**GOOD, "config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
            "",
            "image-artifact",
        ),
        ({**GOOD, "config": {**CONFIG, "size": limits.MAX_CONFIG_BYTES + 1}}, "", "image-limit"),
        ({**GOOD, "config": []}, "", "image-field"),
        ({**GOOD, "layers": [LAYER] * (limits.MAX_LAYERS + 1)}, "", "image-limit"),
        ({**GOOD, "layers": {}}, "", "image-field"),
        ({**GOOD, "layers": [1]}, "", "image-field"),
        (
            layered(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar"),
            "",
            "image-layer-type",
        ),
        (
            layered(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            "",
            "image-layer-type",
        ),
        (layered(mediaType=LAYER["mediaType"] + "+encrypted"), "", "image-layer-type"),
        (layered(mediaType="application/x-unknown"), "", "image-layer-type"),
        (layered(size=-1), "", "image-limit"),
        (layered(size=True), "", "image-field"),
        (layered(size="3"), "", "image-field"),
        (layered(digest="sha256:x"), "", "image-digest-syntax"),
        (layered(digest=f"md5:{HEX}"), "", "image-digest-syntax"),
        (b"{", "", "image-json"),
        (b"[]", "", "image-json"),
        (b'{"a": 1, "a": 2}', "", "image-json"),
        (b" " * (limits.MAX_MANIFEST_BYTES + 1), "", "image-json-size"),
    ],
)
def test_a_manifest_that_is_none_is_refused_by_its_reason(document, told, code):
    with pytest.raises(ImageError) as caught:
        parse(document, told)
    assert caught.value.code == code
    assert caught.value.message.startswith("it")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([LAYER, CONFIG, OCI_MANIFEST]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["config", "layers", "manifests", "mediaType", "platform", "rootfs", "diff_ids", "Env"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["config", "layers", "manifests", "mediaType", "schemaVersion", "rootfs", "os"])


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_any_document_is_parsed_or_refused(changes):
    for parser in (
        lambda data: manifest.parse(data, "", what="it"),
        lambda data: config.parse(data, what="it"),
    ):
        with contextlib.suppress(ImageError):
            parser(json.dumps({**GOOD, **changes}).encode())


# Configs.


def config_of(process=None, **changes):
    document = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
    }
    return config.parse(json.dumps({**document, "config": process, **changes}).encode(), what="it")


def test_a_config_is_read_whole():
    found = config_of(
        {
            "Entrypoint": ["/a"],
            "Cmd": None,
            "Env": ["A=b=c", "B="],
            "User": "1:2",
            "WorkingDir": "/w",
            "StopSignal": "SIGINT",
            "Volumes": {"/v2": {}, "/v1": {}},
            "ExposedPorts": {"80/tcp": {}},
            "Labels": {"b": "2", "a": "1"},
        },
        variant="v2",
        created="2023-01-01T00:00:00Z",
    )
    assert found.entrypoint == ("/a",)
    assert found.cmd == ()
    assert found.env == ("A=b=c", "B=")
    assert (found.user, found.working_dir, found.stop_signal) == ("1:2", "/w", "SIGINT")
    assert found.volumes == ("/v1", "/v2")
    assert found.exposed_ports == ("80/tcp",)
    assert found.labels == (("a", "1"), ("b", "2"))
    assert found.diff_ids == (Digest("sha256", HEX),)
    assert str(found.platform) == "linux/amd64/v2"


@pytest.mark.parametrize(
    "process",
    [
        {"Env": ["A"]},
        {"Env": ["=x"]},
        {"Env": ["A=\0"]},
        {"Cmd": "sh"},
        {"Cmd": ["\ud800"]},
        {"User": 0},
        [],
    ],
)
def test_a_config_with_impossible_values_is_refused(process):
    with pytest.raises(ImageError):
        config_of(process)


@pytest.mark.parametrize("rootfs", [None, {}, {"type": "squash"}, {"type": "layers", "diff_ids": [1]}])
def test_a_config_without_layers_is_refused(rootfs):
    with pytest.raises(ImageError):
        config_of(rootfs=rootfs)


@pytest.mark.parametrize("name", ["os", "architecture", "variant"])
def test_a_platform_that_would_write_on_the_terminal_is_refused(name):
    with pytest.raises(ImageError) as caught:
        config_of(**{name: "x\x1b[2J"})
    assert "\x1b" not in caught.value.message
    where = {"os": "linux", "architecture": "amd64", name: "a b"}
    with pytest.raises(ImageError):
        parse({"schemaVersion": 2, "manifests": [{**CONFIG, "platform": where}]})


def test_a_config_must_have_as_many_layers_as_the_manifest():
    with pytest.raises(ImageError, match=r"1 diff_ids.*2 layers"):
        config.check_against(config_of(), 2, what="it")


# Platforms.


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("linux/arm64", ["linux/arm64/v8"], "linux/arm64/v8"),
        ("linux/arm64/v8", ["linux/arm64"], "linux/arm64"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], "linux/arm/v6"),
        ("linux/arm/v7", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/x86_64", ["linux/amd64"], "linux/amd64"),
    ],
)
def test_the_nearest_platform_that_runs_is_chosen(wanted, offered, chosen):
    platforms = [Platform.parse(text) for text in offered]
    assert str(platforms[platform.choose(Platform.parse(wanted), platforms, what="it")]) == chosen


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/amd64", ["linux/arm64", "windows/amd64"]),
        ("linux/arm/v6", ["linux/arm/v7"]),
        ("linux/amd64", ["linux/amd64/v2"]),
        ("linux/arm64/v9", ["linux/arm64/v8"]),
        ("linux/amd64", []),
    ],
)
def test_what_does_not_run_is_not_chosen_and_the_offer_is_listed(wanted, offered):
    with pytest.raises(ImageError) as caught:
        platform.choose(Platform.parse(wanted), [Platform.parse(text) for text in offered], what="it")
    assert all(text in caught.value.message for text in offered)


@pytest.mark.parametrize("text", ["linux", "", "linux/", "a/b/c/d", "linux/amd 64", "linux/../x"])
def test_a_malformed_platform_is_a_usage_error(text):
    with pytest.raises(UsageError):
        Platform.parse(text)


# Indexes.


class Documents:
    """Documents by digest, also such as no honest registry could have."""

    given = ""

    def __init__(self):
        self.asked = 0
        self.known = {}

    def add(self, document, digest=None):
        data = json.dumps(document).encode()
        digest = digest or Digest.of(data)
        self.known[digest] = Document(data=data, media_type="", digest=digest)
        return self.known[digest]

    def document(self, descriptor):
        self.asked += 1
        return self.known[descriptor.digest]

    def root(self):
        raise AssertionError

    def copy_blob(self, descriptor, writer):
        raise AssertionError

    def abort(self):
        raise AssertionError


def member(digest, *, media_type=OCI_INDEX, architecture="amd64"):
    where = {"os": "linux", "architecture": architecture}
    return {"mediaType": media_type, "digest": str(digest), "size": 1, "platform": where}


def index(*members):
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(members)}


def test_an_index_leads_to_the_platforms_manifest():
    source = Documents()
    image = source.add(GOOD)
    other = source.add({**GOOD, "annotations": {}})
    root = source.add(
        index(
            member(other.digest, media_type=OCI_MANIFEST, architecture="arm64"),
            member(image.digest, media_type=OCI_MANIFEST),
            {"mediaType": "application/x-sbom", "digest": f"sha256:{HEX}", "size": 1},
        )
    )
    document, found = select_manifest(source, root, AMD64, what="it")
    assert document == image
    assert len(found.layers) == 1


def test_an_index_that_contains_itself_is_refused_at_once():
    source = Documents()
    first, second = Digest("sha256", "1" * 64), Digest("sha256", "2" * 64)
    root = source.add(index(member(second)), first)
    source.add(index(member(first)), second)
    with pytest.raises(ImageError) as caught:
        select_manifest(source, root, AMD64, what="it")
    assert caught.value.code == "image-index-loop"
    assert source.asked == 1


def test_indexes_nest_only_so_deep():
    source = Documents()
    document = source.add(GOOD)
    kind = OCI_MANIFEST
    for depth in range(limits.MAX_INDEX_DEPTH + 1):
        if depth == limits.MAX_INDEX_DEPTH:
            assert select_manifest(source, document, AMD64, what="it")[0].data == json.dumps(GOOD).encode()
        document = source.add(index(member(document.digest, media_type=kind)))
        kind = OCI_INDEX
    with pytest.raises(ImageError) as caught:
        select_manifest(source, document, AMD64, what="it")
    assert caught.value.code == "image-index-depth"


def test_a_document_must_be_what_its_descriptor_promises():
    document = Document.of(b"{}", "")
    right = Descriptor(media_type="x", digest=document.digest, size=2)
    assert document.checked(right, "it").media_type == "x"
    for size, digest in ((3, document.digest), (2, Digest("sha256", HEX))):
        with pytest.raises(ImageError):
            document.checked(Descriptor(media_type="x", digest=digest, size=size), "it")


# manifest.json of docker-archive.


ARCHIVED = [
    {
        "Config": "a.json",
        "RepoTags": ["docker.io/library/one:1", "r.example/two:latest"],
        "Layers": ["./x/layer.tar"],
    },
    {"Config": "b.json", "RepoTags": ["evil\x1b[2J:1"], "Layers": []},
]


@pytest.mark.parametrize(
    ("tag", "config_name"),
    [
        ("one:1", "a.json"),
        ("docker.io/library/one:1", "a.json"),
        ("r.example/two", "a.json"),
        ("@1", "b.json"),
    ],
)
def test_an_archived_image_is_chosen_by_name_or_position(tag, config_name):
    images = dockerarchive.parse_manifest_json(json.dumps(ARCHIVED).encode(), what="it")
    assert images[0].layers == ("x/layer.tar",)
    assert dockerarchive.choose(images, tag, what="it").config == config_name


@pytest.mark.parametrize("tag", ["", "one:2", "two", "@2"])
def test_a_choice_that_is_not_one_image_lists_the_names(tag):
    images = dockerarchive.parse_manifest_json(json.dumps(ARCHIVED).encode(), what="it")
    with pytest.raises(UsageError) as caught:
        dockerarchive.choose(images, tag, what="it")
    assert "one:1" in caught.value.message or tag.startswith("@")
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'[],"x":[]', b'[{"Layers": []}]', b"[" * 9999])
def test_a_manifest_json_that_is_none_is_refused(data):
    with pytest.raises(SecrunError) as caught:
        dockerarchive.parse_manifest_json(data, what="it")
    assert isinstance(caught.value, ImageError)
