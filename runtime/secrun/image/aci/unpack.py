"""Take images apart in the sandbox, and check what comes out of it: sizes, digests, places.

The sandbox writes into two files that the caller made. Digests are computed here, from these files; from the
sandbox come only numbers, and whoever broke into it could say anything.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image import fields
from secrun.image.aci import manifest as manifests
from secrun.image.aci.filter import Named, Place, Whitelist, layer_files, owner_of, split, write_layer
from secrun.image.aci.manifest import AciManifest
from secrun.image.rootfs import inflate
from secrun.image.rootfs.model import Compression, LayerSource
from secrun.image.rootfs.sandbox import Confined, run_confined
from secrun.image.rootfs.tarindex import TarIndex
from secrun.jsonio import JsonObject, JsonValue
from secrun.record import record
from secrun.syscalls import LinuxSyscalls

_COPY = 1 << 20


@record
class MadeLayer:
    """A layer that lies in a file of its own, uncompressed: its digest is its diff_id."""

    path: Path
    digest: Digest
    size: int


@record
class Unpacked:
    """An image taken apart; `image_id` is the SHA-512 of its tar.

    `text` is the manifest byte for byte; `user` and `group` are numbers where the manifest names a path;
    `found` are the paths of its whitelist that the image itself has.
    """

    image_id: Digest
    manifest: AciManifest
    text: str
    layer: MadeLayer
    user: str
    group: str
    found: frozenset[str]


def hashed(fd: int, algorithm: str) -> Digest:
    """Return the digest of a whole file."""
    state = hashlib.new(algorithm)
    position = 0
    while chunk := os.pread(fd, _COPY, position):
        state.update(chunk)
        position += len(chunk)
    return Digest(algorithm, state.hexdigest())


def _create(path: Path, stack: ExitStack) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, fd)
    return fd


def _preload() -> None:
    """Import what a body needs, while the file system can still be read."""
    for compression in Compression:
        inflate.preload(compression)


def _found(whitelist: Whitelist) -> list[JsonValue]:
    return [path.decode("utf-8", "replace") for path in sorted(whitelist.found)]


def _owner(files: Sequence[Named], word: str, position: int) -> str:
    """Resolve a user or group that is given as a path; other words stay as they are."""
    if not word.startswith("/"):
        return word
    owner = owner_of(files, word)
    if owner is None:
        raise ImageError(
            f"the owner of {word[:200]!r} is to run the app, and the image itself has no such file",
            hint="files of dependencies do not count; give --user",
            code="image-aci",
        )
    return str(owner[position])


def _take_apart(fd: int, size: int, tar_fd: int, layer_fd: int) -> JsonObject:
    """Run in the sandbox: decompress, find manifest and files, write the layer."""
    compression = inflate.compression_of(fd)
    total = 0
    for chunk in inflate.inflated(fd, compression, size=size, name="of the file", budget=inflate.Budget()):
        inflate.write_all(tar_fd, chunk)
        total += len(chunk)
    place, files = split(TarIndex(tar_fd, total, layer="of the file"))
    text = os.pread(tar_fd, place.size, place.offset)
    document = manifests.document_of(text, what="image manifest")
    parsed = manifests.read(document, what="image manifest")
    whitelist = Whitelist(parsed.path_whitelist)
    write_layer(files, tar_fd, whitelist, layer_fd)
    app = parsed.app
    return {
        "manifest": document,
        "offset": place.offset,
        "size": place.size,
        "user": _owner(files, app.user, 0) if app else "",
        "group": _owner(files, app.group, 1) if app else "",
        "found": _found(whitelist),
    }


def _nonsense() -> ImageError:
    return ImageError("the sandbox that reads images answered nonsense", code="image-worker")


def _text(answer: JsonObject, key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str):
        raise _nonsense()
    return value


def _place(answer: JsonObject, file_size: int) -> Place:
    offset, size = answer.get("offset"), answer.get("size")
    if (
        not isinstance(offset, int)
        or not isinstance(size, int)
        or not 0 <= offset <= offset + size <= file_size
    ):
        raise _nonsense()
    return Place(offset=offset, size=size)


def _paths(answer: JsonObject) -> frozenset[str]:
    value = answer.get("found")
    if not isinstance(value, list):
        raise _nonsense()
    return frozenset(f"/{item}" for item in value if isinstance(item, str))


def _made(path: Path, fd: int) -> MadeLayer:
    return MadeLayer(path=path, digest=hashed(fd, "sha256"), size=os.fstat(fd).st_size)


def unpack(fd: int, scratch: Path, *, what: str) -> Unpacked:
    """Take the image in an open file apart; the layer lies in `scratch` afterwards. Raises ImageError.

    Forks: the process must have no other threads.
    """
    size = os.fstat(fd).st_size
    with ExitStack() as stack:
        tar = scratch / "image.tar"
        tar_fd = _create(tar, stack)
        stack.callback(tar.unlink)
        layer = scratch / "own.layer"
        layer_fd = _create(layer, stack)
        confined = Confined(
            body=lambda: _take_apart(fd, size, tar_fd, layer_fd),
            prepare=_preload,
            keep_fds=[fd, tar_fd, layer_fd],
        )
        answer = _named(what, confined)
        place = _place(answer, os.fstat(tar_fd).st_size)
        data = os.pread(tar_fd, place.size, place.offset)
        named = f"image manifest of {what}"
        # Its bytes go into the store as they are; what they say is the sandbox's word.
        parsed = manifests.read(fields.mapping(answer, "manifest", named), what=named)
        return Unpacked(
            image_id=hashed(tar_fd, "sha512"),
            manifest=parsed,
            text=data.decode("utf-8"),
            layer=_made(layer, layer_fd),
            user=_text(answer, "user"),
            group=_text(answer, "group"),
            found=_paths(answer),
        )


def _named(what: str, confined: Confined) -> JsonObject:
    try:
        return run_confined(confined, LinuxSyscalls())
    except ImageError as error:
        raise ImageError(f"{what}: {error.message}", hint=error.hint, code=error.code) from error


def _narrow(fds: Sequence[tuple[int, int, int]], paths: Sequence[str]) -> JsonObject:
    """Run in the sandbox: filter layers by a whitelist."""
    whitelist = Whitelist(paths)
    for source_fd, size, out_fd in fds:
        index = TarIndex(source_fd, size, layer="of a dependency")
        write_layer(layer_files(index), source_fd, whitelist, out_fd)
    return {"found": _found(whitelist)}


def narrowed(
    layers: Sequence[LayerSource], paths: Sequence[str], scratch: Path, *, what: str
) -> tuple[list[MadeLayer], frozenset[str]]:
    """Filter the layers of dependencies by the whitelist of an image above them.

    Returns the layers, and which paths were found. Raises ImageError; forks.
    """
    with ExitStack() as stack:
        fds: list[tuple[int, int, int]] = []
        targets: list[Path] = []
        for number, layer in enumerate(layers):
            source = os.open(layer.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, source)
            targets.append(scratch / f"dependency-{number}.layer")
            fds.append((source, layer.size, _create(targets[-1], stack)))
        keep = [fd for source, _, out in fds for fd in (source, out)]
        confined = Confined(body=lambda: _narrow(fds, paths), prepare=_preload, keep_fds=keep)
        answer = _named(what, confined)
        made = [_made(path, out) for path, (_, _, out) in zip(targets, fds, strict=True)]
        return made, _paths(answer)
