"""A person at a terminal: a pseudo-terminal of some size, and a process that does not outlive the test."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def killed_in_the_end(argv: Sequence[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that does not outlive the test, however that ends."""
    with subprocess.Popen(argv, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.contextmanager
def at_a_terminal(
    argv: Sequence[str], *, size: tuple[int, int] | None = None
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a process on a terminal of its own; give the person's side, and the process."""
    master, slave = pty.openpty()
    try:
        if size is not None:
            resize(slave, *size)
        with killed_in_the_end(
            argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        ) as process:
            os.close(slave)
            yield master, process
    finally:
        os.close(master)


def expect(terminal: int, text: bytes, seconds: float = 60) -> bytes:
    """Read from a terminal until `text` has come; return all that came."""
    seen, deadline = b"", time.monotonic() + seconds
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{text!r} did not come within {seconds} s, but {seen!r}"
        seen += os.read(terminal, 4096)
    return seen
