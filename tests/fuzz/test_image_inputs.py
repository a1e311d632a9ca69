"""Bytes that registries, layouts, archives and users could hand in: parsed, or refused as what they are."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import ImageError, StateError, UsageError
from secrun.image import challenge, config, dockerarchive, entries, manifest, reference, retry, tarscan
from secrun.image.platform import Platform
from secrun.trust import policy
from support.images import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Entry, hardlink, symlink, tar_layer

HEX = "0f" * 32
DESCRIPTOR = {"mediaType": OCI_CONFIG, "digest": f"sha256:{HEX}", "size": 7}
LAYER = {**DESCRIPTOR, "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd"}
MANIFEST = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": DESCRIPTOR, "layers": [LAYER, LAYER]}
INDEX = {
    "schemaVersion": 2,
    "mediaType": OCI_INDEX,
    "manifests": [{**DESCRIPTOR, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}],
}
CONFIG = {
    "os": "linux",
    "architecture": "amd64",
    "config": {"Env": ["A=b"], "Cmd": ["x"], "Volumes": {"/v": {}}, "Labels": {"l": "1"}},
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{HEX}"]},
}
POLICY = {
    "default": [{"type": "reject"}],
    "transports": {
        "docker": {"r.example": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]},
        "oci": {"/x": [{"type": "insecureAcceptAnything"}]},
    },
}
ARCHIVE = [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l/layer.tar"]}]
STORE = {
    "schemaVersion": 2,
    "manifests": [
        {
            **DESCRIPTOR,
            "annotations": {
                "org.opencontainers.image.ref.name": "a",
                "dev.secrun.reference": "docker://r.example/a:1",
                "dev.secrun.source-digest": f"sha256:{HEX}",
                "dev.secrun.imported-at": "2026-01-01T00:00:00Z",
            },
        }
    ],
}

PARSERS = {
    "manifest": (MANIFEST, lambda data: manifest.parse(data, "", what="it"), ImageError),
    "index": (INDEX, lambda data: manifest.parse(data, OCI_INDEX, what="it"), ImageError),
    "config": (CONFIG, lambda data: config.parse(data, what="it"), ImageError),
    "policy": (POLICY, lambda data: policy.parse(data, source="it"), UsageError),
    "archive": (ARCHIVE, lambda data: dockerarchive.parse_manifest_json(data, what="it"), ImageError),
    "store": (STORE, lambda data: entries.parse(data, what="it"), StateError),
}

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(document, path=()):
    """Yield the path of every value in a document."""
    yield path
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


def changed(document, path, value):
    """Return a copy of `document` with another value at `path`."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_a_document_with_any_value_anywhere_is_parsed_or_refused(name, data):
    document, parser, error = PARSERS[name]
    path = data.draw(st.sampled_from(list(places(document))))
    mutant = json.dumps(changed(document, path, data.draw(VALUES))).encode()
    try:
        parser(mutant)
    except error:
        return


@pytest.mark.parametrize("name", PARSERS)
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=6)), max_size=6))
def test_a_document_with_any_bytes_anywhere_is_parsed_or_refused(name, edits):
    document, parser, error = PARSERS[name]
    mutant = bytearray(json.dumps(document).encode())
    for position, change in edits:
        at = position % (len(mutant) + 1)
        mutant[at : at + len(change)] = change
    try:
        parser(bytes(mutant))
    except error:
        return


TAR = tar_layer(
    [
        Entry(name="blobs/sha256/a", data=b"x" * 600),
        Entry(name="n" * 150, data=b"y", pax={"comment": "z" * 600}),
        symlink("a/layer.tar", "../b/layer.tar"),
        hardlink("c/layer.tar", "b/layer.tar"),
        Entry(name="manifest.json", data=b"[]"),
    ]
)


@given(
    edits=st.lists(st.tuples(st.integers(0, len(TAR) - 1), st.binary(min_size=1, max_size=12)), max_size=10),
    end=st.integers(0, len(TAR)),
)
def test_any_archive_is_scanned_or_refused_and_no_member_lies_outside(tmp_path_factory, edits, end):
    mutant = bytearray(TAR)
    for position, change in edits:
        mutant[position : position + len(change)] = change
    path = Path(tmp_path_factory.getbasetemp()) / "fuzzed.tar"
    path.write_bytes(mutant[:end])
    fd = os.open(path, os.O_RDONLY)
    try:
        answer = json.loads(json.dumps(tarscan.to_json(tarscan.scan(fd))))
        members = tarscan.from_json(answer, file_size=end)
    except ImageError:
        return
    finally:
        os.close(fd)
    assert all(member.offset + member.size <= end for member in members.values())


@given(st.text(max_size=200))
def test_words_of_users_and_registries_are_parsed_or_refused(text):
    for parser in (reference.parse, Platform.parse):
        try:
            parser(text)
        except UsageError:
            continue
    challenge.parse(text)
    retry.parse_retry_after(text, 0.0)
