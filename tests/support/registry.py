"""Start a real registry (Debian's docker-registry) on a free loopback port for one test."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "docker-registry"
USER = "alice"
PASSWORD = "wonder land:7"  # a colon and a space: both break naive parsers of credentials
# bcrypt of PASSWORD with cost 4: the registry takes no other scheme.
_HTPASSWD = "alice:$2b$04$vzdUupHKChwYxncKkmW/gOPKG0HEtiPPJ1GuD3L46JpMUaV3EX6.q\n"
_START_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A running registry; `certificate` is its own CA when it speaks TLS."""

    port: int
    storage: Path
    log: Path
    certificate: Path | None
    pid: int

    @property
    def address(self) -> str:
        """host:port, as it stands in a reference."""
        return f"127.0.0.1:{self.port}"

    def reference(self, name: str) -> str:
        """Return `docker://host:port/name`."""
        return f"docker://{self.address}/{name}"

    def push(self, source: str, name: str, *arguments: str) -> None:
        """Copy `source` (a skopeo name) to `name` here, as it is."""
        skopeo("copy", "--dest-tls-verify=false", *arguments, source, self.reference(name))

    def requests(self, method: str, needle: str) -> int:
        """Count the access log's lines with this method and text."""
        lines = self.log.read_text(errors="replace").splitlines()
        return sum(f'"{method} ' in line and needle in line for line in lines)


def skopeo(*arguments: str) -> str:
    """Run skopeo without any signature policy; return its output, fail with its words."""
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"skopeo {arguments}: {done.stderr}"
    return done.stdout


def free_port() -> int:
    """Return a loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1; return the paths of certificate and key."""
    certificate, key = directory / "tls.crt", directory / "tls.key"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *options.split(), *names], check=True, capture_output=True)
    return certificate, key


def _configuration(directory: Path, port: int, *, tls: bool, auth: bool, client_tls: bool) -> str:
    lines = [
        "version: 0.1",
        "log: {level: info, accesslog: {disabled: false}}",
        f"storage: {{filesystem: {{rootdirectory: {directory}/storage}}, delete: {{enabled: true}}}}",
        "http:",
        f"  addr: 127.0.0.1:{port}",
    ]
    if tls:
        clients = f", clientcas: [{directory}/tls.crt]" if client_tls else ""
        lines.append(f"  tls: {{certificate: {directory}/tls.crt, key: {directory}/tls.key{clients}}}")
    if auth:
        (directory / "htpasswd").write_text(_HTPASSWD)
        lines.append(f"auth: {{htpasswd: {{realm: secrun-test, path: {directory}/htpasswd}}}}")
    return "\n".join(lines) + "\n"


def _wait_until_open(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"{PROGRAM} ended: {log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"{PROGRAM} did not listen within {_START_SECONDS} s")


@contextlib.contextmanager
def running_registry(
    directory: Path, *, tls: bool = False, auth: bool = False, client_tls: bool = False
) -> Iterator[Registry]:
    """Run a registry below `directory` until the block ends; with `auth`, USER and PASSWORD may enter.

    With `client_tls`, only who shows the registry's own certificate may.
    """
    program = shutil.which(PROGRAM)
    assert program, f"{PROGRAM} is missing: apt-get install {PROGRAM}"
    directory.mkdir(parents=True, exist_ok=True)
    certificate = make_certificate(directory)[0] if tls else None
    port = free_port()
    configuration = _configuration(directory, port, tls=tls, auth=auth, client_tls=client_tls)
    (directory / "config.yml").write_text(configuration)
    log = directory / "registry.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, "serve", str(directory / "config.yml")],
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": str(directory), "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        _wait_until_open(port, process, log)
        yield Registry(
            port=port, storage=directory / "storage", log=log, certificate=certificate, pid=process.pid
        )
    finally:
        process.terminate()
        process.wait(timeout=60)
