"""`secrun attest serve` as a process of its own, not root, and clients that reach it over TLS."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.attest_bench import AUDIENCE, policy_document
from support.certificates import Authority
from support.verifier import ADMIN, READER, Answer
from support.waiting import wait_until

NOBODY = 65534
START_SECONDS = 30


@dataclass
class Link:
    """One connection to a server; call it as the tests' other doors are called."""

    url: str
    context: ssl.SSLContext | None = None
    connection: http.client.HTTPConnection | None = None

    def __call__(self, method: str, path: str, body: Any = b"", token: str = "", **headers: str) -> Answer:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if token:
            headers["authorization"] = f"Bearer {token}"
        if body:
            headers.setdefault("content-type", "application/json")
        if self.connection is None:
            self.connection = self.connect()
        try:
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(status=answer.status, headers=found, body=answer.read())
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def connect(self) -> http.client.HTTPConnection:
        where = urlsplit(self.url)
        if self.context is None:
            return http.client.HTTPConnection(where.hostname, where.port, timeout=30)
        return http.client.HTTPSConnection(where.hostname, where.port, timeout=30, context=self.context)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


@dataclass
class Server:
    """A running verifier; `folder` belongs to the user that it runs as."""

    folder: Path
    process: subprocess.Popen[str]
    url: str
    ca: Path | None = None
    links: list[Link] = field(default_factory=list)

    def link(self, certificate: tuple[Path, Path] | None = None) -> Link:
        context = None
        if self.ca is not None:
            context = ssl.create_default_context(cafile=self.ca)
            if certificate is not None:
                context.load_cert_chain(*certificate)
        self.links.append(Link(self.url, context))
        return self.links[-1]

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def own(path: Path) -> None:
    """Give a folder and all in it to the user that the server runs as."""
    if os.geteuid() == 0:
        for item in (path, *path.rglob("*")):
            os.chown(item, NOBODY, NOBODY)


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that an unprivileged server can reach, as pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="secrun-verifier-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def tls_files(folder: Path) -> list[str]:
    """Make a CA, a server's certificate and a CA for clients; return the options that name them."""
    now = time.time()
    server, clients = Authority(folder, "server-ca", now), Authority(folder, "client-ca", now)
    cert, key = server.issue("server", "127.0.0.1", "localhost")
    return ["--tls-cert", str(cert), "--tls-key", str(key), "--client-ca", str(clients.pem)]


def usual_options(folder: Path, **policy: Any) -> list[str]:
    """Write tokens and a policy that is in force now; return the options that name them."""
    for name, token in (("admin", ADMIN), ("reader", READER)):
        (folder / f"{name}.token").write_text(token)
    times = {"not_before": 0, "not_after": 2**40, "software_tpm": True}
    (folder / "policy.json").write_text(json.dumps(policy_document(**(times | policy))))
    return [
        *("--listen", "127.0.0.1:0", "--audience", AUDIENCE, "--allow-software-tpm"),
        *("--policy", str(folder / "policy.json")),
        *("--admin-token-file", str(folder / "admin.token")),
        *("--reader-token-file", str(folder / "reader.token")),
    ]


@contextmanager
def serving(folder: Path, *options: str, ca: Path | None = None, name: str = "stderr") -> Iterator[Server]:
    """Start `secrun attest serve` in `folder` and wait until it says where it listens."""
    own(folder)
    words = [sys.executable, "-m", "secrun", "--root", str(folder / "root"), "attest", "serve", *options]
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    with open(folder / name, "w") as errors:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, cwd="/", **who)
    server = Server(folder=folder, process=process, url="", ca=ca)
    try:
        server.url = process.stdout.readline().strip()
        assert server.url, f"it did not start: {(folder / name).read_text()}"
        link = server.link()
        wait_until(lambda: answers(link), seconds=START_SECONDS)
        yield server
    finally:
        for link in server.links:
            link.close()
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
        process.wait()
        process.stdout.close()


def answers(link: Link) -> bool:
    try:
        return link("GET", "/healthz").status == 200
    except OSError:
        return False
