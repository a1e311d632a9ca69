"""What is kept beside a stage1 image: its manifest, and what the inputs looked like when it was built."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from secrun.digest import Digest
from secrun.fields import Fields
from secrun.jsonio import JsonObject, JsonValue, canonical
from secrun.record import ordered, record

SCHEMA = "secrun.dev/stage1/v1"
IMAGE_NAME = "stage1.erofs"
KERNEL_NAME = "vmlinuz"
INITRD_NAME = "initrd"
# A manifest has about 60 files at 250 bytes; a list of inputs is smaller.
MAX_RECORD_BYTES = 1 << 20


@record
class ImageFile:
    """One path of the image; `sha256`, `source` and the package are of regular files, `target` of links."""

    path: str
    kind: str
    mode: int
    size: int
    sha256: str
    target: str
    source: str
    package: str
    version: str


@record
class Guest:
    """What a virtual machine has besides stage1.erofs; `release` names the kernel (uname(2))."""

    release: str
    kernel: ImageFile
    initrd: ImageFile
    initrd_files: tuple[ImageFile, ...]


@record
class Manifest:
    """Everything that can be said about an image without looking at the host that built it."""

    flavour: str
    digest: Digest
    recipe: int
    secrun_version: str
    tree_digest: Digest
    verity_root: str
    verity_salt: str
    data_size: int
    file_size: int
    file_sha256: str
    files: tuple[ImageFile, ...]
    guest: Guest | None = None

    @property
    def reference(self) -> Digest:
        """What a verifier compares: the tree that everything executed comes from, or of a guest more."""
        # A guest's tree leaves out its kernel and its initramfs; the image's digest covers all three.
        return self.tree_digest if self.guest is None else self.digest

    @property
    def parts(self) -> tuple[tuple[str, int, str], ...]:
        """Name, size and sha256 of each file beside the manifest."""
        found = [(IMAGE_NAME, self.file_size, self.file_sha256)]
        if self.guest is not None:
            found += [(part.path, part.size, part.sha256) for part in (self.guest.kernel, self.guest.initrd)]
        return tuple(found)


@ordered
class Fingerprint:
    """Enough of a file's metadata to know that its content is still the same."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    device: int


@record
class Inputs:
    """Which image the inputs gave, what they looked like then, and a digest of all else that decided."""

    digest: Digest
    recipe: str
    inputs: tuple[Fingerprint, ...]


def fingerprint(path: Path) -> Fingerprint:
    """Look at a file, following links; raises OSError if it is gone."""
    facts = os.stat(path)
    return Fingerprint(
        path=str(path),
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        inode=facts.st_ino,
        device=facts.st_dev,
    )


def unchanged(prints: Iterable[Fingerprint]) -> bool:
    """Tell whether every file still looks as it did."""
    try:
        return all(fingerprint(Path(item.path)) == item for item in prints)
    except OSError:
        return False


def _file_json(item: ImageFile) -> JsonObject:
    return {
        "path": item.path,
        "kind": item.kind,
        "mode": f"{item.mode:04o}",
        "size": item.size,
        "sha256": item.sha256,
        "target": item.target,
        "source": item.source,
        "package": item.package,
        "version": item.version,
    }


def _files_json(items: Iterable[ImageFile]) -> list[JsonValue]:
    return [_file_json(item) for item in items]


def manifest_json(manifest: Manifest) -> JsonObject:
    """Return the manifest as it is written and shown."""
    result: JsonObject = {
        "schema": SCHEMA,
        "flavour": manifest.flavour,
        "digest": str(manifest.digest),
        "recipe": manifest.recipe,
        "secrun_version": manifest.secrun_version,
        "tree_digest": str(manifest.tree_digest),
        "verity_root": manifest.verity_root,
        "verity_salt": manifest.verity_salt,
        "data_size": manifest.data_size,
        "file_size": manifest.file_size,
        "file_sha256": manifest.file_sha256,
        "files": _files_json(manifest.files),
    }
    if (guest := manifest.guest) is not None:
        result["guest"] = {
            "release": guest.release,
            "kernel": _file_json(guest.kernel),
            "initrd": _file_json(guest.initrd),
            "initrd_files": _files_json(guest.initrd_files),
        }
    return result


def _mode(fields: Fields) -> int:
    text = fields.text("mode")
    if not re.fullmatch("[0-7]{4}", text):
        fields.unexpected("mode", text, "four octal digits")
    return int(text, 8)


def _file(fields: Fields) -> ImageFile:
    result = ImageFile(
        path=fields.text("path"),
        kind=fields.text("kind"),
        mode=_mode(fields),
        size=fields.integer("size"),
        sha256=fields.text("sha256"),
        target=fields.text("target"),
        source=fields.text("source"),
        package=fields.text("package"),
        version=fields.text("version"),
    )
    fields.end()
    return result


def _part(fields: Fields, name: str) -> ImageFile:
    """Read a file beside the manifest, whose name is fixed: it becomes a path."""
    inner = fields.object(name)
    part = _file(inner)
    expected = KERNEL_NAME if name == "kernel" else INITRD_NAME
    if part.path != expected:
        inner.unexpected("path", part.path, expected)
    return part


def _guest(fields: Fields) -> Guest:
    result = Guest(
        release=fields.text("release"),
        kernel=_part(fields, "kernel"),
        initrd=_part(fields, "initrd"),
        initrd_files=tuple(_file(item) for item in fields.objects("initrd_files")),
    )
    fields.end()
    return result


def identity(recipe: int, tree_digest: Digest, verity_root: str, guest: Guest | None = None) -> Digest:
    """Return the digest by which an image is called and measured: it binds every byte that is executed."""
    named: JsonObject = {"recipe": recipe, "tree_digest": str(tree_digest), "verity_root": verity_root}
    if guest is not None:
        named |= {"kernel": guest.kernel.sha256, "initrd": guest.initrd.sha256}
    return Digest.of(canonical(named))


def parse_manifest(data: bytes, *, what: str) -> Manifest:
    """Read a manifest that secrun wrote; raises SecrunError if it did not."""
    fields = Fields.document(data, what=what, limit=MAX_RECORD_BYTES, schema=SCHEMA)
    result = Manifest(
        flavour=fields.text("flavour"),
        digest=Digest.parse(fields.text("digest")),
        recipe=fields.integer("recipe"),
        secrun_version=fields.text("secrun_version"),
        tree_digest=Digest.parse(fields.text("tree_digest")),
        verity_root=fields.text("verity_root"),
        verity_salt=fields.text("verity_salt"),
        data_size=fields.integer("data_size"),
        file_size=fields.integer("file_size"),
        file_sha256=fields.text("file_sha256"),
        files=tuple(_file(item) for item in fields.objects("files")),
        guest=_guest(fields.object("guest")) if fields.has("guest") else None,
    )
    fields.end()
    return result


def encode_inputs(inputs: Inputs) -> bytes:
    """Return what `parse_inputs` reads."""
    prints: list[JsonValue] = [
        {
            "path": item.path,
            "size": item.size,
            "mtime_ns": item.mtime_ns,
            "inode": item.inode,
            "device": item.device,
        }
        for item in inputs.inputs
    ]
    return canonical(
        {
            "schema": SCHEMA,
            "digest": str(inputs.digest),
            "recipe": inputs.recipe,
            "inputs": prints,
        }
    )


def _fingerprint(fields: Fields) -> Fingerprint:
    result = Fingerprint(
        path=fields.text("path"),
        size=fields.integer("size"),
        mtime_ns=fields.integer("mtime_ns"),
        inode=fields.integer("inode"),
        device=fields.integer("device"),
    )
    fields.end()
    return result


def parse_inputs(data: bytes) -> Inputs:
    """Read a list of inputs; raises SecrunError if it is not what `encode_inputs` writes."""
    fields = Fields.document(data, what="stage1 inputs", limit=MAX_RECORD_BYTES, schema=SCHEMA)
    result = Inputs(
        digest=Digest.parse(fields.text("digest")),
        recipe=fields.text("recipe"),
        inputs=tuple(_fingerprint(item) for item in fields.objects("inputs")),
    )
    fields.end()
    return result
