"""What the registry client does when a registry refuses, breaks off, lies or is none."""

import base64
import hashlib
import io
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from secrun.digest import Digest
from secrun.errors import ImageError, RegistryError
from secrun.image import limits, reference
from secrun.image.auth import Credentials
from secrun.image.blobs import BlobWriter, CancelledError
from secrun.image.certs import CertificateDirs
from secrun.image.manifest import Descriptor
from secrun.image.progress import NullProgress
from secrun.image.proxy import ProxySettings
from secrun.image.registry import RegistryClient
from secrun.image.target import BytesUpload
from secrun.image.wire import UrllibClient
from support.hostile import FakeClock, Reply, hostile_server
from support.images import OCI_MANIFEST

MANIFEST = "/v2/t/app/manifests/1"
BLOB = bytes(range(256)) * 64
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
BLOB_PATH = f"/v2/t/app/blobs/{DIGEST}"
ALICE = Credentials(user="alice", password="very:secret")
GOOD = Reply(headers={"Content-Type": OCI_MANIFEST}, body=b'{"schemaVersion": 2}')


@pytest.fixture
def server():
    with hostile_server() as hostile:
        yield hostile


@pytest.fixture
def clock():
    return FakeClock()


def make_client(server, clock, credentials=None):
    parsed = reference.parse(f"docker://{server.address}/t/app:1")
    http = UrllibClient(tls_verify=False, certificates=CertificateDirs(dirs=()), proxies=ProxySettings())
    return RegistryClient(parsed, http=http, credentials=lambda: credentials, clock=clock, tls_verify=False)


def failure(server, clock, credentials=None):
    with pytest.raises(RegistryError) as caught:
        make_client(server, clock, credentials).root()
    return caught.value


def fetch_blob(server, clock, tmp_path, *, cancelled=None):
    descriptor = Descriptor(media_type="x", digest=Digest.parse(DIGEST), size=len(BLOB))
    with (tmp_path / "blob").open("w+b") as stream:
        writer = BlobWriter(
            stream.fileno(), descriptor, counter=NullProgress(), cancelled=cancelled or threading.Event()
        )
        make_client(server, clock).copy_blob(descriptor, writer)
        writer.finish()
        return (tmp_path / "blob").read_bytes()


# Statuses.


def test_a_manifest_is_returned_byte_for_byte_with_its_type_and_digest(server, clock):
    server.replies[MANIFEST] = [GOOD]
    document = make_client(server, clock).root()
    assert document.data == GOOD.body
    assert document.media_type == OCI_MANIFEST
    assert document.digest == Digest.of(GOOD.body)
    assert clock.slept == []


@pytest.mark.parametrize(
    ("status", "code", "tries"),
    [
        (403, "registry-denied", 1),
        (404, "registry-not-found", 1),
        (418, "registry-status", 1),
        (429, "registry-rate", limits.MAX_ATTEMPTS),
        (500, "registry-status", limits.MAX_ATTEMPTS),
        (503, "registry-status", limits.MAX_ATTEMPTS),
    ],
)
def test_a_refusal_has_its_own_code_and_only_load_is_tried_again(server, clock, status, code, tries):
    server.replies[MANIFEST] = [Reply(status=status)]
    error = failure(server, clock)
    assert error.code == code
    assert str(status) in error.message
    assert len(server.asked(MANIFEST)) == tries
    assert len(clock.slept) == tries - 1


def test_waits_grow_and_stay_within_their_bounds(server, clock):
    server.replies[MANIFEST] = [Reply(status=500)]
    failure(server, clock)
    for number, seconds in enumerate(clock.slept):
        longest = limits.BACKOFF_FIRST * 2**number
        assert longest / 2 <= seconds <= longest


@pytest.mark.parametrize(
    ("header", "seconds"), [("3", 3.0), ("99999999", limits.RETRY_AFTER_LONGEST), ("soon", None)]
)
def test_retry_after_is_respected_up_to_a_limit(server, clock, header, seconds):
    server.replies[MANIFEST] = [Reply(status=429, headers={"Retry-After": header}), GOOD]
    make_client(server, clock).root()
    assert len(clock.slept) == 1
    assert clock.slept[0] == seconds if seconds else clock.slept[0] <= limits.BACKOFF_FIRST


def test_the_registrys_words_are_shown_without_control_characters(server, clock):
    body = b'{"errors": [{"code": "DENIED", "message": "no\\u001b[31m entry"}]}'
    server.replies[MANIFEST] = [Reply(status=403, body=body)]
    message = failure(server, clock).message
    assert "DENIED no[31m entry" in message
    assert "\x1b" not in message


def test_nothing_listening_is_told_at_once(clock):
    with hostile_server() as gone:
        pass
    error = failure(gone, clock)
    assert error.code == "registry-unreachable"
    assert clock.slept == []


# Garbage.


def test_html_is_not_taken_for_a_manifest(server, clock):
    server.replies[MANIFEST] = [Reply(headers={"Content-Type": "text/html"}, body=b"<html>login</html>")]
    assert failure(server, clock).code == "registry-garbage"


def test_an_endless_manifest_is_cut_off(server, clock):
    server.replies[MANIFEST] = [Reply(body=b"x" * 65536, length=1 << 40, endless=True)]
    with pytest.raises(ImageError, match=str(limits.MAX_MANIFEST_BYTES)):
        make_client(server, clock).root()
    assert len(server.asked(MANIFEST)) == 1


def test_a_manifest_of_a_hundred_megabytes_is_not_taken(server, clock):
    server.replies[MANIFEST] = [Reply(body=b" " * 100_000_000)]
    with pytest.raises(ImageError, match="4194304"):
        make_client(server, clock).root()


def test_a_manifest_that_is_cut_is_asked_for_again(server, clock):
    server.replies[MANIFEST] = [Reply(body=GOOD.body[:5], length=len(GOOD.body)), GOOD]
    assert make_client(server, clock).root().data == GOOD.body


def test_a_manifest_by_digest_must_have_it(server, clock):
    wanted = Digest.of(b"something else")
    server.replies[f"/v2/t/app/manifests/{wanted}"] = [GOOD]
    parsed = reference.parse(f"docker://{server.address}/t/app@{wanted}")
    http = UrllibClient(tls_verify=False, certificates=CertificateDirs(dirs=()), proxies=ProxySettings())
    client = RegistryClient(parsed, http=http, credentials=lambda: None, clock=clock, tls_verify=False)
    with pytest.raises(ImageError, match="expected sha256") as caught:
        client.root()
    assert caught.value.code == "image-digest"


# Logging in.


def bearer(server, **extra):
    words = {"realm": f"http://{server.address}/token", "service": "a registry", **extra}
    offer = ",".join(f'{name}="{value}"' for name, value in words.items())
    return Reply(status=401, headers={"WWW-Authenticate": f"Bearer {offer}"})


def guarded(server, token, reply=GOOD):
    """Answer with `reply` to whoever brings `token`, with a challenge to others."""

    def answer(request):
        return reply if request.headers.get("authorization") == f"Bearer {token}" else bearer(server)

    return answer


def test_without_credentials_basic_is_refused_after_one_request(server, clock):
    server.replies[MANIFEST] = [Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})]
    error = failure(server, clock)
    assert error.code == "registry-unauthorized"
    assert "no credentials" in error.message
    assert len(server.asked(MANIFEST)) == 1


def test_basic_credentials_are_sent_once_and_never_shown(server, clock):
    server.replies[MANIFEST] = [Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})]
    error = failure(server, clock, ALICE)
    first, second = server.asked(MANIFEST)
    assert "authorization" not in first.headers
    assert second.headers["authorization"] == "Basic " + base64.b64encode(b"alice:very:secret").decode()
    assert error.code == "registry-unauthorized"
    assert "refuses the stored credentials" in error.message
    assert "secret" not in f"{error.message}{error.hint}{error!r}{ALICE!r}"


def test_a_bearer_token_is_fetched_once_with_scope_service_and_credentials(server, clock):
    server.replies[MANIFEST] = guarded(server, "t0ken")
    server.replies["/token"] = [Reply(body=b'{"token": "t0ken", "expires_in": 300}')]
    client = make_client(server, clock, ALICE)
    assert client.root().data == client.root().data == GOOD.body
    (request,) = server.asked("/token")
    query = parse_qs(urlsplit(request.path).query)
    assert query == {"scope": ["repository:t/app:pull"], "service": ["a registry"]}
    assert request.headers["authorization"] == ALICE.basic()
    assert all(item.headers.get("authorization") != ALICE.basic() for item in server.asked(MANIFEST))


def test_a_token_is_renewed_when_it_ends_and_not_before(server, clock):
    server.replies[MANIFEST] = guarded(server, "t")
    server.replies["/token"] = [Reply(body=b'{"access_token": "t", "expires_in": 100}')]
    client = make_client(server, clock)
    client.root()
    clock.now += 90
    client.root()
    assert len(server.asked("/token")) == 1
    clock.now += 10
    client.root()
    assert len(server.asked("/token")) == 2


def test_a_token_that_the_registry_refuses_is_renewed_once(server, clock):
    server.replies[MANIFEST] = guarded(server, "second")
    server.replies["/token"] = [Reply(body=b'{"token": "first"}'), Reply(body=b'{"token": "second"}')]
    client = make_client(server, clock)
    with pytest.raises(RegistryError) as caught:
        client.root()
    assert caught.value.code == "registry-unauthorized"
    assert client.root().data == GOOD.body
    assert len(server.asked("/token")) == 2


def test_a_refused_token_is_not_shown(server, clock):
    def echo(request):
        sent = request.headers.get("authorization", "")
        body = f'{{"errors": [{{"code": "DENIED", "message": "you sent {sent}"}}]}}'.encode()
        return Reply(status=403, body=body) if sent else bearer(server)

    server.replies[MANIFEST] = echo
    server.replies["/token"] = [Reply(body=b'{"token": "hush-hush"}')]
    message = failure(server, clock).message
    assert "you sent Bearer ***" in message


@pytest.mark.parametrize(
    ("reply", "code", "tries"),
    [
        (Reply(status=401), "registry-unauthorized", 1),
        (Reply(status=404), "registry-token", 1),
        (Reply(status=500), "registry-token", limits.MAX_ATTEMPTS),
        (Reply(body=b"<html>"), "registry-token", 1),
        (Reply(body=b'{"token": ["x"]}'), "registry-token", 1),
        (Reply(body=b'{"token": "a\\nX-Evil: 1"}'), "registry-token", 1),
    ],
)
def test_a_token_server_that_fails_is_an_error(server, clock, reply, code, tries):
    server.replies[MANIFEST] = [bearer(server)]
    server.replies["/token"] = [reply]
    assert failure(server, clock, ALICE).code == code
    assert len(server.asked("/token")) == tries


def test_an_unknown_scheme_is_named(server, clock):
    server.replies[MANIFEST] = [Reply(status=401, headers={"WWW-Authenticate": "Negotiate"})]
    error = failure(server, clock, ALICE)
    assert error.code == "registry-auth-scheme"
    assert "negotiate" in error.message


# Redirects.


def test_credentials_do_not_follow_a_redirect_to_another_host(server, clock, tmp_path):
    with hostile_server() as storage:
        storage.replies["/data"] = [Reply(body=GOOD.body)]
        there = Reply(status=307, headers={"Location": f"http://{storage.address}/data"})
        server.replies[MANIFEST] = guarded(server, "t", there)
        server.replies["/token"] = [Reply(body=b'{"token": "t"}')]
        assert make_client(server, clock, ALICE).root().data == GOOD.body
    assert "authorization" not in storage.asked("/data")[0].headers


def test_credentials_stay_on_a_redirect_within_the_host(server, clock):
    server.replies[MANIFEST] = guarded(server, "t", Reply(status=302, headers={"Location": "/else"}))
    server.replies["/else"] = guarded(server, "t")
    server.replies["/token"] = [Reply(body=b'{"token": "t"}')]
    assert make_client(server, clock).root().data == GOOD.body


@pytest.mark.parametrize(
    "location", ["/v2/t/app/manifests/1", "", "ftp://x/y", "file:///etc/shadow", "http://u:p4ss@127.0.0.1/"]
)
def test_a_redirect_that_loops_or_leads_astray_is_refused(server, clock, location):
    server.replies[MANIFEST] = [Reply(status=302, headers={"Location": location})]
    error = failure(server, clock)
    assert error.code == "registry-redirect"
    assert "p4ss" not in error.message
    assert len(server.asked(MANIFEST)) <= limits.MAX_REDIRECTS + 1


# Layers.


def ranged(request, body=BLOB):
    start = int(request.headers.get("range", "bytes=0-")[6:].rstrip("-"))
    return start, Reply(
        status=206 if start else 200,
        headers={"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"},
        body=body[start:],
    )


def test_a_cut_layer_goes_on_where_it_stopped(server, clock, tmp_path):
    cuts = iter([1000, 7000])

    def answer(request):
        start, whole = ranged(request)
        part = next(cuts, len(BLOB))
        return Reply(
            status=whole.status, headers=whole.headers, body=BLOB[start:part], length=len(BLOB) - start
        )

    server.replies[BLOB_PATH] = answer
    assert fetch_blob(server, clock, tmp_path) == BLOB
    assert [item.headers.get("range") for item in server.asked(BLOB_PATH)] == [
        None,
        "bytes=1000-",
        "bytes=7000-",
    ]


@pytest.mark.parametrize(
    "second",
    [
        Reply(body=BLOB),
        Reply(status=206, headers={"Content-Range": f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}"}, body=BLOB),
        Reply(status=206, body=BLOB[1000:]),
        Reply(status=416),
    ],
    ids=["ignores the range", "another range", "no range told", "range refused"],
)
def test_a_registry_that_cannot_continue_is_asked_from_the_start(server, clock, tmp_path, second):
    cut = Reply(body=BLOB[:1000], length=len(BLOB))
    server.replies[BLOB_PATH] = [cut, second, Reply(body=BLOB)]
    assert fetch_blob(server, clock, tmp_path) == BLOB


def test_a_registry_that_refuses_every_range_is_given_up(server, clock, tmp_path):
    server.replies[BLOB_PATH] = [Reply(status=416)]
    with pytest.raises(RegistryError) as caught:
        fetch_blob(server, clock, tmp_path)
    assert caught.value.code == "registry-cut"
    assert len(server.asked(BLOB_PATH)) <= limits.MAX_CUTS


def test_a_registry_that_cuts_after_every_byte_is_given_up(server, clock, tmp_path):
    def answer(request):
        _, whole = ranged(request)
        return Reply(status=whole.status, headers=whole.headers, body=whole.body[:1], length=len(whole.body))

    server.replies[BLOB_PATH] = answer
    with pytest.raises(RegistryError, match=f"after {limits.MAX_CUTS} of {len(BLOB)} bytes"):
        fetch_blob(server, clock, tmp_path)
    assert len(server.asked(BLOB_PATH)) == limits.MAX_CUTS


def test_a_layer_with_other_bytes_is_refused_without_another_try(server, clock, tmp_path):
    server.replies[BLOB_PATH] = [Reply(body=BLOB[::-1])]
    with pytest.raises(ImageError) as caught:
        fetch_blob(server, clock, tmp_path)
    assert caught.value.code == "image-digest"
    assert len(server.asked(BLOB_PATH)) == 1


def test_a_layer_longer_than_promised_is_cut_off(server, clock, tmp_path):
    server.replies[BLOB_PATH] = [Reply(body=b"x" * 65536, length=1 << 40, endless=True)]
    with pytest.raises(ImageError, match="longer than"):
        fetch_blob(server, clock, tmp_path)
    assert (tmp_path / "blob").stat().st_size <= len(BLOB)


def test_a_layer_shorter_than_promised_is_given_up(server, clock, tmp_path):
    server.replies[BLOB_PATH] = [Reply(body=BLOB[:-1])]
    with pytest.raises(RegistryError) as caught:
        fetch_blob(server, clock, tmp_path)
    assert caught.value.code == "registry-cut"


def test_a_cancelled_download_stops_at_the_next_chunk(server, clock, tmp_path):
    cancelled = threading.Event()
    cancelled.set()
    server.replies[BLOB_PATH] = [Reply(body=b"x" * 65536, length=1 << 40, endless=True)]
    with pytest.raises(CancelledError):
        fetch_blob(server, clock, tmp_path, cancelled=cancelled)


# With TLS: a client that never touches the network.


class ScriptedAnswer:
    def __init__(self, status, headers=None, body=b""):
        self.status = status
        self.headers = headers or {}
        self.body = io.BytesIO(body)

    def header(self, name):
        return self.headers.get(name, "")

    def read(self, amount):
        return self.body.read(amount)

    def close(self):
        pass

    def interrupt(self):
        raise AssertionError


class Recorder:
    """Answers every request in the same way and remembers the URLs and headers."""

    def __init__(self, status, headers=None, body=b""):
        self.answer = (status, headers, body)
        self.requests = []

    def request(self, method, url, headers):
        self.requests.append((url, headers))
        return ScriptedAnswer(*self.answer)


def verified(http, name="r.example/t/app:1"):
    parsed = reference.parse(f"docker://{name}")
    return RegistryClient(parsed, http=http, credentials=lambda: ALICE, clock=FakeClock(), tls_verify=True)


@pytest.mark.parametrize(
    "realm",
    ["http://auth.example/token", "http://127.0.0.1/token", "ftp://x/", "", "https://u:p@x/", "//x/"],
)
def test_a_login_goes_to_https_only(realm):
    http = Recorder(401, {"www-authenticate": f'Bearer realm="{realm}"'})
    with pytest.raises(RegistryError) as caught:
        verified(http).root()
    assert caught.value.code == "registry-realm"
    assert [url for url, _ in http.requests] == ["https://r.example/v2/t/app/manifests/1"]


@pytest.mark.parametrize("location", ["http://r.example/x", "//r.example:80\\@evil/"])
def test_https_is_not_left_for_http(location):
    http = Recorder(307, {"location": location})
    with pytest.raises(RegistryError) as caught:
        verified(http).root()
    assert caught.value.code == "registry-redirect"
    assert all(url.startswith("https://") for url, _ in http.requests)


def test_docker_hubs_registry_has_its_own_name():
    http = Recorder(200, {"content-type": OCI_MANIFEST}, b"{}")
    verified(http, "busybox").root()
    assert http.requests[0][0] == "https://registry-1.docker.io/v2/library/busybox/manifests/latest"
    assert OCI_MANIFEST in http.requests[0][1]["Accept"]


def test_a_proxy_is_asked_for_the_whole_url_and_given_its_password():
    with hostile_server() as proxy:
        proxy.replies["http://r.example/x"] = [Reply(body=b"through")]
        settings = ProxySettings(http=f"http://user:p%40ss@{proxy.address}")
        http = UrllibClient(tls_verify=False, certificates=CertificateDirs(dirs=()), proxies=settings)
        answer = http.request("GET", "http://r.example/x", {})
        assert answer.read(100) == b"through"
        answer.close()
        (request,) = proxy.requests
    assert request.headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert request.headers["host"] == "r.example"


def test_an_upload_goes_to_no_other_host_than_the_registry():
    class Sender(Recorder):
        def request(self, method, url, headers):
            self.requests.append((url, headers))
            status = {"HEAD": 404, "POST": 202}[method]
            return ScriptedAnswer(status, {"location": "https://other.example/upload"})

    http = Sender(200)
    with pytest.raises(RegistryError) as caught:
        verified(http).put_blob(Digest.of(b"x"), BytesUpload(data=b"x"))
    assert "other.example" in caught.value.message
    assert all(url.startswith("https://r.example/") for url, _ in http.requests)
