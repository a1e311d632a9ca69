"""Progress shows on a terminal only, with the whole in view; notes are said everywhere."""

import io
import os
import pty
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secrun.image import progress
from secrun.image.progress import TerminalProgress

WHAT = "docker://r.example/app:1"


def drawn(environ, act):
    """Return what a terminal shows while `act` reports progress."""
    main, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        act(TerminalProgress(stream, environ))
        # Closing the terminal's side before reading would lose what is in it: read up to a mark.
        stream.write("<end>")
        stream.flush()
        text = ""
        while not text.endswith("<end>"):
            text += os.read(main, 65536).decode()
    os.close(main)
    return text.removesuffix("<end>")


def half(shown):
    shown.start(WHAT, 2_000_000)
    shown.advance(1_000_000)


def test_a_terminal_shows_share_bytes_and_total():
    text = drawn({"TERM": "xterm"}, half)
    assert f"{WHAT}   50%  1.0 MB of 2.0 MB" in text
    assert "\x1b[2m" in text


def test_no_color_leaves_out_colours():
    text = drawn({"TERM": "xterm", "NO_COLOR": "1"}, half)
    assert "1.0 MB of 2.0 MB" in text
    assert "\x1b[2m" not in text


def test_the_line_is_wiped_in_the_end():
    assert drawn({"TERM": "xterm"}, lambda shown: (half(shown), shown.finish())).endswith("\r\x1b[K")


def test_a_file_gets_notes_only():
    stream = io.StringIO()
    shown = TerminalProgress(stream, {"TERM": "xterm"})
    half(shown)
    shown.note("using the stored image")
    shown.finish()
    assert stream.getvalue() == "secrun: note: using the stored image\n"


def test_a_dumb_terminal_gets_no_line():
    def act(shown):
        half(shown)
        shown.note("x")

    assert drawn({"TERM": "dumb"}, act).strip() == "secrun: note: x"


def test_a_download_that_starts_again_goes_back():
    def act(shown):
        half(shown)
        threads = [threading.Thread(target=shown.advance, args=(-250_000,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shown._done == 0

    drawn({"TERM": "xterm"}, act)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (12_340_000_000, "12.3 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_sizes_have_three_digits(count, text):
    assert progress.human(count) == text


@given(
    st.text(max_size=300),
    st.integers(0, 10**15),
    st.integers(0, 10**15),
    st.floats(0, 1e6),
    st.integers(0, 200),
)
def test_a_line_never_wraps(what, done, total, seconds, width):
    assert len(progress.line(what, done, total, seconds, width=width)) <= max(0, width - 1)
