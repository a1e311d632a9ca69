"""The stage1 image of containers: this host's systemd, crun and agent in one EROFS file.

A guest boots from the same file; its kernel and initramfs come with the KVM flavour.
"""

import hashlib
import os
from functools import partial
from pathlib import Path

from secrun import __version__
from secrun.digest import Digest
from secrun.errors import HostError
from secrun.image.rootfs.model import FORMAT_VERSION, FileKind, PackedImage, PathSource, TreeEntry
from secrun.jsonio import canonical
from secrun.paths import Layout
from secrun.stage1 import content
from secrun.stage1.agent import agent_path
from secrun.stage1.imagerecord import IMAGE_NAME, ImageFile, Manifest, identity
from secrun.stage1.imagestore import BuiltImage, Plan, Recipe, ensure

FLAVOUR = "nspawn"


def _key(agent: Path) -> str:
    """Digest everything but the inputs that decides the image's bytes."""
    fixed = [[name, value] for table in (content.LINKS, content.TEXTS) for name, value in table.items()]
    programs = [str(path) for path in content.PROGRAMS]
    return Digest.of(
        canonical(
            {
                "versions": [content.RECIPE_VERSION, FORMAT_VERSION],
                "secrun": __version__,
                "fixed": [list(pair) for pair in fixed],
                "folders": list(content.FOLDERS),
                "programs": list(programs),
                "agent": str(agent),
            }
        )
    ).hex


def ensure_stage1(layout: Layout, agent: Path | None = None) -> BuiltImage:
    """Return the image for this host's packages and `agent`, built if an input changed; as `ensure`."""
    agent = agent_path() if agent is None else agent.absolute()
    return ensure(layout, Recipe(flavour=FLAVOUR, key=_key(agent), plan=partial(_plan, agent)))


def contents_of(image: BuiltImage) -> list[tuple[TreeEntry, bytes]]:
    """Return the tree of a built image with the bytes of its files, for another container of the same tree.

    They are read from this host again; raises HostError if they are not what the image was built from.
    """
    known = {item.path: item for item in image.manifest.files}
    found = list[tuple[TreeEntry, bytes]]()
    for entry in content.entries(content.contents(agent_path())):
        data = _bytes_of(entry)
        expected = known.pop(f"/{entry.path.decode()}", None)
        if expected is None or (entry.kind is FileKind.FILE and Digest.of(data).hex != expected.sha256):
            raise _changed(f"/{entry.path.decode()}")
        found.append((entry, data))
    if known:
        raise _changed(min(known))
    return found


def _bytes_of(entry: TreeEntry) -> bytes:
    if isinstance(entry.source, PathSource):
        return entry.source.path.read_bytes()
    return entry.source if isinstance(entry.source, bytes) else b""


def _changed(path: str) -> HostError:
    return HostError(
        f"{path} of stage1 changed on this host while it was read",
        hint="try again",
        code="host-stage1-build",
    )


def _plan(agent: Path) -> Plan:
    what = content.contents(agent)
    return Plan(inputs=tuple(item.source for item in what.inputs), write=partial(_write, what))


def _write(what: content.Contents, folder: Path) -> Manifest:
    """Write the image into `folder` and return what it is."""
    from secrun.image.rootfs.pack import pack

    tree = content.entries(what)
    fd = os.open(folder / IMAGE_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "rb") as stream:
        # The umask must not decide who may read.
        os.fchmod(fd, 0o644)
        packed = pack(tree, fd)
        os.fsync(fd)
        stream.seek(0)
        file_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Manifest(
        flavour=FLAVOUR,
        digest=identity(content.RECIPE_VERSION, packed.tree_digest, packed.verity_root),
        recipe=content.RECIPE_VERSION,
        secrun_version=__version__,
        tree_digest=packed.tree_digest,
        verity_root=packed.verity_root,
        verity_salt=packed.verity_salt,
        data_size=packed.data_size,
        file_size=packed.file_size,
        file_sha256=file_sha256,
        files=_described(what, tree, packed),
    )


def _described(what: content.Contents, tree: list[TreeEntry], packed: PackedImage) -> tuple[ImageFile, ...]:
    from secrun.stage1.provenance import packages_of

    sources = {item.target: item.source for item in what.inputs}
    packages = packages_of(list(sources.values()))
    digests = {path.decode(): digest.hex for path, digest in packed.contents}

    def described(entry: TreeEntry) -> ImageFile:
        path = entry.path.decode()
        source = sources.get(path)
        package = packages.get(source) if source else None
        return ImageFile(
            path=f"/{path}",
            kind=entry.kind.value,
            mode=entry.mode,
            size=entry.size,
            sha256=digests[path] if entry.kind is FileKind.FILE else "",
            target=entry.target.decode(),
            # The agent's place on the host that built the image is not part of the image.
            source="" if source is None or path == str(content.AGENT).lstrip("/") else str(source),
            package=package.name if package else "",
            version=package.version if package else "",
        )

    return tuple(described(entry) for entry in sorted(tree, key=lambda entry: entry.path))
