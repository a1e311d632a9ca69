"""App container images by address and by discovery: https alone, bounded pages, the image asked for."""

import json
import os

import pytest

from secrun.errors import DeniedError, ImageError, RegistryError, StateError, UsageError
from secrun.image import reference as references
from secrun.image import sources
from secrun.image.aci import discovery, limits
from secrun.image.aci.discovery import Tag
from secrun.image.aci.web import Web
from secrun.image.fetch import PullPolicy, ensure_image
from secrun.image.reference import AppcReference, UrlReference
from secrun.image.sources import ReachedWeb
from secrun.image.store import ImageStore
from secrun.image.wire import ConnectionLostError, LossKind
from secrun.record import replace
from secrun.trust import openpgp
from secrun.trust.ring import KeyRing
from support import aci
from support.hostile import Reply, hostile_server
from support.images import Entry, directory

# References.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h.example:8443/a/b.aci?x=1", UrlReference(url="https://h.example:8443/a/b.aci?x=1")),
        ("http://h.example/b.aci", UrlReference(url="http://h.example/b.aci")),
        ("appc://example.com/app", AppcReference(image="example.com/app")),
        (
            "appc://example.com/app:v1.0,os=linux,arch=amd64",
            AppcReference(
                image="example.com/app", labels=(("arch", "amd64"), ("os", "linux"), ("version", "v1.0"))
            ),
        ),
    ],
)
def test_addresses_and_names_are_read_and_written_the_same(text, expected):
    found = references.parse(text)
    assert found == expected
    assert references.is_aci(found)
    assert references.parse(str(found)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://",
        "https://user:secret@h.example/b.aci",
        "https://h.example/a b.aci",
        "https://h.example/\u00e4.aci",
        "ftp://h.example/b.aci",
        f"https://h.example/{'a' * 2001}",
        "appc://",
        "appc://Example.com/app",
        "appc://example.com/../app",
        "appc://example.com/app:",
        "appc://example.com/app:a/b",
        "appc://example.com/app,os",
        "appc://example.com/app,os=a,os=b",
        "appc://example.com/app:1,version=2",
        "appc://example.com/app,name=x",
        "appc://example.com/app,x={version}",
    ],
)
def test_what_is_no_address_and_no_name_is_refused(text):
    with pytest.raises(UsageError):
        references.parse(text)


def test_a_file_is_told_from_a_name_in_a_registry():
    for text in ("app.aci", "./x", "/x/y", "../x.aci", "dir/app.aci"):
        assert references.is_aci(references.parse(text)), text
    for text in ("r.example/app.aci", "localhost/app.aci", "app", "app:1"):
        assert not references.is_aci(references.parse(text)), text


# Pages.

PAGE = """<!DOCTYPE html><html><head>
<!-- <meta name="ac-discovery" content="evil.example https://evil.example/{name}.{ext}"> -->
<META NAME='ac-discovery' CONTENT='example.com https://a.example/{os}/{arch}/{name}-{version}.{ext}'>
<meta content="example.com https://b.example/{name}-latest.{ext}?a&amp;b" name=ac-discovery />
<meta name="ac-discovery-pubkeys" content="example.com https://a.example/keys.gpg">
<meta name="viewport" content="example.com https://x.example/{name}.{ext}">
</head><body><meta name="ac-discovery" content="example.com https://c.example/{name}.{ext}"></body>"""


def test_only_tags_of_the_head_count():
    found = discovery.parse(PAGE.encode())
    assert [tag.template.partition("{")[0] for tag in found.images] == [
        "https://a.example/",
        "https://b.example/",
    ]
    assert found.images[1].template.endswith("?a&b")
    assert found.keys == (Tag(prefix="example.com", template="https://a.example/keys.gpg"),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe" * 1000,
        b"<meta " * 50_000,
        b"<!--" * 50_000,
        b'<meta name="ac-discovery' + b"=" * 100_000 + b">",
        b'<meta name="ac-discovery" content="a">',
        b'<meta name="ac-discovery" content="a b c">',
        b'<meta name="ac-discovery" content="a ' + b"x" * 5000 + b'">',
    ],
)
def test_pages_of_garbage_have_no_tags(data):
    assert discovery.parse(data) == discovery.Page(images=(), keys=())


def test_a_page_of_nothing_but_tags_is_cut():
    page = b'<meta name="ac-discovery" content="example.com https://h.example/{name}.{ext}">' * 1000
    assert len(discovery.parse(page).images) == limits.MAX_TEMPLATES


LABELS = {"version": "1", "os": "linux", "arch": "amd64"}


def rendered(*templates, prefix="example.com", labels=None, http=False, name="example.com/app"):
    tags = [Tag(prefix=prefix, template=template) for template in templates]
    found = discovery.endpoints(tags, name, LABELS if labels is None else labels, http=http)
    return [item.image for item in found]


def test_the_best_templates_are_those_with_the_most_labels():
    """The example of discovery.md."""
    first = "https://storage.example.com/{os}/{arch}/{name}-{version}.{ext}"
    second = "https://mirror.storage.example.com/{os}/{arch}/{name}-{version}.{ext}"
    latest = "https://storage.example.com/{os}/{arch}/{name}-latest.{ext}"
    assert rendered(first, second, latest) == [
        "https://storage.example.com/linux/amd64/example.com/app-1.aci",
        "https://mirror.storage.example.com/linux/amd64/example.com/app-1.aci",
    ]
    without = {"os": "linux", "arch": "amd64"}
    assert rendered(first, latest, labels=without) == [
        "https://storage.example.com/linux/amd64/example.com/app-latest.aci"
    ]
    (found,) = discovery.endpoints(
        [Tag(prefix="example.com", template=first)], "example.com/app", LABELS, http=False
    )
    assert found.signature == found.image + ".asc"


@pytest.mark.parametrize(
    "template",
    [
        "http://h.example/{name}.{ext}",
        "hdfs://h.example/{name}.{ext}",
        "file:///etc/{name}.{ext}",
        "https://user@h.example/{name}.{ext}",
        "https:///{name}.{ext}",
        "https://h.example/{name}",
        "https://h.example/{unknown}.{ext}",
    ],
)
def test_templates_that_lead_elsewhere_or_nowhere_are_not_used(template):
    assert rendered(template) == []


def test_a_prefix_ends_at_a_slash():
    template = "https://h.example/{name}.{ext}"
    assert rendered(template, prefix="example.com/ap") == []
    assert rendered(template, prefix="example.com/app/") != []
    assert rendered("http://h.example/{name}.{ext}", http=True) != []


# Fetching.


class Clock:
    def monotonic(self):
        return 0.0

    def wall(self):
        return 0.0

    def sleep(self, seconds):
        pass

    def wake(self):
        pass


class Answer:
    def __init__(self, status, body=b"", **headers):
        self.status = status
        self._body = body
        self._headers = headers

    def header(self, name):
        return self._headers.get(name.replace("-", "_"), "")

    def read(self, amount):
        chunk, self._body = self._body[:amount], self._body[amount:]
        return chunk

    def close(self):
        pass


class Server:
    """A HTTP client that answers from a table of addresses: status and body, or what it raises."""

    def __init__(self, **table):
        self.table = table
        self.asked = []

    def request(self, method, url, headers):
        self.asked.append((url, headers))
        found = self.table.get(url, (404, b""))
        found = found.pop(0) if isinstance(found, list) and len(found) > 1 else found
        found = found[0] if isinstance(found, list) else found
        if isinstance(found, Exception):
            raise found
        if callable(found):
            return found(headers)
        if isinstance(found, str):
            return Answer(302, location=found)
        status, body = found
        return Answer(status, body)


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(
        sources,
        "reach_web",
        lambda options: ReachedWeb(web=Web(made, Clock(), http=options.insecure_http), prepare=tuple),
    )
    return made


def packed(name="example.com/app", **members):
    files = [directory("rootfs/etc"), Entry(name=f"rootfs/etc/{name.rpartition('/')[2]}", data=b"x")]
    return aci.PACKERS["gzip"](aci.tar(aci.manifest(name, **members), files))


def serve(server, name="example.com/app", data=None, *, at="example.com"):
    """Let an image be found by discovery."""
    template = "https://store.example/{name}-{version}-{os}-{arch}.{ext}"
    latest = "https://store.example/{name}-latest-{os}-{arch}.{ext}"
    page = "".join(f'<meta name="ac-discovery" content="{at} {item}">' for item in (template, latest))
    server.table[f"https://{at}?ac-discovery=1"] = (200, f"<head>{page}</head>".encode())
    for version in ("1.0.0", "latest"):
        server.table[f"https://store.example/{name}-{version}-linux-amd64.aci"] = (200, data or packed(name))


def refused(layout, word, options, kind=RegistryError):
    with pytest.raises(kind) as caught:
        ensure_image(layout, word, options)
    assert ImageStore(layout).entries() == ()
    return caught.value


def test_an_image_is_found_by_the_page_of_its_parent(layout, options, server):
    serve(server)
    image = ensure_image(layout, "appc://example.com/app:1.0.0", options)
    assert image.is_appc
    assert [url for url, _ in server.asked] == [
        "https://example.com/app?ac-discovery=1",
        "https://example.com?ac-discovery=1",
        "https://store.example/example.com/app-1.0.0-linux-amd64.aci",
        "https://store.example/example.com/app-1.0.0-linux-amd64.aci.asc",
    ]
    assert ensure_image(layout, "appc://example.com/app", options).manifest_digest == image.manifest_digest
    never = replace(options, pull=PullPolicy.NEVER)
    assert (
        ensure_image(layout, "appc://example.com/app:1.0.0", never).manifest_digest == image.manifest_digest
    )


def test_an_image_is_not_downloaded_again_while_its_tag_is_the_same(layout, options, server):
    data = packed()

    def answer(headers):
        known = headers.get("If-None-Match")
        return Answer(304) if known == '"1"' else Answer(200, data, etag='"1"')

    server.table["https://h.example/app.aci"] = answer
    first = ensure_image(layout, "https://h.example/app.aci", options)
    for policy in (PullPolicy.ALWAYS, PullPolicy.NEWER):
        server.asked.clear()
        again = ensure_image(layout, "https://h.example/app.aci", replace(options, pull=policy))
        assert again.manifest_digest == first.manifest_digest
        assert [url for url, _ in server.asked] == ["https://h.example/app.aci"]


def trust(layout, public, prefix):
    """Put a key into the ring, as secrun trust add does."""
    (certificate,) = openpgp.load(public)
    key = KeyRing(layout.trust).path_of(prefix, openpgp.fingerprint(certificate))
    key.parent.mkdir(parents=True)
    key.write_bytes(bytes(certificate))


def test_what_a_refused_image_needs_is_not_even_looked_for(layout, options, server):
    trust(layout, aci.LibrarySigner().public, "example.com")
    server.table["https://h.example/app.aci"] = (200, packed(dependencies=[needs("example.com/base")]))
    refused(layout, "https://h.example/app.aci", options, DeniedError)
    assert [url for url, _ in server.asked] == [
        "https://h.example/app.aci",
        "https://h.example/app.aci.asc",
    ]


def test_the_signature_is_beside_the_address_and_counts_by_the_name(layout, options, server, tmp_path):
    signer = aci.LibrarySigner()
    (tmp_path / "app.aci").write_bytes(packed())
    signature = signer.sign(tmp_path / "app.aci").read_bytes()
    public = signer.public
    policy = tmp_path / "reject.json"
    policy.write_text(json.dumps({"default": [{"type": "reject"}]}))
    rejecting = replace(options, policy=policy)
    server.table["https://h.example/app.aci?token=x"] = (200, packed())
    word = "https://h.example/app.aci?token=x"
    refused(layout, word, rejecting, DeniedError)
    assert refused(layout, "appc://example.com/app", rejecting, DeniedError)
    # A name that nothing could admit is not even looked for.
    assert not any("example.com" in url for url, _ in server.asked)
    trust(layout, public, "example.com/app")
    refused(layout, word, rejecting, DeniedError)
    server.table["https://h.example/app.aci.asc?token=x"] = (200, signature)
    assert ensure_image(layout, word, rejecting).admission.signatures[0].kind == "appc"


def test_without_tls_nothing_is_read_unless_it_is_said(layout, options, server):
    server.table["http://h.example/app.aci"] = (200, packed())
    assert refused(layout, "http://h.example/app.aci", options).code == "registry-http"
    assert server.asked == []
    server.table["https://h.example/app.aci"] = "http://h.example/app.aci"
    insecure = replace(options, insecure_http=True)
    # Once asked by https, an address is never left for http, whatever was said.
    for given in (options, insecure):
        error = refused(layout, "https://h.example/app.aci", given)
        assert (error.code, "http://h.example" in error.message) == ("registry-redirect", True)
    ensure_image(layout, "http://h.example/app.aci", insecure)


def test_discovery_goes_on_without_tls_only_where_it_is_said(layout, options, server):
    lost = ConnectionLostError(LossKind.REFUSED, "it does not accept connections")
    server.table["https://example.com/app?ac-discovery=1"] = lost
    page = b'<meta name="ac-discovery" content="example.com http://example.com/{name}.{ext}">'
    server.table["http://example.com/app?ac-discovery=1"] = (200, page)
    server.table["http://example.com/example.com/app.aci"] = (200, packed())
    assert refused(layout, "appc://example.com/app", options).code == "registry-unreachable"
    ensure_image(layout, "appc://example.com/app", replace(options, insecure_http=True))


STORED = "https://store.example/example.com/app-1.0.0-linux-amd64.aci"
PAGE_OF = "https://example.com?ac-discovery=1"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((PAGE_OF, (200, b"x" * (limits.MAX_PAGE_BYTES + 1))), "image-limit"),
        ((PAGE_OF, (200, bytes(1000))), "registry-discovery"),
        ((PAGE_OF, (500, b"")), "registry-status"),
        ((PAGE_OF, PAGE_OF), "registry-redirect"),
        ((PAGE_OF, "https://u:p@h.example/"), "registry-redirect"),
        ((STORED, (404, b"")), "registry-not-found"),
        ((STORED, (200, b"garbage")), "image-tar"),
    ],
)
def test_servers_that_answer_badly_are_named(layout, options, server, answer, code):
    serve(server)
    url, found = answer
    server.table[url] = found
    error = refused(layout, "appc://example.com/app:1.0.0", options, (RegistryError, ImageError))
    assert error.code == code
    assert os.listdir(layout.scratch) == []


def test_a_moment_of_trouble_is_waited_out(layout, options, server):
    serve(server)
    page = server.table["https://example.com?ac-discovery=1"]
    cut = ConnectionLostError(LossKind.CUT, "the connection was cut")
    server.table["https://example.com?ac-discovery=1"] = [cut, (503, b""), page]
    ensure_image(layout, "appc://example.com/app:1.0.0", options)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (packed("example.com/other"), "calls itself example.com/other"),
        (packed(version="2.0.0"), "label version is '2.0.0'"),
    ],
)
def test_the_image_must_be_the_one_that_was_asked_for(layout, options, server, data, said):
    serve(server, data=data)
    assert said in refused(layout, "appc://example.com/app:1.0.0", options, ImageError).message


def test_a_page_without_a_fitting_template_ends_the_search(layout, options, server):
    serve(server)
    server.table["https://example.com/app?ac-discovery=1"] = (
        200,
        b'<meta name="ac-discovery" content="example.com https://h.example/{name}-{flavour}.{ext}">',
    )
    assert refused(layout, "appc://example.com/app:1.0.0", options).code == "registry-discovery"


def needs(name, **members):
    return {"imageName": name, "labels": [{"name": "version", "value": "1.0.0"}], **members}


def test_dependencies_are_found_by_discovery_too(layout, options, server):
    base = packed("example.com/base")
    serve(server, "example.com/base", base)
    serve(server, "example.com/app", packed(dependencies=[needs("example.com/base", size=len(base))]))
    image = ensure_image(layout, "appc://example.com/app:1.0.0", options)
    assert len(image.layers) == 2
    assert {item.reference for item in ImageStore(layout).entries()} == {
        "appc://example.com/app:1.0.0",
        "appc://example.com/base:1.0.0",
    }


def test_images_that_need_one_another_are_refused(layout, options, server):
    serve(server, "example.com/base", packed("example.com/base", dependencies=[needs("example.com/app")]))
    serve(server, "example.com/app", packed(dependencies=[needs("example.com/base")]))
    error = refused(layout, "appc://example.com/app:1.0.0", options, ImageError)
    assert error.code == "image-aci-loop"


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (needs("example.com/base", size=5), "image-limit"),
        (needs("example.com/base", size=1 << 20), "image-size"),
        (needs("example.com/base", imageID=f"sha512-{'0f' * 64}"), "image-aci-dependency"),
        (needs("example.com/none"), "registry-not-found"),
        (
            {"imageName": "example.com/base", "labels": [{"name": "version", "value": "../../x"}]},
            "image-aci-dependency",
        ),
    ],
)
def test_a_dependency_that_is_not_what_was_announced_is_refused(layout, options, server, wanted, code):
    serve(server, "example.com/base")
    serve(server, "example.com/app", packed(dependencies=[wanted]))
    with pytest.raises((RegistryError, ImageError)) as caught:
        ensure_image(layout, "appc://example.com/app:1.0.0", options)
    assert caught.value.code == code
    assert not any(
        "app" in item.reference for item in ImageStore(layout).entries() if "/app" in item.reference
    )


def test_nothing_is_asked_for_where_nothing_may_be(layout, options, server):
    with pytest.raises(StateError):
        ensure_image(layout, "appc://example.com/app", replace(options, pull=PullPolicy.NEVER))
    assert server.asked == []


def test_a_real_client_reads_an_address_and_notices_a_cut(options):
    found = []
    with hostile_server() as real:
        web = sources.reach_web(replace(options, insecure_http=True)).web
        real.replies["/app.aci"] = [Reply(body=b"whole", headers={"ETag": "x"})]
        address = f"http://{real.address}"
        assert web.download(f"{address}/app.aci", found.append, limit=5) == "x"
        assert b"".join(found) == b"whole"
        with pytest.raises(ImageError, match="larger than 4"):
            web.download(f"{address}/app.aci", found.append, limit=4)
        real.replies["/cut.aci"] = [Reply(body=b"half", length=8)]
        with pytest.raises(RegistryError) as caught:
            web.download(f"{address}/cut.aci", found.append, limit=100)
        assert caught.value.code == "registry-cut"
        assert web.small(f"{address}/none.asc", 10) is None
