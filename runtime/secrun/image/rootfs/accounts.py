"""The image's own user and group tables, read inside its tree and bounded."""

from collections.abc import Iterator

from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.merge import MergedTree
from secrun.image.rootfs.model import FileKind, Group, Passwd
from secrun.image.rootfs.writer import read_content


def _lines(tree: MergedTree, path: bytes) -> Iterator[list[str]]:
    """Yield the fields of each line; lines that are no UTF-8 name nobody that can be asked for."""
    node = tree.lookup(path)
    if node is None or node.kind is not FileKind.FILE:
        return
    shown = path.decode()
    if node.size > limits.MAX_ACCOUNT_FILE_BYTES:
        raise ImageError(
            f"/{shown} of the image has {node.size} bytes, the limit MAX_ACCOUNT_FILE_BYTES is "
            f"{limits.MAX_ACCOUNT_FILE_BYTES}",
            code="image-limit",
        )
    lines = read_content(node.source, node.size).split(b"\n")
    if len(lines) - 1 > limits.MAX_ACCOUNTS:
        raise ImageError(
            f"/{shown} of the image has {len(lines)} lines, the limit MAX_ACCOUNTS is {limits.MAX_ACCOUNTS}",
            code="image-limit",
        )
    for line in lines:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text and text.isprintable() and not text.startswith(("#", ":", "+", "-")):
            yield text.split(":")


def _id(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    value = int(text)
    return value if value <= limits.MAX_ID else None


def users(tree: MergedTree) -> tuple[Passwd, ...]:
    """Return the entries of /etc/passwd (passwd(5)); malformed lines are left out, as getpwnam(3) does."""
    found = []
    for fields in _lines(tree, b"etc/passwd"):
        uid, gid = (_id(fields[2]), _id(fields[3])) if len(fields) >= 6 else (None, None)
        if uid is not None and gid is not None:
            found.append(Passwd(name=fields[0], uid=uid, gid=gid, home=fields[5]))
    return tuple(found)


def groups(tree: MergedTree) -> tuple[Group, ...]:
    """Return the entries of /etc/group (group(5)); malformed lines are left out."""
    found = []
    for fields in _lines(tree, b"etc/group"):
        gid = _id(fields[2]) if len(fields) >= 3 else None
        if gid is not None:
            members = fields[3].split(",") if len(fields) > 3 else []
            found.append(Group(name=fields[0], gid=gid, members=tuple(filter(None, members))))
    return tuple(found)
