"""pod.img: what a guest sees at /pod, as one EROFS file whose root hash is on the kernel's command line."""

import os
from collections.abc import Mapping, Sequence

from secrun.image.rootfs.model import FileKind, PackedImage, RootfsImage, TreeEntry
from secrun.image.rootfs.pack import pack
from secrun.image.rootfs.verity import BLOCK
from secrun.record import record
from secrun.stage1.manifest import AppManifest, PodManifest

FILE_NAME = "pod.img"
TABLE = "guest"
POD_SERIAL = "pod"
SCRATCH_SERIAL = "scratch"
# What a single file of the host is called in the folder that shares it.
SHARED_FILE = "file"


@record
class Shared:
    """A host folder or file that one or more volumes show; one share for each distinct source."""

    tag: str
    source: str
    read_only: bool
    is_file: bool


@record
class Mounted:
    """A volume of an app, and the share it comes from."""

    app: str
    index: int
    share: Shared


@record
class PodImage:
    """A packed image and what the guest opens it by."""

    data: bytes
    root: str
    blocks: int


def app_serial(index: int) -> str:
    """Return the serial number of the n-th app's disk."""
    return f"app-{index}"


def volumes(apps: Sequence[AppManifest]) -> tuple[Mounted, ...]:
    """Return the volumes of all apps, and the shares that they come from."""
    known: dict[tuple[str, bool], Shared] = {}
    result = []
    for app in apps:
        for index, volume in enumerate(app.volumes):
            key = (volume.source, volume.read_only)
            if key not in known:
                known[key] = Shared(
                    tag=f"volume-{len(known)}",
                    source=volume.source,
                    read_only=volume.read_only,
                    is_file=not os.path.isdir(volume.source),
                )
            result.append(Mounted(app=app.name, index=index, share=known[key]))
    return tuple(result)


def table(
    manifest: PodManifest,
    images: Sequence[RootfsImage],
    mounted: Sequence[Mounted],
    *,
    scratch: bool,
    vtpm: bool,
    networks: int = 0,
) -> bytes:
    """Return the guest's table of what to open, as its init reads it (docs/kvm.md); pure."""
    lines = ["secrun-guest 1", f"hostname {manifest.hostname}", f"uuid {manifest.uuid}"]
    for index, (app, image) in enumerate(zip(manifest.apps, images, strict=True)):
        words = [app.name, app_serial(index), str(image.data_size // BLOCK)]
        lines.append(" ".join(["image", *words, image.verity_root, image.verity_salt]))
    for volume in mounted:
        access = "ro" if volume.share.read_only else "rw"
        name = SHARED_FILE if volume.share.is_file else "."
        lines.append(f"volume {volume.app} {volume.index} {volume.share.tag} {access} {name}")
    for app in manifest.apps:
        for number, secret in enumerate(app.secrets):
            lines.append(f"secret {app.name} {number} {secret.uid} {secret.gid} {secret.mode}")
    lines += ["scratch"] if scratch else []
    lines += ["tpm"] if vtpm else []
    lines += [f"networks {networks}"] if networks else []
    return "".join(f"{line}\n" for line in lines).encode()


def _entries(files: Mapping[str, bytes]) -> list[TreeEntry]:
    folders = {""}
    for name in files:
        parts = name.split("/")[:-1]
        folders.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    entries = [_entry(name, FileKind.DIRECTORY, 0o755, b"") for name in sorted(folders)]
    return entries + [_entry(name, FileKind.FILE, 0o644, data) for name, data in files.items()]


def _entry(path: str, kind: FileKind, mode: int, data: bytes) -> TreeEntry:
    return TreeEntry(
        path=path.encode(), kind=kind, mode=mode, uid=0, gid=0, mtime_ns=0, size=len(data), source=data
    )


def packed(files: Mapping[str, bytes]) -> PodImage:
    """Pack the files of a pod; the same files give the same bytes on every host."""
    fd = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC)
    with os.fdopen(fd, "rb") as stream:
        image: PackedImage = pack(_entries(files), fd, contents=False)
        stream.seek(0)
        data = stream.read()
    return PodImage(data=data, root=image.verity_root, blocks=image.data_size // BLOCK)


def root_of(data: bytes, blocks: int) -> str | None:
    """Return the root hash of a packed image's bytes, None if they cannot be one of `blocks` blocks."""
    from secrun.image.rootfs import verity

    if blocks < 2 or len(data) != blocks * BLOCK + verity.tree_size(blocks):
        return None
    fd = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb") as stream:
        stream.write(data)
        stream.flush()
        return verity.compute(fd, blocks * BLOCK, processes=1)[0]
