"""umoci as the judge of merging: random layers, both ways, one tree."""

import os
import random
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from secrun.errors import ExternalError, ImageError
from secrun.image.rootfs.merge import MergedTree
from secrun.image.rootfs.tarindex import TarIndex
from secrun.launch import run
from support.erofs_judges import Seen, mounted, pack_to, walk
from support.images import LayoutWriter
from support.layers import Member, file, hardlink, pax, symlink, tar

# Few names, so that entries meet each other all the time; most are always folders or never.
_FOLDERS = (b"a", b"b", b"c")
_FILES = (b"f", b"g", b"h\n\xfe")
_TARGETS = (
    b"a",
    b"../a",
    b"/b",
    b"../../../c",
    b"a/b",
    b"/a/../b/./c",
    b".",
    b"..",
    b"/",
    b"missing/x",
    b"b/../c",
)

# Times of entries end before any test runs: a later one is when umoci unpacked.
_LAST_TIME = 1_600_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one reader made of an image: a tree, or a refusal with its reason."""

    tree: dict[bytes, Seen] | None
    reason: str = ""


class _Layers:
    """Draws members; hard links mostly lead to files that were drawn before."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._files: list[bytes] = []

    def path(self, last: tuple[bytes, ...]) -> bytes:
        rng = self._rng
        parts = [rng.choice(_FOLDERS) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
        parts.append(rng.choice(_FOLDERS + _FILES if rng.random() < 0.05 else last))
        if rng.random() < 0.1:
            parts.insert(rng.randrange(len(parts)), rng.choice((b"..", b".", b"")))
        return (b"/" if rng.random() < 0.1 else b"") + b"/".join(parts)

    def member(self) -> Member | bytes:
        rng = self._rng
        kind = rng.choices(
            (
                "file",
                "folder",
                "link to a folder",
                "symlink",
                "hardlink",
                "whiteout",
                "opaque",
                "node",
                "xattr",
            ),
            weights=(30, 25, 6, 6, 10, 8, 4, 3, 5),
        )[0]
        time = rng.randrange(1, _LAST_TIME)
        if kind == "folder":
            mode = rng.choice((0o755, 0o700, 0o1777, 0o2755))
            return Member(name=self.path(_FOLDERS), type=b"5", mode=mode, gid=rng.randrange(3), mtime=time)
        if kind == "link to a folder":
            return symlink(self.path(_FOLDERS), rng.choice(_TARGETS))
        if kind in ("whiteout", "opaque"):
            return self.whiteout(kind)
        path = self.path(_FILES)
        if kind == "hardlink" and self._files:
            target = rng.choice(self._files)
            self._files.append(path)
            return hardlink(path, b"../" + target if rng.random() < 0.2 else target)
        self._files.append(path)
        if kind == "symlink":
            return symlink(path, rng.choice(_TARGETS))
        if kind == "node":
            kind_byte = rng.choice((b"3", b"4", b"6"))
            return Member(name=path, type=kind_byte, device=(5, 300), mtime=time, mode=0o600)
        return self.file(path, time, xattr=kind == "xattr")

    def whiteout(self, kind: str) -> Member:
        above, _, name = self.path(_FOLDERS + _FILES).rpartition(b"/")
        hidden = b".wh..wh..opq" if kind == "opaque" else b".wh." + (name.strip(b".") or b"a")
        return file(above + b"/" + hidden if above else hidden)

    def file(self, path: bytes, time: int, *, xattr: bool) -> Member | bytes:
        rng = self._rng
        content = bytes(rng.choice((0, 1, 5000))) + b"%d" % rng.randrange(1000)
        mode = rng.choice((0o644, 0o4755))
        made = Member(name=path, data=content, mode=mode, uid=rng.randrange(3), gid=70_000, mtime=time)
        if xattr:
            return pax(made, (b"SCHILY.xattr.user.k", b"value\n\xff"), (b"mtime", b"%d.%09d" % (time, time)))
        return made


def random_layers(seed: int) -> list[bytes]:
    """Return one to four layers that trip over each other; the same for the same seed."""
    rng = random.Random(seed)
    layers = _Layers(seed)
    return [
        tar(*[layers.member() for _ in range(rng.randrange(1, 12))])
        for _ in range(rng.choice((1, 2, 2, 3, 4)))
    ]


def umoci_view(layers: list[bytes], work: Path) -> Verdict:
    """Let umoci unpack the image as root and read the result back."""
    layout = LayoutWriter(work / "layout")
    layout.add_image("t", layers, compression="none")
    bundle = work / "bundle"
    try:
        run(["umoci", "unpack", f"--image={layout.path}:t", bundle])
    except ExternalError as error:
        return Verdict(None, error.message.splitlines()[-1])
    tree = walk(os.fsencode(bundle / "rootfs"))
    shutil.rmtree(bundle)
    return Verdict(tree)


def own_view(layers: list[bytes], work: Path) -> Verdict:
    """Merge and pack with the product, mount the image and read it back."""
    fds = []
    merged = MergedTree()
    try:
        for layer in layers:
            fd = os.memfd_create("layer")
            fds.append(fd)
            os.write(fd, layer)
            merged.apply(TarIndex(fd, len(layer), layer="t"), fd)
        pack_to(work / "image.erofs", merged.entries())
    except ImageError as error:
        return Verdict(None, error.message)
    finally:
        for fd in fds:
            os.close(fd)
    with mounted(work / "image.erofs", work / "mnt") as top:
        return Verdict(walk(top))


def without_unpack_times(own: dict[bytes, Seen], umoci: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """Give folders umoci's time where that is the time of unpacking, which no image determines.

    It is so for folders without an entry, and for those in which umoci made one.
    """
    result = dict(own)
    for path, seen in own.items():
        other = umoci.get(path)
        if other and _is_folder(seen) and _is_folder(other) and int(str(other[3])) > _LAST_TIME * 10**9:
            result[path] = (*seen[:3], other[3], *seen[4:])
    return result


def _is_folder(seen: Seen) -> bool:
    return isinstance(seen[0], int) and stat.S_ISDIR(seen[0])


def difference(layers: list[bytes], work: Path) -> tuple[bool, str]:
    """Tell whether umoci accepts the image, and in words where the two disagree; empty if nowhere."""
    umoci, own = umoci_view(layers, work), own_view(layers, work)
    if umoci.tree is None or own.tree is None:
        agree = umoci.tree is own.tree
        return umoci.tree is not None, "" if agree else f"umoci: {umoci.reason!r}, secrun: {own.reason!r}"
    adjusted = without_unpack_times(own.tree, umoci.tree)
    paths = sorted({*adjusted, *umoci.tree})
    lines = [
        f"{path!r}: umoci {umoci.tree.get(path)}, secrun {adjusted.get(path)}"
        for path in paths
        if umoci.tree.get(path) != adjusted.get(path)
    ]
    return True, "\n".join(lines)
