"""Build small images as OCI layouts, byte by byte, so that tests know exactly what they feed in."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from secrun.digest import Digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

_OCI_LAYER = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_DOCKER_LAYER = {
    "none": "application/vnd.docker.image.rootfs.diff.tar",
    "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
}

BUSYBOX = Path("/bin/busybox")
BUSYBOX_APPLETS = (
    *("cat", "chmod", "dd", "echo", "env", "false", "id", "ls", "mkdir", "mount", "ps", "pwd", "readlink"),
    *("rm", "sh", "sleep", "stat", "stty", "touch", "true", "wc"),
)  # fmt: skip

# One fixed second, so that the same test image has the same digest every day.
MTIME = 1_700_000_000

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One member of a layer; `data` for files, `link` for symbolic and hard links."""

    name: str
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    link: str = ""
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755) -> Entry:
    return Entry(name=name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Entry:
    return Entry(name=name, kind=tarfile.SYMTYPE, mode=0o777, link=target)


def hardlink(name: str, target: str) -> Entry:
    return Entry(name=name, kind=tarfile.LNKTYPE, link=target)


def tar_layer(entries: Iterable[Entry]) -> bytes:
    """Return an uncompressed layer; entries are written as given, hostile or not."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type = entry.kind
            info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, MTIME
            info.linkname = entry.link
            info.devmajor, info.devminor = entry.device
            info.pax_headers = dict(entry.pax)
            info.size = len(entry.data)
            tar.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


def busybox_layer() -> bytes:
    """Return a layer that holds Debian's static busybox and a few of its applets."""
    entries = [directory(name) for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "root")]
    entries.append(Entry(name="bin/busybox", mode=0o755, data=BUSYBOX.read_bytes()))
    entries += [symlink(f"bin/{applet}", "busybox") for applet in BUSYBOX_APPLETS]
    entries.append(
        Entry(name="etc/passwd", data=b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
    )
    entries.append(Entry(name="etc/group", data=b"root:x:0:\napp:x:1000:\n"))
    return tar_layer(entries)


def compress(data: bytes, compression: str) -> bytes:
    """Compress with `none`, `gzip` or `zstd`, the same bytes every time."""
    if compression == "gzip":
        return gzip.compress(data, compresslevel=1, mtime=0)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=3).compress(data)
    return data


def encode(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


class LayoutWriter:
    """An OCI image layout that grows; every `add_` writes its blobs and the index at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: list[Json] = []
        (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))
        self._write_index()

    def _write_index(self) -> None:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._entries}
        (self.path / "index.json").write_bytes(encode(index))

    def blob(self, digest: Digest | str) -> Path:
        """Return the path of a blob of this layout."""
        return self.path / "blobs" / "sha256" / str(digest).removeprefix("sha256:")

    def add_blob(self, data: bytes, media_type: str) -> Json:
        """Store `data`; return its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        self.blob(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def add_entry(self, tag: str | None, descriptor: Json) -> Digest:
        """List `descriptor` in index.json under `tag`."""
        annotations = {"org.opencontainers.image.ref.name": tag} if tag is not None else {}
        self._entries.append({**descriptor, **({"annotations": annotations} if annotations else {})})
        self._write_index()
        return Digest.parse(str(descriptor["digest"]))

    def image_descriptor(
        self,
        layers: Sequence[bytes],
        *,
        compression: str = "gzip",
        docker: bool = False,
        architecture: str = "amd64",
        system: str = "linux",
        variant: str = "",
        config: Mapping[str, object] | None = None,
    ) -> Json:
        """Store an image of uncompressed `layers` without listing it; return its manifest's descriptor."""
        document: Json = {
            "architecture": architecture,
            "os": system,
            "created": "2023-11-14T22:13:20Z",
            "config": dict(config or {}),
            "rootfs": {
                "type": "layers",
                "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers],
            },
        }
        platform: Json = {"architecture": architecture, "os": system}
        if variant:
            document["variant"] = platform["variant"] = variant
        kinds = _DOCKER_LAYER if docker else _OCI_LAYER
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": self.add_blob(encode(document), DOCKER_CONFIG if docker else OCI_CONFIG),
            "layers": [self.add_blob(compress(layer, compression), kinds[compression]) for layer in layers],
        }
        descriptor = self.add_blob(encode(manifest), DOCKER_MANIFEST if docker else OCI_MANIFEST)
        return {**descriptor, "platform": platform}

    def add_image(
        self,
        tag: str | None,
        layers: Sequence[bytes],
        *,
        compression: str = "gzip",
        docker: bool = False,
        architecture: str = "amd64",
        system: str = "linux",
        variant: str = "",
        config: Mapping[str, object] | None = None,
    ) -> Digest:
        """Store and list an image of uncompressed `layers`; return its manifest digest."""
        descriptor = self.image_descriptor(
            layers,
            compression=compression,
            docker=docker,
            architecture=architecture,
            system=system,
            variant=variant,
            config=config,
        )
        return self.add_entry(tag, descriptor)

    def add_index(self, tag: str | None, descriptors: Sequence[Json], *, docker: bool = False) -> Digest:
        """Store and list an index (or Docker manifest list) of `descriptors`; return its digest."""
        kind = DOCKER_LIST if docker else OCI_INDEX
        index = {"schemaVersion": 2, "mediaType": kind, "manifests": list(descriptors)}
        return self.add_entry(tag, self.add_blob(encode(index), kind))


def busybox_image(path: Path, tag: str = "busybox", *, config: Mapping[str, object] | None = None) -> Digest:
    """Make the layout `path` with one runnable busybox image; return its manifest digest."""
    defaults = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "WorkingDir": "/"}
    return LayoutWriter(path).add_image(tag, [busybox_layer()], config={**defaults, **(config or {})})
