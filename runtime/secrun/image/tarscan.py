"""Find the members of an archive of images; runs in the sandbox, since the bytes are a stranger's.

Only places and sizes leave the sandbox. What is read there later is copied under a digest.
"""

import os
import posixpath
import re
from enum import StrEnum
from typing import TYPE_CHECKING

from secrun.errors import ImageError
from secrun.image import limits
from secrun.jsonio import JsonObject, JsonValue
from secrun.record import record

if TYPE_CHECKING:
    import tarfile

# All names of both formats are made of these; others cannot be referred to and are left out.
_NAME = re.compile(r"[A-Za-z0-9._/:+@-]{1,255}\Z")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class MemberKind(StrEnum):
    """What a member of an archive can be to us."""

    FILE = "file"
    LINK = "link"


@record
class Member:
    """A file at `offset` with `size` bytes, or a link to another member."""

    kind: MemberKind
    offset: int = 0
    size: int = 0
    target: str = ""


def normal(name: str) -> str:
    """Return a member's name without `./`, empty if it leaves the archive or has odd characters."""
    if not _NAME.match(name):
        return ""
    tidy = posixpath.normpath(name).lstrip("/")
    return "" if tidy == "." or tidy.startswith("..") else tidy


def scan(fd: int) -> dict[str, Member]:
    """Return the members by name, the last of several winning as in tar(1); raises ImageError."""
    import tarfile

    _refuse_compressed(fd)
    members: dict[str, Member] = {}
    count = 0
    try:
        with os.fdopen(os.dup(fd), "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (info := archive.next()) is not None:
                count += 1
                if count > limits.MAX_ARCHIVE_MEMBERS:
                    raise ImageError(
                        f"the archive has more than {limits.MAX_ARCHIVE_MEMBERS} members", code="image-limit"
                    )
                member = _member(info)
                if member is not None and (name := normal(info.name)):
                    members[name] = member
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ImageError(
            f"the archive is not a tar file or is damaged: {error}", code="image-tar"
        ) from error
    return members


def _member(info: "tarfile.TarInfo") -> Member | None:
    if info.isreg() and not info.issparse():
        return Member(kind=MemberKind.FILE, offset=info.offset_data, size=info.size)
    if info.issym():
        target = normal(posixpath.join(posixpath.dirname(info.name), info.linkname))
        return Member(kind=MemberKind.LINK, target=target)
    if info.islnk():
        return Member(kind=MemberKind.LINK, target=normal(info.linkname))
    return None


def _refuse_compressed(fd: int) -> None:
    head = os.pread(fd, 8, 0)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise ImageError(
                f"the archive is compressed with {name}", hint="decompress it first", code="image-tar"
            )


def to_json(members: dict[str, Member]) -> JsonObject:
    """Return the answer of the sandbox."""
    rows: list[JsonValue] = [
        [name, str(member.kind), member.offset, member.size, member.target]
        for name, member in sorted(members.items())
    ]
    return {"members": rows}


def from_json(answer: JsonObject, *, file_size: int) -> dict[str, Member]:
    """Parse the sandbox's answer; whoever broke into it could say anything, so every number is checked."""
    rows = answer.get("members")
    members: dict[str, Member] = {}
    for row in rows if isinstance(rows, list) else ():
        match row:
            case [str(name), str(kind), int(offset), int(size), str(target)] if kind in set(MemberKind):
                if not (offset >= 0 and size >= 0 and offset + size <= file_size):
                    raise ImageError(f"the archive ends within its member {name!r}", code="image-tar")
                members[name] = Member(kind=MemberKind(kind), offset=offset, size=size, target=target)
            case _:
                raise ImageError("the sandbox that reads archives answered nonsense", code="image-worker")
    return members
