"""What members of the group fetched: it spares root a download, and can change nothing that root runs."""

import hashlib
import os
import signal
import threading
from pathlib import Path

import pytest

from secrun.digest import Digest
from secrun.image import members
from secrun.image.blobs import BlobWriter
from secrun.image.manifest import Descriptor
from secrun.paths import Layout

GOOD = b"good" * 100_000
EVIL = b"evil" * 100_000
DESCRIPTOR = Descriptor(media_type="x", digest=Digest.of(GOOD), size=len(GOOD))


class Counter:
    def advance(self, count: int) -> None:
        pass


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(root=tmp_path / "root", run_root=tmp_path / "run")


@pytest.fixture
def place(layout: Layout) -> Path:
    """Where the member 1000 has the blob, or would."""
    path = layout.members / "1000/images/blobs/sha256" / DESCRIPTOR.digest.hex
    path.parent.mkdir(parents=True)
    return path


def taken(layout: Layout, tmp_path: Path) -> tuple[bool, bytes]:
    target = tmp_path / "target"
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        writer = BlobWriter(fd, DESCRIPTOR, counter=Counter(), cancelled=threading.Event())
        good = members.take(layout, DESCRIPTOR, writer)
        assert good == writer.complete
    finally:
        os.close(fd)
    return good, target.read_bytes()


def test_a_blob_of_a_member_is_copied(layout: Layout, place: Path, tmp_path: Path):
    place.write_bytes(GOOD)
    assert taken(layout, tmp_path) == (True, GOOD)
    # It is a copy: what the member does afterwards is the member's.
    place.write_bytes(EVIL)
    assert (tmp_path / "target").read_bytes() == GOOD


def test_without_members_nothing_is_taken(layout: Layout, tmp_path: Path):
    assert taken(layout, tmp_path) == (False, b"")


@pytest.mark.parametrize("data", [EVIL, GOOD[:-1], GOOD + b"x", b""])
def test_other_bytes_are_not_taken(layout: Layout, place: Path, tmp_path: Path, data: bytes):
    place.write_bytes(data)
    assert taken(layout, tmp_path) == (False, b"")


def test_the_next_member_is_asked(layout: Layout, place: Path, tmp_path: Path):
    place.write_bytes(EVIL)
    other = layout.members / "1001/images/blobs/sha256" / place.name
    other.parent.mkdir(parents=True)
    other.write_bytes(GOOD)
    assert taken(layout, tmp_path) == (True, GOOD)


@pytest.mark.parametrize("step", ["file", "folder", "member"])
def test_no_link_is_followed(layout: Layout, place: Path, tmp_path: Path, step: str):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / place.name).write_bytes(GOOD)
    if step == "file":
        place.symlink_to(secret / place.name)
    elif step == "folder":
        place.parent.rmdir()
        place.parent.symlink_to(secret)
    else:
        place.write_bytes(GOOD)
        (layout.members / "1000").rename(tmp_path / "moved")
        (layout.members / "1000").symlink_to(tmp_path / "moved")
    assert taken(layout, tmp_path) == (False, b"")


def test_a_pipe_keeps_nobody_waiting(layout: Layout, place: Path, tmp_path: Path):
    os.mkfifo(place)
    assert taken(layout, tmp_path) == (False, b"")


def test_a_member_who_races_loses(layout: Layout, place: Path, tmp_path: Path):
    """Another process exchanges bytes, files and links while root copies: all that is taken is good."""
    place.write_bytes(GOOD)
    evil = place.with_name("evil")
    evil.write_bytes(EVIL)
    racer = os.fork()
    if racer == 0:
        try:
            _race(place, evil)
        finally:
            os._exit(1)
    try:
        outcomes = [taken(layout, tmp_path) for _ in range(300)]
    finally:
        os.kill(racer, signal.SIGKILL)
        os.waitpid(racer, 0)
    for good, data in outcomes:
        assert hashlib.sha256(data).hexdigest() == DESCRIPTOR.digest.hex if good else data == b""


def _race(place: Path, evil: Path) -> None:
    other = place.with_name("other")
    while True:
        # Bytes within the open file, then another file of the name, then a link, then the good one again.
        fd = os.open(place, os.O_WRONLY)
        for position in range(0, len(GOOD), 4096):
            os.pwrite(fd, EVIL[:4096], position)
        for position in range(0, len(GOOD), 4096):
            os.pwrite(fd, GOOD[position : position + 4096], position)
        os.close(fd)
        for source in (evil, None):
            if source is not None:
                other.symlink_to(source)
            else:
                other.write_bytes(GOOD)
            other.rename(place)
