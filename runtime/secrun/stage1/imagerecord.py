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
class Manifest:
    """Everything that can be said about an image without looking at the host that built it."""

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
    """Which image the inputs gave, and what they looked like then."""

    digest: Digest
    recipe: str
    agent: str
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


def manifest_json(manifest: Manifest) -> JsonObject:
    """Return the manifest as it is written and shown."""
    files: list[JsonValue] = [_file_json(item) for item in manifest.files]
    return {
        "schema": SCHEMA,
        "flavour": "nspawn",
        "digest": str(manifest.digest),
        "recipe": manifest.recipe,
        "secrun_version": manifest.secrun_version,
        "tree_digest": str(manifest.tree_digest),
        "verity_root": manifest.verity_root,
        "verity_salt": manifest.verity_salt,
        "data_size": manifest.data_size,
        "file_size": manifest.file_size,
        "file_sha256": manifest.file_sha256,
        "files": files,
    }


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


def identity(recipe: int, tree_digest: Digest, verity_root: str) -> Digest:
    """Return the digest by which an image is called and measured: it binds the bytes that are mounted."""
    return Digest.of(
        canonical({"recipe": recipe, "tree_digest": str(tree_digest), "verity_root": verity_root})
    )


def parse_manifest(data: bytes, *, what: str) -> Manifest:
    """Read a manifest that secrun wrote; raises SecrunError if it did not."""
    fields = Fields.document(data, what=what, limit=MAX_RECORD_BYTES, schema=SCHEMA)
    if (flavour := fields.text("flavour")) != "nspawn":
        fields.unexpected("flavour", flavour, "nspawn")
    result = Manifest(
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
            "agent": inputs.agent,
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
        agent=fields.text("agent"),
        inputs=tuple(_fingerprint(item) for item in fields.objects("inputs")),
    )
    fields.end()
    return result
