"""The JSON beside a rootfs image, and the same facts as the sandboxed worker reports them."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from secrun.digest import Digest
from secrun.errors import ImageError
from secrun.image.rootfs import limits
from secrun.image.rootfs.model import FORMAT_VERSION, Group, Passwd, RootfsImage
from secrun.jsonio import JsonObject, JsonValue, canonical, parse_object
from secrun.record import record

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_BLOCK = 4096

_T = TypeVar("_T")


@record
class Facts:
    """What only rendering can tell about an image."""

    data_size: int
    file_size: int
    tree_digest: Digest
    verity_root: str
    verity_salt: str
    max_id: int
    users: tuple[Passwd, ...]
    groups: tuple[Group, ...]
    dropped_xattrs: tuple[str, ...]


class _Reader:
    """Takes typed fields out of one JSON object and insists that none is left over."""

    def __init__(self, value: JsonObject, what: str) -> None:
        self._left = dict(value)
        self._what = what

    def fail(self, key: str, expected: str) -> ImageError:
        return ImageError(
            f"{self._what}: field {key!r} is not {expected}",
            hint="remove it with secrun image rm and fetch the image again",
            code="image-record",
        )

    def text(self, key: str) -> str:
        value = self._left.pop(key, None)
        if not isinstance(value, str):
            raise self.fail(key, "a string")
        return value

    def number(self, key: str, limit: int) -> int:
        value = self._left.pop(key, None)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            raise self.fail(key, f"a number up to {limit}")
        return value

    def hash(self, key: str) -> str:
        value = self.text(key)
        if not _HEX.match(value):
            raise self.fail(key, "64 hex digits")
        return value

    def list(self, key: str, parse: Callable[[JsonValue], _T | None], limit: int) -> tuple[_T, ...]:
        value = self._left.pop(key, None)
        if not isinstance(value, list) or len(value) > limit:
            raise self.fail(key, f"a list of up to {limit} items")
        items = []
        for raw in value:
            item = parse(raw)
            if item is None:
                raise self.fail(key, "a list of well-formed items")
            items.append(item)
        return tuple(items)

    def done(self) -> None:
        if self._left:
            raise self.fail(next(iter(self._left)), "known")


def _is_id(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limits.MAX_ID


def _string(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None


def _digest(value: JsonValue) -> Digest | None:
    return Digest.parse(value) if isinstance(value, str) else None


def _passwd(value: JsonValue) -> Passwd | None:
    match value:
        case [str(name), int(uid), int(gid), str(home)] if _is_id(uid) and _is_id(gid):
            return Passwd(name=name, uid=uid, gid=gid, home=home)
    return None


def _group(value: JsonValue) -> Group | None:
    match value:
        case [str(name), int(gid), list(members)] if _is_id(gid):
            names = tuple(member for member in members if isinstance(member, str))
            if len(names) == len(members):
                return Group(name=name, gid=gid, members=names)
    return None


def facts_to_json(facts: Facts) -> JsonObject:
    """Return the JSON form that `_facts` reads."""
    return {
        "data_size": facts.data_size,
        "file_size": facts.file_size,
        "tree_digest": str(facts.tree_digest),
        "verity_root": facts.verity_root,
        "verity_salt": facts.verity_salt,
        "max_id": facts.max_id,
        "users": [[user.name, user.uid, user.gid, user.home] for user in facts.users],
        "groups": [[group.name, group.gid, list(group.members)] for group in facts.groups],
        "dropped_xattrs": list(facts.dropped_xattrs),
    }


def _facts(reader: _Reader) -> Facts:
    facts = Facts(
        data_size=reader.number("data_size", limits.WORKER_FILE_BYTES),
        file_size=reader.number("file_size", limits.WORKER_FILE_BYTES),
        tree_digest=Digest.parse(reader.text("tree_digest")),
        verity_root=reader.hash("verity_root"),
        verity_salt=reader.hash("verity_salt"),
        max_id=reader.number("max_id", limits.MAX_ID),
        users=reader.list("users", _passwd, limits.MAX_ACCOUNTS),
        groups=reader.list("groups", _group, limits.MAX_ACCOUNTS),
        dropped_xattrs=reader.list("dropped_xattrs", _string, limits.MAX_DROPPED_NAMES * 2),
    )
    if facts.data_size % _BLOCK or not 2 * _BLOCK <= facts.data_size < facts.file_size:
        raise reader.fail("data_size", "whole blocks in front of the hash tree")
    return facts


def parse_facts(value: JsonObject) -> Facts:
    """Check the worker's answer; raises ImageError for anything but well-formed facts."""
    reader = _Reader(value, "answer of the rendering process")
    facts = _facts(reader)
    reader.done()
    return facts


def image_of(facts: Facts, *, key: Digest, path: Path, diff_ids: Sequence[Digest]) -> RootfsImage:
    """Join what the caller knows and what rendering found out."""
    return RootfsImage(
        key=key,
        path=path,
        format_version=FORMAT_VERSION,
        data_size=facts.data_size,
        file_size=facts.file_size,
        tree_digest=facts.tree_digest,
        verity_root=facts.verity_root,
        verity_salt=facts.verity_salt,
        max_id=facts.max_id,
        users=facts.users,
        groups=facts.groups,
        diff_ids=tuple(diff_ids),
        dropped_xattrs=facts.dropped_xattrs,
    )


def encode(image: RootfsImage) -> bytes:
    """Return the record of `image` as canonical JSON."""
    facts = Facts(
        data_size=image.data_size,
        file_size=image.file_size,
        tree_digest=image.tree_digest,
        verity_root=image.verity_root,
        verity_salt=image.verity_salt,
        max_id=image.max_id,
        users=image.users,
        groups=image.groups,
        dropped_xattrs=image.dropped_xattrs,
    )
    return canonical(
        {
            **facts_to_json(facts),
            "format_version": image.format_version,
            "key": str(image.key),
            "diff_ids": [str(diff_id) for diff_id in image.diff_ids],
        }
    )


def decode(data: bytes, *, key: Digest, path: Path) -> RootfsImage:
    """Parse the record of the image `key` at `path`; raises ImageError for anything unexpected in it."""
    what = f"record of rootfs image {key}"
    reader = _Reader(parse_object(data, what=what, limit=limits.MAX_RECORD_BYTES), what)
    version = reader.number("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION or reader.text("key") != str(key):
        raise reader.fail("key", f"{key} in format {FORMAT_VERSION}")
    diff_ids = reader.list("diff_ids", _digest, limits.MAX_LAYERS)
    facts = _facts(reader)
    reader.done()
    return image_of(facts, key=key, path=path, diff_ids=diff_ids)
