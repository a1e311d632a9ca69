"""Marks of a pod's start: who adds them, what is read of them, what people are shown."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun import checkpoint
from secrun.errors import StateError
from secrun.pod import timing
from secrun.pod.timing import Mark
from secrun.stage1.podfiles import PodFiles


@pytest.fixture
def _forgotten(monkeypatch):
    monkeypatch.setattr(checkpoint, "marks", None)


@pytest.mark.usefixtures("_forgotten")
def test_steps_are_kept_in_order_once_somebody_wants_them():
    checkpoint.reached("before")
    checkpoint.keep()
    checkpoint.reached("one")
    checkpoint.reached("two")
    assert [name for name, _ in checkpoint.marks] == ["begun", "one", "two"]
    times = [ns for _, ns in checkpoint.marks]
    assert times == sorted(times)


def test_several_writers_add_to_the_marks_of_a_pod(tmp_path):
    files = PodFiles(tmp_path)
    assert timing.read(files) == ()
    fd = timing.append(files, [("begun", 5), ("before-waiter", 7)])
    os.close(timing.append(files, [("concluded", 9)]))
    os.write(fd, b"guest systemd 3\n")
    os.close(fd)
    assert timing.read(files) == (
        Mark(side="host", name="begun", ns=5),
        Mark(side="host", name="before-waiter", ns=7),
        Mark(side="host", name="concluded", ns=9),
        Mark(side="guest", name="systemd", ns=3),
    )


def test_a_line_that_is_being_written_is_left_out():
    assert timing.parse(b"host a 1\nhost b 2", what="x") == (Mark(side="host", name="a", ns=1),)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"host a",
        b"host a 1 2",
        b"host  1",
        b"moon a 1",
        b"host a -1",
        b"host a 1e3",
        b"host a\x1b 1",
        b"host a\xff 1",
        b"host " + b"a" * 101 + b" 1",
        b"host a " + b"1" * 20,
        b"host a \xd9\xa3",
    ],
)
def test_a_line_that_is_no_mark_is_named(line):
    with pytest.raises(StateError) as caught:
        timing.parse(b"host a 1\n" + line + b"\n", what="timing of x")
    assert "timing of x: line 2 is" in caught.value.message
    assert "\x1b" not in caught.value.message


def test_a_file_of_marks_is_read_up_to_a_bound(tmp_path):
    (tmp_path / "timing").write_bytes(b"host a 1\n" * 10_000)
    with pytest.raises(StateError):
        timing.read(PodFiles(tmp_path))


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "timing").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="timing"):
        timing.append(PodFiles(tmp_path), [("a", 1)])
    assert not (tmp_path / "victim").exists()


MARKS = st.builds(
    Mark,
    side=st.sampled_from(["host", "guest"]),
    name=st.from_regex(r"[a-z:-]{1,20}", fullmatch=True),
    ns=st.integers(0, 10**18),
)


@given(st.lists(MARKS, max_size=20))
def test_marks_read_back_as_written(marks):
    text = "".join(f"{mark.side} {mark.name} {mark.ns}\n" for mark in marks)
    assert timing.parse(text.encode(), what="x") == tuple(marks)
    assert sum(line.startswith("  ") for line in timing.table(marks)) == len(marks)


@given(st.binary(max_size=200))
def test_whatever_is_in_the_file_gives_marks_or_an_error(data):
    with contextlib.suppress(StateError):
        timing.parse(data, what="x")


def test_people_see_milliseconds_of_each_side():
    marks = timing.parse(
        b"host b 7000000\nguest stage0 1500000\nhost a 5000000\nhost c 17500000\n", what="x"
    )
    assert [*timing.table(marks)] == [
        "host, ms:",
        "  a       0.0      +0.0",
        "  b       2.0      +2.0",
        "  c      12.5     +10.5",
        "guest, ms since its kernel began:",
        "  stage0       1.5      +1.5",
    ]
