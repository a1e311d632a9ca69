"""Progress of a fetch: one line on a terminal, nothing elsewhere; notes are always said."""

import _thread  # threading.Lock without the rest of threading, which most runs do without
import os
import time
from collections.abc import Mapping
from typing import Protocol, TextIO

_REDRAW_SECONDS = 0.1
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Progress(Protocol):
    """Hears how a fetch goes on; called from several threads."""

    def start(self, what: str, total: int) -> None:
        """`total` bytes of `what` are to come."""

    def advance(self, count: int) -> None:
        """`count` bytes came; negative when a download starts again."""

    def finish(self) -> None:
        """All came, or the fetch failed."""

    def note(self, text: str) -> None:
        """Something that the user should know although it is no error."""


class NullProgress:
    """Says nothing but keeps the notes for the caller."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, what: str, total: int) -> None:
        """Ignore."""

    def advance(self, count: int) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Keep."""
        self.notes.append(text)


def human(count: int) -> str:
    """Return a number of bytes in three digits and a decimal unit, such as 12.3 MB."""
    value = float(count)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def line(what: str, done: int, total: int, seconds: float, *, width: int) -> str:
    """Return the text of the progress line, cut to `width` columns; pure."""
    share = f"{done * 100 // total:3d}%" if total else "100%"
    speed = f"  {human(int(done / seconds))}/s" if seconds >= 0.5 else ""
    text = f"{share}  {human(done)} of {human(total)}{speed}"
    room = max(0, width - len(text) - 3)
    name = what if len(what) <= room else "..." + what[len(what) - max(0, room - 3) :] if room > 3 else ""
    return f"{name}  {text}"[: max(0, width - 1)]


class TerminalProgress:
    """Draws one line on a terminal; elsewhere only the notes are written."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._live = stream.isatty() and environ.get("TERM") != "dumb"
        self._color = self._live and not environ.get("NO_COLOR")
        self._lock = _thread.allocate_lock()
        self._what = ""
        self._done = self._total = 0
        self._began = self._drawn = 0.0

    def start(self, what: str, total: int) -> None:
        """Begin a line."""
        with self._lock:
            self._what, self._total, self._done = what, total, 0
            self._began = time.monotonic()
            self._drawn = 0.0

    def advance(self, count: int) -> None:
        """Count, and draw at most ten times a second."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if self._live and now - self._drawn >= _REDRAW_SECONDS:
                self._drawn = now
                self._draw(now)

    def _draw(self, now: float) -> None:
        width = os.get_terminal_size(self._stream.fileno()).columns or 80
        text = line(self._what, self._done, self._total, now - self._began, width=width)
        shown = f"\x1b[2m{text}\x1b[0m" if self._color else text
        self._stream.write(f"\r{shown}\x1b[K")
        self._stream.flush()

    def finish(self) -> None:
        """Wipe the line."""
        with self._lock:
            if self._live and self._drawn:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
                self._drawn = 0.0

    def note(self, text: str) -> None:
        """Write a line of its own."""
        self.finish()
        with self._lock:
            self._stream.write(f"secrun: note: {text}\n")
            self._stream.flush()
