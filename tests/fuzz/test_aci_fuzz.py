"""App container images, their manifests and the pages that lead to them, as strangers could write them."""

import os
import tarfile
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.errors import ImageError
from secrun.image.aci import discovery, manifest
from secrun.image.aci.filter import Whitelist, layer_files, split, write_layer
from secrun.image.aci.flatten import write_rootfs
from secrun.image.rootfs.merge import MergedTree
from secrun.image.rootfs.tarindex import TarIndex
from support import aci, layers
from support.images import Entry, directory, tar_layer

WORDS = ["a", "b", "c", "x" * 120, "\u00e4"]
PLAIN = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map("/".join)
ODD = st.lists(st.sampled_from([*WORDS, "..", ".", "", ".wh.a"]), max_size=4).map("/".join)
# A folder that is made by going through a link has the name that the link says, whatever that is.
LINKS = st.lists(st.sampled_from([*WORDS, "..", "."]), min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)


@st.composite
def members(draw):
    """Members of an archive: mostly those of a whole image, and sometimes one that no image has."""
    found, files = [], []
    for name in draw(st.lists(PLAIN, max_size=8, unique=True)):
        kind = draw(KINDS)
        if kind == tarfile.LNKTYPE and not files:
            kind = tarfile.REGTYPE
        link = draw(LINKS) if kind == tarfile.SYMTYPE else ""
        if kind == tarfile.LNKTYPE:
            link = f"rootfs/{draw(st.sampled_from(files))}"
        if kind == tarfile.REGTYPE:
            files.append(name)
        found.append(
            Entry(
                name=f"rootfs/{name}",
                kind=kind,
                mode=draw(st.integers(0, 0o7777)),
                uid=draw(st.sampled_from([0, 1000, 2**31])),
                data=draw(st.binary(max_size=600)) if kind == tarfile.REGTYPE else b"",
                link=link,
                pax=draw(st.sampled_from([{}, {"mtime": "1.5"}, {"SCHILY.xattr.user.a": "b"}])),
            )
        )
    if draw(st.integers(0, 3)) == 0:
        prefix = draw(st.sampled_from(["rootfs/", "", "/", "rootfs/../"]))
        kind = draw(KINDS)
        link = draw(LINKS) if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        found.append(Entry(name=(prefix + draw(ODD)) or "x", kind=kind, link=link))
    return found


def opened(data):
    fd = os.memfd_create("image")
    os.write(fd, data)
    return fd


def converted(data, paths=()):
    """Return the layer that an image's files become."""
    source, target = opened(data), os.memfd_create("layer")
    try:
        _, files = split(TarIndex(source, len(data), layer="fuzz"))
        write_layer(files, source, Whitelist(paths), target)
        return os.pread(target, os.fstat(target).st_size, 0)
    finally:
        os.close(source)
        os.close(target)


@given(entries=members(), paths=st.lists(PLAIN.map(lambda name: f"/{name}"), max_size=3))
def test_whatever_the_members_are_the_layer_is_one_or_the_image_is_refused(entries, paths):
    own = [Entry(name="manifest", data=aci.encoded(aci.manifest())), directory("rootfs")]
    try:
        data = converted(tar_layer([*own, *entries]), paths)
    except ImageError:
        return
    try:
        tree = layers.merge(data)
    except ImageError:
        return  # what the renderer refuses of every layer: a file below a file, and its like
    assert not any(b".." in path.split(b"/") or b".wh." in path for path in tree)


@given(entries=members())
def test_a_rootfs_that_is_written_and_read_again_is_the_same(entries):
    own = [Entry(name="manifest", data=aci.encoded(aci.manifest())), directory("rootfs")]
    try:
        before = layers.merge(converted(tar_layer([*own, *entries])))
    except ImageError:
        return
    source = opened(converted(tar_layer([*own, *entries])))
    target = os.memfd_create("rootfs")
    try:
        tree = MergedTree()
        tree.apply(TarIndex(source, os.fstat(source).st_size, layer="fuzz"), source)
        os.write(target, layers.block(layers.file(b"manifest", b"{}")))
        write_rootfs(tree.entries(), target)
        written = os.pread(target, os.fstat(target).st_size, 0)
    finally:
        os.close(source)
        os.close(target)
    after = layers.merge(converted(written))

    def facts(found):
        keep = ("kind", "mode", "uid", "gid", "mtime_ns", "size", "target", "rdev", "xattrs")
        groups: dict[int, set[bytes]] = {}
        for path, entry in found.items():
            groups.setdefault(entry.link_group, set()).add(path)
        return {
            path: [
                *(getattr(entry, name) for name in keep),
                groups[entry.link_group] if entry.link_group else {path},
            ]
            for path, entry in found.items()
        }

    assert facts(after) == facts(before)


@given(data=st.binary(max_size=3000), cut=st.integers(0, 5000), at=st.integers(0, 5000))
def test_damaged_archives_are_refused_or_read(data, cut, at):
    whole = tar_layer(
        aci.members(aci.manifest(), [Entry(name="rootfs/a", data=b"1"), directory("rootfs/b")])
    )
    damaged = whole[:at] + data + whole[at + cut :]
    try:
        layer = converted(damaged)
    except ImageError:
        return
    assert list(layer_files(layers.index(layer))) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(value, path=()):
    """Yield the path of every member of a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = [path for path in places(aci.WHOLE) if path]


def changed(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@given(path=st.sampled_from(PLACES), new=JSON)
def test_a_manifest_with_anything_in_any_place_is_parsed_or_refused(path, new):
    try:
        found = manifest.parse(aci.encoded(changed(aci.WHOLE, path, new)), what="it")
    except ImageError:
        return
    assert manifest.is_identifier(found.name)
    assert all(path.startswith("/") and ".." not in path.split("/") for path in found.path_whitelist)


@given(data=st.binary(max_size=2000))
def test_bytes_that_are_no_manifest_are_refused(data):
    with pytest.raises(ImageError):
        manifest.parse(data, what="it")


PIECES = st.sampled_from(
    [
        *("<meta ", "name=", '"ac-discovery"', "'ac-discovery-pubkeys'", " content=", '"', "'", ">", "<"),
        *("<!--", "-->", "example.com ", "https://h.example/", "http://h.example/", "//", "file:", "@"),
        *("{name}", "{ext}", "{version}", "{os", "</head>", "<body>", "\x00", "&quot;", "&#x2f;", " ", "\n"),
        '<meta name="ac-discovery" content="example.com https://',
        '/{name}.{ext}">',
    ]
)


@given(pieces=st.lists(PIECES, max_size=60), http=st.booleans())
def test_whatever_a_page_says_only_allowed_addresses_come_of_it(pieces, http):
    page = discovery.parse("".join(pieces).encode())
    labels = {"version": "1", "os": "linux", "arch": "amd64"}
    found = discovery.endpoints(page.images, "example.com/app", labels, http=http)
    addresses = [url for item in found for url in (item.image, item.signature)]
    for url in (*addresses, *discovery.key_addresses(page.keys, "example.com/app", http=http)):
        parts = urlsplit(url)
        assert parts.scheme in (("https", "http") if http else ("https",))
        assert parts.hostname
        assert "@" not in parts.netloc
