"""App container images as rkt ran them, signed and put upon a dependency, in pods of every flavour."""

import dataclasses
import json
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import aci, hostnet
from support.images import Entry, directory
from support.secrun import Secrun, eventually
from support.watching import NETWORK, watch

PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\n"
SAY = 'id; pwd; echo "$COLOR $AC_APP_NAME"; cat /data/given; ls -ld /scratch; grep CapBnd /proc/self/status'
APP = {
    "exec": ["/bin/sh", "-c", SAY],
    "user": "app",
    "group": "data",
    "supplementaryGIDs": [500],
    "workingDirectory": "/opt",
    "environment": [{"name": "COLOR", "value": "green"}],
    "mountPoints": [
        {"name": "given", "path": "/data", "readOnly": True},
        {"name": "own", "path": "/scratch"},
    ],
    "ports": [{"name": "www", "port": 8080, "protocol": "tcp"}],
    "isolators": [
        {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_NET_BIND_SERVICE"]}},
        {"name": "os/linux/no-new-privileges", "value": True},
        {"name": "example.com/other", "value": 1},
    ],
}
FILES = [
    directory("rootfs/opt"),
    directory("rootfs/data"),
    directory("rootfs/etc"),
    Entry(name="rootfs/etc/passwd", data=PASSWD),
    Entry(name="rootfs/etc/group", data=b"root:x:0:\ndata:x:77:\n"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a signed image, the image it depends on, a key, and a policy that rejects the rest."""
    made = tmp_path_factory.mktemp("aci")
    signer = aci.Signer(made / "gpg")
    base = aci.write(
        made / "base.aci",
        aci.manifest("example.com/base"),
        aci.under_rootfs(aci.busybox_files()),
        packed="xz",
    )
    needs = [{"imageName": "example.com/base", "imageID": base}]
    aci.write(made / "app.aci", aci.manifest(app=APP, dependencies=needs), FILES, packed="bzip2")
    for name in ("base.aci", "app.aci"):
        signer.sign(made / name)
    (made / "key.asc").write_bytes(signer.public)
    (made / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    (made / "volume").mkdir()
    (made / "volume/given").write_text("from the host\n")
    yield made
    signer.close()


@pytest.fixture(scope="module")
def trusted(secrun: Secrun, folder: Path) -> Iterator[None]:
    words = ("--prefix", "example.com", "--skip-fingerprint-review", folder / "key.asc")
    secrun("trust", "add", *words)
    yield
    fingerprint = secrun("trust", "list", "--no-legend").out.split()[-1]
    secrun("trust", "rm", fingerprint)


def test_an_old_image_runs_with_all_that_its_manifest_says(pods: Secrun, folder: Path, trusted: None):
    flavour = [word for word in pods.pod_options if word.startswith(("--stage1", "--accel"))]
    policy = ("--policy", folder / "policy.json")
    pods("fetch", *policy, folder / "base.aci")
    volume = f"given,kind=host,source={folder}/volume"
    done = pods("run", "--rm", *flavour, *policy, "-v", volume, folder / "app.aci")
    lines = done.out.splitlines()
    assert lines[:4] == ["uid=1000(app) gid=77(data) groups=500", "/opt", "green app", "from the host"]
    assert lines[4].split()[0] == "drwxr-xr-x"
    # One capability of the default set is in the bounding set of another user than root: none.
    assert lines[5].split() == ["CapBnd:", "0" * 16]
    assert "example.com/other" in done.err
    assert "own (/scratch)" in done.err
    assert "given (/data)" not in done.err
    words = pods("run", "--rm", *flavour, *policy, folder / "app.aci", "--", "more", code=None)
    assert words.out.splitlines()[0] == lines[0]


def test_what_let_the_image_in_is_measured_and_can_be_predicted(secrun: Secrun, folder: Path, trusted: None):
    policy = ("--policy", folder / "policy.json")
    secrun("fetch", *policy, folder / "base.aci", folder / "app.aci")
    secrun("run", "--rm", *policy, folder / "app.aci")
    events = [
        json.loads(line.split(" ", 7)[-1].split(" ", 1)[-1])
        for line in secrun("attest", "log").out.splitlines()
        if line.split(" ")[-2] == "ImageAdmit" and f"{folder}/app.aci" in line
    ]
    (signature,) = events[-1]["verdict"]["signatures"]
    assert signature["kind"] == "appc"
    predicted = json.loads(secrun("attest", "predict", "--format=json", *policy, folder / "app.aci").out)
    (image,) = predicted["images"]
    assert image["tree"] == events[-1]["tree"]


def test_a_port_is_forwarded_by_its_name(secrun: Secrun, folder: Path, trusted: None):
    page = "mkdir /www && echo here > /www/index.html && exec httpd -f -p 8080 -h /www"
    policy = ("--policy", folder / "policy.json")
    secrun("fetch", *policy, folder / "base.aci")
    with hostnet.made() as net:
        inside = net(dataclasses.replace(secrun, network=""))
        words = ("--port=www:8089", "--entrypoint=/bin/sh", "-u", "0")
        uuid = inside("run", "-d", *policy, *words, folder / "app.aci", "--", "-c", page).out.strip()
        eventually(lambda: net.fetch("http://127.0.0.1:8089/") == "here\n", "a page")
        inside.discard(uuid)
        unknown = inside("run", *policy, "--port=no:8090", folder / "app.aci", code=2)
        assert "they have: www" in unknown.err
        inside("gc", "--grace-period=0s", "--expire-prepared=0s")


# Serves a folder by TLS at the port that discovery asks, and the page of its own name.
SERVER = """
import http.server, ssl, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if "ac-discovery" not in self.path:
            return super().do_GET()
        page = b'<head><meta name="ac-discovery" content="localhost https://localhost/app-{version}.{ext}">'
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
server = http.server.HTTPServer(("127.0.0.1", 443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"""


def test_an_image_is_discovered_by_tls_and_read_by_nobody_with_rights(secrun: Secrun, tmp_path: Path):
    web, home = tmp_path / "web", tmp_path / "home"
    certificates = home / ".config/containers/certs.d/localhost"
    for folder in (web, certificates):
        folder.mkdir(parents=True)
    aci.write(web / "app-1.0.0.aci", aci.manifest("localhost/app", app={}), FILES)
    key, certificate = tmp_path / "key.pem", certificates / "ca.crt"
    request = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    subprocess.run(
        ["openssl", "req", *request, *names, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    signer = aci.Signer(tmp_path / "gpg")
    try:
        signer.sign(web / "app-1.0.0.aci")
        (tmp_path / "signer.asc").write_bytes(signer.public)
    finally:
        signer.close()
    (tmp_path / "policy.json").write_text('{"default": [{"type": "reject"}]}')
    words = ("fetch", "--policy", tmp_path / "policy.json", "appc://localhost/app:1.0.0")
    with hostnet.made() as net:
        inside = net(Secrun(root=tmp_path / "root", run_root=tmp_path / "run", options=("--attest=off",)))
        command = [*net.prefix, "/usr/bin/python3", "-c", SERVER, certificate, key]
        with subprocess.Popen(command, cwd=web, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == b"ready\n"
                environment = {"HOME": str(home)}
                inside(*words, code=120, environment=environment)
                trust = ("--prefix", "localhost", "--skip-fingerprint-review", tmp_path / "signer.asc")
                inside("trust", "add", *trust)
                # Without the authority nothing is believed.
                assert "TLS" in inside(*words, code=125, environment={"HOME": str(tmp_path)}).err
                seen = watch(inside, tmp_path / "trace", *words, environment=environment)
            finally:
                server.kill()
    outside = dataclasses.replace(inside, prefix=())
    assert "localhost/app" in outside("image", "cat-manifest", "app:1.0.0").out
    talked = {uid for uid, name, rest in seen.calls if NETWORK.search(f"{name}({rest}")}
    assert talked == {pwd.getpwnam("secrun").pw_uid}
