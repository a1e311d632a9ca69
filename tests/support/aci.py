"""Write app container images as actool and rkt lay them out, byte by byte."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import subprocess
from pathlib import Path

import pysequoia

from support.images import Entry, busybox_layer, directory, tar_layer

NAME = "example.com/app"


def manifest(name=NAME, *, version="1.0.0", labels=None, app=None, **members):
    """Return a manifest as actool writes it; `app` None leaves the app out, else it adds to a plain one."""
    found = [{"name": "version", "value": version}] if version else []
    plain = {"os": "linux", "arch": "amd64"} if labels is None else labels
    found += [{"name": key, "value": value} for key, value in plain.items()]
    document = {"acKind": "ImageManifest", "acVersion": "0.8.11", "name": name, "labels": found, **members}
    if app is not None:
        document["app"] = {"exec": ["/bin/sh"], "user": "0", "group": "0", **app}
    return document


# The example of the specification, aci.md, with what secrun knows beside it.
WHOLE = manifest(
    "example.com/reduce-worker",
    app={
        "exec": ["/usr/bin/reduce-worker", "--quiet"],
        "user": "100",
        "group": "/usr/bin/ping",
        "supplementaryGIDs": [400, 500, 400],
        "eventHandlers": [{"exec": ["/usr/bin/data-downloader"], "name": "pre-start"}],
        "workingDirectory": "/opt/work/",
        "environment": [{"name": "REDUCE_WORKER_DEBUG", "value": "true"}],
        "isolators": [
            {"name": "resource/cpu", "value": {"request": "250m", "limit": "500m"}},
            {"name": "resource/memory", "value": {"request": "1G", "limit": "2Gi"}},
            {"name": "os/linux/capabilities-retain-set", "value": {"set": ["CAP_NET_BIND_SERVICE"]}},
            {"name": "os/linux/seccomp-remove-set", "value": {"errno": "ENOSYS", "set": ["reboot"]}},
            {"name": "os/linux/no-new-privileges", "value": True},
            {"name": "os/linux/oom-score-adj", "value": 100},
            {"name": "os/linux/cpu-shares", "value": 1024},
            {"name": "resource/network-bandwidth", "value": {"default": True, "limit": "1G"}},
        ],
        "mountPoints": [{"name": "work", "path": "/var/lib//work", "readOnly": True}],
        "ports": [
            {"name": "health", "port": 4000, "protocol": "tcp", "socketActivated": True},
            {"name": "ftp-data", "port": 20000, "count": 1000, "protocol": "tcp"},
        ],
        "userLabels": {"passed": "over"},
    },
    dependencies=[
        {
            "imageName": "example.com/reduce-worker-base",
            "imageID": f"sha512-{'0f' * 32}",
            "labels": [{"name": "env", "value": "canary"}],
            "size": 22017258,
        }
    ],
    pathWhitelist=["/etc/ca/example.com/crt", "/etc/systemd/system/"],
    annotations=[{"name": "created", "value": "2014-10-27T19:32:27.67021798Z"}],
    unknown={"passed": "over"},
)


def encoded(document):
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def members(document, files=(), *, last=False):
    """Return the members of an image: its manifest first, as actool has it, or last."""
    own = Entry(name="manifest", data=encoded(document))
    rootfs = [directory("rootfs"), *files]
    return [*rootfs, own] if last else [own, *rootfs]


def under_rootfs(entries):
    """Return entries of a layer as they are in an image."""
    return [
        Entry(
            name=f"rootfs/{entry.name}",
            kind=entry.kind,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            data=entry.data,
            link=f"rootfs/{entry.link}" if entry.kind == b"1" else entry.link,
            device=entry.device,
            pax=entry.pax,
        )
        for entry in entries
    ]


def tar(document, files=(), *, last=False):
    return tar_layer(members(document, files, last=last))


def image_id(data):
    """Return the ID of an uncompressed image."""
    return f"sha512-{hashlib.sha512(data).hexdigest()}"


PACKERS = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def write(path, document, files=(), *, packed="gzip", last=False):
    """Write an image; return its ID."""
    data = tar(document, files, last=last)
    Path(path).write_bytes(PACKERS[packed](data))
    return image_id(data)


def busybox_files():
    """Return Debian's static busybox and the accounts of a small system, as files of an image."""
    import io
    import tarfile

    found = []
    with tarfile.open(fileobj=io.BytesIO(busybox_layer())) as archive:
        for info in archive:
            data = archive.extractfile(info).read() if info.isreg() else b""
            found.append(
                Entry(name=info.name, kind=info.type, mode=info.mode, data=data, link=info.linkname)
            )
    return found


class LibrarySigner:
    """A key of the library that secrun verifies with: no program has to be there."""

    def __init__(self, name="Tester <tester@example.com>", **options):
        self.key = pysequoia.Tsk.generate(name, **options)

    @property
    def public(self):
        return bytes(self.key.extract_certificate())

    def sign(self, path):
        """Write PATH.asc, a detached signature in armor."""
        target = Path(f"{path}.asc")
        mode = pysequoia.SignatureMode.DETACHED
        target.write_bytes(bytes(pysequoia.sign(self.key.signer(), Path(path).read_bytes(), mode=mode)))
        return target


class Signer:
    """A key of gpg's, in a home of its own."""

    def __init__(self, home, name="Tester <tester@example.com>"):
        self.home = Path(home)
        self.home.mkdir(mode=0o700)
        self.gpg("--passphrase", "", "--quick-generate-key", name, "ed25519", "sign", "never")

    def gpg(self, *words):
        environment = {**os.environ, "GNUPGHOME": str(self.home)}
        done = subprocess.run(
            ["gpg", "--batch", "--yes", "--quiet", *map(str, words)],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def public(self):
        return self.gpg("--armor", "--export")

    def sign(self, path):
        """Write PATH.asc, a detached signature in armor."""
        target = Path(f"{path}.asc")
        self.gpg("--armor", "--output", target, "--detach-sign", path)
        return target

    def close(self):
        subprocess.run(
            ["gpgconf", "--kill", "gpg-agent"], env={**os.environ, "GNUPGHOME": str(self.home)}, check=False
        )
